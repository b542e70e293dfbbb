#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Changes the lock's code in some hundred places, one at a time, and tells which changes no test sees.
# Needs `cargo install cargo-mutants`; takes more than an hour. docs/mutants.md explains
# those that are left.
#
#   pvlock/mutants.sh [OUT]        results in OUT/mutants.out and OUT/checker, default target/mutants
set -eu
cd "$(dirname "$0")/.."
out=${1:-target/mutants}
mkdir -p "$out" "$out/checker"
# Nobody looks at a backtrace here.
export CARGO_PROFILE_DEV_DEBUG=0
stage() {
    into=$1 name=$2
    shift 2
    # Exit code 2 or 3: some were not caught, or hung. That is what the next stage is for.
    cargo mutants -p pvlock --jobs 1 -o "$into" "$@" || [ $? -le 3 ]
    for kind in caught timeout missed unviable; do
        printf '%s: %s %s\n' "$name" "$(wc -l <"$into/mutants.out/$kind.txt")" "$kind"
    done >>"$out/stages.txt"
    # A test that hangs has seen the change. The next stage need not hang again.
    cat "$into/mutants.out/timeout.txt" >>"$into/mutants.out/caught.txt"
}
: >"$out/stages.txt"
stage "$out" units
stage "$out" threads --iterate --config .cargo/mutants-threads.toml
stage "$out" models --iterate --config .cargo/mutants-model.toml
stage "$out/checker" checker --config .cargo/mutants-checker.toml
cat "$out/stages.txt" "$out/mutants.out/missed.txt" "$out/checker/mutants.out/missed.txt"
