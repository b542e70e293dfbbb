//! Runs `tests/shuttle` as part of `cargo test`: lock and event channels together under random
//! schedules, and the command that a failure prints. It needs a build of its own, with shuttle's
//! atomics, threads and locks.
#![cfg(not(shuttle))]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Tests of the suite.
const TESTS: usize = 18;

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// `command` in a directory for builds of its own: other flags would build everything again.
fn output(mut command: Command) -> Output {
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", target())
        // Fast enough, and with the debug build's checks of the hash table.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
        .env("RUST_BACKTRACE", "0")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .output()
        .expect("the command can be started")
}

fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("shuttle")
}

#[test]
fn lock_and_event_channels_hold_under_random_schedules() {
    let mut suite = Command::new(env!("CARGO"));
    suite.args(["test", "--locked", "--package", "xen-guest", "--test", "shuttle"]);
    suite.env("RUSTFLAGS", "--cfg shuttle");
    let run = output(suite);
    assert!(run.status.success(), "{}", text(&run));
    let all = format!("test result: ok. {TESTS} passed");
    assert!(text(&run).contains(&all), "not all ran:\n{}", text(&run));

    for control in ["the_posted_patch_enters_a_lock_twice", "a_dropped_kick_is_a_deadlock"] {
        found_and_replayed(control);
    }
}

/// A negative control fails, and the command it prints makes it fail the same way again.
fn found_and_replayed(control: &str) {
    let mut test = Command::new(env!("CARGO"));
    test.args(["test", "--locked", "--package", "xen-guest", "--test", "shuttle", control]);
    test.args(["--", "--exact", "--nocapture"]).env("RUSTFLAGS", "--cfg shuttle");
    let first = text(&output(test));
    let line = |text: &str, begin: &str| {
        text.lines().find(|line| line.starts_with(begin)).map(str::to_owned)
    };
    let command = line(&first, "replay: ").unwrap_or_else(|| panic!("no command in:\n{first}"));
    let mut shell = Command::new("sh");
    shell.args(["-c", command.trim_start_matches("replay: ")]);
    let second = text(&output(shell));
    assert_eq!(line(&second, "replay: "), Some(command));
    // Where each vCPU was, which lock it was, and who was entered.
    let what = |text: &str| {
        let begins = ["pvlock: ", "entries left", "deadlock: "];
        begins.iter().find_map(|begin| line(text, begin)).expect("what was found")
    };
    assert_eq!(what(&second), what(&first));
}
