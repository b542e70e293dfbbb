//! The pCPUs' trace rings and the windows `xentrace` makes of them.
//!
//! Owns what Xen does when a ring is full: drop, count, and tell with the first record that fits.

use std::io::{self, Write};

use super::{Plan, Truth};
use crate::event;

const LOST_BYTES: usize = 28;

struct Ring {
    words: Vec<u32>,
    /// When each record was written, and the word it starts at.
    starts: Vec<(u64, usize)>,
    last_tsc: u64,
    /// Records dropped since the ring was full, and the TSC of the first.
    dropped: Option<(u32, u64)>,
}

pub(super) struct Rings<W> {
    rings: Vec<Ring>,
    capacity: usize,
    half: usize,
    full_soon: bool,
    padding: bool,
    turn: u32,
    ticks_per_ns: f64,
    skew: Vec<i64>,
    drift: Vec<f64>,
    late: Vec<u64>,
    out: W,
    pub(super) truth: Truth,
}

impl<W: Write> Rings<W> {
    pub(super) fn new(plan: &Plan, out: W) -> Self {
        let ring = || Ring { words: Vec::new(), starts: Vec::new(), last_tsc: 0, dropped: None };
        Self {
            rings: (0..plan.pcpus).map(|_| ring()).collect(),
            capacity: plan.ring,
            half: if plan.drain_when_half_full { plan.ring / 2 } else { usize::MAX },
            full_soon: false,
            padding: plan.padding,
            turn: 0,
            ticks_per_ns: plan.hz / 1e9,
            skew: plan.skew.clone(),
            drift: plan.drift.clone(),
            late: plan.late.clone(),
            out,
            truth: Truth::default(),
        }
    }

    /// The TSC of `cpu` at `ns`. It starts far from 0, so that a negative skew stays positive.
    fn tsc(&self, cpu: u32, ns: u64) -> u64 {
        let skew = self.skew.get(cpu as usize).copied().unwrap_or(0);
        let drift = 1.0 + self.drift.get(cpu as usize).copied().unwrap_or(0.0);
        let ticks = 1_000_000_000 + (ns as f64 * self.ticks_per_ns * drift) as u64;
        ticks.wrapping_add_signed(skew)
    }

    /// Writes one record into the ring of `cpu`. `current` is who runs there, as a lost record
    /// tells it. `timed` is false for the events Xen writes without a TSC.
    pub(super) fn put(
        &mut self,
        cpu: u32,
        ns: u64,
        event: u32,
        timed: bool,
        payload: &[u32],
        current: (u16, u16),
    ) {
        if ns < self.late.get(cpu as usize).copied().unwrap_or(0) {
            return;
        }
        let tsc = self.tsc(cpu, ns);
        let ring = &mut self.rings[cpu as usize];
        let tsc = tsc.max(ring.last_tsc);
        let size = 4 + 8 * usize::from(timed) + 4 * payload.len();
        let room = self.capacity.saturating_sub(ring.words.len() * 4);
        let needed = size + if ring.dropped.is_some() { LOST_BYTES } else { 0 };
        if room < needed {
            ring.dropped.get_or_insert((0, tsc)).0 += 1;
            self.truth.lost += 1;
            return;
        }
        ring.last_tsc = tsc;
        ring.starts.push((ns, ring.words.len()));
        if let Some((count, first)) = ring.dropped.take() {
            let header = event::LOST_RECORDS | 4 << 28 | 1 << 31;
            let who = u32::from(current.0) | u32::from(current.1) << 16;
            let (tsc, first) = (split(tsc), split(first));
            ring.words.extend([header, tsc[0], tsc[1], count, who, first[0], first[1]]);
            self.truth.records += 1;
            self.truth.gaps += 1;
        }
        self.turn = self.turn.wrapping_add(1);
        if self.padding && self.turn.is_multiple_of(97) {
            // Garbage with and without a TSC of garbage.
            let timed = self.turn % 2;
            let header = event::WRAP_BUFFER | (self.turn % 8) << 28 | timed << 31;
            ring.words.push(header);
            ring.words.extend((0..self.turn % 8 + 2 * timed).map(|n| 0xdead_0000 | n));
        }
        let header = event | (payload.len() as u32) << 28 | u32::from(timed) << 31;
        ring.words.push(header);
        if timed {
            ring.words.extend(split(tsc));
        }
        ring.words.extend(payload);
        self.truth.records += 1;
        self.full_soon |= ring.words.len() * 4 >= self.half;
    }

    /// Whether Xen would ask `xentrace` to come.
    pub(super) fn wants_draining(&self) -> bool {
        self.full_soon
    }

    /// One pass of `xentrace` at `now`: a window for each ring that holds something. An action's
    /// records are put at once but reach past `now`: those stay for the next pass.
    pub(super) fn drain(&mut self, now: u64) -> io::Result<()> {
        self.full_soon = false;
        for (cpu, ring) in self.rings.iter_mut().enumerate() {
            let ready = ring.starts.partition_point(|&(ns, _)| ns <= now);
            let end = ring.starts.get(ready).map_or(ring.words.len(), |&(_, word)| word);
            if end == 0 {
                continue;
            }
            let size = (end * 4) as u32;
            let header = [event::CPU_CHANGE | 2 << 28, cpu as u32, size].map(u32::to_le);
            self.out.write_all(bytemuck::cast_slice(&header))?;
            if cfg!(target_endian = "big") {
                ring.words[..end].iter_mut().for_each(|word| *word = word.to_le());
            }
            self.out.write_all(bytemuck::cast_slice(&ring.words[..end]))?;
            self.truth.bytes += 12 + u64::from(size);
            ring.words.drain(..end);
            ring.starts.drain(..ready);
            ring.starts.iter_mut().for_each(|(_, word)| *word -= end);
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<Truth> {
        self.drain(u64::MAX)?;
        self.out.flush()?;
        Ok(self.truth)
    }
}

fn split(tsc: u64) -> [u32; 2] {
    [tsc as u32, (tsc >> 32) as u32]
}
