//! A signal or a deadline ends a run of the lab with everything it started.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use assert_cmd::cargo::CommandCargoExt;

/// Starts a host whose dom0 sleeps for ever, and returns once it does.
fn sleeping_host(out: &Path, more: &[&str]) -> Child {
    let script = out.join("sleep.sh");
    fs::write(&script, "echo asleep now; sleep 100000").unwrap();
    let mut pvlab = Command::cargo_bin("pvlab").unwrap();
    pvlab.args(["lab", "boot", "--script"]).arg(&script).arg("--out").arg(out).args(more);
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

/// Processes whose command line has `mark` in it.
fn processes_with(mark: &str) -> Vec<PathBuf> {
    let all = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let marked = |path: &PathBuf| {
        let line = fs::read(path.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(mark)
    };
    all.filter(marked).collect()
}

fn signal(child: &Child, name: &str) {
    let sent =
        Command::new("sh").args(["-c", &format!("kill -{name} {}", child.id())]).status().unwrap();
    assert!(sent.success());
}

fn ends_soon(child: &mut Child) -> std::process::ExitStatus {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "pvlab goes on after the signal");
        thread::sleep(Duration::from_millis(50));
    }
}

/// `Some(2)`: ended in order; `None`: by the signal itself.
fn check(name: &str, expected: Option<i32>) {
    let out = tempfile::tempdir().unwrap();
    let mut pvlab = sleeping_host(out.path(), &[]);
    // pvlab itself and the emulator, whose share is the folder.
    assert!(processes_with(out.path().to_str().unwrap()).len() >= 2);
    signal(&pvlab, name);
    assert_eq!(ends_soon(&mut pvlab).code(), expected);
    nothing_is_left_but_the_console(out.path());
}

fn nothing_is_left_but_the_console(out: &Path) {
    let mark = out.to_str().unwrap();
    let begun = Instant::now();
    while !processes_with(mark).is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(60), "left: {:?}", processes_with(mark));
        thread::sleep(Duration::from_millis(50));
    }
    let console = fs::read_to_string(out.join("console-host.log")).unwrap();
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
    // Long enough to get up on a busy machine: the script must have begun.
    let mut pvlab = sleeping_host(out.path(), &["--deadline", "60"]);
    assert_eq!(pvlab.wait().unwrap().code(), Some(2));
    nothing_is_left_but_the_console(out.path());
}
