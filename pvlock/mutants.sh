#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Changes the lock's code in some hundred places, one at a time, and tells which changes no test sees.
# Needs `cargo install cargo-mutants`; takes about an hour. docs/mutants.md explains
# those that are left.
#
#   pvlock/mutants.sh [OUT]        results in OUT/mutants.out, default target/mutants
set -eu
cd "$(dirname "$0")/.."
out=${1:-target/mutants}
mkdir -p "$out"
stage() {
    # Exit code 2 or 3: some were not caught, or hung. That is what the next stage is for.
    cargo mutants -p pvlock --jobs 1 -o "$out" "$@" || [ $? -le 3 ]
    # A test that hangs has seen the change. The next stage need not hang again.
    cat "$out/mutants.out/timeout.txt" >>"$out/mutants.out/caught.txt"
}
stage
stage --iterate --config .cargo/mutants-threads.toml
RUSTFLAGS="--cfg loom" stage --iterate --config .cargo/mutants-model.toml
cat "$out/mutants.out/missed.txt"
