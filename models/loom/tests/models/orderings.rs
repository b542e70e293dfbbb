//! That every ordering is needed: each is weakened by one step in a run of its own, and a model
//! fails.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Every named ordering of the slow path, and a model that fails when it is one step weaker.
/// `NAME/acquire` and `NAME/release` take one half from an `AcqRel`.
const NEEDED: [(&str, &str); 33] = [
    ("try-acquire", "kick_at_unlock::two_cpus_that_spin_a_little"),
    ("take-byte", "native_mode"),
    ("take-pending", "native_mode"),
    ("release", "native_mode"),
    ("try-release", "kick_at_unlock::two_cpus_that_spin_a_little"),
    ("release-unqueued", "kick_at_unlock::two_cpus_that_spin_a_little"),
    ("release-reserved", "fair::a_bump_lets_the_waiter_go_first"),
    ("release-slow", "fair::a_bump_lets_the_waiter_go_first"),
    ("end-kick", "fair::no_kick_comes_to_a_cpu_that_is_gone"),
    ("kicks", "fair::no_kick_comes_to_a_cpu_that_is_gone"),
    ("exchange-tail/acquire", "kick_at_unlock::two_cpus_that_spin_a_little"),
    ("exchange-tail/release", "kick_at_unlock::two_cpus_that_spin_a_little"),
    ("take", "never_late::two_cpus_that_spin_a_little"),
    ("take-alone", "adaptive::two_cpus_that_sleep_at_once"),
    ("exchange-slow/acquire", "kick_at_unlock::two_cpus_that_sleep_at_once"),
    ("exchange-slow/release", "kick_at_unlock::two_cpus_that_sleep_at_once"),
    ("unlock-fence", "kick_at_unlock::two_cpus_that_sleep_at_once"),
    ("link", "kick_at_unlock::two_cpus_that_spin_a_little"),
    ("next", "kick_at_unlock::two_cpus_that_spin_a_little"),
    ("hand-over", "kick_at_unlock::two_cpus_that_spin_a_little"),
    ("handed", "kick_at_unlock::two_cpus_that_spin_a_little"),
    ("wait-behind", "kick_at_unlock::two_cpus_that_sleep_at_once"),
    ("handed-over", "kick_at_unlock::two_cpus_that_sleep_at_once"),
    ("hashed", "kick_at_unlock::two_cpus_that_sleep_at_once"),
    ("unhalt", "kick_at_unlock::spurious_wake_ups"),
    ("rw-read", "readers::two_cpus_read_and_write"),
    ("rw-recursive", "readers::a_recursive_reader_passes_the_queue"),
    ("rw-after-writer", "readers::a_recursive_reader_passes_the_queue"),
    ("rw-write", "readers::two_cpus_read_and_write"),
    ("rw-head", "readers::two_cpus_read_and_write"),
    ("rw-unlock", "readers::two_cpus_read_and_write"),
    ("rw-asleep", "readers::two_cpus_read_and_write"),
    ("rw-waking", "readers::two_cpus_read_and_write"),
];

/// As above, but found only in the deeper model.
const NEEDED_DEEPER: [(&str, &str); 1] = [("state-load", "two_cpus_deeper")];

/// As above, but another ordering has to be away as well, because it gives the same: NAME, the
/// other one, and the model. Without the other one alone the model passes.
///
/// A head under a strict policy that has somebody behind it takes the lock by a store, after its
/// look. Before its critical section it goes through the fence `handed-over`, which acquires too.
/// The lock's order is not to hang on a hand-over.
const NEEDED_WITHOUT: [(&str, &str, &str); 1] =
    [("word-load", "handed-over/none", "a_head_with_a_successor")];

/// Kept by argument alone.
///
/// `entry-claim` and `entry-free`, as a pair: an entry's `cpu` is read before the entry is free for
/// others. The checker produces no execution in which a load returns a value that is stored later,
/// so it cannot tell the two apart. x86-64 reorders no load with a later store.
const BY_ARGUMENT: [&str; 2] = ["entry-claim", "entry-free"];

/// The folder of the lock, whose sources and book these tables speak of.
fn pvlock() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../pvlock")
}

/// Every row of the tables: the ordering, and the model that fails without it.
fn rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    let without = NEEDED_WITHOUT.iter().map(|&(site, _, model)| (site, model));
    NEEDED.into_iter().chain(NEEDED_DEEPER).chain(without)
}

/// The name of an ordering, without the half of it.
fn name_of(site: &'static str) -> &'static str {
    site.split('/').next().expect("a name")
}

/// Whether `model` passes with these orderings weakened, and what it says.
fn passes(model: &str, weakened: &str) -> (bool, String) {
    let run = Command::new(std::env::current_exe().expect("this program"))
        .args(["--nocapture", "--exact", model])
        .env("PVLOCK_WEAKEN", weakened)
        .env("RUST_BACKTRACE", "0")
        .output()
        .expect("the suite can be started");
    let text = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
    assert!(text.contains("running 1 test"), "there is no model {model}");
    (run.status.success(), text.into_owned())
}

fn assert_fails(model: &str, weakened: &str) {
    let (passes, text) = passes(model, weakened);
    assert!(!passes, "{model} does not need the ordering {weakened}:\n{text}");
    let why = text.lines().skip_while(|line| !line.contains("panicked at")).nth(1);
    println!("{weakened:24} {model}: {}", why.unwrap_or("failed"));
}

#[test]
fn each_ordering_weakened_makes_a_model_fail() {
    for (site, model) in NEEDED.into_iter().chain(NEEDED_DEEPER) {
        assert_fails(model, site);
    }
    for (site, other, model) in NEEDED_WITHOUT {
        let (passes, text) = passes(model, other);
        assert!(passes, "{model} needs {other} by itself:\n{text}");
        assert_fails(model, &format!("{other},{site}"));
    }
}

/// The book's table has every ordering above, and the model that needs it.
#[test]
fn the_book_has_the_table_of_orderings() {
    let book = std::fs::read_to_string(pvlock().join("../docs/lock.md")).expect("the book");
    let lines: Vec<&str> = book.lines().filter(|line| line.starts_with("| `")).collect();
    for (site, model) in rows() {
        let named = |name: &str, row: &str| row.contains(&format!("{name}`"));
        let site = name_of(site);
        let model = model.trim_start_matches("kick_at_unlock::").trim_start_matches("readers::");
        assert!(
            lines.iter().any(|row| named(site, row) && named(model, row)),
            "docs/lock.md has no row of {site} with {model}"
        );
    }
}

/// The tables above name every named ordering in the sources, and nothing else.
#[test]
fn the_table_of_orderings_is_complete() {
    let mut used = BTreeSet::new();
    for file in [
        "node.rs",
        "hash.rs",
        "pv.rs",
        "queue.rs",
        "native.rs",
        "rwlock.rs",
        "word/portable.rs",
        "word/steps.rs",
    ] {
        let path = pvlock().join("src").join(file);
        let source = std::fs::read_to_string(&path).expect("a source file");
        for mark in ["ord!(\"", "acquire_fence(\"", "full_fence(\"", "full_fence_before_rmw(\""] {
            for (at, _) in source.match_indices(mark) {
                let name = source[at + mark.len()..].split('"').next().expect("a closed string");
                used.insert(name.to_owned());
            }
        }
    }
    let listed: BTreeSet<String> =
        rows().map(|(site, _)| name_of(site)).chain(BY_ARGUMENT).map(str::to_owned).collect();
    assert_eq!(used, listed);
}
