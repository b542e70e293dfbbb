//! That a schedule which fails can be run again: the command that the suite prints does the same to
//! the step.

use std::process::Command;

#[test]
fn what_a_negative_control_finds_is_found_again() {
    for control in ["the_posted_patch_enters_a_lock_twice", "a_dropped_kick_is_a_deadlock"] {
        found_and_replayed(control);
    }
}

/// Runs this program with `arguments`: what it printed.
fn run(arguments: &str, replay: Option<&str>) -> String {
    let mut suite = Command::new(std::env::current_exe().expect("this program"));
    suite.args(arguments.split(' ')).env("RUST_BACKTRACE", "0");
    if let Some(replay) = replay {
        suite.env("REPLAY", replay);
    }
    let run = suite.output().expect("the suite can be started");
    String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr)
}

/// A negative control fails, and the command it prints makes it fail the same way again.
fn found_and_replayed(control: &str) {
    let first = run(&format!("{control} --exact --nocapture"), None);
    let line = |text: &str, begin: &str| {
        text.lines().find(|line| line.starts_with(begin)).map(str::to_owned)
    };
    let command = line(&first, "replay: ").unwrap_or_else(|| panic!("no command in:\n{first}"));
    // Cargo would only start this program.
    let (replay, arguments) = command
        .strip_prefix("replay: REPLAY=")
        .and_then(|command| command.split_once(crate::COMMAND))
        .unwrap_or_else(|| panic!("another command: {command}"));
    let second = run(&arguments.replacen(" --", "", 1), Some(replay));
    assert_eq!(line(&second, "replay: "), Some(command));
    // Where each vCPU was, which lock it was, and who was entered.
    let what = |text: &str| {
        let begins = ["pvlock: ", "entries left", "deadlock: "];
        begins.iter().find_map(|begin| line(text, begin)).expect("what was found")
    };
    assert_eq!(what(&second), what(&first));
}
