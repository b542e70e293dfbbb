//! TSCs that are not in step.
//!
//! Owns the evidence: a vCPU that runs on one pCPU before another one made it runnable. From the
//! largest such contradiction of each pair of pCPUs follows how much their TSCs must be moved.

use rustc_hash::FxHashMap;

/// Corrections beyond this many ticks are no skew but damage (a few hundred seconds).
const ABSURD: u64 = 1 << 40;

/// `(later, earlier) -> ticks`: a record on `later` that must follow one on `earlier` has a TSC so
/// many ticks below it.
#[derive(Clone, Debug, Default)]
pub(super) struct Skew {
    evidence: FxHashMap<(u32, u32), u64>,
}

impl Skew {
    /// On `later` something has TSC `tsc_later` that followed what `earlier` wrote at `tsc_earlier`.
    pub(super) fn note(&mut self, later: u32, tsc_later: u64, earlier: u32, tsc_earlier: u64) {
        let ticks = tsc_earlier.saturating_sub(tsc_later);
        if later != earlier && (1..ABSURD).contains(&ticks) {
            let worst = self.evidence.entry((later, earlier)).or_default();
            *worst = (*worst).max(ticks);
        }
    }

    /// Ticks to add to the TSCs of each pCPU so that no contradiction is left, as far as one
    /// reading shows. Empty if there is none.
    pub(super) fn offsets(&self) -> Vec<(u32, i64)> {
        let mut offsets: FxHashMap<u32, i64> = FxHashMap::default();
        let mut evidence: Vec<_> = self.evidence.iter().collect();
        evidence.sort();
        // Longest paths; contradictory evidence would go round for ever, so it is bounded.
        for _ in 0..evidence.len().min(64) {
            let mut changed = false;
            for &(&(later, earlier), &ticks) in &evidence {
                let needed = offsets.get(&earlier).copied().unwrap_or(0) + ticks as i64 + 1;
                let offset = offsets.entry(later).or_default();
                if *offset < needed && needed < ABSURD as i64 {
                    *offset = needed;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        let mut offsets: Vec<_> = offsets.into_iter().filter(|&(_, ticks)| ticks != 0).collect();
        offsets.sort_unstable();
        offsets
    }
}
