#!/usr/bin/env bash
# Builds ArceOS with the application of this folder and boots it in the lab.
#
#   lab.sh boot [FOLDER]     one domain: what it says, and who kicked whom by the hypervisor's trace
#   lab.sh table [FOLDER]    the table of the book's chapter, repeatable; a quarter of an hour on an idle core
#
# Consoles and traces go to FOLDER, arceos-out without it. PVLAB names a pvlab that is built already.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
what=${1:-} out=${2:-arceos-out}
image=x86_64-unknown-linux-gnu/release/arceos-on-xen

pvlab() {
    if [ -n "${PVLAB:-}" ]; then "$PVLAB" "$@"; else
        cargo run --release --locked --quiet --manifest-path "$here/../../Cargo.toml" -- "$@"
    fi
}
build() { # TARGET-FOLDER ARGUMENTS...
    (cd "$here" && cargo build --release --locked --target-dir "target/$1" "${@:2}")
}
boot() { # SCRIPT ARGUMENTS...: the host's own console is of no interest
    pvlab lab boot --script "$here/$1" --out "$out" --file "$here/domain.cfg" "${@:2}" > "$out/host.log"
}

mkdir -p "$out"
case $what in
    boot)
        build .
        boot boot.sh --file "$here/target/$image=/root/kernel"
        cat "$out/console"
        pvlab kicktrace summary "$out/trace.bin"
        ;;
    table)
        build .
        build original --features original-kspin
        boot table.sh --repeatable --deadline 5400 --file "$here/target/$image=/root/pvlock" \
            --file "$here/target/original/$image=/root/original"
        cat "$out/table"
        for trace in "$out"/*.trace; do
            echo "== $trace"
            pvlab kicktrace summary "$trace"
        done
        ;;
    *)
        sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
