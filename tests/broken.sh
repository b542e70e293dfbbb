#!/usr/bin/env bash
# Breaks features on purpose and demands that the tests on real Xen notice, each for the stated reason.
#
#   tests/broken.sh            every patch in tests/broken/
#   tests/broken.sh NAME...    these alone
#
# A patch begins with lines that say what it is about:
#   breaks: what no longer works, in a few words
#   test:   the test that must fail: its file in tests/on_xen/, and its function
#   only:   what of that test is run (PVLAB_ONLY); may be left out
#   says:   what the test must say then, as an extended regular expression
#
# The tree is copied to target/broken/ (or $BROKEN_WORK) as it stands, changes not committed included; nothing outside that
# folder is touched. Prints a table for docs/broken.md. Exit code 1 if a test did not notice, or failed for
# another reason, or a patch does not apply. Takes about a minute a patch; needs GNU patch.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
work=${BROKEN_WORK:-$root/target/broken}
tree=$work/tree
mkdir -p "$tree"

field() { sed -n "s/^$1: *//p;/^--- /q" "$2" | head -n 1; }

# The tree as it stands. A file that is the same already keeps its time, one that the patch before changed
# gets a new one: cargo compares times.
copy() {
    git ls-files -z --cached --others --exclude-standard | while read -r -d '' file; do
        if [ -f "$file" ] && ! cmp -s "$file" "$tree/$file"; then
            mkdir -p "$tree/$(dirname "$file")"
            cp "$file" "$tree/$file"
        fi
    done
}

names=("$@")
if [ $# = 0 ]; then
    for patch in tests/broken/*.patch; do names+=("$(basename "$patch" .patch)"); done
fi

failed=0
printf '| patch | what it breaks | the test | what the test said |\n|---|---|---|---|\n'
for name in "${names[@]}"; do
    patch=$root/tests/broken/$name.patch
    copy
    if ! (cd "$tree" && patch --quiet --forward --fuzz=0 -p1 <"$patch" >"$work/$name.log" 2>&1); then
        echo "broken: $name does not apply to this tree:" >&2
        cat "$work/$name.log" >&2
        find "$tree" -name '*.rej' -delete -o -name '*.orig' -delete
        failed=1
        continue
    fi
    read -r file function <<<"$(field test "$patch")"
    says=$(field says "$patch")
    only=$(field only "$patch")
    status=0
    (
        cd "$tree"
        if [ -n "$only" ]; then export PVLAB_ONLY=$only; fi
        CARGO_TARGET_DIR=$work/target timeout 1500 \
            cargo test --locked --test on_xen "$file::$function" -- --exact
    ) >"$work/$name.log" 2>&1 </dev/null || status=$?
    said=$(grep -E -m 1 -o -e "($says).{0,60}" "$work/$name.log" || true)
    if ! grep -q '^running 1 test' "$work/$name.log"; then
        echo "broken: $name: the test $file $function did not run; see $work/$name.log" >&2
        failed=1
    elif [ $status = 0 ]; then
        echo "broken: $name: $file $function NOTICED NOTHING: $(field breaks "$patch")" >&2
        failed=1
    elif [ -z "$said" ]; then
        echo "broken: $name: $file $function failed, but not with \`$says\`; see $work/$name.log" >&2
        failed=1
    else
        said=$(printf '%s' "$said" | tr -d '\r' | sed 's/\\n.*//;s/|/\\|/g;s/[[:space:]]*$//')
        # shellcheck disable=SC2016
        printf '| `%s` | %s | `%s` | %s |\n' "$name" "$(field breaks "$patch")" "tests/on_xen/$file.rs" "$said"
    fi
done
copy
exit $failed
