#!/bin/sh
# SPDX-License-Identifier: MIT OR Apache-2.0
#
# Checks pvlock.pml with spin, in every configuration below: what must hold, holds; each built-in
# defect is found. Installs nothing. Needs spin (Debian package "spin") and a C compiler ("gcc").
#
#   models/check.sh            all configurations
#   models/check.sh NAME...    those whose name contains one of the words
#   models/check.sh -t NAME    also prints the steps that lead to what was found
#
# Each search ends after LIMIT seconds (default 300) at the latest, and JOBS of them (default: as many as this
# machine has cores) run at a time; 2 GiB of memory are enough for one. Lines come in the order of their ends.
# Exit codes: 0 all as expected; 1 one was not; 2 a program is missing.
set -u
LIMIT=${LIMIT:-300}
JOBS=${JOBS:-$(nproc)}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

# run NAME EXPECTED KIND SWITCHES: one configuration, in the folder this is called in.
run() {
    name=$1 expected=$2 kind=$3 switches=$4
    case $kind in
        safety) compile="-DSAFETY -DNOCLAIM" search="" ;;
        liveness) compile="-DNFAIR=2" search="-a -f" ;;
        # Its states fill the memory: they are kept in parts, which takes half as long again.
        breadth) compile="-DSAFETY -DNOCLAIM -DBFS -DCOLLAPSE" search="" ;;
    esac
    # A defect is found after few states, most of them before the compiler is done.
    case $expected in holds) compile="$compile -O2" ;; *) compile="$compile -O0" ;; esac
    # With "provided" clauses spin's partial order reduction is not sound.
    case $switches in *NESTED*) compile="$compile -DNOREDUCE" ;; esac
    begin=$(date +%s)
    # shellcheck disable=SC2086
    if ! spin $switches -a "$here/pvlock.pml" >spin.log 2>&1 ||
        ! gcc -w $compile -o pan pan.c >gcc.log 2>&1; then
        cat spin.log gcc.log 2>/dev/null
        result="does not compile"
    else
        # shellcheck disable=SC2086
        timeout "$LIMIT" ./pan -m3000000 -w24 $search >pan.log 2>&1
        case $? in
            124) result="not ended after ${LIMIT} s" ;;
            *)
                result=$(sed -n 's/^pan:[0-9]*: \(assertion violated\|invalid end state\|acceptance cycle\).*/\1/p' pan.log | head -1)
                grep -q 'errors: ' pan.log || result="search failed"
                grep -q 'max search depth too small' pan.log && result="search too deep"
                [ -n "$result" ] || result=holds
                ;;
        esac
    fi
    seconds=$(($(date +%s) - begin))
    states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' pan.log 2>/dev/null)
    verdict=$result
    [ "$result" = "$expected" ] || verdict="$result, NOT $expected"
    printf '%-34s %-26s %10s %6s\n' "$name" "$verdict" "${states:--}" "$seconds"
    if [ "$TRAIL" = yes ] && [ -e pvlock.pml.trail ]; then
        # shellcheck disable=SC2086
        spin $switches -t -p -g -k pvlock.pml.trail "$here/pvlock.pml"
    fi
    [ "$result" = "$expected" ]
}

# Called by the lines at the end, once for each configuration.
if [ "${1:-}" = --run ]; then
    shift
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    trap 'exit 130' INT TERM
    cd "$work" || exit 1
    run "$@"
    exit
fi

for program in spin gcc; do
    if ! command -v "$program" >/dev/null 2>&1; then
        echo "check.sh: $program is missing: install the Debian package \"$program\"" >&2
        exit 2
    fi
done
TRAIL=no
if [ "${1:-}" = -t ]; then
    TRAIL=yes
    shift
fi
wanted=$*
list=$(mktemp)
trap 'rm -f "$list"' EXIT
trap 'exit 130' INT TERM

# check NAME EXPECTED KIND SWITCHES
#   EXPECTED: holds, or a word of what the search must report
#   KIND: safety (assertions, and no state in which everybody sleeps), liveness (weak fairness), or
#         breadth (safety, with the shortest way to what is found; for what is too deep otherwise)
check() {
    if [ -n "$wanted" ]; then
        found=no
        for word in $wanted; do
            case $1 in *"$word"*) found=yes ;; esac
        done
        [ $found = yes ] || return 0
    fi
    printf '%s\0' "$@" >>"$list"
}

# What holds. "ever": each context takes the lock again and again; "once": one time each.
for policy in at-unlock twice; do
    case $policy in at-unlock) as= ;; twice) as=-DKICK_TWICE ;; esac
    check "kick-$policy-3-ever-safety" holds safety "-DCPUS=3 -DEARLY=2 $as"
    check "kick-$policy-3-ever-liveness" holds liveness "-DCPUS=3 $as"
    check "kick-$policy-4-once-safety" holds safety "-DCPUS=4 -DROUNDS=1 -DEARLY=2 $as"
    check "kick-$policy-4-once-liveness" holds liveness "-DCPUS=4 -DROUNDS=1 $as"
    check "kick-$policy-3-nested-safety" holds safety "-DCPUS=3 -DROUNDS=1 -DNESTED $as"
done
# A waiter may be late at any time; for safety, it never has to be.
check adaptive-3-ever-safety holds safety "-DCPUS=3 -DSTEALS -DUNBOUNDED"
check adaptive-3-ever-liveness holds liveness "-DCPUS=3 -DSTEALS"
check adaptive-4-once-safety holds safety "-DCPUS=4 -DROUNDS=1 -DSTEALS -DUNBOUNDED"
check adaptive-4-once-liveness holds liveness "-DCPUS=4 -DROUNDS=1 -DSTEALS"

# Too long for every day: a quarter of an hour and 9 GB. Only by name:
#   LIMIT=3600 models/check.sh 4-ever
if [ -n "$wanted" ]; then
    check kick-at-unlock-4-ever-safety holds breadth "-DCPUS=4"
fi

# What must be found.
assertion="assertion violated" asleep="invalid end state" starves="acceptance cycle"
check as-posted-double-entry "$assertion" safety "-DCPUS=3 -DAS_POSTED"
check as-posted-stale-entry "$assertion" safety "-DCPUS=2 -DROUNDS=2 -DAS_POSTED"
check no-latch "$asleep" safety "-DCPUS=3 -DNO_LATCH"
check no-look-behind "$asleep" safety "-DCPUS=3 -DNO_LOOK_BEHIND"
check no-look-armed "$asleep" safety "-DCPUS=3 -DROUNDS=1 -DNESTED -DNO_LOOK_ARMED"
check nested-clears "$asleep" safety "-DCPUS=3 -DROUNDS=1 -DNESTED -DNESTED_CLEARS"
check nested-keeps "$asleep" safety "-DCPUS=3 -DROUNDS=1 -DNESTED -DNESTED_KEEPS"
check blind-unlock "$asleep" safety "-DCPUS=3 -DBLIND_UNLOCK"
check slow-first "$assertion" safety "-DCPUS=3 -DSLOW_FIRST"
check unbounded-theft-starves "$starves" liveness "-DCPUS=3 -DSTEALS -DUNBOUNDED"
check looks-again-starves "$starves" liveness "-DCPUS=3 -DSTEALS -DLOOKS_AGAIN"
check no-reservation-starves "$starves" liveness "-DCPUS=3 -DSTEALS -DNO_RESERVATION"
check erased-reservation-starves "$starves" liveness "-DCPUS=3 -DSTEALS -DERASES"

printf '%-34s %-26s %10s %6s\n' configuration result states seconds
export LIMIT TRAIL
# A configuration is four words.
xargs -0 -n 4 -P "$JOBS" sh "$here/check.sh" --run <"$list" || exit 1
