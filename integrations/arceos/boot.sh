# In dom0, for lab.sh: boots ArceOS with its marks in the hypervisor's trace. Leaves console and trace in /out.
xentrace -D -S 1024 -e 0x080ab000 /root/trace.bin > /dev/null & tracer=$!
until [ -s /root/trace.bin ]; do usleep 100000; done
xl create -q -e /root/domain.cfg 'kernel="/root/kernel"' 'on_poweroff="preserve"' 'extra="markers=1"'
i=0
while [ $i -lt 600 ] && ! xl list arceos | grep -q ' ...s.. '; do i=$((i+1)); sleep 0.2; done
kill -INT $tracer
wait $tracer
sleep 0.2
cp /var/log/xen/guest-arceos.log /out/console
cp /root/trace.bin /out
