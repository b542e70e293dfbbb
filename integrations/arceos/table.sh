# In dom0: the table of the book's chapter. Two pCPUs for the domains; each line is one measurement.
#
#   1x    one domain of 2 vCPUs          2x   one domain of 4
#   2x2   two domains of 2 vCPUs each
#
# /root/pvlock and /root/original are the kernels. Kicks are counted in runs of their own, with marks in the
# hypervisor's trace, which cost time.
tasks=8

create() { # NAME KERNEL VCPUS WORDS
    xl create -q -e /root/domain.cfg "name=\"$1\"" "kernel=\"/root/$2\"" "vcpus=$3" 'cpus="1-2"' 'memory=64' \
        'on_poweroff="preserve"' "extra=\"ask=1 drill=0 tasks=$tasks $4\""
    until grep -q 'who are you' "/var/log/xen/guest-$1.log"; do usleep 100000; done
}
start() { # NAME...: types a line, close together
    for name; do ttys="$ttys $(xenstore-read "/local/domain/$(xl domid "$name")/console/tty")"; done
    for tty in $ttys; do echo go > "$tty"; done
    ttys=
}
finish() { # NAME: waits for its end, says its figures
    until xl list "$1" | grep -q ' ...s.. '; do usleep 100000; done
    until grep -q 'arceos: counter' "/var/log/xen/guest-$1.log"; do usleep 100000; done
    sed -n 's/^arceos: \(.*acquisitions.*\|counter.*\)$/\1/p' "/var/log/xen/guest-$1.log" | tr -d '\r' | tr '\n' ';'
    cp "/var/log/xen/guest-$1.log" "/out/$1.console"
    xl destroy "$1"
}
measure() { # LABEL KERNEL VCPUS DOMAINS WORDS
    names=; number=0
    while [ $number -lt "$4" ]; do
        number=$((number + 1)); names="$names $1-$2-$number"
        create "$1-$2-$number" "$2" "$3" "$5"
    done
    if [ "$trace" ]; then
        xentrace -D -S 1024 -e 0x080ab000 "/out/$1-$2.trace" > /dev/null 2>&1 & tracer=$!
        until [ -s "/out/$1-$2.trace" ]; do usleep 100000; done
    fi
    start $names
    for name in $names; do echo "$1 $2 ${trace:+traced }$name: $(finish "$name")" | tee -a /out/table; done
    if [ "$trace" ]; then kill -INT $tracer; wait $tracer; fi
}

# Sections in turns of a loop: long ones, two thirds of a task's time; and short ones, a third.
for section in 'long critical=5000 outside=2500 rounds=100' 'short critical=150 outside=300 rounds=400'; do
    set -- $section
    label=$1 words="$2 $3 $4 nap=32" trace=
    for kernel in original pvlock; do
        measure $label-1x $kernel 2 1 "$words"
        measure $label-2x $kernel 4 1 "$words"
        measure $label-2x2 $kernel 2 2 "$words"
    done
    trace=yes
    measure $label-2x-marked pvlock 4 1 "$words markers=1"
    measure $label-2x2-marked pvlock 2 2 "$words markers=1"
done
