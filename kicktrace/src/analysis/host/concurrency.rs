//! How many vCPUs of a domain run, want to run and sleep at the same time.
//!
//! Owns the table of times by these numbers. A vCPU that is seen for the first time has been in the
//! state it leaves ever since the trace began, or its change would be in the trace: so it is added
//! to all of the table.

use rustc_hash::FxHashMap;

use crate::event::Runstate;

use super::figures::Concurrency;

/// How many vCPUs are running, runnable, blocked, and in no known state. Those that are offline
/// count nowhere.
type Numbers = [u16; 4];

#[derive(Debug, Default)]
pub(super) struct Concurrent {
    now: Numbers,
    since: u64,
    seen: bool,
    times: FxHashMap<Numbers, u64>,
    /// Of this phase, before these vCPUs were there.
    over: Concurrency,
}

const fn place(state: Option<Runstate>) -> Option<usize> {
    match state {
        Some(Runstate::Running) => Some(0),
        Some(Runstate::Runnable) => Some(1),
        Some(Runstate::Blocked) => Some(2),
        Some(Runstate::Offline) => None,
        None => Some(3),
    }
}

impl Concurrent {
    pub(super) fn account(&mut self, tsc: u64) {
        let tsc = tsc.max(self.since);
        if tsc > self.since && self.seen {
            *self.times.entry(self.now).or_default() += tsc - self.since;
        }
        self.since = tsc;
    }

    pub(super) fn begin_again(&mut self, tsc: u64) {
        self.times.clear();
        self.over = Concurrency::default();
        self.since = tsc.max(self.since);
    }

    /// From `from` on nothing is known of any vCPU; `staying` of them are there from `to` on.
    pub(super) fn restart(&mut self, from: u64, to: u64, staying: usize) {
        self.account(from);
        self.over = self.figures();
        self.times.clear();
        let unknown = u16::try_from(staying).unwrap_or(u16::MAX);
        (self.now, self.seen) = ([0, 0, 0, unknown], unknown > 0);
        self.since = to.max(self.since);
    }

    /// A vCPU goes from one state, the one it was in until now, to another. `first` is set instead
    /// of `from` when it is seen for the first time, since `began`; `stayed` says that it was
    /// there, in no known state. A vCPU that was not in the state its record says is in none that
    /// is known.
    pub(super) fn change(
        &mut self,
        began: u64,
        tsc: u64,
        first: Option<Runstate>,
        stayed: bool,
        before: Option<Runstate>,
        to: Option<Runstate>,
    ) {
        if !self.seen {
            (self.seen, self.since) = (true, began.max(self.since));
        }
        self.account(tsc);
        let from = match first {
            Some(state) => {
                let at = place(Some(state));
                if at.is_some() || stayed {
                    let add = |mut numbers: Numbers| {
                        numbers[3] = numbers[3].saturating_sub(u16::from(stayed));
                        if let Some(at) = at {
                            numbers[at] = numbers[at].saturating_add(1);
                        }
                        numbers
                    };
                    self.now = add(self.now);
                    self.times =
                        self.times.drain().map(|(numbers, ticks)| (add(numbers), ticks)).collect();
                }
                at
            }
            None => place(before),
        };
        if let Some(at) = from {
            self.now[at] = self.now[at].saturating_sub(1);
        }
        if let Some(at) = place(to) {
            self.now[at] = self.now[at].saturating_add(1);
        }
    }

    pub(super) fn figures(&self) -> Concurrency {
        let mut told = self.over.clone();
        for (&[running, runnable, blocked, unknown], &ticks) in &self.times {
            let sum = match (running, runnable, blocked, unknown) {
                (.., 1..) => &mut told.unknown,
                (0, 0, ..) => &mut told.none_wants,
                (0, ..) => &mut told.none_runs,
                (_, 0, 0, _) => &mut told.all_run,
                (_, 0, ..) => &mut told.some_run,
                _ => &mut told.hazard,
            };
            *sum += ticks;
            if unknown == 0 {
                let at = usize::from(running);
                if told.by_running.len() <= at {
                    told.by_running.resize(at + 1, 0);
                }
                told.by_running[at] += ticks;
            }
        }
        told
    }
}

#[cfg(test)]
mod tests {
    use super::Concurrent;
    use crate::event::Runstate::{Blocked, Runnable, Running};

    #[test]
    fn a_vcpu_seen_late_was_there_all_the_time() {
        let mut of = Concurrent::default();
        of.change(100, 110, Some(Blocked), false, None, Some(Runnable));
        of.change(100, 120, None, false, Some(Runnable), Some(Running));
        // The second vCPU ran since 100, as its first record shows.
        of.change(100, 150, Some(Running), false, None, Some(Runnable));
        of.account(160);
        let told = of.figures();
        assert_eq!((told.some_run, told.hazard, told.all_run), (10, 10 + 10, 30));
        assert_eq!(told.by_running, [0, 10 + 10 + 10, 30]);
    }

    #[test]
    fn what_nobody_knows_is_told_apart() {
        let mut of = Concurrent::default();
        of.change(0, 10, Some(Running), false, None, None);
        of.change(0, 30, None, false, None, Some(Blocked));
        of.account(35);
        let told = of.figures();
        assert_eq!((told.all_run, told.unknown, told.none_wants), (10, 20, 5));
    }
}
