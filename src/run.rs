//! One run from request to results: on this machine's Xen, or on a Xen host made for it.
//!
//! Owns the folder a run writes into and what a person sees meanwhile. How a host is driven and how
//! one is made is not its business.

mod folder;

use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use self::folder::Folder;
use crate::host::{self, Event, Toolstack};
use crate::image;
use crate::lab::{Boot, Lab, Overlay, Release, Repeatable};
use crate::linux;
use crate::plan::{Choices, Plan};
use crate::progress::{Progress, Step};
use crate::report::{Mode, Results, RunRecord, SCHEMA};
use crate::scenario::Scenario;

/// Where a run's own files lie in the lab's dom0.
pub(crate) const LAB_FOLDER: &str = "/pvlab";

/// Where the guest image lies in there.
pub(crate) const LAB_IMAGE: &str = "/pvlab/xen-guest.elf";

/// And on a Xen host, in the run's folder.
const HOST_IMAGE: &str = "xen-guest.elf";

/// dom0's memory in the lab, in MiB. The trace lies in it until the run is over.
pub(crate) const DOM0_MIB: u32 = 1024;

/// What Xen and the firmware take of the lab's memory, in MiB, generously.
pub(crate) const XEN_MIB: u32 = 192;

/// Wall time the lab gets to come up and to hand over its files.
const LAB_GRACE: Duration = Duration::from_secs(180);

/// How much slower than its own clock a deterministic lab may run.
const REPEATABLE_SLOWDOWN: u32 = 20;

/// What to run, and how.
pub struct Request {
    /// The scenario.
    pub scenario: Scenario,
    /// How the run departs from it.
    pub choices: Choices,
    /// Deterministic emulation instead of a fast one.
    pub repeatable: Option<Repeatable>,
    /// The release of Debian that the lab is made of, if not the machine's.
    pub release: Option<Release>,
    /// The guest image, if not the one inside this program.
    pub image: Option<PathBuf>,
    /// Kernel and build tree of Linux domains, if not the lab's own.
    pub linux: Option<(PathBuf, PathBuf)>,
    /// Where everything goes.
    pub out: PathBuf,
}

/// Runs the request and writes `results.json`.
///
/// Whether it can run is found out before anything is created or deleted; what an earlier run left in the
/// folder stays until the new run is whole.
///
/// # Errors
///
/// If the input or the surroundings do not allow it, or a signal ended it. What was collected until
/// then is kept, where the message says.
pub fn run(request: &Request, progress: &Progress) -> Result<Results> {
    let image = image::load(request.image.as_deref())?;
    let on_host = host::is_xen_host();
    if let (true, Some(release)) = (on_host, &request.release) {
        bail!("--release {release} is of the lab, and this machine is a Xen host; leave it out");
    }
    let mode = match (request.repeatable.is_some(), on_host) {
        (true, true) => {
            bail!("--repeatable needs the emulator, and this machine is a Xen host; leave it out")
        }
        (true, false) => Mode::Repeatable,
        (false, true) => Mode::Host,
        (false, false) => Mode::Parallel,
    };
    let mut folder = Folder::examine(&request.out)?;
    // Absolute, so that the configurations kept in the folder serve from anywhere.
    let image_path =
        if on_host { absolute(folder.place().join(HOST_IMAGE))? } else { LAB_IMAGE.into() };
    let mut plan = Plan::new(&request.scenario, &request.choices, &image_path)?;
    let wants_linux = plan.policies.iter().any(|policy| linux::Variant::of(policy).is_some());
    let linux = if wants_linux {
        let lab = if on_host { None } else { Some(Lab::prepare(progress)?) };
        check_linux(lab.as_ref(), &plan)?;
        let files = linux_files(request.linux.as_ref(), lab.as_ref(), progress)?;
        let there = if on_host { absolute(folder.place())? } else { LAB_FOLDER.into() };
        plan.set_linux(&files, &there).map_err(anyhow::Error::msg)?;
        Some(files)
    } else {
        None
    };
    let record = RunRecord { schema: SCHEMA, mode, plan };
    let mut ready = if on_host {
        let toolstack = Toolstack::open()?;
        toolstack.check(&record.plan)?;
        Ready::Host(toolstack)
    } else {
        if host::is_dom0_without_xenfs() {
            bail!(
                "this is Xen's dom0, but its kernel does not say so: mount it with \
                 `mount -t xenfs xenfs /proc/xen`, then try again"
            );
        }
        let boot = lab_boot(request, &record, &image, linux.as_ref(), folder.place())?;
        let lab = Lab::prepare_release(request.release.as_ref(), progress)?;
        lab.check(&boot)?;
        Ready::Lab(lab, Box::new(boot))
    };

    // Everything that can be known before is known.
    folder.begin(&record)?;
    let mut screen = Screen::new(progress, &record.plan);
    let ran = match &mut ready {
        Ready::Host(toolstack) => write(&image_path, &image)
            .and_then(|()| match record.plan.linux.as_ref().zip(linux.as_ref()) {
                Some((paths, files)) => write(&paths.kernel, &files.kernel)
                    .and_then(|()| write(&paths.initrd, &files.initrd)),
                None => Ok(()),
            })
            .and_then(|()| {
                let tell = &mut |event| screen.show(event);
                host::run(toolstack, &record.plan, folder.place(), tell)
            }),
        Ready::Lab(lab, boot) => in_lab(lab, boot, progress, &mut screen),
    };
    screen.clear();
    if let Ready::Lab(lab, _) = &ready {
        let mut packages = lab.versions().clone();
        packages.extend(linux.into_iter().flat_map(|files| files.packages));
        folder.add_lab_versions(&packages)?;
    }
    let Err(error) = ran else {
        folder.finish()?;
        let results = Results::read(&request.out)?;
        results.write(&request.out)?;
        return Ok(results);
    };
    // The error that matters is the run's.
    drop(Results::read(folder.place()).and_then(|results| results.write(folder.place())));
    // What happened comes first; it may be many lines, the last ones of a console.
    Err(anyhow!("{}\n{}", format!("{error:#}").trim_end(), folder.left()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Checks that the Linux domains of `plan` boot in this lab; on a Xen host they do.
pub(crate) fn check_linux(lab: Option<&Lab>, plan: &Plan) -> Result<()> {
    match lab {
        Some(lab) if plan.has_pvh() => Ok(lab.check_pvh_linux()?),
        _ => Ok(()),
    }
}

/// Kernel and initramfs of Linux domains: of the kernel that was named, or the lab's own.
pub(crate) fn linux_files(
    named: Option<&(PathBuf, PathBuf)>,
    lab: Option<&Lab>,
    progress: &Progress,
) -> Result<linux::Files> {
    let Some((kernel, tree)) = named else {
        let Some(lab) = lab else {
            bail!(
                "a lock of Linux on a Xen host needs a kernel: name it with --linux-kernel FILE and \
                 --linux-tree DIR"
            )
        };
        return Ok(lab.linux(progress)?);
    };
    let step = progress.step("building the module for Linux");
    let folder = tempfile::tempdir().context("cannot create a folder for the module for Linux")?;
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
    let busybox = busybox.into_iter().find(|file| file.is_file());
    let busybox = busybox.context("a Linux domain needs busybox; install busybox-static")?;
    let from = linux::Ingredients { kernel, tree, busybox, libraries: None };
    let files = linux::build(&from, folder.path())?;
    step.done("built the module for Linux");
    Ok(files)
}

/// What a run needs, found and free.
enum Ready {
    Host(Toolstack),
    Lab(Lab, Box<Boot>),
}

fn lab_boot(
    request: &Request,
    record: &RunRecord,
    image: &[u8],
    linux: Option<&linux::Files>,
    place: &Path,
) -> Result<Boot> {
    request.scenario.fits_the_lab()?;
    let plan = serde_json::to_vec(&record.plan).context("cannot write the plan")?;
    let mut boot = Boot::plan(plan, place)?;
    boot.files.push(Overlay::bytes(LAB_IMAGE, 0o644, image));
    boot.pcpus = request.scenario.pcpus + 1;
    boot.dom0_mib = DOM0_MIB;
    let least = add_linux(&mut boot, record.plan.linux.as_ref().zip(linux));
    boot.memory_mib = DOM0_MIB + XEN_MIB + memory_of(&request.scenario, least)?;
    let policies = u32::try_from(record.plan.policies.len()).context("too many policies")?;
    let run = record.plan.deadline.saturating_mul(policies * host::ATTEMPTS);
    boot.deadline = run.saturating_add(LAB_GRACE);
    if let Some(settings) = request.repeatable {
        boot.mode = crate::lab::Mode::Repeatable(settings);
        boot.deadline = boot.deadline.saturating_mul(REPEATABLE_SLOWDOWN);
    }
    Ok(boot)
}

fn in_lab(lab: &Lab, boot: &Boot, progress: &Progress, screen: &mut Screen) -> Result<()> {
    screen.booting();
    let mut failure = None;
    let ended = lab.run(boot, &mut |line| {
        progress.detail(line);
        if let Some(event) = Event::in_line(line) {
            if let Event::Error { message } = &event {
                failure = Some(message.clone());
            }
            screen.show(event);
        }
    })?;
    match (ended.status, failure) {
        (0, _) => Ok(()),
        (_, Some(message)) => bail!(message),
        (status, None) => {
            bail!("pvlab in dom0 ended with status {status}; see {}", ended.console.display())
        }
    }
}

/// Puts the files of Linux domains into dom0; answers how many MiB each of them needs at least.
pub(crate) fn add_linux(boot: &mut Boot, linux: Option<(&linux::Domain, &linux::Files)>) -> u64 {
    let Some((paths, files)) = linux else { return 0 };
    for (path, bytes) in [(&paths.kernel, &files.kernel), (&paths.initrd, &files.initrd)] {
        boot.files.push(Overlay::bytes(path.display().to_string(), 0o644, bytes.clone()));
    }
    linux::MEMORY_MIB
}

/// MiB of all domains, each of at least `least`.
pub(crate) fn memory_of(scenario: &Scenario, least: u64) -> Result<u32> {
    let mut sum = 0u64;
    for domain in &scenario.domains {
        // Xen's own tables for the domain come on top.
        sum += domain.config.integer_of("memory")?.max(least) + 8;
    }
    let machine = total_memory_mib().unwrap_or(u64::MAX);
    let lab = u64::from(DOM0_MIB + XEN_MIB);
    if sum + lab > machine {
        bail!(
            "the scenario's domains need {sum} MiB and the lab {lab} MiB more, and this machine has \
             {machine} MiB of memory and swap: use fewer domains, or a smaller `memory`"
        );
    }
    u32::try_from(sum).context("too much memory")
}

/// Memory and swap of this machine; `None` if it does not tell.
fn total_memory_mib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = |name: &str| -> Option<u64> {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    Some((kib("MemTotal:")? + kib("SwapTotal:").unwrap_or(0)) >> 10)
}

/// Shows the events of a run.
struct Screen<'a> {
    progress: &'a Progress,
    plan: &'a Plan,
    step: Option<Step>,
    policy: String,
    done: usize,
}

impl<'a> Screen<'a> {
    fn new(progress: &'a Progress, plan: &'a Plan) -> Self {
        Screen { progress, plan, step: None, policy: String::new(), done: 0 }
    }

    fn booting(&mut self) {
        self.step = Some(self.progress.step("booting Xen and dom0 in the emulator"));
    }

    fn clear(&mut self) {
        self.step = None;
    }

    fn show(&mut self, event: Event) {
        let domains = self.plan.domains.len();
        match event {
            Event::PolicyStarted { policy } => {
                if let Some(step) = self.step.take() {
                    step.done("Xen and dom0 are up");
                }
                self.done = 0;
                self.step =
                    Some(self.progress.bar(format!("{policy}: creating domains"), domains as u64));
                self.policy = policy;
            }
            Event::DomainCreated { domain, domid } => {
                self.update(format_args!("created {domain} (domain {domid})"))
            }
            Event::DomainState { domain, state } => {
                if state == "done" {
                    self.done += 1;
                }
                self.update(format_args!("{domain} is {state}"));
                if let Some(step) = &self.step {
                    step.position(self.done as u64);
                }
            }
            Event::Problem { policy, message } => {
                self.progress.note(format_args!("{policy}: {message}"))
            }
            Event::StartMissed { policy, start_after } => {
                self.step = None;
                self.progress.note(host::start_missed(&policy, start_after));
            }
            Event::PolicyDone { policy } => {
                if let Some(step) = self.step.take() {
                    step.done(format_args!(
                        "{policy}: {} of {domains} domains finished",
                        self.done
                    ));
                }
            }
            // The caller returns it as its own error.
            Event::Error { .. } => self.clear(),
            Event::Finished => {
                self.step = Some(self.progress.step("collecting"));
            }
        }
    }

    fn update(&self, text: std::fmt::Arguments) {
        if let Some(step) = &self.step {
            step.update(format_args!("{}: {text}", self.policy));
        }
    }
}

/// Where a run goes that was not told where: `pvlab-out/SCENARIO`.
pub fn default_folder(scenario: &str) -> PathBuf {
    Path::new("pvlab-out").join(scenario)
}
