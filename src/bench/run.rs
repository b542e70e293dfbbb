//! Runs the cells that are not there yet: which of them share a boot, what is kept, and what a breakdown costs.
//!
//! Owns the rule that a cell which is done is on this machine's disk before the next one begins: a signal, a crash of
//! the host or a deadline loses the cell under way and no other, and the same command goes on with the rest. A cell
//! that fails is kept as failed, with its reason. How a host is made is [`boot`](super::boot)'s business.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Result, bail};

use super::boot::{Request, boot};
use super::dom0::Line;
use super::figures::Figures;
use super::folder::{self, Done};
use super::matrix::Cell;
use crate::interrupt;
use crate::progress::Progress;

/// Runs cells on one host, and hands on what is told of them.
type Booting<'a> = &'a (dyn Fn(&[&Cell], &mut dyn FnMut(Line)) -> Result<()> + Sync);

/// Runs what is not there yet.
///
/// # Errors
///
/// If the input or the surroundings do not allow it, or a signal ended it.
pub fn run(request: &Request, progress: &Progress) -> Result<()> {
    let out = &request.out;
    folder::open(out, &request.setup)?;
    let mut left = Vec::new();
    for cell in &request.matrix.cells {
        match folder::kept(out, cell) {
            Some(done) if done.outcome.is_err() && request.again => folder::forget(out, cell)?,
            Some(_) => continue,
            None => {}
        }
        left.push(cell);
    }
    let there = request.matrix.cells.len() - left.len();
    if there > 0 {
        let all = request.matrix.cells.len();
        progress.note(format_args!("{there} of {all} cells are there already"));
    }
    if request.repeatable.is_some() {
        // Those of one lock after each other, so that a Linux kernel serves many. Elsewhere what is compared runs close
        // together instead, because the machine is not always the same.
        left.sort_by_key(|cell| cell.lock);
    }
    let boots = Mutex::new(boots(left).into_iter());
    let work = || -> Result<()> {
        let next = || boots.lock().unwrap_or_else(PoisonError::into_inner).next();
        while let Some(cells) = next() {
            let ran =
                several(out, cells, progress, &|cells, hear| boot(request, cells, progress, hear));
            if ran.is_err() {
                // Nobody begins another one.
                while next().is_some() {}
                return ran;
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..request.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let ended = workers.into_iter().map(|worker| match worker.join() {
            Ok(ended) => ended,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        // All of them are waited for; the first error is told.
        ended.fold(Ok(()), Result::and)
    })
}

/// The cells that share a boot: those of one topology, which need the same pCPUs.
fn boots(cells: Vec<&Cell>) -> Vec<Vec<&Cell>> {
    let mut boots: Vec<Vec<&Cell>> = Vec::new();
    for cell in cells {
        match boots.iter_mut().find(|boot| boot[0].topology == cell.topology) {
            Some(boot) => boot.push(cell),
            None => boots.push(vec![cell]),
        }
    }
    boots
}

/// Runs cells that share a boot; where the host breaks down, in as many boots as it takes.
fn several(out: &Path, mut cells: Vec<&Cell>, progress: &Progress, boot: Booting) -> Result<()> {
    while let Some(topology) = cells.first().map(|cell| &cell.topology) {
        interrupt::check()?;
        let step = progress.bar(format!("{}: starting", topology), cells.len() as u64);
        let (mut told, mut under_way, mut failure) = (0, None, Ok(()));
        let mut end = |cell: Cell, outcome: Result<Figures, String>| {
            told += 1;
            step.position(told);
            if let Err(why) = &outcome {
                progress.note(format_args!("{cell} failed: {why}"));
            }
            folder::keep(out, &Done { cell, outcome })
        };
        let ran = boot(&cells, &mut |line| {
            let heard = match line {
                Line::Versions(versions) => folder::keep_versions(out, &versions),
                Line::Begun(cell) => {
                    step.update(format_args!("{cell}"));
                    match under_way.replace(cell) {
                        Some(lost) => end(lost, Err(LOST.to_owned())),
                        None => Ok(()),
                    }
                }
                Line::Done(cell, outcome) => {
                    under_way = None;
                    let outcome = outcome.and_then(|told| Figures::of(cell.lock, &told));
                    end(cell, outcome)
                }
            };
            if failure.is_ok() {
                failure = heard;
            }
        });
        failure?;
        if ran.is_err() {
            // What a signal has cut short did not fail.
            interrupt::check()?;
        }
        let why = ran.as_ref().map_or_else(|error| format!("{error:#}"), |()| LOST.to_owned());
        if let Some(cell) = under_way {
            end(cell, Err(why))?;
        }
        cells.retain(|cell| folder::kept(out, cell).is_none());
        // A host that does not come as far as a cell will not do so the next time.
        if told == 0 {
            ran?;
            bail!("the host ended before {} cells were run", cells.len());
        }
        step.done(format_args!("{}: {told} cells", topology));
    }
    Ok(())
}

/// Why a cell has no outcome whose host went on.
const LOST: &str = "what dom0 told of it did not arrive whole on its console";

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use anyhow::anyhow;

    use super::super::figures::Told;
    use super::super::figures::tests::domain;
    use super::super::folder::tests::{cell, setup};
    use super::super::matrix::Matrix;
    use super::*;

    fn cells(count: u64) -> Vec<Cell> {
        (1..=count).map(|seed| Cell { lock: "adaptive".parse().unwrap(), ..cell(seed) }).collect()
    }

    fn well() -> Told {
        let domains = vec![domain("guest1", "policy=adaptive duration=100ms")];
        Told { domains, traced: BTreeMap::new(), trace_problem: None, neighbour_alone: None }
    }

    /// Has a cell begin and end well.
    fn done(cell: &Cell, hear: &mut dyn FnMut(Line)) {
        hear(Line::Begun(cell.clone()));
        hear(Line::Done(cell.clone(), Ok(well())));
    }

    /// Runs `cells` on hosts that do as `host` says, given the number of the boot (from 0) and its cells. Answers
    /// the seeds of the cells that have figures, the failed ones with their reasons, and the end.
    fn perform(
        cells: &[Cell],
        host: impl Fn(usize, &[&Cell], &mut dyn FnMut(Line)) -> Result<()> + Sync,
    ) -> (Vec<u64>, Vec<(u64, String)>, Result<()>) {
        let out = tempfile::tempdir().unwrap();
        folder::open(out.path(), &setup()).unwrap();
        // Relaxed: one thread.
        let boots = AtomicUsize::new(0);
        let ran =
            several(out.path(), cells.iter().collect(), &Progress::hidden(), &|cells, hear| {
                host(boots.fetch_add(1, Ordering::Relaxed), cells, hear)
            });
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for Done { cell, outcome } in folder::read(out.path()).unwrap().1 {
            match outcome {
                Ok(_) => good.push(cell.seed),
                Err(why) => bad.push((cell.seed, why)),
            }
        }
        (good, bad, ran)
    }

    #[test]
    fn a_host_that_breaks_down_loses_the_cell_under_way_and_no_other() {
        let (good, bad, ran) = perform(&cells(4), |boot, cells, hear| {
            done(cells[0], hear);
            if boot == 0 {
                hear(Line::Begun(cells[1].clone()));
                return Err(anyhow!("the host did not finish within 60 s"));
            }
            cells[1..].iter().for_each(|cell| done(cell, hear));
            Ok(())
        });
        ran.unwrap();
        assert_eq!(good, [1, 3, 4]);
        assert_eq!(bad, [(2, "the host did not finish within 60 s".to_owned())]);
    }

    #[test]
    fn a_cell_that_fails_is_kept_with_its_reason_and_the_next_one_runs() {
        let (good, bad, ran) = perform(&cells(4), |_, cells, hear| {
            done(cells[0], hear);
            let mut crashed = well();
            crashed.domains[0].message = "domain guest1 crashed".to_owned();
            hear(Line::Done(cells[1].clone(), Ok(crashed)));
            let lost = Told { trace_problem: Some("3 records were lost".to_owned()), ..well() };
            hear(Line::Done(cells[2].clone(), Ok(lost)));
            hear(Line::Done(cells[3].clone(), Err("xl create failed".to_owned())));
            Ok(())
        });
        ran.unwrap();
        assert_eq!(good, [1]);
        let reasons: Vec<&str> = bad.iter().map(|(_, why)| why.as_str()).collect();
        assert_eq!(reasons[0], "domain guest1 crashed");
        assert!(reasons[1].contains("3 records were lost"), "{reasons:?}");
        assert_eq!(reasons[2], "xl create failed");
    }

    #[test]
    fn a_cell_whose_line_is_torn_is_failed_and_not_forgotten() {
        let (good, bad, ran) = perform(&cells(3), |_, cells, hear| {
            hear(Line::Begun(cells[0].clone()));
            done(cells[1], hear);
            hear(Line::Begun(cells[2].clone()));
            Ok(())
        });
        ran.unwrap();
        assert_eq!(good, [2]);
        assert_eq!(bad, [(1, LOST.to_owned()), (3, LOST.to_owned())]);
    }

    #[test]
    fn a_host_that_does_not_come_up_ends_it() {
        let (good, bad, ran) = perform(&cells(2), |_, _, _| Err(anyhow!("no emulator")));
        assert_eq!(ran.unwrap_err().to_string(), "no emulator");
        assert!(good.is_empty() && bad.is_empty());
        let (.., ran) = perform(&cells(2), |_, _, _| Ok(()));
        assert!(ran.unwrap_err().to_string().contains("before 2 cells"));
    }

    #[test]
    fn the_cells_of_a_topology_share_a_boot() {
        let all = Matrix::new(&Default::default()).cells;
        let boots = boots(all.iter().collect());
        assert_eq!(boots.iter().map(Vec::len).sum::<usize>(), all.len());
        let topologies: BTreeSet<&str> = all.iter().map(|cell| &cell.topology[..]).collect();
        assert_eq!(boots.len(), topologies.len());
        assert!(boots.iter().flatten().zip(&all).all(|(boot, cell)| *boot == cell));
    }
}
