//! Breaks the lock on purpose, one step at a time, and demands that somebody notices.
//!
//! ```text
//! cargo test -p pvlock-loom --test breaks -- --ignored --nocapture
//! PVLOCK_BREAKS=hash.rs cargo test -p pvlock-loom --test breaks -- --ignored --nocapture
//! ```
//!
//! goes through the whole list, some seconds each, or through those whose file or text contains the
//! word. What runs every day is that each break still fits the sources.

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
    /// A unit test of pvlock whose name begins so.
    Unit(&'static str),
    /// `tests/word_steps.rs` of pvlock: two of the steps at once.
    WordSteps,
}

use By::{Model, Unit, WordSteps};

/// The unit test that takes each step of the word once.
const EACH_STEP: By = Unit("word::tests::each_x86_64_step");

#[rustfmt::skip] // One break, one paragraph.
const BREAKS: &[Break] = &[
    // ----- the word on x86-64: one for each instruction and one for each step
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
    Break { wrong: "a byte is not exchanged but read and written", file: "word/x86_64.rs",
        from: "xchg byte ptr [{p}], {v}\"", to: "movzx r11d, byte ptr [{p}]\", \"mov byte ptr [{p}], {v}\", \"mov {v}, r11b\", out(\"r11\") _", noticed_by: WordSteps },
    Break { wrong: "a store of the low half writes the locked byte alone", file: "word/x86_64.rs",
        from: "mov word ptr [{p}], {v:x}\", p", to: "mov byte ptr [{p}], {v:l}\", p", noticed_by: EACH_STEP },
    Break { wrong: "a store of a byte writes the one beside it too", file: "word/x86_64.rs",
        from: "mov byte ptr [{p}], {v}\", p = in(reg) self.at(byte), v = in(reg_byte) value", to: "mov word ptr [{p}], {v:x}\", p = in(reg) self.at(byte), v = in(reg) u16::from(value)", noticed_by: EACH_STEP },
    Break { wrong: "whoever takes the lock as head says slow", file: "word/x86_64.rs",
        from: "fn set_locked(&self) {\n        self.store_byte(LOCKED_BYTE, LOCKED)", to: "fn set_locked(&self) {\n        self.store_byte(LOCKED_BYTE, SLOW)", noticed_by: EACH_STEP },
    Break { wrong: "a head that registers leaves the byte at 1", file: "word/x86_64.rs",
        from: "self.exchange_byte(LOCKED_BYTE, SLOW)", to: "self.exchange_byte(LOCKED_BYTE, LOCKED)", noticed_by: EACH_STEP },
    Break { wrong: "an owner that registers leaves the byte at 1", file: "word/x86_64.rs",
        from: "fn set_slow(&self) {\n        self.store_byte(LOCKED_BYTE, SLOW)", to: "fn set_slow(&self) {\n        self.store_byte(LOCKED_BYTE, LOCKED)", noticed_by: EACH_STEP },
    Break { wrong: "a head that finds itself the owner stays slow", file: "word/x86_64.rs",
        from: "fn slow_to_locked(&self) {\n        self.store_byte(LOCKED_BYTE, LOCKED)", to: "fn slow_to_locked(&self) {\n        self.store_byte(LOCKED_BYTE, SLOW)", noticed_by: EACH_STEP },
    Break { wrong: "the pending waiter is told that pending was clear", file: "word/x86_64.rs",
        from: " | u32::from(was) << PENDING.trailing_zeros()", to: "", noticed_by: EACH_STEP },
    Break { wrong: "pending is not cleared", file: "word/x86_64.rs",
        from: "fn clear_pending(&self) {\n        self.store_byte(PENDING_BYTE, 0)", to: "fn clear_pending(&self) {\n        self.store_byte(PENDING_BYTE, 1)", noticed_by: EACH_STEP },
    Break { wrong: "the pending waiter takes the lock and stays pending", file: "word/x86_64.rs",
        from: "self.try_low_half(PENDING_16, LOCKED.into())", to: "self.try_low_half(PENDING_16, PENDING_16 | u16::from(LOCKED))", noticed_by: EACH_STEP },
    Break { wrong: "a newcomer says slow", file: "word/x86_64.rs",
        from: "self.try_locked_byte(FREE, LOCKED)", to: "self.try_locked_byte(FREE, SLOW)", noticed_by: EACH_STEP },
    Break { wrong: "a newcomer does not look for the pending waiter", file: "word/x86_64.rs",
        from: "movzx {w:e}, byte ptr [{p} + 1]", to: "xor {w:e}, {w:e}", noticed_by: EACH_STEP },
    Break { wrong: "a newcomer does not look for a queue", file: "word/x86_64.rs",
        from: ", \"or {w:x}, word ptr [{p} + 2]\"", to: "", noticed_by: EACH_STEP },
    Break { wrong: "a thief takes a lock that is reserved", file: "word/x86_64.rs",
        from: "self.try_low_half(0, LOCKED.into())", to: "self.try_low_half(self.low_half() & PENDING_16, LOCKED.into())", noticed_by: EACH_STEP },
    Break { wrong: "a head does not take the lock that is reserved for it", file: "word/x86_64.rs",
        from: "self.try_low_half(pending, LOCKED.into())", to: "self.try_low_half(pending & 0, LOCKED.into())", noticed_by: EACH_STEP },
    Break { wrong: "a fair release reserves nothing", file: "word/x86_64.rs",
        from: "self.try_low_half(LOCKED.into(), PENDING_16)", to: "self.try_low_half(LOCKED.into(), 0)", noticed_by: EACH_STEP },
    Break { wrong: "a fair release of a slow lock reserves nothing", file: "word/x86_64.rs",
        from: "self.store_low_half(PENDING_16);", to: "self.store_low_half(0);", noticed_by: EACH_STEP },
    Break { wrong: "a release of a slow lock goes through without a kick", file: "word/x86_64.rs",
        from: "if was == LOCKED { Ok(()) }", to: "if was != 0 { Ok(()) }", noticed_by: EACH_STEP },

    // ----- the locked byte of native mode, which a newcomer may have for a moment
    Break { wrong: "a newcomer keeps the lock, whoever waits", file: "word/steps.rs",
        from: "Some(true) => self.release(),", to: "Some(true) => return Ok(()),", noticed_by: EACH_STEP },
    Break { wrong: "a newcomer that finds a waiter keeps the byte", file: "word/steps.rs",
        from: "Some(true) => self.release(),", to: "Some(true) => {}", noticed_by: EACH_STEP },
    Break { wrong: "the pending waiter takes the lock by stores", file: "native.rs",
        from: "!word.try_take_pending()", to: "!(word.load_acquire().locked() == FREE && { word.clear_pending(); word.set_locked(); true })", noticed_by: Model("native_mode") },
    Break { wrong: "the head of native mode takes the lock by a store", file: "native.rs",
        from: "word.try_steal().then_some", to: "{ word.load_acquire(); word.set_locked(); true }.then_some", noticed_by: Model("native_mode") },
    Break { wrong: "a newcomer takes the byte in PV mode too", file: "raw.rs",
        from: "if P::plain_unlock() { self.word.try_acquire_byte() }", to: "if true { self.word.try_acquire_byte() }", noticed_by: Model("kick_at_unlock") },
    Break { wrong: "an unlock is a store in PV mode too (R9)", file: "raw.rs",
        from: "if P::plain_unlock() {\n            self.word.release();", to: "if true {\n            self.word.release();", noticed_by: Model("kick_at_unlock") },

    // ----- the hash table
    Break { wrong: "only the home line is looked at", file: "hash.rs",
        from: "(0..self.lines.len())", to: "(0..1)", noticed_by: Unit("hash::tests::holds_as_many") },
    Break { wrong: "all locks have one home", file: "hash.rs",
        from: ".wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32", to: ".wrapping_mul(0)", noticed_by: Unit("hash::tests::the_home_line") },
    Break { wrong: "a second entry goes in unseen", file: "hash.rs",
        from: "self.check_single(lock, sleeper);", to: "", noticed_by: Unit("hash::tests::a_second_entry") },
    Break { wrong: "an entry loses the level of its sleeper", file: "hash.rs",
        from: "entry.sleeper.store(sleeper.bits().into(), Relaxed);", to: "entry.sleeper.store((sleeper.bits() & !3).into(), Relaxed);", noticed_by: Unit("hash::tests::holds_as_many") },
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
        from: "        self.handed.store(0, Relaxed);\n", to: "", noticed_by: Model("a_cpu_that_is_handed") },
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
        from: "self.depth.store(level + 1, Relaxed);", to: "self.depth.store(level, Relaxed);", noticed_by: Model("native_mode") },
    Break { wrong: "a node keeps its state of the last time", file: "node.rs",
        from: "self.state.store(State::Running as u8, Relaxed);\n    }", to: "}", noticed_by: Unit("node::tests::a_reset_node") },
    Break { wrong: "a node keeps the time of its last waiter", file: "node.rs",
        from: "self.since.store(now, core::sync::atomic::Ordering::Relaxed);\n        self.next", to: "let _ = now;\n        self.next", noticed_by: Unit("node::tests::a_reset_node") },
    Break { wrong: "a stretch of thefts goes on through the queue", file: "node.rs",
        from: "self.left.swap(0, Relaxed)", to: "self.left.load(Relaxed)", noticed_by: Unit("node::tests::a_stretch_begins_anew") },
    Break { wrong: "thefts are not counted", file: "node.rs",
        from: "self.left.store(left as u32, Relaxed);\n        true", to: "true", noticed_by: Unit("node::tests::the_clock_is_looked_at") },
    Break { wrong: "a waiter does not end its own halt", file: "node.rs",
        from: "            State::Halted as u8,\n            State::Running as u8,\n            Relaxed,\n", to: "            State::Halted as u8,\n            State::Halted as u8,\n            Relaxed,\n", noticed_by: Unit("node::tests::waiter_and_predecessor") },
    Break { wrong: "every waiter is the head", file: "node.rs",
        from: "self.handed.load(ord!(\"handed\", Acquire)) != 0", to: "{ self.handed.load(Relaxed); true }", noticed_by: Model("kick_at_unlock::two_cpus_that_sleep_at_once") },
    Break { wrong: "an entry that was made is not told of", file: "node.rs",
        from: "self.state.store(State::Hashed as u8, ord!(\"hashed\", Release));", to: "", noticed_by: Unit("node::tests::a_state_is") },
    Break { wrong: "a level is never given back", file: "node.rs",
        from: "self.depth.store(depth.wrapping_sub(1), Relaxed);", to: "", noticed_by: Unit("node::tests::levels_nest") },
    Break { wrong: "a level left out of order goes unseen", file: "node.rs",
        from: "depth as usize == level + 1,", to: "depth as usize > level,", noticed_by: Unit("node::tests::a_level_left_out_of_order") },
    Break { wrong: "a kick is under way unseen", file: "node.rs",
        from: "self.kicks.store(self.kicks.load(Relaxed) + 1, Relaxed);", to: "", noticed_by: Model("fair::no_kick") },
    Break { wrong: "nobody waits for kicks that are under way", file: "node.rs",
        from: "self.kicks.load(ord!(\"kicks\", Acquire)) != 0", to: "{ self.kicks.load(Relaxed); false }", noticed_by: Model("fair::no_kick") },

    Break { wrong: "a level is given back before its waiter has left the queue", file: "queue.rs",
        from: "    leave::<P, D>(word, &waiter, taken);\n}", to: "    nodes.leave(tail.level());\n    leave::<P, D>(word, &waiter, taken);\n    nodes.enter();\n}", noticed_by: Model("contexts::an_interrupt_before_every_access") },

    // ----- thefts and their bounds
    Break { wrong: "a head clears pending on its way to sleep", file: "pv.rs",
        from: "step!(waiter.cpu, \"head: waits while slow\");", to: "word.clear_pending();", noticed_by: Model("fair::a_reservation") },
    Break { wrong: "the lock is released, and reserved a step later", file: "pv.rs",
        from: "word.release_reserved();", to: "word.release();\n        word.exchange_pending();", noticed_by: Model("fair") },
    Break { wrong: "a head that finds itself the owner leaves pending set", file: "pv.rs",
        from: "word.clear_pending();", to: "", noticed_by: Model("fair") },
    Break { wrong: "a fair unlock reserves nothing", file: "raw.rs",
        from: "pv::release_reserved::<P, K>(&self.word);", to: "pv::release::<P, K>(&self.word);", noticed_by: Model("fair") },
    Break { wrong: "the unlock that wakes a late head reserves nothing", file: "pv.rs",
        from: "if reserve || is_late {", to: "if reserve {", noticed_by: Model("thefts_are_explored") },
    Break { wrong: "a head looks again at a lock that it finds free as it is about to sleep", file: "pv.rs",
        from: "} else if state == State::Registering {", to: "} else if state == State::Registering || word.load().locked() == FREE {", noticed_by: Unit("pv_tests::a_head_that_has_spun_registers") },
    Break { wrong: "a thief never queues", file: "pv.rs",
        from: "if has_stolen_long::<P, K>(cpu) {", to: "if has_stolen_long::<P, K>(cpu) && false {", noticed_by: Model("thefts_are_explored") },
    Break { wrong: "a stretch lasts as long as the horizon", file: "policy.rs",
        from: "horizon / Self::STRETCHES)", to: "horizon)", noticed_by: Unit("policy_tests::a_horizon_has") },

    // ----- readers and writers
    Break { wrong: "a reader passes those that wait", file: "rwlock.rs",
        from: "if !self.try_add_reader(WRITER | WAITING | CROWDED)", to: "if !self.try_add_reader(0)", noticed_by: Model("readers") },
    Break { wrong: "a writer comes in beside readers", file: "rwlock.rs",
        from: "Self::Write => WRITER | READERS,", to: "Self::Write => WRITER,", noticed_by: Model("readers") },
    Break { wrong: "a head that is awake leaves its entry behind", file: "rwlock.rs",
        from: "if seen & SLEEP == ASLEEP {\n                        // Nobody", to: "if false {\n                        // Nobody", noticed_by: Model("readers") },
    Break { wrong: "the last owner wakes nobody", file: "rwlock.rs",
        from: "if is_last && seen & SLEEP == ASLEEP {", to: "if false && is_last && seen & SLEEP == ASLEEP {", noticed_by: Model("readers") },
    Break { wrong: "the head takes the lock while its entry is being taken out", file: "rwlock.rs",
        from: "if seen & want.blocked_by() == 0 && seen & SLEEP != WAKING {", to: "if seen & want.blocked_by() == 0 {", noticed_by: Model("readers::a_head_wakes") },
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

/// The lock and its unit tests, without what its other tests need.
const UNITS: &str = r#"
[package]
name = "pvlock-units"
edition = "2024"
[lib]
name = "pvlock"
path = "../pvlock/src/lib.rs"
doctest = false
[dependencies]
lock_api = { workspace = true }
[features]
ablation = []
checker = []
counters = []
lock_api_05 = []
posted-patch = []
"#;

/// Lock, unit tests and models in a workspace of their own.
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
        "[workspace]\nmembers = [\"models/loom\", \"units\"]\nresolver ={shared}\n{profile}\
         [profile.dev]\ndebug = false\n"
    );
    fs::write(made.join("Cargo.toml"), text).expect("a workspace");
    fs::create_dir_all(made.join("units")).expect("a folder");
    fs::write(made.join("units/Cargo.toml"), UNITS).expect("a package");
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
            test.args(["--", "--include-ignored"]);
            test.current_dir(made).env("CARGO_TARGET_DIR", made.join("target"));
        }
        Unit(name) => {
            test.args(["test", "--offline", "-p", "pvlock-units", "--lib", name]);
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
    let word = std::env::var("PVLOCK_BREAKS").unwrap_or_default();
    let asked: Vec<_> =
        BREAKS.iter().filter(|one| one.file.contains(&word) || one.wrong.contains(&word)).collect();
    assert!(!asked.is_empty(), "PVLOCK_BREAKS={word}: no break has that in its file or text");
    let survivors: Vec<_> = asked
        .iter()
        .filter(|one| survives(&made, one).unwrap_or_else(|text| panic!("{}: {text}", one.wrong)))
        .map(|one| one.wrong)
        .collect();
    assert!(survivors.is_empty(), "nobody noticed: {survivors:#?}");
}
