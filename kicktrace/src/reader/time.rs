//! From recorded TSCs to one time for all pCPUs.
//!
//! Owns what a pCPU's TSC is worth: the corrections the caller gave, TSCs that start again (the
//! host slept, or a second session follows), and single records whose TSC is absurd. All of it is
//! done to whole blocks while they are read, so that the merge compares plain numbers.

use crate::event;
use crate::reader::reading::{Drift, ReadOptions};
use crate::reader::words::{payload, record_at, split, wide};

/// A TSC that falls by more than this (a millisecond or more), and goes on from there, has started
/// again: Xen reads it under the lock of the ring, so it never falls in one session.
const RESET: u64 = 1 << 22;

/// pCPUs whose TSCs started again together are apart by less than this.
const TOGETHER: u64 = 1 << 28;

/// A step of more than this (a tenth of a second or so) needs its place among all pCPUs' records:
/// all of them may have been silent.
pub(super) const QUIET: u64 = 1 << 28;

/// A step of more than this within one pCPU is a pause nobody expects.
pub(super) const FAR: u64 = 1 << 34;

/// Put between what came before the TSCs started again and what follows: a silence ([`FAR`]) for
/// every reader.
const BETWEEN: u64 = 1 << 35;

/// One pCPU's time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct OfPcpu {
    /// The TSC of its last record, as recorded; meaningless before it is `timed`.
    pub(super) last: u64,
    /// Whether any record carried one.
    pub(super) timed: bool,
    /// How often the TSCs had started again, as of its last record.
    session: usize,
    /// The TSC of its last record was doubted, with no record behind it to judge by.
    doubted: bool,
    offset: i64,
    drift: Option<Drift>,
}

/// What becomes of a record whose TSC takes a step that none should take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It is as it should be.
    Sound,
    /// It belongs to a new session: begin a block with it.
    Restart,
    /// It alone is absurd.
    Stray,
}

/// The times of all pCPUs.
#[derive(Debug)]
pub(super) struct Times {
    pcpus: Vec<OfPcpu>,
    offsets: Vec<(u32, i64)>,
    drifts: Vec<Drift>,
    /// Added in each session.
    bases: Vec<u64>,
    /// The latest TSC in the file so far, as recorded, in the latest session.
    highest: u64,
    /// The latest TSC in the file so far, corrected.
    pub(super) latest: u64,
}

impl Times {
    pub(super) fn new(options: &ReadOptions) -> Self {
        let (offsets, drifts) = (options.tsc_offsets.clone(), options.tsc_drifts.clone());
        Self { pcpus: Vec::new(), offsets, drifts, bases: vec![0], highest: 0, latest: 0 }
    }

    pub(super) fn of(&mut self, cpu: u32) -> &mut OfPcpu {
        while self.pcpus.len() <= cpu as usize {
            let cpu = self.pcpus.len() as u32;
            let offset = self.offsets.iter().rev().find(|&&(of, _)| of == cpu);
            let drift = self.drifts.iter().rev().find(|drift| drift.cpu == cpu).copied();
            let offset = offset.map_or(0, |&(_, ticks)| ticks);
            self.pcpus.push(OfPcpu { offset, drift, ..OfPcpu::default() });
        }
        &mut self.pcpus[cpu as usize]
    }

    /// The first TSC of a pCPU: in a file that holds several sessions it belongs to the latest.
    pub(super) fn begin(&mut self, cpu: u32, tsc: u64) {
        let session = self.bases.len() - 1;
        let of = self.of(cpu);
        (of.timed, of.last, of.session) = (true, tsc, session);
    }

    /// Judges a step of `cpu`'s TSC from `before` to that of the record at `at`, which is larger
    /// than [`QUIET`] or backwards.
    #[cold]
    pub(super) fn step(
        &mut self,
        cpu: u32,
        before: u64,
        words: &[u32],
        at: usize,
        end: usize,
    ) -> Step {
        let tsc = wide(words[at + 1], words[at + 2]);
        if (before..=before.saturating_add(FAR)).contains(&tsc) {
            return Step::Sound;
        }
        let highest = self.highest.max(before);
        let next = first_timed(words, at + payload(words[at]).end, end);
        let of = self.of(cpu);
        // Without a record behind it one such TSC is taken for absurd, a second one not.
        let doubted = next.is_none() && !of.doubted;
        let (stray, otherwise) = if tsc > before {
            let back = next.is_some_and(|next| (before..tsc - FAR).contains(&next));
            // Other pCPUs may have come so far.
            (back || doubted && tsc > highest.saturating_add(FAR), Step::Sound)
        } else if before - tsc <= RESET {
            (false, Step::Sound)
        } else {
            let back = next.is_some_and(|next| next >= before && next - before < FAR);
            (back || doubted, Step::Restart)
        };
        of.doubted = stray && next.is_none();
        if stray { Step::Stray } else { otherwise }
    }

    /// Whether any pCPU's TSC has started again.
    pub(super) fn has_sessions(&self) -> bool {
        self.bases.len() > 1
    }

    /// Whether a block of `cpu` that begins with this TSC belongs to a later session, which another
    /// pCPU has entered.
    pub(super) fn follows_restart(&mut self, cpu: u32, tsc: u64) -> bool {
        let (latest, highest) = (self.bases.len() - 1, self.highest);
        let of = self.of(cpu);
        of.timed && of.session < latest && tsc <= highest.saturating_add(TOGETHER) && tsc < of.last
    }

    /// `cpu` enters a session behind its own, with a TSC of `tsc`.
    pub(super) fn restart(&mut self, cpu: u32, tsc: u64) {
        let of = self.of(cpu);
        of.session += 1;
        of.last = tsc;
        if of.session == self.bases.len() {
            self.bases.push(self.latest.saturating_add(BETWEEN));
            self.highest = tsc;
        }
    }

    /// The time of a TSC of `cpu`.
    pub(super) fn corrected(&self, cpu: u32, tsc: u64) -> u64 {
        let Some(of) = self.pcpus.get(cpu as usize) else { return tsc };
        let drift = of.drift.map_or(0, |drift| drift.ticks(tsc));
        tsc.wrapping_add_signed(of.offset)
            .wrapping_add_signed(drift)
            .wrapping_add(self.bases[of.session])
    }

    /// Whether the TSCs of `cpu` are times as they are.
    pub(super) fn is_plain(&self, cpu: u32) -> bool {
        self.pcpus
            .get(cpu as usize)
            .is_none_or(|of| of.offset == 0 && of.drift.is_none() && self.bases[of.session] == 0)
    }

    /// Turns the TSCs of whole records into times.
    #[cold]
    pub(super) fn correct(&self, cpu: u32, words: &mut [u32]) {
        let mut at = 0;
        while at < words.len() {
            let header = words[at];
            let mut put = |at: usize| {
                let time = split(self.corrected(cpu, wide(words[at], words[at + 1])));
                words[at..at + 2].copy_from_slice(&time);
            };
            let event = header & event::EVENT_MASK;
            if header >> 31 != 0 && event != event::WRAP_BUFFER {
                put(at + 1);
                if event == event::LOST_RECORDS {
                    put(at + 5);
                }
            }
            at += payload(header).end;
        }
    }

    /// Notes the latest TSC of a block, as recorded, and returns its time.
    pub(super) fn seen(&mut self, cpu: u32, max_tsc: u64) -> u64 {
        if self.of(cpu).session + 1 == self.bases.len() {
            self.highest = self.highest.max(max_tsc);
        }
        let time = self.corrected(cpu, max_tsc);
        self.latest = self.latest.max(time);
        time
    }
}

/// The TSC of the first record from `at` on that carries one and lies before `end`.
pub(super) fn first_timed(words: &[u32], mut at: usize, end: usize) -> Option<u64> {
    while at < end {
        let of = record_at(words, at as u32)?;
        let next = at + payload(of[0]).end;
        let padding = of[0] & event::EVENT_MASK == event::WRAP_BUFFER;
        if of[0] >> 31 != 0 && !padding && next <= end {
            return Some(wide(of[1], of[2]));
        }
        at = next;
    }
    None
}
