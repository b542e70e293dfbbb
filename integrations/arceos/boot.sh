# In dom0: boots ArceOS and shows what it says. For `pvlab lab boot`.
xl create -q -e /root/domain.cfg 'kernel="/root/kernel"' 'on_poweroff="preserve"'
i=0
while [ $i -lt 300 ] && ! xl list arceos | grep -q ' ...s.. '; do i=$((i+1)); sleep 0.2; done
sleep 0.2
cat /var/log/xen/guest-arceos.log
cp /var/log/xen/guest-arceos.log /out/console
