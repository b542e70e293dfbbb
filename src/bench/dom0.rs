//! A batch of cells on a Xen host: what crosses into dom0, what is done there, and what is told of it.
//!
//! Owns the lines that dom0 writes on its console and how a cell's files become what is told. It judges nothing; a
//! cell that fails is told as failed, and the next one runs.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use experiment::{Key, Setting};
use serde::{Deserialize, Serialize};

use super::figures::{Told, Traced, computed};
use super::matrix::{Cell, Section};
use super::standing::Standing;
use crate::host::{self, Event, Toolstack, XenHost};
use crate::plan::Plan;
use crate::{interrupt, linux};

/// How long the guest's waiters spin before they sleep, in locks that count turns.
const SPIN_US: u32 = 50;
/// Instructions of one of these turns behind the queue's head, as the guest is compiled; a head's has half as many.
const SPIN_INSTRUCTIONS: u32 = 16;

/// What crosses into dom0: the cells of one boot.
#[derive(Debug, Serialize, Deserialize)]
pub struct Batch {
    /// Turns of work in a microsecond; measured on the host where it is not known beforehand.
    pub(super) turns_per_us: Option<f64>,
    /// Whether the guests' waiters PAUSE.
    pub(super) pause: bool,
    /// What to run, one after the other.
    pub(super) cells: Vec<Planned>,
}

/// A cell, and what a host has to know of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Planned {
    pub(super) cell: Cell,
    pub(super) plan: Plan,
}

/// What dom0 says, a line each, on the console.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Line {
    /// Of everything on the host, before the first cell.
    Versions(serde_json::Value),
    /// This cell is under way.
    Begun(Cell),
    /// It has ended, with what is known of it, or why nothing is.
    Done(Cell, Result<Told, String>),
}

const PREFIX: &str = "@bench ";

impl Line {
    fn text(&self) -> String {
        format!("{PREFIX}{}", serde_json::to_string(self).expect("strings, numbers and lists"))
    }

    pub(super) fn in_line(line: &str) -> Option<Line> {
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
    let mut toolstack = Standing::new(Toolstack::open()?);
    let ran = each(&mut toolstack, batch, out, tell);
    // Also after an error: no domain may stay longer than this.
    let cleared = toolstack.clear();
    ran.and(cleared)
}

fn each(
    toolstack: &mut Standing<Toolstack>,
    batch: &Batch,
    out: &Path,
    tell: &mut dyn FnMut(String),
) -> Result<()> {
    tell(Line::Versions(toolstack.versions()?).text());
    let turns_per_us = match batch.turns_per_us {
        Some(known) => known,
        None => work_speed()?,
    };
    // The guest's waiters count turns. What one takes, PAUSE included, is only known while nobody else runs.
    let spin = u64::from(linux::budget::turns_in(SPIN_INSTRUCTIONS, SPIN_US, batch.pause)?);
    let with_turns = |cell: &Cell, plan: &Plan| {
        let (critical, outside) = cell.section.turns(turns_per_us);
        let turns = [(Key::critical, critical), (Key::outside, outside), (Key::spin, spin)];
        let settings = turns.map(|(key, turns)| Setting { key, value: format!("{turns}turns") });
        let mut plan = plan.clone();
        plan.settings.extend(settings);
        plan
    };
    // What it makes depends on the section, because a turn of its loop does.
    let mut neighbour_alone: BTreeMap<Section, Option<Result<f64, String>>> = BTreeMap::new();
    for Planned { cell, plan } in &batch.cells {
        interrupt::check()?;
        tell(Line::Begun(cell.clone()).text());
        let alone = match neighbour_alone.entry(cell.section) {
            Entry::Occupied(known) => known.get().clone(),
            Entry::Vacant(unknown) => {
                let plan = plan.neighbours_alone().map(|plan| with_turns(cell, &plan));
                let made =
                    plan.map(|plan| alone(toolstack, &plan, &out.join("neighbour-alone"), tell));
                interrupt::check()?;
                unknown.insert(made).clone()
            }
        };
        let folder = out.join(cell.to_string());
        let ran = perform(toolstack, &with_turns(cell, plan), &folder, tell);
        interrupt::check()?;
        let told = ran
            .map(|told| Told { neighbour_alone: alone, ..told })
            .map_err(|error| format!("{error:#}"));
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

/// What the domains of `plan`, which only compute, make in all: turns a second, or why that is not known.
fn alone(
    toolstack: &mut Standing<Toolstack>,
    plan: &Plan,
    folder: &Path,
    tell: &mut dyn FnMut(String),
) -> Result<f64, String> {
    let told = perform(toolstack, plan, folder, tell).map_err(|error| format!("{error:#}"))?;
    if let Some(bad) = told.domains.iter().find(|domain| !domain.message.is_empty()) {
        return Err(bad.message.clone());
    }
    let made = computed(&told.domains).ok_or("it left no report")?;
    drop(fs::remove_dir_all(folder));
    Ok(made)
}

/// One run of `plan`, whose only policy is the cell's lock, with its files in `folder`.
fn perform(
    toolstack: &mut Standing<Toolstack>,
    plan: &Plan,
    folder: &Path,
    tell: &mut dyn FnMut(String),
) -> Result<Told> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    host::run(toolstack, plan, folder, &mut |event| note(event, tell))?;
    collect(plan, folder)
}

/// What a person at the console sees of a cell that does not go well.
fn note(event: Event, tell: &mut dyn FnMut(String)) {
    if let Event::Problem { .. } | Event::StartMissed { .. } | Event::Error { .. } = event {
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
    Ok(Told { domains, traced, trace_problem, neighbour_alone: None })
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
    use super::super::folder::tests::cell;
    use super::*;

    #[test]
    fn what_dom0_says_is_heard_among_other_lines() {
        let line = Line::Done(cell(3), Err("domain guest1 crashed".to_owned()));
        assert_eq!(Line::in_line(&format!("{}\r", line.text())), Some(line));
        assert_eq!(Line::in_line("(XEN) @bench"), None);
    }

    /// A recorded trace, and the same with a record in front which says that Xen dropped some.
    #[test]
    fn a_trace_with_lost_records_counts_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("trace.bin");
        let recorded = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("kicktrace/tests/data/kick-twice-pv.xentrace.bin");
        let whole = fs::read(recorded).unwrap();
        fs::write(&file, &whole).unwrap();
        let counts = count(&file).unwrap();
        assert!(counts.values().any(|counts| counts.waking_kicks > 0), "{counts:?}");

        // Behind the first record (of 12 bytes: which pCPU comes, and how many bytes of it): TRC_LOST_RECORDS with a
        // TSC and four words, of which the first is how many.
        let tsc = &whole[16..24];
        let lost: Vec<u8> = [
            &0xc001_f001_u32.to_le_bytes()[..],
            tsc,
            &7u32.to_le_bytes(),
            &0u32.to_le_bytes(),
            tsc,
        ]
        .concat();
        let window = u32::from_le_bytes(whole[8..12].try_into().unwrap()) + lost.len() as u32;
        let spoilt = [&whole[..8], &window.to_le_bytes(), &lost, &whole[12..]].concat();
        fs::write(&file, spoilt).unwrap();
        assert_eq!(count(&file).unwrap_err().to_string(), "7 records were lost");
    }
}
