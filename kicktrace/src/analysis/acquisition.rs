//! Waits to acquisitions: how many times a vCPU slept, and was kicked, until it owned a lock.
//!
//! Owns both ways to find out. With the guest's marks each acquisition ends with
//! `acquired-after-block`, so the count is exact. Without them the end is inferred: a vCPU that
//! sleeps twice with no event channel operation of its own between the two waits has unlocked
//! nothing in between that anybody waited for, so both waits belong to one acquisition.

use crate::event::MAX_PCPUS;
use crate::summary::{Acquisitions, Certainty};

/// The kick that ended a wait.
///
/// It is handed on at each wake, so it is small and has but one byte of padding: several are copied
/// in pieces that overlap, each of which then waits for the one before to reach the cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kick {
    pub(super) tsc: u64,
    /// Index of the vCPU that kicked.
    pub(super) by: u32,
    /// The pCPU it was on: below [`MAX_PCPUS`].
    pub(super) cpu: u16,
    /// Whether the guest marked it.
    pub(super) marked: bool,
}

const _: () = assert!(size_of::<Option<Kick>>() == 16 && MAX_PCPUS <= 1 << 16);

/// The waits of one acquisition so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Episode {
    /// Polls that blocked and ended.
    pub(super) waits: u32,
    pub(super) waking_kicks: u32,
    /// The vCPUs that kicked first and last, as indices; meaningless without a waking kick.
    first_kicker: u32,
    last_kicker: u32,
    several_kickers: bool,
    /// A kick among them is not marked.
    pub(super) unmarked: bool,
    /// A gap in the trace may have swallowed a wait or a kick.
    pub(super) tainted: bool,
}

impl Episode {
    pub(super) fn wait(&mut self, kicked: Option<Kick>, tainted: bool) {
        self.waits += 1;
        self.tainted |= tainted;
        if let Some(Kick { by: kicker, marked, .. }) = kicked {
            self.unmarked |= !marked;
            if self.waking_kicks == 0 {
                self.first_kicker = kicker;
            } else {
                self.several_kickers |= self.first_kicker != kicker;
            }
            self.last_kicker = kicker;
            self.waking_kicks += 1;
        }
    }

    pub(super) fn first_kicker(&self) -> Option<u32> {
        (self.waking_kicks > 0).then_some(self.first_kicker)
    }

    pub(super) fn last_kicker(&self) -> Option<u32> {
        (self.waking_kicks > 0).then_some(self.last_kicker)
    }
}

/// Totals over acquisitions, as in the summary but cheap to add to.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// `[waits][waking kicks]`, each 0, 1, 2, 3 or more.
    table: [[u64; 4]; 4],
    waits: u64,
    kicks: u64,
    /// Sum of the squares of each acquisition's kicks.
    squares: u64,
    slept_twice_kicks: u64,
    /// Acquisitions with a kick that is not marked.
    unmarked: u64,
    one_sender: u64,
    several_senders: u64,
    pub(super) excluded: u64,
    pub(super) disagreements: u64,
}

impl Tally {
    pub(super) fn record(&mut self, episode: &Episode) {
        if episode.tainted {
            self.excluded += 1;
            return;
        }
        let (waits, kicks) = (episode.waits, episode.waking_kicks);
        self.table[waits.min(3) as usize][kicks.min(3) as usize] += 1;
        self.unmarked += u64::from(episode.unmarked);
        self.waits += u64::from(waits);
        self.kicks += u64::from(kicks);
        self.squares = self.squares.saturating_add(u64::from(kicks) * u64::from(kicks));
        if waits >= 2 {
            self.slept_twice_kicks += u64::from(kicks);
        }
        if kicks >= 2 {
            self.one_sender += u64::from(!episode.several_kickers);
            self.several_senders += u64::from(episode.several_kickers);
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (row, of) in self.table.iter_mut().zip(&other.table) {
            row.iter_mut().zip(of).for_each(|(cell, of)| *cell += of);
        }
        self.waits += other.waits;
        self.kicks += other.kicks;
        self.squares = self.squares.saturating_add(other.squares);
        self.slept_twice_kicks += other.slept_twice_kicks;
        self.unmarked += other.unmarked;
        self.one_sender += other.one_sender;
        self.several_senders += other.several_senders;
        self.excluded += other.excluded;
        self.disagreements += other.disagreements;
    }

    /// As told, for acquisitions as marked: exact if every kick is marked, and if `order` is
    /// certain.
    pub(super) fn of_marks(&self, order: Certainty) -> Acquisitions {
        let kicks = if self.unmarked > 0 { Certainty::Inferred } else { Certainty::Exact };
        self.summary(kicks.max(order))
    }

    /// As told. Acquisitions that never blocked (waits 0) are in the table only.
    pub(super) fn summary(&self, certainty: Certainty) -> Acquisitions {
        let row = |waits: usize| self.table[waits].iter().sum::<u64>();
        let column = |kicks: usize| self.table[1..].iter().map(|row| row[kicks]).sum::<u64>();
        let blocked = row(1) + row(2) + row(3);
        let slept_twice = row(2) + row(3);
        let ratio = |kicks: u64, of: u64| (of > 0).then(|| kicks as f64 / of as f64);
        Acquisitions {
            certainty,
            blocked,
            waits: self.waits,
            waking_kicks: self.kicks,
            by_waits: [row(1), row(2), row(3)],
            by_waking_kicks: [column(0), column(1), column(2), column(3)],
            table: self.table,
            waking_kicks_per_blocked: ratio(self.kicks, blocked),
            waking_kicks_sd: sd(self.kicks, self.squares, blocked),
            slept_twice,
            waking_kicks_per_slept_twice: ratio(self.slept_twice_kicks, slept_twice),
            kicked_again_by_same_sender: self.one_sender,
            kicked_again_by_other_sender: self.several_senders,
            excluded: self.excluded,
            disagreements: self.disagreements,
        }
    }
}

/// Standard deviation of `count` values with this sum and sum of squares.
fn sd(sum: u64, squares: u64, count: u64) -> Option<f64> {
    if count < 2 {
        return None;
    }
    let (sum, squares, count) = (sum as f64, squares as f64, count as f64);
    Some(((squares - sum * sum / count).max(0.0) / (count - 1.0)).sqrt())
}

/// Locks a vCPU waits for at the same time at most: four contexts can nest, and a few more fit in
/// case a mark was lost.
const MOST_OPEN: usize = 16;

/// A wait that ended.
pub(super) struct Slept {
    pub(super) blocked: u64,
    pub(super) running: u64,
    pub(super) kicked: Option<Kick>,
    pub(super) tainted: bool,
}

/// The waits of an acquisition as marked: how many, and when.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Acquired {
    pub(super) episode: Episode,
    /// The first block, and when the vCPU ran again after the last one.
    pub(super) blocked: u64,
    pub(super) running: u64,
    /// Ticks from block to run, over all waits, and of the longest.
    pub(super) slept: u64,
    pub(super) longest: u64,
}

impl Acquired {
    fn wait(&mut self, slept: &Slept) {
        if self.episode.waits == 0 {
            self.blocked = slept.blocked;
        }
        self.episode.wait(slept.kicked, slept.tainted);
        let ticks = slept.running.saturating_sub(slept.blocked);
        self.running = slept.running;
        self.slept = self.slept.saturating_add(ticks);
        self.longest = self.longest.max(ticks);
    }
}

/// An acquisition under way, as marked.
#[derive(Debug)]
struct Open {
    lock: u32,
    polls: u32,
    so_far: Acquired,
}

/// The exact way: follows one vCPU's marks.
#[derive(Debug, Default)]
pub(super) struct Marked {
    /// Waits begun and not ended, innermost last: the locks.
    waiting: Vec<u32>,
    open: Vec<Open>,
    pub(super) tally: Tally,
    /// Waits between a begin and an end mark: for a lock.
    pub(super) waits: u64,
}

impl Marked {
    pub(super) fn wait_begin(&mut self, lock: u32) {
        if self.waiting.len() == MOST_OPEN {
            self.waiting.remove(0);
        }
        self.waiting.push(lock);
    }

    pub(super) fn wait_end(&mut self, lock: u32) {
        if let Some(at) = self.waiting.iter().rposition(|&of| of == lock) {
            self.waiting.truncate(at);
        }
    }

    /// The acquisition whose wait is under way.
    fn innermost(&mut self) -> Option<&mut Open> {
        let lock = *self.waiting.last()?;
        let at = match self.open.iter().position(|open| open.lock == lock) {
            Some(at) => at,
            None => {
                if self.open.len() == MOST_OPEN {
                    self.open.remove(0);
                    self.tally.excluded += 1;
                }
                self.open.push(Open { lock, polls: 0, so_far: Acquired::default() });
                self.open.len() - 1
            }
        };
        self.open.get_mut(at)
    }

    /// The vCPU polls.
    pub(super) fn poll(&mut self) {
        if let Some(open) = self.innermost() {
            open.polls += 1;
        }
    }

    /// A poll blocked and ended; returns the lock it was for.
    pub(super) fn wait(&mut self, slept: &Slept) -> Option<u32> {
        let open = self.innermost()?;
        open.so_far.wait(slept);
        let lock = open.lock;
        self.waits += u64::from(!slept.tainted);
        Some(lock)
    }

    /// The vCPU got `lock`; `polls` and `kicked` are the guest's own counts: how often it polled
    /// for it, and how many of those polls found the port pending. Returns the acquisition if it
    /// blocked and all of it is in the trace.
    pub(super) fn acquired(&mut self, lock: u32, polls: u32, kicked: u32) -> Option<Acquired> {
        let found = self.open.iter().position(|open| open.lock == lock);
        let Some(open) = found.map(|at| self.open.swap_remove(at)) else {
            self.tally.excluded += 1;
            return None;
        };
        if open.polls < polls {
            // Begun before the trace, or in a gap.
            self.tally.excluded += 1;
            return None;
        }
        let episode = &open.so_far.episode;
        // Xen saw each poll, and each kick that woke the guest left its port pending.
        let disagrees = open.polls > polls || episode.waking_kicks > kicked;
        self.tally.disagreements += u64::from(disagrees && !episode.tainted);
        self.tally.record(episode);
        (episode.waits > 0 && !episode.tainted).then_some(open.so_far)
    }

    /// A gap: every open acquisition may have lost a wait or a kick.
    pub(super) fn taint(&mut self) {
        self.open.iter_mut().for_each(|open| open.so_far.episode.tainted = true);
    }
}
