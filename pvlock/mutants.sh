#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Changes the lock's code in some hundred places, one at a time, and tells which changes no test sees.
# Needs `cargo install cargo-mutants`; takes an hour or two. docs/mutants.md explains
# those that are left.
#
#   pvlock/mutants.sh [OUT]        results in OUT/mutants.out, default target/mutants
set -eu
cd "$(dirname "$0")/.."
out=${1:-target/mutants}
# Exit code 2 or 3: some were not caught. That is what the second stage is for.
cargo mutants -p pvlock --jobs 1 -o "$out" || [ $? -le 3 ]
RUSTFLAGS="--cfg loom" cargo mutants -p pvlock --jobs 1 --config .cargo/mutants-model.toml --iterate -o "$out" || [ $? -le 3 ]
cat "$out/mutants.out/missed.txt"
