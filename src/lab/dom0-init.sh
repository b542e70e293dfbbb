#!/bin/sh
# The first program of dom0, or of a KVM host: brings the toolstack up, runs /pvlab/run, brings /out home, powers off.
# Lines that begin with "@lab" are read by pvlab. Names in capitals are filled in when it is built.
/bin/busybox --install -s /usr/bin
export PATH=/usr/sbin:/usr/bin:XEN_BIN HOME=/root TERM=linux
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
mount -t tmpfs run /run
# Xen below us: the toolstack of dom0.
up_xen() {
    # xl needs /var/lock, which is /run/lock: without it `xl create -c` hangs.
    mkdir -p /run/xen /run/xenstored /run/lock

    LOAD_AT_START
    mount -t xenfs xenfs /proc/xen
    xenstored --pid-file /run/xen/xenstored.pid || echo "@lab error xenstored does not start"
    tries=0
    until xenstore-read / >/dev/null 2>&1; do
        tries=$((tries + 1))
        if [ $tries -gt 300 ]; then
            echo "@lab error xenstored does not answer"
            break
        fi
        usleep 100000
    done
    xen-init-dom0 >/dev/null || echo "@lab error xen-init-dom0 failed"
    xenconsoled --log=guest --log-dir=/var/log/xen --timestamp=none || echo "@lab error xenconsoled does not start"
}

# No Xen: this Linux is the hypervisor. Its emulator comes from the packages, by a share of its own.
up_kvm() {
    LOAD_WAY_OUT
    LOAD_KVM
    [ -c /dev/kvm ] || echo "@lab error there is no /dev/kvm"
    mount -t tracefs trace /sys/kernel/tracing
    mkdir -p /lab
    mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=262144,cache=loose lab /lab || echo "@lab error the emulator is not there"
}

SHARE="-t 9p -o trans=virtio,version=9p2000.L,msize=262144"

# /out is the folder at home itself, for work that is not measured: what is in it is not lost with this host.
up_live() {
    LOAD_WAY_OUT
    if mount $SHARE out /out; then live=yes; else echo "@lab error /out is not the folder at home"; fi
}

live=no
mkdir -p /out
case " $(cat /proc/cmdline) " in
    *" lab=kvm "*) up_kvm;;
    *) up_xen;;
esac
case " $(cat /proc/cmdline) " in
    *" lab=live "*) up_live;;
esac
echo "@lab up"

if [ -e /pvlab/run ]; then
    cd /out
    sh /pvlab/run </dev/null
    status=$?
    cd /
    if [ $live = yes ]; then
        sync
        umount /out && echo "@lab status $status"
        poweroff -f
    fi
    # The way out is opened only now: a mounted 9p share has interrupts of its own, and two runs
    # with it differ soon after the first domain is created.
    LOAD_WAY_OUT
    if mount $SHARE out /mnt && cp -r /out/. /mnt && umount /mnt; then
        echo "@lab status $status"
    else
        echo "@lab error what is in /out could not be brought home"
    fi
else
    setsid cttyhack sh
fi
sync
poweroff -f
