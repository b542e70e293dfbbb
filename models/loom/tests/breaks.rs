//! Breaks the lock on purpose, one step at a time, and demands that somebody notices.
//!
//! ```text
//! cargo test -p pvlock-loom --test breaks -- --ignored --nocapture
//! ```
//!
//! goes through the whole list, some seconds each. What runs every day is that each break still fits the sources.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One break.
struct Break {
    /// What is wrong with it.
    wrong: &'static str,
    /// In `pvlock/src`.
    file: &'static str,
    /// Stands there once.
    from: &'static str,
    to: &'static str,
    noticed_by: By,
}

/// Who must notice.
enum By {
    /// A model whose name begins so.
    Model(&'static str),
    /// `tests/word_steps.rs` of pvlock.
    WordSteps,
}

use By::{Model, WordSteps};

#[rustfmt::skip] // One break, one paragraph.
const BREAKS: &[Break] = &[
    // ----- the word on x86-64: one for each instruction
    Break { wrong: "the compare-exchange of the low half is not atomic", file: "word/x86_64.rs",
        from: "lock cmpxchg word ptr", to: "cmpxchg word ptr", noticed_by: WordSteps },
    Break { wrong: "the release's compare-exchange is not atomic", file: "word/x86_64.rs",
        from: "lock cmpxchg byte ptr", to: "cmpxchg byte ptr", noticed_by: WordSteps },
    Break { wrong: "the plain release clears pending too", file: "word/x86_64.rs",
        from: "mov byte ptr [{p}], 0\"", to: "mov word ptr [{p}], 0\"", noticed_by: WordSteps },
    Break { wrong: "the tail is written over the low half", file: "word/x86_64.rs",
        from: "const TAIL_HALF: usize = 2;", to: "const TAIL_HALF: usize = 0;", noticed_by: WordSteps },
    Break { wrong: "the tail is not exchanged but read and written", file: "word/x86_64.rs",
        from: "xchg word ptr [{p}], {v:x}\"", to: "movzx r11d, word ptr [{p}]\", \"mov word ptr [{p}], {v:x}\", \"mov {v:e}, r11d\", out(\"r11\") _", noticed_by: WordSteps },

    // ----- the hash table
    Break { wrong: "an entry is claimed by a look and a store", file: "hash.rs",
        from: ".compare_exchange(0, lock, ord!(\"entry-claim\", Acquire), Relaxed)\n                        .is_ok()",
        to: ".load(Relaxed) == 0 && { entry.lock.store(lock, Relaxed); true }", noticed_by: Model("two_heads") },
    Break { wrong: "the CPU is written before the entry is claimed", file: "hash.rs",
        from: "if entry.lock.load(Relaxed) == 0\n", to: "if entry.lock.load(Relaxed) == 0\n                    && { entry.sleeper.store(sleeper.bits().into(), Relaxed); true }\n", noticed_by: Model("two_heads") },
    Break { wrong: "the CPU of an entry is never written", file: "hash.rs",
        from: "entry.sleeper.store(sleeper.bits().into(), Relaxed);", to: "", noticed_by: Model("kick_at_unlock::two_cpus_that_sleep_at_once") },
    Break { wrong: "any entry is taken for the lock's own", file: "hash.rs",
        from: "if entry.lock.load(Relaxed) == lock {", to: "if entry.lock.load(Relaxed) != 0 {", noticed_by: Model("two_heads") },
    Break { wrong: "an entry is left in the table", file: "hash.rs",
        from: "entry.lock.store(0, ord!(\"entry-free\", Release));", to: "", noticed_by: Model("kick_at_unlock::two_cpus_that_sleep_at_once") },

    // ----- the nodes
    Break { wrong: "a node keeps its successor of the last time", file: "node.rs",
        from: "self.next.store(0, Relaxed);\n        self.handed", to: "self.handed", noticed_by: Model("kick_at_unlock") },
    Break { wrong: "a node keeps its hand-over of the last time", file: "node.rs",
        from: "        self.handed.store(0, Relaxed);\n", to: "", noticed_by: Model("native_mode") },
    Break { wrong: "the successor is never linked", file: "node.rs",
        from: "self.next.store(u32::from(next.bits()), ord!(\"link\", Release));", to: "let _ = next;", noticed_by: Model("native_mode") },
    Break { wrong: "the hand-over is never stored", file: "node.rs",
        from: "self.handed.store(1, ord!(\"hand-over\", Release));", to: "", noticed_by: Model("native_mode") },
    Break { wrong: "a halt is ended by a store, whoever acted meanwhile", file: "node.rs",
        from: "let _ = self.state.compare_exchange(\n            State::Halted as u8,\n            State::Running as u8,\n            Relaxed,\n            ord!(\"unhalt\", Acquire),\n        );",
        to: "self.state.store(State::Running as u8, Relaxed);", noticed_by: Model("kick_at_unlock::two_cpus_that_sleep_at_once") },
    Break { wrong: "a waiter is claimed whether it sleeps or not", file: "node.rs",
        from: "self.state.compare_exchange(State::Halted as u8, to as u8, Relaxed, Relaxed).is_ok()",
        to: "{ self.state.store(to as u8, Relaxed); true }", noticed_by: Model("kick_at_unlock::two_cpus_that_sleep_at_once") },
    Break { wrong: "a level is claimed without being counted", file: "node.rs",
        from: "self.nodes[0].depth.store(level + 1, Relaxed);", to: "self.nodes[0].depth.store(level, Relaxed);", noticed_by: Model("native_mode") },

    // ----- thefts and their bounds
    Break { wrong: "a head clears pending on its way to sleep", file: "pv.rs",
        from: "step!(waiter.cpu, \"head: waits while slow\");", to: "word.clear_pending();", noticed_by: Model("fair") },
    Break { wrong: "the lock is released, and reserved a step later", file: "pv.rs",
        from: "word.release_reserved();", to: "word.release();\n        word.set_pending();", noticed_by: Model("fair") },
    Break { wrong: "a head that finds itself the owner leaves pending set", file: "pv.rs",
        from: "word.clear_pending();", to: "", noticed_by: Model("fair") },
    Break { wrong: "a fair unlock reserves nothing", file: "raw.rs",
        from: "pv::release_reserved::<P, K>(&self.word);", to: "pv::release::<P, K>(&self.word);", noticed_by: Model("fair") },
    Break { wrong: "the unlock that wakes a late head reserves nothing", file: "pv.rs",
        from: "if reserve || is_late {", to: "if reserve {", noticed_by: Model("thefts_are_explored") },
    Break { wrong: "a thief never queues", file: "pv.rs",
        from: "if has_stolen_long::<P>(cpu, horizon) {", to: "if false && has_stolen_long::<P>(cpu, horizon) {", noticed_by: Model("thefts_are_explored") },

    // ----- readers and writers
    Break { wrong: "a reader passes those that wait", file: "rwlock.rs",
        from: "if !self.try_add_reader(WRITER | WAITING)", to: "if !self.try_add_reader(0)", noticed_by: Model("readers") },
    Break { wrong: "a writer comes in beside readers", file: "rwlock.rs",
        from: "Self::Write => WRITER | READERS,", to: "Self::Write => WRITER,", noticed_by: Model("readers") },
    Break { wrong: "a head that is awake leaves its entry behind", file: "rwlock.rs",
        from: "if seen & SLEEP == ASLEEP {\n                        // Nobody", to: "if false {\n                        // Nobody", noticed_by: Model("readers") },
    Break { wrong: "the last owner wakes nobody", file: "rwlock.rs",
        from: "if is_last && seen & SLEEP == ASLEEP {", to: "if false && is_last && seen & SLEEP == ASLEEP {", noticed_by: Model("readers") },
    Break { wrong: "the head takes the lock while its entry is being taken out", file: "rwlock.rs",
        from: "if seen & want.blocked_by() == 0 && seen & SLEEP != WAKING {", to: "if seen & want.blocked_by() == 0 {", noticed_by: Model("readers") },
    Break { wrong: "the word says that the head sleeps before the entry is there", file: "rwlock.rs",
        from: "P::hash().insert(self.key(), Tail::new(cpu, level));\n", to: "self.word.fetch_or(ASLEEP, Relaxed);\n                P::hash().insert(self.key(), Tail::new(cpu, level));\n", noticed_by: Model("readers") },
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn source(file: &str) -> String {
    let path = repository().join("pvlock/src").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_break_fits_the_sources() {
    for Break { wrong, file, from, .. } in BREAKS {
        let times = source(file).matches(from).count();
        assert_eq!(times, 1, "{wrong}: {file} has {times} times: {from}");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("a folder of the repository") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("a copy");
        }
    }
}

/// Lock and models in a workspace of their own.
fn workspace() -> PathBuf {
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join("breaks");
    let repository = repository();
    copy(&repository.join("pvlock/src"), &made.join("pvlock/src"));
    for folder in ["tests", "build.rs", "Cargo.toml"] {
        let (from, to) = (repository.join("models/loom").join(folder), made.join("models/loom"));
        if from.is_dir() {
            copy(&from, &to.join(folder));
        } else {
            fs::create_dir_all(&to).expect("a folder");
            fs::copy(from, to.join(folder)).expect("a copy");
        }
    }
    for file in ["Cargo.lock", "pvlock/README.md"] {
        fs::copy(repository.join(file), made.join(file)).expect("a copy");
    }
    let whole = fs::read_to_string(repository.join("Cargo.toml")).expect("the workspace");
    let (_, rest) = whole.split_once("resolver =").expect("after the members");
    let (shared, _) = rest.split_once("\n[package]\n").expect("before the package");
    let profile: String = ["pvlock-loom", "loom", "generator"]
        .map(|package| format!("[profile.dev.package.{package}]\nopt-level = 3\n"))
        .concat();
    let text = format!(
        "[workspace]\nmembers = [\"models/loom\"]\nresolver ={shared}\n{profile}\
         [profile.dev]\ndebug = false\n"
    );
    fs::write(made.join("Cargo.toml"), text).expect("a workspace");
    made
}

/// Whether the break went by unnoticed, and the last words of who noticed it.
fn survives(made: &Path, one: &Break) -> Result<bool, String> {
    let path = made.join("pvlock/src").join(one.file);
    let sound = fs::read_to_string(&path).expect("the sound source");
    fs::write(&path, sound.replacen(one.from, one.to, 1)).expect("the break");
    let mut test = Command::new(env!("CARGO"));
    match one.noticed_by {
        Model(name) => {
            test.args(["test", "--offline", "-p", "pvlock-loom", "--test", "models", name]);
            test.current_dir(made).env("CARGO_TARGET_DIR", made.join("target"));
        }
        WordSteps => {
            test.args(["test", "--offline", "-p", "pvlock", "--test", "word_steps"]);
            test.current_dir(repository()).env("PVLOCK_SOURCES", made.join("pvlock/src"));
        }
    }
    test.env("RUST_BACKTRACE", "0").env("CARGO_PROFILE_DEV_DEBUG", "0");
    let run = test.output().expect("cargo can be started");
    fs::write(&path, sound).expect("the sources as they were");
    let text = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
    if text.contains("could not compile") || text.contains("0 passed; 0 failed") {
        return Err(text.into_owned());
    }
    let why = text.lines().skip_while(|line| !line.contains("panicked at")).nth(1).unwrap_or("");
    println!(
        "{:60} {:14} {}",
        one.wrong,
        one.file,
        if run.status.success() { "SURVIVES" } else { why }
    );
    Ok(run.status.success())
}

#[test]
#[ignore = "some seconds for each break; see the file's first lines"]
fn every_break_is_noticed() {
    let made = workspace();
    let survivors: Vec<_> = BREAKS
        .iter()
        .filter(|one| survives(&made, one).unwrap_or_else(|text| panic!("{}: {text}", one.wrong)))
        .map(|one| one.wrong)
        .collect();
    assert!(survivors.is_empty(), "nobody noticed: {survivors:#?}");
}
