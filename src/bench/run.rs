//! Runs cells: many in one boot, each kept when it is done.
//!
//! Owns the folder of an experiment and the document that crosses into dom0. A cell that is done is on this
//! machine's disk before the next one begins: a signal, a crash of the host or a deadline loses the cell under way
//! and no other, and the same command goes on with the rest. A cell that fails is kept as failed, with its reason.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use experiment::{Key, Setting};
use serde::{Deserialize, Serialize};

use super::figures::{Figures, Told, Traced};
use super::matrix::{Cell, Matrix, SCENARIO};
use crate::host::{self, Event, Toolstack};
use crate::lab::{Boot, Lab, Overlay, Repeatable};
use crate::linux;
use crate::plan::{Choices, Plan};
use crate::progress::Progress;
use crate::report::Mode;
use crate::run::{DOM0_MIB, LAB_FOLDER, LAB_IMAGE, XEN_MIB, add_linux, linux_files, memory_of};
use crate::scenario::{Library, Scenario};
use crate::{image, interrupt};

/// How the cells of one folder were run; `bench.json`. Cells of another setup do not go beside them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// Version of this folder's files.
    pub schema: u32,
    /// Where the domains run.
    pub mode: Mode,
    /// In repeatable mode, how many nanoseconds of virtual time an instruction lasts, as a power of two.
    pub shift: Option<u8>,
    /// And the longest turn of a pCPU in microseconds.
    pub slice_us: Option<u64>,
    /// The window's length.
    pub window: Duration,
    /// How long after a domain was asked for the time the window begins.
    pub start_after: Duration,
    /// Xen's scheduler, as on its command line; the host's own where there is none.
    pub scheduler: Option<String>,
    /// Whether the hypervisor's trace is counted.
    pub trace: bool,
}

/// Version of the files in an experiment's folder.
pub const SCHEMA: u32 = 1;

/// How long the guest's waiters spin before they sleep, in locks that count turns.
const SPIN_US: u32 = 50;
/// Instructions of one of these turns behind the queue's head, as the guest is compiled; a head's has half as many.
const SPIN_INSTRUCTIONS: u32 = 16;

/// The file an experiment's folder is known by.
pub const SETUP: &str = "bench.json";
const CELLS: &str = "cells";

/// A cell that has been run: `cells/CELL.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Which.
    pub cell: Cell,
    /// Its figures, or why it has none.
    pub outcome: Result<Figures, String>,
}

/// What to run, and how.
pub struct Request {
    /// The cells.
    pub matrix: Matrix,
    /// How they are to run.
    pub setup: Setup,
    /// Deterministic emulation.
    pub repeatable: Option<Repeatable>,
    /// Where scenarios come from.
    pub library: Library,
    /// The guest image, if not the one inside this program.
    pub image: Option<PathBuf>,
    /// Kernel and build tree of Linux domains, if not the lab's own.
    pub linux: Option<(PathBuf, PathBuf)>,
    /// Whether cells that failed before are run again.
    pub again: bool,
    /// The experiment's folder.
    pub out: PathBuf,
}

/// What crosses into dom0: the cells of one boot.
#[derive(Debug, Serialize, Deserialize)]
pub struct Batch {
    /// Turns of work in a microsecond; measured on the host where it is not known beforehand.
    turns_per_us: Option<f64>,
    cells: Vec<Planned>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Planned {
    cell: Cell,
    plan: Plan,
}

/// Runs what is not there yet. Answers how many cells are in the folder now, and how many of them failed.
///
/// # Errors
///
/// If the input or the surroundings do not allow it, or a signal ended it.
pub fn run(request: &Request, progress: &Progress) -> Result<()> {
    open(&request.out, &request.setup)?;
    let left: Vec<&Cell> = request
        .matrix
        .cells
        .iter()
        .filter(|cell| match kept(&request.out, cell) {
            Some(done) => done.outcome.is_err() && request.again,
            None => true,
        })
        .collect();
    let there = request.matrix.cells.len() - left.len();
    if there > 0 {
        progress.note(format_args!(
            "{there} of {} cells are there already",
            request.matrix.cells.len()
        ));
    }
    // One boot for the cells of one topology: they need the same pCPUs.
    let mut boots: BTreeMap<&str, Vec<&Cell>> = BTreeMap::new();
    let mut order = Vec::new();
    for cell in left {
        let cells = boots.entry(&cell.topology).or_default();
        if cells.is_empty() {
            order.push(&cell.topology);
        }
        cells.push(cell);
    }
    for topology in order {
        let mut cells = boots.remove(topology.as_str()).unwrap_or_default();
        while !cells.is_empty() {
            interrupt::check()?;
            let ran = boot(request, topology, &cells, progress);
            let before = cells.len();
            cells.retain(|cell| kept(&request.out, cell).is_none_or(|_| false));
            match ran {
                Ok(()) if cells.is_empty() => {}
                Ok(()) => bail!("the host ended before {} cells were run", cells.len()),
                Err(error) => {
                    interrupt::check()?;
                    // The cell under way is the one that did it; the others get another boot.
                    if cells.len() == before && before > 0 && !begun(&request.out, cells[0]) {
                        return Err(error);
                    }
                    let cell = cells.remove(0);
                    progress.note(format_args!("{cell}: {error:#}"));
                    keep(
                        &request.out,
                        &Done { cell: cell.clone(), outcome: Err(format!("{error:#}")) },
                    )?;
                }
            }
        }
    }
    Ok(())
}

/// Whether the last boot came as far as beginning `cell`.
fn begun(out: &Path, cell: &Cell) -> bool {
    fs::read_to_string(out.join("lab/console-host.log")).is_ok_and(|console| {
        console.lines().any(|line| Line::in_line(line) == Some(Line::Begun(cell.clone())))
    })
}

/// Makes the folder, or sees that its cells go with `setup`.
fn open(out: &Path, setup: &Setup) -> Result<()> {
    let cells = out.join(CELLS);
    let file = out.join(SETUP);
    if let Ok(text) = fs::read_to_string(&file) {
        let there: Setup = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged; give --out another folder", file.display()))?;
        if there != *setup {
            bail!(
                "{} holds cells that were run in another way ({}; now: {}), and the two are not mixed; give --out another \
                 folder",
                out.display(),
                there.words(),
                setup.words()
            );
        }
        return Ok(());
    }
    if fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!(
            "{} is not empty and holds no experiment; give --out a new or empty folder",
            out.display()
        );
    }
    fs::create_dir_all(&cells).with_context(|| format!("cannot create {}", cells.display()))?;
    write_whole(&file, &serde_json::to_string_pretty(setup)?)
}

impl Setup {
    /// For a person.
    pub fn words(&self) -> String {
        let mode = match (self.mode, self.shift, self.slice_us) {
            (Mode::Repeatable, Some(shift), Some(slice)) => {
                format!(
                    "repeatable, {} ns an instruction, turns of {slice} us, with PAUSE, which ends a pCPU's turn",
                    1u32 << shift
                )
            }
            (Mode::Host, ..) => "this machine's Xen".to_owned(),
            _ => "parallel emulation".to_owned(),
        };
        let scheduler = self.scheduler.as_ref().map_or(String::new(), |name| format!(", {name}"));
        let trace = if self.trace { "" } else { ", without a trace" };
        format!(
            "{mode}{scheduler}, windows of {} ms that begin {} ms after the last order{trace}",
            self.window.as_millis(),
            self.start_after.as_millis()
        )
    }
}

fn file_of(out: &Path, cell: &Cell) -> PathBuf {
    out.join(CELLS).join(format!("{cell}.json"))
}

/// The cell as it was run before; one that is half written was never finished.
fn kept(out: &Path, cell: &Cell) -> Option<Done> {
    let text = fs::read_to_string(file_of(out, cell)).ok()?;
    serde_json::from_str(&text).ok()
}

fn keep(out: &Path, done: &Done) -> Result<()> {
    write_whole(&file_of(out, &done.cell), &serde_json::to_string(done)?)
}

/// All at once or not at all.
fn write_whole(file: &Path, text: &str) -> Result<()> {
    let cannot = || format!("cannot write {}", file.display());
    let parent = file.parent().with_context(cannot)?;
    let mut half = tempfile::NamedTempFile::new_in(parent).with_context(cannot)?;
    std::io::Write::write_all(&mut half, text.as_bytes()).with_context(cannot)?;
    half.persist(file).with_context(cannot)?;
    Ok(())
}

/// Every cell in an experiment's folder, with how they were run.
///
/// # Errors
///
/// If it is no such folder, or one of its files is damaged.
pub fn read(folder: &Path) -> Result<(Setup, Vec<Done>)> {
    let file = folder.join(SETUP);
    let text = fs::read_to_string(&file).with_context(|| {
        format!("{} is not an experiment's folder: it has no {SETUP}", folder.display())
    })?;
    let setup: Setup =
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", file.display()))?;
    if setup.schema != SCHEMA {
        bail!("{} has schema {}, this pvlab reads {SCHEMA}", file.display(), setup.schema);
    }
    let cells = folder.join(CELLS);
    let mut files: Vec<PathBuf> = fs::read_dir(&cells)
        .with_context(|| format!("cannot read {}", cells.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|text| text == "json"))
        .collect();
    files.sort();
    let read = |path: &PathBuf| {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged; remove it and run it again", path.display()))
    };
    Ok((setup, files.iter().map(read).collect::<Result<_>>()?))
}

/// One boot, or one session on this machine's Xen.
fn boot(request: &Request, topology: &str, cells: &[&Cell], progress: &Progress) -> Result<()> {
    let scenario = request.library.load(&format!("{SCENARIO}{topology}"))?;
    let on_host = request.setup.mode == Mode::Host;
    let folder: PathBuf =
        if on_host { std::path::absolute(&request.out)? } else { LAB_FOLDER.into() };
    let image_path = if on_host { folder.join("xen-guest.elf") } else { LAB_IMAGE.into() };
    let image = image::load(request.image.as_deref())?;
    let lab = if on_host { None } else { Some(Lab::prepare(progress)?) };
    let wants_linux = cells.iter().any(|cell| matches!(cell.lock, experiment::Lock::Linux(_)));
    let files = match wants_linux {
        true => Some(linux_files(request.linux.as_ref(), lab.as_ref(), progress)?),
        false => None,
    };
    let turns_per_us =
        request.repeatable.map(|settings| 1000.0 / f64::from(2u32 << settings.shift));
    let planned = cells
        .iter()
        .map(|cell| plan(request, &scenario, cell, &image_path, files.as_ref(), &folder));
    let batch = Batch { turns_per_us, cells: planned.collect::<Result<_>>()? };

    let step = progress.bar(format!("{topology}: starting"), cells.len() as u64);
    let mut told = 0;
    let mut hear = |line: &str| -> Result<()> {
        match Line::in_line(line) {
            Some(Line::Begun(cell)) => step.update(format_args!("{cell}")),
            Some(Line::Done(cell, Ok(what))) => {
                told += 1;
                step.position(told);
                let outcome = Figures::of(cell.lock, &what);
                if let Err(why) = &outcome {
                    progress.note(format_args!("{cell} failed: {why}"));
                }
                keep(&request.out, &Done { cell, outcome })?;
            }
            Some(Line::Done(cell, Err(why))) => {
                told += 1;
                progress.note(format_args!("{cell} failed: {why}"));
                keep(&request.out, &Done { cell, outcome: Err(why) })?;
            }
            None => {}
        }
        Ok(())
    };
    let Some(lab) = lab else {
        let write = |path: &Path, bytes: &[u8]| {
            fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
        };
        write(&image_path, &image)?;
        if let Some((domain, files)) =
            batch.cells.iter().find_map(|p| p.plan.linux.as_ref()).zip(files)
        {
            write(&domain.kernel, &files.kernel)?;
            write(&domain.initrd, &files.initrd)?;
        }
        let work = request.out.join("host");
        let mut failure = Ok(());
        carry_out(&batch, &work, &mut |line| {
            if failure.is_ok() {
                failure = hear(&line);
            }
        })?;
        step.done(format_args!("{topology}: {told} cells"));
        return failure;
    };

    let mut boot = Boot::script(
        "exec /pvlab/pvlab bench-host --batch /pvlab/batch.json --out /out\n",
        request.out.join("lab"),
    );
    boot.files.push(Overlay::this_program("/pvlab/pvlab")?);
    boot.files.push(Overlay::bytes("/pvlab/batch.json", 0o644, serde_json::to_vec(&batch)?));
    boot.files.push(Overlay::bytes(LAB_IMAGE, 0o644, image));
    boot.pcpus = scenario.pcpus + 1;
    boot.dom0_mib = DOM0_MIB;
    let domain = batch.cells.iter().find_map(|planned| planned.plan.linux.as_ref());
    let least = add_linux(&mut boot, domain.zip(files.as_ref()));
    boot.memory_mib = DOM0_MIB + XEN_MIB + memory_of(&scenario, least)?;
    if let Some(name) = &request.setup.scheduler {
        boot.hypervisor_options = format!("sched={name}");
    }
    let cells = u32::try_from(cells.len()).context("too many cells")?;
    boot.deadline = Duration::from_secs(300) + scenario.deadline * cells;
    if let Some(settings) = request.repeatable {
        boot.mode = crate::lab::Mode::Repeatable(settings);
        boot.deadline *= 10;
    }
    let mut failure = Ok(());
    let ended = lab.run(&boot, &mut |line| {
        if failure.is_ok() {
            failure = hear(line);
        }
    });
    failure?;
    let ended = ended?;
    if ended.status != 0 {
        bail!("pvlab in dom0 ended with status {}; see {}", ended.status, ended.console.display());
    }
    step.done(format_args!("{topology}: {told} cells"));
    Ok(())
}

fn plan(
    request: &Request,
    scenario: &Scenario,
    cell: &Cell,
    image: &Path,
    files: Option<&linux::Files>,
    folder: &Path,
) -> Result<Planned> {
    let set = |key: Key, value: String| Setting { key, value };
    let choices = Choices {
        policies: vec![cell.lock.to_string()],
        settings: vec![
            set(Key::seed, cell.seed.to_string()),
            set(Key::duration, format!("{}us", request.setup.window.as_micros())),
        ],
        // Marks would cost the guest's locks a hypercall and Linux' nothing.
        markers: false,
        trace: request.setup.trace,
        start_after: request.setup.start_after,
    };
    let mut plan = Plan::new(scenario, &choices, image)?;
    if let Some(files) = files {
        plan.set_linux(files, folder).map_err(anyhow::Error::msg)?;
    }
    Ok(Planned { cell: cell.clone(), plan })
}

/// What dom0 says of cells, a line each, on the console.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Line {
    Begun(Cell),
    Done(Cell, Result<Told, String>),
}

const PREFIX: &str = "@bench ";

impl Line {
    fn text(&self) -> String {
        format!("{PREFIX}{}", serde_json::to_string(self).expect("strings, numbers and lists"))
    }

    fn in_line(line: &str) -> Option<Line> {
        let at = line.find(PREFIX)?;
        serde_json::from_str(line[at + PREFIX.len()..].trim_end()).ok()
    }
}

/// Runs a batch on this Xen host: each cell as a run of its own, one after the other.
///
/// # Errors
///
/// If there is no Xen host, or a signal asked to end. A cell that fails is told as failed.
pub fn carry_out(batch: &Batch, out: &Path, tell: &mut dyn FnMut(String)) -> Result<()> {
    let mut toolstack = Toolstack::open()?;
    let turns_per_us = match batch.turns_per_us {
        Some(known) => known,
        None => work_speed()?,
    };
    // The guest's waiters count turns. What one takes, PAUSE included, is only known while nobody else runs.
    let spin = linux::budget::turns_in(SPIN_INSTRUCTIONS, SPIN_US)?;
    for Planned { cell, plan } in &batch.cells {
        interrupt::check()?;
        tell(Line::Begun(cell.clone()).text());
        let folder = out.join(cell.to_string());
        let mut plan = plan.clone();
        let (critical, outside) = cell.section.turns(turns_per_us);
        let spin = u64::from(spin);
        for (key, turns) in [(Key::critical, critical), (Key::outside, outside), (Key::spin, spin)]
        {
            plan.settings.push(Setting { key, value: format!("{turns}turns") });
        }
        let ran = fs::create_dir_all(&folder)
            .with_context(|| format!("cannot create {}", folder.display()))
            .and_then(|()| {
                host::run(&mut toolstack, &plan, &folder, &mut |event| note(event, tell))
            });
        interrupt::check()?;
        let told = ran.and_then(|()| collect(&plan, &folder)).map_err(|error| format!("{error:#}"));
        let well =
            told.as_ref().is_ok_and(|told| told.domains.iter().all(|d| d.message.is_empty()));
        tell(Line::Done(cell.clone(), told).text());
        // What went well is told; what did not is worth a look. A trace is large, and dom0's memory is not.
        let gone = if well {
            folder.clone()
        } else {
            folder.join(cell.lock.to_string()).join("trace.bin")
        };
        drop(if well { fs::remove_dir_all(gone) } else { fs::remove_file(gone) });
    }
    Ok(())
}

/// What a person at the console sees of a cell that does not go well.
fn note(event: Event, tell: &mut dyn FnMut(String)) {
    if let Event::Problem { .. } | Event::Error { .. } = event {
        tell(event.line());
    }
}

/// What one cell left in its folder.
fn collect(plan: &Plan, folder: &Path) -> Result<Told> {
    let folder = folder.join(&plan.policies[0]);
    let mut domains = Vec::new();
    for domain in &plan.domains {
        let file = folder.join(format!("{}.json", domain.name));
        let text = fs::read_to_string(&file)
            .with_context(|| format!("domain {} left no result", domain.name))?;
        domains.push(
            serde_json::from_str(&text)
                .with_context(|| format!("{} is damaged", file.display()))?,
        );
    }
    let (traced, trace_problem) = match plan.trace.then(|| count(&folder.join("trace.bin"))) {
        None => (BTreeMap::new(), None),
        Some(Ok(traced)) => (traced, None),
        Some(Err(error)) => (BTreeMap::new(), Some(format!("{error:#}"))),
    };
    Ok(Told { domains, traced, trace_problem })
}

fn count(trace: &Path) -> Result<BTreeMap<u32, Traced>> {
    let file = File::open(trace).with_context(|| format!("cannot read {}", trace.display()))?;
    let summary = kicktrace::summarise(BufReader::new(file), &kicktrace::Options::default())?;
    let lost = summary.reading.lost_records();
    if lost > 0 {
        bail!("{lost} records were lost");
    }
    let of = |domain: &kicktrace::summary::Domain| {
        let counts = &domain.counts;
        let traced = Traced {
            evtchn_ops: counts.evtchn_ops.value,
            waking_kicks: counts.waking_kicks.value,
            polls: counts.polls.value,
            polls_blocked: counts.polls_blocked.value,
        };
        (u32::from(domain.id), traced)
    };
    Ok(summary.domains.iter().map(of).collect())
}

/// Turns of the work loop in a microsecond, by this pCPU's fastest tries, once three of them agree.
fn work_speed() -> Result<f64> {
    const TURNS: u64 = 20_000;
    let time = || {
        let begin = Instant::now();
        // SAFETY: it counts a register down to zero; it reads and writes no memory and no stack.
        unsafe {
            core::arch::asm!("2:", "dec {n}", "jnz 2b", n = inout(reg) TURNS => _, options(nomem, nostack));
        }
        begin.elapsed().as_nanos() as f64
    };
    let mut times: Vec<f64> = (0..2_000).map(|_| time()).collect();
    times.sort_by(f64::total_cmp);
    if times[2] > times[0] * 1.01 {
        bail!(
            "this host is too busy to measure how fast it works: the three fastest of {} tries took {:.0} to {:.0} ns",
            times.len(),
            times[0],
            times[2]
        );
    }
    Ok(TURNS as f64 * 1000.0 / times[0].max(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup() -> Setup {
        Setup {
            schema: SCHEMA,
            mode: Mode::Repeatable,
            shift: Some(3),
            slice_us: Some(100),
            window: Duration::from_millis(400),
            start_after: Duration::from_secs(1),
            scheduler: None,
            trace: true,
        }
    }

    fn cell(seed: u64) -> Cell {
        let section = "2/4".parse().unwrap();
        Cell { topology: "4-on-1".to_owned(), section, lock: "linux-50us".parse().unwrap(), seed }
    }

    #[test]
    fn cells_that_are_done_are_there_again_and_half_written_ones_are_not() {
        let out = tempfile::tempdir().unwrap();
        open(out.path(), &setup()).unwrap();
        let done = Done { cell: cell(1), outcome: Ok(Figures::default()) };
        keep(out.path(), &done).unwrap();
        keep(out.path(), &Done { cell: cell(2), outcome: Err("crashed".to_owned()) }).unwrap();
        assert_eq!(kept(out.path(), &cell(1)), Some(done));
        assert_eq!(read(out.path()).unwrap().1.len(), 2);
        let file = file_of(out.path(), &cell(1));
        let whole = fs::read_to_string(&file).unwrap();
        fs::write(&file, &whole[..whole.len() / 2]).unwrap();
        assert_eq!(kept(out.path(), &cell(1)), None);
        assert!(read(out.path()).unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn cells_of_another_mode_are_not_mixed_in() {
        let out = tempfile::tempdir().unwrap();
        open(out.path(), &setup()).unwrap();
        open(out.path(), &setup()).unwrap();
        let parallel = Setup { mode: Mode::Parallel, shift: None, slice_us: None, ..setup() };
        let error = open(out.path(), &parallel).unwrap_err().to_string();
        assert!(error.contains("repeatable") && error.contains("parallel"), "{error}");
    }

    #[test]
    fn a_foreign_folder_is_left_alone() {
        let out = tempfile::tempdir().unwrap();
        fs::write(out.path().join("thesis.tex"), "x").unwrap();
        assert!(open(out.path(), &setup()).unwrap_err().to_string().contains("not empty"));
        assert!(read(out.path()).unwrap_err().to_string().contains("no bench.json"));
    }

    #[test]
    fn what_dom0_says_is_heard_among_other_lines() {
        let line = Line::Done(cell(3), Err("domain guest1 crashed".to_owned()));
        assert_eq!(Line::in_line(&format!("{}\r", line.text())), Some(line));
        assert_eq!(Line::in_line("(XEN) @bench"), None);
    }
}
