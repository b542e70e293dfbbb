//! `kicktrace top` in a real terminal, that of tmux: it draws, follows the terminal's size, and
//! gives the terminal back as it was on `q`, Ctrl-C and the end of its input. Where there is no
//! tmux these tests say so and look at nothing.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const TWICE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/kick-twice-pv.xentrace.bin");
const PROGRAM: &str = env!("CARGO_BIN_EXE_kicktrace");

/// A terminal with a shell in it, on a server of its own.
struct Terminal(String);

impl Terminal {
    fn open(name: &str) -> Option<Self> {
        let there = Command::new("tmux").arg("-V").stdout(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            eprintln!("no tmux here: nothing was looked at (install tmux)");
            return None;
        }
        let terminal = Self(format!("kicktrace-{name}-{}", std::process::id()));
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", "sh"]);
        terminal.keys("PS1='ready$ '; clear; stty -a > ");
        terminal.keys(&format!("{}/before-{name}; echo begun", env!("CARGO_TARGET_TMPDIR")));
        terminal.enter();
        terminal.wait(|screen| screen.contains("begun\n"));
        Some(terminal)
    }

    fn tmux(&self, args: &[&str]) -> String {
        let out =
            Command::new("tmux").args(["-L", &self.0]).args(args).output().expect("it starts");
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    fn keys(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    fn enter(&self) {
        self.tmux(&["send-keys", "Enter"]);
    }

    fn run(&self, command: &str) {
        self.keys(command);
        self.enter();
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until the screen is as it should be, and returns it.
    fn wait(&self, is: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let screen = self.screen();
            if is(&screen) {
                return screen;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "the screen stays so:\n{screen}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The ordinary screen is back, with a cursor, and the terminal's modes are those before.
    fn is_clean(&self, name: &str) {
        let file = |when: &str| format!("{}/{when}-{name}", env!("CARGO_TARGET_TMPDIR"));
        self.run(&format!("stty -a > {}; echo 'do''ne'", file("after")));
        let screen = self.wait(|screen| screen.contains("done"));
        assert!(screen.contains("begun"), "the screen before is back:\n{screen}");
        assert_eq!(self.tmux(&["display", "-p", "#{alternate_on} #{cursor_flag}"]).trim(), "0 1");
        // The first line tells the size.
        let modes = |when| {
            let text = std::fs::read_to_string(file(when)).expect("stty wrote it");
            text.split_once('\n').map(|(_, modes)| modes.to_owned()).expect("several lines")
        };
        assert_eq!(modes("before"), modes("after"));
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

/// A pipe that gives most of a trace and then keeps its reader waiting.
fn slow(seconds: u32) -> String {
    format!("(head -c 420000 {TWICE}; sleep {seconds}) | {PROGRAM} top")
}

#[test]
fn it_draws_resizes_and_quits() {
    let Some(terminal) = Terminal::open("quits") else { return };
    terminal.run(&slow(600));
    let screen = terminal.wait(|screen| screen.contains("kicks/s") && screen.contains("d2 "));
    assert!(screen.contains("p2") && screen.contains("d1v"), "who runs is told:\n{screen}");
    assert!(screen.lines().all(|line| line.chars().count() <= 80));
    terminal.wait(|screen| screen.contains("no news for"));
    terminal.tmux(&["resize-window", "-x", "50", "-y", "12"]);
    // Whole columns go, and the screen says which.
    let narrow = terminal.wait(|screen| screen.contains("to hazard)"));
    assert!(narrow.contains("kicks/s"), "{narrow}");
    assert!(narrow.lines().all(|line| line.chars().count() <= 50), "{narrow}");
    terminal.tmux(&["resize-window", "-x", "100", "-y", "30"]);
    terminal.wait(|screen| screen.contains("hazard") && !screen.contains("no room"));
    terminal.keys("q");
    terminal.tmux(&["resize-window", "-x", "80", "-y", "24"]);
    // The shell still waits for the pipe's other end.
    terminal.wait(|screen| !screen.contains("kicks/s"));
    terminal.tmux(&["send-keys", "C-c"]);
    terminal.is_clean("quits");
}

#[test]
fn an_interrupt_leaves_the_terminal_clean() {
    let Some(terminal) = Terminal::open("interrupt") else { return };
    terminal.run(&slow(600));
    terminal.wait(|screen| screen.contains("kicks/s"));
    terminal.tmux(&["send-keys", "C-c"]);
    terminal.wait(|screen| !screen.contains("kicks/s"));
    terminal.is_clean("interrupt");
}

#[test]
fn the_end_of_the_input_leaves_the_last_second_on_the_screen() {
    let Some(terminal) = Terminal::open("end") else { return };
    terminal.run(&format!("cat {TWICE} | {PROGRAM} top; echo 'en''ded' $?"));
    let screen = terminal.wait(|screen| screen.contains("ended"));
    assert!(screen.contains("ended 0") && screen.contains("kicks/s"), "{screen}");
    terminal.is_clean("end");
    let cut = format!("head -c 400000 {TWICE} | {PROGRAM} top; echo 'en''ded' $?");
    terminal.run(&format!("clear; {cut}"));
    terminal.wait(|screen| screen.contains("ended 2"));
}

/// As with every command: a domain that no record names was asked for in vain.
#[test]
fn a_domain_that_is_not_there_is_an_error_at_the_end() {
    let Some(terminal) = Terminal::open("absent") else { return };
    terminal.run(&format!("cat {TWICE} | {PROGRAM} top --dom 77; echo 'en''ded' $?"));
    let screen = terminal.wait(|screen| screen.contains("ended"));
    let words = screen.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("domain 77 was asked for") && words.contains("ended 2"), "{screen}");
    terminal.is_clean("absent");
    let there = format!("cat {TWICE} | {PROGRAM} top --dom 1; echo 'en''ded' $?");
    terminal.run(&format!("clear; {there}"));
    terminal.wait(|screen| screen.contains("ended 0"));
}

#[test]
fn no_terminal_no_pipe_no_top() {
    let out = Command::new(PROGRAM).args(["top", TWICE]).output().expect("it starts");
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("--every 1s"));
}
