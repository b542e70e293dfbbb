//! The real Xen host: `xl`, xenstore and xenconsoled.
//!
//! Owns how each step is done with the tools every Xen installation has. It decides nothing: the order
//! of steps is the parent module's.

use std::collections::HashMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};
use xenstore_rs::Xs;
use xenstore_rs::unix::XsUnix;

use super::xentrace::Xentrace;
use super::{Change, Life, XenHost};
use crate::interrupt;
use crate::leash::Leashed;
use crate::plan::{Plan, UUID_PREFIX, uuid};

/// How long a wait may last before a signal is looked for.
const SLICE: Duration = Duration::from_millis(500);

/// The watch that fires when a domain shuts down or is destroyed (Xen docs/misc/xenstore.txt).
const RELEASE: &str = "@releaseDomain";

/// Where xenconsoled may write a domain's console, by Debian's default and by `--log-dir=/var/log/xen`.
const CONSOLE_LOGS: [&str; 2] = ["/var/log/xen/console", "/var/log/xen"];

/// Whether this is dom0, but cannot say so: its kernel's file system for Xen is not mounted.
pub fn is_dom0_without_xenfs() -> bool {
    let features = fs::read_to_string("/sys/hypervisor/properties/features").unwrap_or_default();
    let dom0 = u64::from_str_radix(features.trim(), 16).is_ok_and(|bits| bits & XENFEAT_DOM0 != 0);
    dom0 && !Path::new("/proc/xen/capabilities").exists()
}

/// Whether this is a dom0 with control over its host.
pub fn is_xen_host() -> bool {
    fs::read_to_string("/proc/xen/capabilities").is_ok_and(|text| text.contains("control_d"))
}

/// The programs a run uses, and whether it needs them.
pub(crate) const TOOLS: [(&str, bool); 4] =
    [("xl", true), ("xentrace", true), ("xenstore-watch", true), ("xenctx", false)];

/// How long xenstored may take to answer. Without it a read from its device never returns.
const XENSTORE_PATIENCE: Duration = Duration::from_secs(60);

/// What Xen tells dom0 alone (public/features.h).
const XENFEAT_DOM0: u64 = 1 << 11;

/// The tools of the Xen host this process runs on.
pub struct Toolstack {
    xl: PathBuf,
    xentrace: PathBuf,
    xenstore_watch: PathBuf,
    store: XsUnix,
    watch: Option<Watch>,
    consoles: HashMap<String, Console>,
}

/// Where the console of a domain's present life is found.
enum Console {
    /// xenconsoled's log, from this byte on.
    Log(PathBuf, u64),
    /// A client of ours writes it to this file.
    Client { file: PathBuf, _client: Leashed },
}

impl Toolstack {
    /// Finds the tools and connects to xenstore.
    ///
    /// # Errors
    ///
    /// If this is not a Xen host, or one of its tools is missing.
    pub fn open() -> Result<Toolstack> {
        if !is_xen_host() {
            bail!("this machine is not a Xen host: /proc/xen/capabilities does not say control_d");
        }
        if !rustix::process::geteuid().is_root() {
            bail!("only root may create domains; run pvlab as root (`sudo pvlab ...`)");
        }
        let (xl, xentrace) = (tool("xl")?, tool("xentrace")?);
        let xenstore_watch = tool("xenstore-watch")?;
        let store = xenstore()?;
        let consoles = HashMap::new();
        Ok(Toolstack { xl, xentrace, xenstore_watch, store, watch: None, consoles })
    }

    /// Whether this host is free for `plan`. It creates and changes nothing.
    ///
    /// # Errors
    ///
    /// If a domain has one of the plan's names, or the trace buffer is in use; each with its remedy.
    pub fn check(&self, plan: &Plan) -> Result<()> {
        for domain in self.list()? {
            if !plan.domains.iter().any(|planned| planned.name == domain.name) {
                continue;
            }
            let Listed { name, domid, uuid } = domain;
            let whose = if uuid.starts_with(UUID_PREFIX) {
                "an earlier pvlab made it"
            } else {
                "pvlab did not make it"
            };
            bail!(
                "a domain `{name}` exists already (domain {domid}; {whose}); end it with \
                 `xl destroy {domid}`, or rename the scenario's"
            );
        }
        if let Some(pid) = plan.trace.then(other_xentrace).flatten() {
            bail!(
                "another xentrace runs (process {pid}), and Xen has one trace buffer; end it with \
                 `kill -INT {pid}`, or give --no-trace"
            );
        }
        Ok(())
    }

    /// Domains that an earlier pvlab made and that are still there.
    ///
    /// # Errors
    ///
    /// If `xl` cannot list domains.
    pub fn leftovers(&self) -> Result<Vec<String>> {
        let ours = |domain: Listed| {
            let Listed { name, domid, uuid } = domain;
            uuid.starts_with(UUID_PREFIX).then(|| format!("{name} (domain {domid})"))
        };
        Ok(self.list()?.into_iter().filter_map(ours).collect())
    }

    /// Every domain of this host.
    fn list(&self) -> Result<Vec<Listed>> {
        let output = self.xl(["list", "-v"])?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("xl list failed: {}; see that xenstored runs", said.trim());
        }
        Ok(listed(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Destroys what a failed `xl create` has left of the domain `name`. It has the number that pvlab gave
    /// it from its first moment on, its name only later.
    fn destroy_half_made(&mut self, name: &str) -> Result<()> {
        let number = uuid(name);
        for domain in self.list()?.into_iter().filter(|domain| domain.uuid == number) {
            self.destroy(domain.domid)?;
        }
        Ok(())
    }

    fn xl<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<std::process::Output> {
        let mut command = Command::new(&self.xl);
        // In a group of its own: a terminal's Ctrl-C would end it half way.
        command.args(arguments).stdin(Stdio::null()).process_group(0);
        command.output().with_context(|| format!("cannot start {}", self.xl.display()))
    }

    fn make(&mut self, name: &str, config: &Path) -> Result<u32> {
        let log = CONSOLE_LOGS.iter().map(|dir| Path::new(dir).join(format!("guest-{name}.log")));
        let before: HashMap<PathBuf, u64> = log
            .map(|log| (log.clone(), fs::metadata(&log).map_or(0, |about| about.len())))
            .collect();
        // -e: no daemon that waits for the domain's end; this run destroys it.
        let made =
            self.xl(["create".as_ref(), "-q".as_ref(), "-e".as_ref(), config.as_os_str()])?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr);
            let said = said.trim();
            let remedy = if memory_too_small(said) {
                "; the image does not fit into the domain's `memory`: write a larger one"
            } else {
                ""
            };
            bail!("xl create {} failed ({}){remedy}: {said}", config.display(), made.status);
        }
        let output = self.xl(["domid", name])?;
        let text = String::from_utf8_lossy(&output.stdout);
        let domid = text
            .trim()
            .parse()
            .with_context(|| format!("xl domid {name} said `{}`", text.trim()))?;
        let log = before
            .into_iter()
            .find(|(log, size)| fs::metadata(log).is_ok_and(|about| about.len() >= *size));
        let console = match log {
            Some((log, size)) => Console::Log(log, size),
            None => self.attach(name, domid, config)?,
        };
        self.consoles.insert(name.to_owned(), console);
        Ok(domid)
    }

    /// Attaches to a console that xenconsoled does not log.
    fn attach(&self, name: &str, domid: u32, config: &Path) -> Result<Console> {
        let file = config.with_file_name(format!("console-{name}.log"));
        let log =
            fs::File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
        let mut command = Command::new(&self.xl);
        command
            .args(["console", &domid.to_string()])
            // A pipe that stays open: at the end of its input the client would leave.
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(Stdio::null());
        let client = Leashed::spawn(&mut command).context("cannot start xl console")?;
        Ok(Console::Client { file, _client: client })
    }
}

impl XenHost for Toolstack {
    type Trace = Xentrace;

    fn create(&mut self, name: &str, config: &Path) -> Result<u32> {
        self.make(name, config).map_err(|error| match self.destroy_half_made(name) {
            Ok(()) => error,
            Err(left) => error.context(format!("domain {name} may be left over ({left:#})")),
        })
    }

    fn destroy(&mut self, domid: u32) -> Result<()> {
        let output = self.xl(["destroy", &domid.to_string()])?;
        if !output.status.success() && self.life(domid)? != Life::Gone {
            bail!("xl destroy {domid} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    fn life(&mut self, domid: u32) -> Result<Life> {
        let output = self.xl(["list", &domid.to_string()])?;
        if !output.status.success() {
            return Ok(Life::Gone);
        }
        Ok(life_in(&String::from_utf8_lossy(&output.stdout)))
    }

    fn read(&mut self, path: &str) -> Result<Option<String>> {
        match self.store.read(path) {
            Ok(value) => Ok(Some(value.into())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {path} in xenstore")),
        }
    }

    fn write(&mut self, path: &str, value: &str) -> Result<()> {
        self.store.write(path, value).with_context(|| format!("cannot write {path} in xenstore"))
    }

    fn watch(&mut self, paths: &[String]) -> Result<()> {
        self.watch = Some(Watch::start(&self.xenstore_watch, paths)?);
        Ok(())
    }

    fn wait(&mut self, timeout: Duration) -> Result<Change> {
        let watch = self.watch.as_ref().context("nothing is watched")?;
        let end = Instant::now() + timeout;
        while !interrupt::requested() {
            let slice = end.saturating_duration_since(Instant::now()).min(SLICE);
            match watch.changes.recv_timeout(slice) {
                Ok(first) => {
                    // Whatever else has changed by now is seen by the same look.
                    let domain = watch.changes.try_iter().fold(first, |any, next| any.max(next));
                    return Ok(domain);
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() < end => {}
                Err(RecvTimeoutError::Timeout) => return Ok(Change::Domain),
                Err(RecvTimeoutError::Disconnected) => bail!("xenstore-watch ended"),
            }
        }
        Ok(Change::Domain)
    }

    fn console(&mut self, name: &str) -> Result<String> {
        let bytes = match self.consoles.get(name) {
            None => Vec::new(),
            Some(Console::Client { file, .. }) => fs::read(file)?,
            Some(Console::Log(file, from)) => {
                let all =
                    fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
                all.get(*from as usize..).unwrap_or_default().to_vec()
            }
        };
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn start_trace(&mut self, mask: u32, file: &Path) -> Result<Xentrace> {
        Xentrace::start(&self.xentrace, mask, file)
    }

    fn stop_trace(&mut self, trace: Xentrace) -> Result<()> {
        trace.stop()
    }

    fn log(&mut self) -> Result<String> {
        let output = self.xl(["dmesg"])?;
        if !output.status.success() {
            bail!("xl dmesg failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn registers(&mut self, domid: u32) -> Result<Option<String>> {
        xenctx(&["-C", &domid.to_string()])
    }

    fn memory(
        &mut self,
        domid: u32,
        vcpu: u32,
        address: u64,
        bytes: u64,
    ) -> Result<Option<String>> {
        let (domid, vcpu) = (domid.to_string(), vcpu.to_string());
        let (address, lines) = (format!("{address:#x}"), bytes.div_ceil(32).to_string());
        let pages = bytes.div_ceil(4096).to_string();
        // Short options: of the long ones, Xen 4.17's xenctx takes --display-stack-pages without its
        // argument, and dies.
        xenctx(&["-m", &address, "-l", &lines, "-n", &pages, "-t", &domid, &vcpu])
    }

    fn versions(&mut self) -> Result<Value> {
        let output = self.xl(["info"])?;
        if !output.status.success() {
            bail!("xl info failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let info = info_in(&String::from_utf8_lossy(&output.stdout));
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Ok(
            json!({ "pvlab": env!("CARGO_PKG_VERSION"), "dom0_kernel": kernel.trim(), "xl_info": info }),
        )
    }
}

/// A child that prints a line whenever a watched node changes.
struct Watch {
    _child: Leashed,
    changes: Receiver<Change>,
}

impl Watch {
    fn start(program: &Path, paths: &[String]) -> Result<Watch> {
        let mut command = Command::new(program);
        command.args(paths).arg(RELEASE).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = Leashed::spawn(&mut command).context("cannot start xenstore-watch")?;
        let output = child.child().stdout.take().context("xenstore-watch has no output")?;
        let (sender, changes) = channel();
        thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            let changes = lines
                .map(|line| if line.trim() == RELEASE { Change::Domain } else { Change::Node });
            // Ends with the child, or when nobody listens any more.
            changes.map_while(|change| sender.send(change).ok()).for_each(drop);
        });
        Ok(Watch { _child: child, changes })
    }
}

/// A domain in the list of all.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed {
    name: String,
    domid: u32,
    uuid: String,
}

/// The lines of `xl list -v`: name (`(null)` before it has one), number, four columns, UUID and more.
fn listed(text: &str) -> Vec<Listed> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, domid) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        Some(Listed { name, domid, uuid: words.nth(4).unwrap_or_default().to_owned() })
    };
    text.lines().filter_map(line).collect()
}

/// The process that traces this Xen already.
pub(crate) fn other_xentrace() -> Option<u32> {
    process_named("xentrace")
}

/// A running process of this name (Linux keeps the first 15 bytes of it).
fn process_named(name: &str) -> Option<u32> {
    let pid = |entry: fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let comm = fs::read_to_string(entry.path().join("comm")).ok()?;
        (comm.trim_end() == name).then_some(pid)
    };
    fs::read_dir("/proc").into_iter().flatten().flatten().find_map(pid)
}

/// A connection to a xenstored that answers.
fn xenstore() -> Result<XsUnix> {
    const REMEDY: &str = "start it (Debian: `systemctl start xen`)";
    let (sender, receiver) = channel();
    thread::spawn(move || {
        let store = XsUnix::new().and_then(|store| store.directory("/").map(|_| store));
        // Nobody listens any more where it took too long.
        sender.send(store).ok()
    });
    match receiver.recv_timeout(XENSTORE_PATIENCE) {
        Ok(store) => store.with_context(|| format!("cannot reach xenstored; {REMEDY}")),
        Err(_) => bail!("xenstored does not answer; {REMEDY}"),
    }
}

/// What Xen's `xenctx` prints; `None` where it is not installed. It may fail half way, at memory that is not
/// there: what it printed until then counts.
fn xenctx(arguments: &[&str]) -> Result<Option<String>> {
    let Ok(program) = tool("xenctx") else { return Ok(None) };
    let output = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned()))
}

/// Looks for a program in PATH, and where distributions keep Xen's own.
pub(crate) fn tool(name: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let own = fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path().join("bin"));
    let own =
        own.filter(|dir| dir.parent().is_some_and(|dir| dir.to_string_lossy().contains("/xen")));
    let places =
        env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]).chain(own);
    places.map(|place| place.join(name)).find(|file| file.is_file()).with_context(|| {
        format!(
            "`{name}` is not installed; install the Xen tools (Debian: xen-utils, xenstore-utils)"
        )
    })
}

/// Whether `xl create` says that the kernel does not fit (libxenguest, xg_dom_core.c and xg_dom_x86.c).
fn memory_too_small(said: &str) -> bool {
    ["segment kernel too large", "not enough memory for initial mapping"]
        .iter()
        .any(|words| said.contains(words))
}

/// The state column of `xl list DOMID`: letters r, b, p, s, c, d in fixed places, `-` where not so.
fn life_in(list: &str) -> Life {
    let state = list
        .lines()
        .nth(1)
        .and_then(|line| line.split_whitespace().rev().nth(1))
        .unwrap_or_default();
    if state.contains('c') {
        Life::Crashed
    } else if state.contains(['s', 'd']) {
        Life::ShutDown
    } else {
        Life::Running
    }
}

/// The lines `key : value` of `xl info`.
fn info_in(text: &str) -> Map<String, Value> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.trim().to_owned(), Value::from(value.trim())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_column_of_xl_list_is_read() {
        let list = |state: &str| {
            format!(
                "Name          ID   Mem VCPUs\tState\tTime(s)\nguest1         3    64     4     {state}       1.5\n"
            )
        };
        assert_eq!(life_in(&list("r-----")), Life::Running);
        assert_eq!(life_in(&list("-b----")), Life::Running);
        assert_eq!(life_in(&list("------")), Life::Running);
        assert_eq!(life_in(&list("---s--")), Life::ShutDown);
        assert_eq!(life_in(&list("---sc-")), Life::Crashed);
        assert_eq!(life_in(&list("----c-")), Life::Crashed);
    }

    #[test]
    fn a_memory_too_small_for_the_image_is_known_from_what_xl_says() {
        // Xen 4.17.7: memory = 9 as PVH, 11 as PV.
        assert!(memory_too_small(
            "xc: error: panic: xg_dom_core.c:536: xc_dom_chk_alloc_pages: segment kernel too large \
             (0x925 > 0x900 - 0x100 pages): Out of memory"
        ));
        assert!(memory_too_small(
            "xc: error: panic: xg_dom_x86.c:159: count_pgtables: not enough memory for initial mapping \
             (0xbff > 0xb00): Out of memory"
        ));
        assert!(!memory_too_small("libxl: error: Domain 3:cannot (re-)build domain: -3"));
    }

    #[test]
    fn a_domain_is_known_by_its_number_before_it_has_a_name() {
        let number = uuid("guest1");
        let list = format!(
            "Name      ID   Mem VCPUs\tState\tTime(s)   UUID    Reason-Code\tSecurity Label\n\
             Domain-0   0   512     1     r-----       5.1 00000000-0000-0000-0000-000000000000 -  -\n\
             (null)     3    64     1     --p---       0.0 {number}  -  -\n"
        );
        let domains = listed(&list);
        assert_eq!(domains.len(), 2);
        let half_made = Listed { name: "(null)".into(), domid: 3, uuid: number };
        assert_eq!(domains[1], half_made);
        assert!(half_made.uuid.starts_with(UUID_PREFIX));
    }

    #[test]
    fn xl_info_becomes_pairs() {
        let info = info_in(
            "host                   : lab\nxen_version            : 4.17.7\nxen_caps : a b:c\n",
        );
        assert_eq!(info["xen_version"], "4.17.7");
        assert_eq!(info["xen_caps"], "a b:c");
    }
}
