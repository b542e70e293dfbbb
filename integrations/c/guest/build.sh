#!/bin/sh
# Makes the guest: build.sh [LIBRARY [KERNEL]]. Without arguments the library too, by cargo, and `kernel` beside this file.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
library=${1:-$here/../target/x86_64-unknown-linux-gnu/release/libpvlock_c.a}
[ $# -gt 0 ] || (cd "$here/.." && cargo build --release --locked)
${CC:-cc} -std=gnu11 -O2 -Wall -Wextra -Werror -ffreestanding -fno-stack-protector -fno-pic -no-pie -mno-red-zone \
    -mgeneral-regs-only -nostdlib -static -Wl,--build-id=none -Wl,--gc-sections -Wl,-T,"$here/link.ld" \
    -I "$here/../include" -o "${2:-$here/kernel}" "$here/boot.S" "$here/xen.c" "$here/main.c" "$library"
