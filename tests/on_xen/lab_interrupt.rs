//! A signal or a deadline ends a run of the lab with everything it started.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use assert_cmd::cargo::CommandCargoExt;

/// A host whose dom0 says so, and sleeps for ever.
fn sleeping_host(out: &Path, deadline: &str) -> Command {
    let script = out.join("sleep.sh");
    fs::write(&script, "echo asleep now; sleep 100000").unwrap();
    let mut pvlab = Command::cargo_bin("pvlab").unwrap();
    pvlab.args(["lab", "boot", "--deadline", deadline, "--script"]).arg(&script);
    pvlab.arg("--out").arg(out);
    pvlab
}

/// Starts it, and returns once it sleeps.
fn asleep(out: &Path) -> Child {
    let mut pvlab = sleeping_host(out, crate::PATIENCE_SECONDS);
    let mut child = pvlab.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut console = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("asleep now") {
        line.clear();
        assert_ne!(console.read_line(&mut line).unwrap(), 0, "the host went down early");
    }
    // pvlab goes on printing; somebody must go on reading.
    thread::spawn(move || std::io::copy(&mut console, &mut std::io::sink()));
    child
}

/// The command lines of all processes that name `folder`.
pub(crate) fn processes_with(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(folder)).collect()
}

/// Waits until no process names `folder`: those that a dead pvlab has left are on their way.
pub(crate) fn none_is_left(folder: &Path) {
    let begun = Instant::now();
    while !processes_with(folder).is_empty() {
        assert!(begun.elapsed() < crate::PATIENCE, "left: {:?}", processes_with(folder));
        thread::sleep(Duration::from_millis(50));
    }
}

fn signal(child: &Child, name: &str) {
    let sent =
        Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status().unwrap();
    assert!(sent.success());
}

fn ends(child: &mut Child) -> ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(begun.elapsed() < crate::PATIENCE, "pvlab goes on after the signal");
        thread::sleep(Duration::from_millis(50));
    }
}

/// `Some(2)`: ended in order; `None`: by the signal itself.
fn check(name: &str, expected: Option<i32>) {
    let out = tempfile::tempdir().unwrap();
    let mut pvlab = asleep(out.path());
    // pvlab itself and the emulator, whose share is the folder.
    assert!(processes_with(out.path()).len() >= 2);
    signal(&pvlab, name);
    assert_eq!(ends(&mut pvlab).code(), expected);
    none_is_left(out.path());
    let console = fs::read_to_string(out.path().join("console-host.log")).unwrap();
    assert!(console.contains("asleep now"), "the console is kept");
}

#[test]
fn ctrl_c_leaves_no_process_behind() {
    check("INT", Some(2));
}

#[test]
fn termination_leaves_no_process_behind() {
    check("TERM", Some(2));
}

#[test]
fn even_a_kill_leaves_no_process_behind() {
    check("KILL", None);
}

#[test]
fn a_host_that_hangs_is_ended_by_its_deadline() {
    let out = tempfile::tempdir().unwrap();
    // How far it has come by then is the machine's business.
    let output = sleeping_host(out.path(), "10").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("within 10 s"), "{told}");
    none_is_left(out.path());
    assert!(out.path().join("console-host.log").is_file(), "the console is kept");
}
