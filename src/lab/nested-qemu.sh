#!/bin/sh
# Starts the lab's own emulator inside a KVM host, from the packages that pvlab unpacked.
libraries=/lab/usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR=$libraries/qemu
exec $libraries/ld-linux-x86-64.so.2 --library-path $libraries /lab/usr/bin/qemu-system-x86_64 \
    -L /lab/usr/share/qemu -L /lab/usr/share/seabios "$@"
