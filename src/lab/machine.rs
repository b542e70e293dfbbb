//! Runs a host: starts the emulator, follows its console, and sees to its end.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::cpio::Archive;
use super::overlay::{self, Content};
use super::process::follow;
use super::qemu::{self, Emulator};
use super::{Boot, Ended, Error, Lab, Mode, build, elf, fairness, initramfs, lockstep};
use crate::interrupt;
use crate::leash::Leashed;

/// The serial console, in [`Boot::out`].
const CONSOLE: &str = "console-host.log";
/// The emulator's command line, in [`Boot::out`].
const COMMAND: &str = "qemu-command.txt";
/// How often a waiting run looks at its deadline and at signals.
const TICK: Duration = Duration::from_millis(100);
/// Lines of the console shown with an error.
const SHOWN: usize = 15;

pub(super) fn check(lab: &Lab, boot: &Boot) -> Result<(), Error> {
    qemu::check(boot)?;
    if matches!(boot.mode, Mode::Repeatable(_)) {
        fairness::require(lab)?;
    }
    Ok(())
}

pub(super) fn run(lab: &Lab, boot: &Boot, on_line: &mut dyn FnMut(&str)) -> Result<Ended, Error> {
    check(lab, boot)?;
    fs::create_dir_all(&boot.out).map_err(Error::file("create the folder", &boot.out))?;
    let out = fs::canonicalize(&boot.out).map_err(Error::file("find", &boot.out))?;
    let folder = lab.cache.run_folder()?;
    lay_out(lab, boot, folder.path())?;

    let mut command = Emulator { root: &lab.root() }.command(boot.mode);
    command.args(qemu::host(boot, Some(&out), "stdio")).current_dir(folder.path());
    let shown = out.join(COMMAND);
    fs::write(&shown, qemu::shown(&command) + "\n").map_err(Error::file("write", &shown))?;
    let words = folder.path().join("stderr");
    let stderr = File::create(&words).map_err(Error::file("create", &words))?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);

    let console = Console::create(out.join(CONSOLE))?;
    let begun = Instant::now();
    let (status, console) =
        watch(&mut command, console, begun + boot.deadline, boot.deadline, on_line)?;
    if !status.success() {
        return Err(Error::Emulator {
            status: status.to_string(),
            words: fs::read_to_string(&words).unwrap_or_default(),
            during: format!("a run started by {}", shown.display()),
        });
    }
    match console.status {
        Some(status) => Ok(Ended { status, console: console.path, elapsed: begun.elapsed() }),
        None => Err(Error::HostDied { last: console.last(), console: console.path }),
    }
}

/// Runs a host whose console is this terminal, until it powers off.
pub(super) fn shell(lab: &Lab, boot: &Boot) -> Result<(), Error> {
    qemu::check(boot)?;
    let folder = lab.cache.run_folder()?;
    let boot = Boot { script: String::new(), ..boot.clone() };
    lay_out(lab, &boot, folder.path())?;
    let mut command = Emulator { root: &lab.root() }.command(boot.mode);
    // Not in a process group of its own: it reads from the terminal. Ctrl-C goes to dom0; the
    // monitor's Ctrl-A X ends the emulator.
    command.args(qemu::host(&boot, None, "mon:stdio")).current_dir(folder.path());
    let mut emulator = Leashed::spawn_on_terminal(&mut command)
        .map_err(Error::file("start", command.get_program()))?;
    let status = follow(&mut emulator, &mut || Ok(()))?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Emulator {
        status: status.to_string(),
        words: "(see above)".into(),
        during: "a shell".into(),
    })
}

/// Puts what the host starts from into `folder`, under the names the command line uses.
fn lay_out(lab: &Lab, boot: &Boot, folder: &Path) -> Result<(), Error> {
    let parts =
        [(build::XEN, qemu::XEN), (build::VMLINUX, qemu::VMLINUX), (build::ROOT, qemu::ROOT)];
    for (from, name) in parts {
        let link = folder.join(name);
        symlink(lab.part(from), &link).map_err(Error::file("create the link", &link))?;
    }
    let overlay = overlay_archive(lab, boot)?;
    lockstep::lay_out(folder, boot.mode)?;
    let path = folder.join(qemu::INITRD);
    let write = || -> io::Result<()> {
        let mut out = BufWriter::new(File::create(&path)?);
        // Linux unpacks archives that follow one another as one.
        io::copy(&mut File::open(lab.part(build::DOM0))?, &mut out)?;
        overlay.write(&mut out)?;
        out.flush()
    };
    write().map_err(Error::file("write", &path))
}

fn overlay_archive(lab: &Lab, boot: &Boot) -> Result<Archive, Error> {
    let mut archive = Archive::default();
    if !boot.script.is_empty() {
        archive.bytes("/pvlab/run", 0o644, boot.script.as_bytes());
    }
    for file in &boot.files {
        let place = initramfs::resolved(&file.path);
        match &file.content {
            Content::Bytes(bytes) => archive.bytes(&place, file.mode, bytes.clone()),
            Content::File(path) => archive.file(&place, file.mode, path),
            Content::Program(path) => {
                archive.bytes(&place, file.mode, overlay::program(path)?);
                let there = |name: &str| lab.parts.libraries.iter().any(|library| library == name);
                // dom0's own packages first: libraries of one release fit together.
                let roots = [lab.root(), PathBuf::from("/")];
                let lacking =
                    elf::libraries(std::slice::from_ref(path), &[&roots[0], &roots[1]], &there)?;
                for (name, library) in lacking {
                    archive.file(&initramfs::library_place(&name), 0o755, library);
                }
            }
        }
    }
    Ok(archive)
}

/// Starts the emulator and follows it to its end. It is gone when this returns, whatever is returned.
fn watch(
    command: &mut Command,
    mut console: Console,
    until: Instant,
    limit: Duration,
    on_line: &mut dyn FnMut(&str),
) -> Result<(ExitStatus, Console), Error> {
    let mut emulator =
        Leashed::spawn(command).map_err(Error::file("start", command.get_program()))?;
    let pipe = emulator.child().stdout.take().map(BufReader::new);
    let lines = pipe.map(lines).unwrap_or_else(|| mpsc::channel().1);
    loop {
        interrupt::check()?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Deadline { limit, last: console.last(), console: console.path });
        }
        match lines.recv_timeout(left.min(TICK)) {
            Ok(line) => on_line(console.take(&line)?),
            Err(RecvTimeoutError::Timeout) => {}
            // The console is closed: the emulator is ending.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = emulator.wait().map_err(Error::file("wait for", command.get_program()))?;
    Ok((status, console))
}

/// Reads lines in the background until the pipe closes.
fn lines(mut pipe: impl BufRead + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        loop {
            let mut line = Vec::new();
            match pipe.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) if sender.send(line).is_err() => return,
                Ok(_) => {}
            }
        }
    });
    receiver
}

/// The console so far: on disk as it came, its last lines and the script's status in memory.
struct Console {
    path: PathBuf,
    file: File,
    recent: VecDeque<String>,
    status: Option<i32>,
}

impl Console {
    fn create(path: PathBuf) -> Result<Self, Error> {
        let file = File::create(&path).map_err(Error::file("create", &path))?;
        Ok(Console { path, file, recent: VecDeque::new(), status: None })
    }

    /// Keeps a line and gives it back as text.
    fn take(&mut self, line: &[u8]) -> Result<&str, Error> {
        self.file.write_all(line).map_err(Error::file("write", &self.path))?;
        let text = String::from_utf8_lossy(line).trim_end_matches(['\r', '\n']).to_owned();
        if let Some(status) = script_status(&text) {
            self.status = Some(status);
        }
        if self.recent.len() == SHOWN {
            self.recent.pop_front();
        }
        self.recent.push_back(text);
        Ok(self.recent.back().map_or("", String::as_str))
    }

    fn last(&self) -> String {
        self.recent.iter().map(|line| format!("{line}\n")).collect()
    }
}

/// `@lab status N`, which Xen's own messages may have pushed away from the line's beginning.
fn script_status(line: &str) -> Option<i32> {
    line.split_once("@lab status ")?.1.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(folder: &Path) -> Console {
        Console::create(folder.join(CONSOLE)).unwrap()
    }

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        command
    }

    fn watch_for(
        script: &str,
        limit: Duration,
        folder: &Path,
    ) -> (Result<(ExitStatus, Console), Error>, Vec<String>) {
        let mut seen = Vec::new();
        let until = Instant::now() + limit;
        let result = watch(&mut shell(script), console(folder), until, limit, &mut |line| {
            seen.push(line.to_owned())
        });
        (result, seen)
    }

    #[test]
    fn lines_are_shown_kept_and_searched_for_the_status() {
        let folder = tempfile::tempdir().unwrap();
        let script = r"printf 'one\r\n(XEN) two @lab status 3\r\nno newline'";
        let (result, seen) = watch_for(script, Duration::from_secs(60), folder.path());
        let (status, console) = result.unwrap();
        assert!(status.success());
        assert_eq!(console.status, Some(3));
        assert_eq!(seen, ["one", "(XEN) two @lab status 3", "no newline"]);
        let raw = fs::read(folder.path().join(CONSOLE)).unwrap();
        assert_eq!(raw, b"one\r\n(XEN) two @lab status 3\r\nno newline");
    }

    #[test]
    fn a_host_that_hangs_is_ended_and_its_console_kept() {
        let folder = tempfile::tempdir().unwrap();
        // Enough for the shell to begin, however busy the machine is.
        let limit = Duration::from_secs(5);
        let (result, seen) = watch_for("echo last words; exec sleep 1000", limit, folder.path());
        let error = result.err().unwrap().to_string();
        assert!(
            error.contains("within 5 s") && error.contains("last words") && error.contains(CONSOLE),
            "{error}"
        );
        assert_eq!(seen, ["last words"]);
        assert_eq!(fs::read(folder.path().join(CONSOLE)).unwrap(), b"last words\n");
    }

    #[test]
    fn only_the_last_lines_stay_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let mut console = console(folder.path());
        (0..1000).for_each(|n| drop(console.take(format!("line {n}\n").as_bytes())));
        assert_eq!(console.last().lines().count(), SHOWN);
        assert!(console.last().ends_with("line 999\n"));
    }

    #[test]
    fn a_status_is_a_number_after_its_mark() {
        assert_eq!(script_status("@lab status 0"), Some(0));
        assert_eq!(script_status("@lab status -1 "), Some(-1));
        assert_eq!(script_status("@lab status"), None);
        assert_eq!(script_status("lab status 0"), None);
    }
}
