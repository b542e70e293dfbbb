//! TSCs that are not in step.
//!
//! Owns the evidence and what follows from it. A vCPU's runstates alternate, whichever pCPUs write
//! the changes: what leaves a state comes after what entered it. While a trace is analysed only the
//! contradictions are noted ([`Skew`]). To correct them the trace is read once more for its
//! runstate changes alone ([`learn_skew`]): each hand-over of a vCPU from one pCPU to another
//! bounds the difference of their TSCs from one side, at its time, so that an offset and a slope
//! follow.

use std::collections::VecDeque;
use std::io::Read;

use rustc_hash::FxHashMap;

use crate::analysis::Options;
use crate::error::Error;
use crate::event::{self, Runstate};
use crate::reader::{self, Correction, Drift, Record, Visit};

/// Corrections beyond this many ticks are no skew but damage (a few hundred seconds).
const ABSURD: u64 = 1 << 40;

/// `(later, earlier) -> ticks`: a record on `later` that must follow one on `earlier` has a TSC so
/// many ticks below it.
#[derive(Clone, Debug, Default)]
pub(super) struct Skew {
    evidence: FxHashMap<(u32, u32), u64>,
}

impl Skew {
    /// On `later` something has TSC `tsc_later` that followed what `earlier` wrote at
    /// `tsc_earlier`.
    pub(super) fn note(&mut self, later: u32, tsc_later: u64, earlier: u32, tsc_earlier: u64) {
        let ticks = tsc_earlier.saturating_sub(tsc_later);
        if later != earlier && (1..ABSURD).contains(&ticks) {
            let worst = self.evidence.entry((later, earlier)).or_default();
            *worst = (*worst).max(ticks);
        }
    }

    /// The largest contradiction, in ticks.
    pub(super) fn worst(&self) -> u64 {
        self.evidence.values().copied().max().unwrap_or(0)
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

/// What [`fix_skew`] found.
#[derive(Clone, Debug, Default)]
pub struct Fixed {
    /// The corrections, those the caller gave included.
    pub corrections: Vec<Correction>,
    /// Contradictions before.
    pub before: u64,
    /// Contradictions that are left.
    pub left: u64,
}

/// Learns from the hand-overs of vCPUs how the pCPUs' TSCs are to be corrected, and adds that to
/// `options`. It reads the trace, which `open` opens, several times: with a first correction
/// records come in a better order, and what bounds the next one becomes tighter.
///
/// # Errors
/// Whatever `open` returns, and what `fail` makes of errors of reading.
pub fn fix_skew<R: Read, E>(
    mut open: impl FnMut() -> Result<R, E>,
    fail: impl Fn(Error) -> E,
    options: &mut Options,
) -> Result<Fixed, E> {
    let mut learn = |options: &Options| {
        let mut learner = Learner::default();
        reader::read(open()?, &options.read, &mut learner).map_err(&fail)?;
        Ok::<_, E>(learner)
    };
    let mut learner = learn(options)?;
    let mut fixed =
        Fixed { before: learner.contradictions, left: learner.contradictions, ..Fixed::default() };
    for _ in 0..ROUNDS {
        if fixed.left == 0 {
            break;
        }
        // The hand-overs may have been joined wrongly where records are far out of order: of
        // several readings of the evidence the one that leaves fewest contradictions is right.
        let mut best: Option<(Learner, Options, Vec<Correction>)> = None;
        for reading in Evidence::READINGS {
            let found = learner.corrections(reading);
            if found.is_empty() {
                continue;
            }
            let mut tried = options.clone();
            found.iter().for_each(|of| tried.read.correct(of));
            let after = learn(&tried)?;
            let most = best.as_ref().map_or(fixed.left, |best| best.0.contradictions);
            if after.contradictions < most {
                let done = after.contradictions == 0;
                best = Some((after, tried, found));
                if done {
                    break;
                }
            }
        }
        let Some((after, tried, found)) = best else { break };
        fixed.left = after.contradictions;
        for of in found {
            fixed.corrections.retain(|other| other.cpu != of.cpu);
            fixed.corrections.push(of);
        }
        (learner, *options) = (after, tried);
    }
    fixed.corrections.sort_by_key(|of| of.cpu);
    options.read.tsc_open = fixed.corrections.iter().filter_map(|of| of.open).max().unwrap_or(0);
    Ok(fixed)
}

/// Rounds of corrections at most.
const ROUNDS: u32 = 6;

/// How the distances of hand-overs are read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Evidence {
    /// Each one is a bound: an offset, and a slope where it is needed.
    Bounds,
    /// Each one is a bound of an offset alone.
    Constant,
    /// So many of a hundred may be joined wrongly.
    Most(u32),
}

impl Evidence {
    const READINGS: [Self; 6] = [
        Self::Bounds,
        Self::Constant,
        Self::Most(2),
        Self::Most(10),
        Self::Most(25),
        Self::Most(50),
    ];
}

/// Distances of hand-overs kept of each pair of pCPUs.
const SAMPLES: usize = 2048;

/// Slices of time for which bounds are kept.
const SLICES: usize = 64;

/// Changes of a vCPU that wait for their counterpart: more are of a trace that lacks records.
const WAITING: usize = 4096;

/// What bounds the difference of two TSCs: the least distance seen of each kind, in each slice of
/// time.
#[derive(Clone, Copy, Debug)]
struct Bound {
    /// When the least was seen.
    at: u64,
    ticks: i64,
}

/// `earlier` to `later`: the least distance from a change to the one that followed it.
#[derive(Clone, Debug)]
struct Pair {
    /// From any change.
    any: [Option<Bound>; SLICES],
    /// From a wake to the run that followed: in both directions it takes about as long.
    wake: [Option<Bound>; SLICES],
    count: u64,
    /// Distances, thinned out evenly, and of how many one is kept.
    samples: Vec<i64>,
    thinned: u64,
}

/// Changes of one vCPU's runstate whose counterpart was not seen yet, by state.
#[derive(Debug, Default)]
struct Waiting {
    /// Entered a state, and nothing has left it.
    entered: [VecDeque<(u32, u64)>; 4],
    /// Left a state that nothing seen had entered.
    left: [VecDeque<(u32, u64)>; 4],
    /// Whether a change of each state was seen at all.
    begun: [bool; 4],
}

#[derive(Debug, Default)]
struct Learner {
    vcpus: FxHashMap<u32, Waiting>,
    pairs: FxHashMap<(u32, u32), Box<Pair>>,
    first: Option<u64>,
    /// The state of each vCPU, and changes that do not follow from the one before.
    states: FxHashMap<u32, Runstate>,
    contradictions: u64,
    /// Bits by which a time is shifted to give its slice.
    shift: u32,
}

impl Visit for Learner {
    fn is_local(event: u32, _: Option<u32>) -> bool {
        event & event::GROUP_MASK != event::SCHED_MIN
    }

    fn silence(&mut self, _: u64, _: u64) {
        self.forget();
    }

    fn record(&mut self, record: &Record<'_>) -> Result<(), Error> {
        if record.event == event::LOST_RECORDS {
            // Counterparts would be mistaken.
            self.forget();
            return Ok(());
        }
        let (Some((old, new)), &[key, ..]) = (event::runstate_change(record.event), record.words)
        else {
            return Ok(());
        };
        if key >> 16 == event::DOMID_IDLE {
            return Ok(());
        }
        let here = (record.cpu, record.tsc);
        let known = self.states.insert(key, new);
        self.contradictions += u64::from(known.is_some_and(|state| state != old));
        let waiting = self.vcpus.entry(key).or_default();
        let (from, to) = (old as usize, new as usize);
        let before = waiting.entered[from].pop_front();
        if before.is_none() && waiting.begun[from] {
            waiting.left[from].push_back(here);
        }
        let after = waiting.left[to].pop_front();
        if after.is_none() {
            waiting.entered[to].push_back(here);
        }
        (waiting.begun[from], waiting.begun[to]) = (true, true);
        if waiting.left[from].len() > WAITING || waiting.entered[to].len() > WAITING {
            *waiting = Waiting::default();
        }
        if let Some(before) = before {
            self.hand_over(before, here, old);
        }
        if let Some(after) = after {
            self.hand_over(here, after, new);
        }
        Ok(())
    }
}

impl Learner {
    fn forget(&mut self) {
        self.vcpus.clear();
        self.states.clear();
    }

    /// A vCPU entered `state` on one pCPU and left it on another.
    fn hand_over(&mut self, from: (u32, u64), to: (u32, u64), state: Runstate) {
        if from.0 == to.0 || state == Runstate::Running {
            return;
        }
        let first = *self.first.get_or_insert(from.1);
        let time = to.1.saturating_sub(first);
        while time >> self.shift >= SLICES as u64 {
            self.shift += 1;
            self.pairs.values_mut().for_each(|pair| {
                pair.halve();
            });
        }
        let slice = (time >> self.shift) as usize;
        let bound = Bound { at: to.1, ticks: to.1.wrapping_sub(from.1) as i64 };
        if bound.ticks.unsigned_abs() > ABSURD {
            return;
        }
        let pair = self.pairs.entry((from.0, to.0)).or_insert_with(|| {
            Box::new(Pair {
                any: [None; SLICES],
                wake: [None; SLICES],
                count: 0,
                samples: Vec::new(),
                thinned: 1,
            })
        });
        pair.count += 1;
        pair.sample(bound.ticks);
        lower(&mut pair.any[slice], bound);
        if state == Runstate::Runnable {
            lower(&mut pair.wake[slice], bound);
        }
    }

    fn corrections(&self, evidence: Evidence) -> Vec<Correction> {
        // From the pCPU with most hand-overs on, along those with most.
        let mut found: Vec<Correction> = Vec::new();
        let mut weights: FxHashMap<u32, u64> = FxHashMap::default();
        for (&(from, to), pair) in &self.pairs {
            *weights.entry(from).or_default() += pair.count;
            *weights.entry(to).or_default() += pair.count;
        }
        let mut left: Vec<(u64, u32)> = weights.into_iter().map(|(cpu, n)| (n, cpu)).collect();
        left.sort_by_key(|&(n, cpu)| (std::cmp::Reverse(n), cpu));
        let Some(&(_, root)) = left.first() else { return Vec::new() };
        found.push(Correction { cpu: root, ticks: 0, drift: None, open: None });
        left.remove(0);
        let count = |a: u32, b: u32| self.pairs.get(&(a, b)).map_or(0, |pair| pair.count);
        while !left.is_empty() {
            let links = left.iter().enumerate().flat_map(|(at, &(_, cpu))| {
                found.iter().map(move |of| (count(of.cpu, cpu) + count(cpu, of.cpu), at, *of))
            });
            let Some((links, at, base)) =
                links.max_by_key(|&(n, at, of)| (n, std::cmp::Reverse((at, of.cpu))))
            else {
                break;
            };
            let (_, cpu) = left.remove(at);
            if links == 0 {
                // Nothing joins it to the others: nothing contradicts its TSC.
                found.push(Correction { cpu, ticks: 0, drift: None, open: None });
                continue;
            }
            found.push(self.against(base, cpu, evidence));
        }
        found.retain(|of| of.ticks != 0 || of.drift.is_some());
        found.sort_by_key(|of| of.cpu);
        found
    }

    /// The correction of `cpu` against a pCPU whose own is known.
    fn against(&self, base: Correction, cpu: u32, evidence: Evidence) -> Correction {
        let of_base = |at: u64| base.ticks + base.drift.map_or(0, |drift| drift.ticks(at));
        let points = |from: u32, to: u32, wakes: bool, sign: f64| -> Vec<(f64, f64)> {
            let Some(pair) = self.pairs.get(&(from, to)) else { return Vec::new() };
            let bounds = if wakes { &pair.wake } else { &pair.any };
            let first = self.first.unwrap_or(0);
            let of = |bound: &Bound| {
                let x = bound.at.wrapping_sub(first) as i64 as f64;
                (x, sign * bound.ticks as f64 + of_base(bound.at) as f64)
            };
            bounds.iter().flatten().map(of).collect()
        };
        // What is added to `cpu` is at least `low` and at most `high`.
        let (low, high) = (points(base.cpu, cpu, false, -1.0), points(cpu, base.cpu, false, 1.0));
        let (tight_low, tight_high) =
            (points(base.cpu, cpu, true, -1.0), points(cpu, base.cpu, true, 1.0));
        let most = |of: &[(f64, f64)]| of.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
        let least = |of: &[(f64, f64)]| of.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
        let (floor, ceiling) = (most(&low), least(&high));
        let correction = |ticks: f64, drift, open: f64| Correction {
            cpu,
            ticks: ticks as i64,
            drift,
            open: open.is_finite().then(|| open.max(0.0) as u64),
        };
        if floor <= 0.0 && ceiling >= 0.0 && base.ticks == 0 && base.drift.is_none() {
            return correction(0.0, None, f64::INFINITY);
        }
        if let Evidence::Most(percent) = evidence {
            let at = |from, to| self.pairs.get(&(from, to)).and_then(|of| of.percentile(percent));
            let base_ticks = of_base(self.first.unwrap_or(0)) as f64;
            let (low, high) = (at(base.cpu, cpu).map(|of| -of), at(cpu, base.cpu));
            let ticks = match (low, high) {
                (Some(low), Some(high)) => (low + high) / 2.0,
                (low, high) => low.or(high).unwrap_or(0.0),
            };
            return correction(base_ticks + ticks, None, f64::INFINITY);
        }
        let line = Line::above(&low).filter(|_| evidence == Evidence::Bounds);
        let slope = line.filter(|line| line.explains(&low, floor, ceiling));
        match slope {
            None => {
                let ticks = middle(most(&tight_low), least(&tight_high))
                    .unwrap_or(if floor.is_finite() { floor + 1.0 } else { ceiling });
                let ticks = ticks.min(ceiling).max(floor + 1.0);
                correction(ticks, None, ceiling - floor)
            }
            Some(line) => {
                // Wakes in the other direction bound the same line from above.
                let above = |points: &[(f64, f64)]| {
                    points.iter().map(|p| p.1 - line.at(p.0)).fold(f64::INFINITY, f64::min)
                };
                let (room, wake_room) = (above(&high), above(&tight_high));
                let tight = tight_low.iter().any(|p| p.1 > line.at(p.0) - 1.0);
                let lift = if tight && wake_room.is_finite() { wake_room / 2.0 } else { 1.0 };
                let lift = lift.min(room / 2.0).max(1.0);
                let since = self.first.unwrap_or(0);
                let drift = Drift { cpu, per_tick: line.slope, since };
                correction(line.base + lift, Some(drift), room)
            }
        }
    }
}

impl Pair {
    fn sample(&mut self, ticks: i64) {
        if !self.count.is_multiple_of(self.thinned) {
            return;
        }
        self.samples.push(ticks);
        if self.samples.len() == SAMPLES {
            let mut keep = false;
            self.samples.retain(|_| {
                keep = !keep;
                keep
            });
            self.thinned *= 2;
        }
    }

    /// The distance below which so many of a hundred are.
    fn percentile(&self, percent: u32) -> Option<f64> {
        let mut samples = self.samples.clone();
        samples.sort_unstable();
        samples.get(samples.len() * percent as usize / 100).map(|&ticks| ticks as f64)
    }

    /// Two slices become one.
    fn halve(&mut self) {
        for bounds in [&mut self.any, &mut self.wake] {
            for slice in 0..SLICES / 2 {
                let mut both = bounds[2 * slice];
                if let Some(other) = bounds[2 * slice + 1] {
                    lower(&mut both, other);
                }
                bounds[slice] = both;
            }
            bounds[SLICES / 2..].fill(None);
        }
    }
}

fn lower(least: &mut Option<Bound>, bound: Bound) {
    if least.is_none_or(|least| bound.ticks < least.ticks) {
        *least = Some(bound);
    }
}

/// Between two bounds that are as tight as each other.
fn middle(low: f64, high: f64) -> Option<f64> {
    (low.is_finite() && high.is_finite()).then_some((low + high) / 2.0)
}

/// A correction that grows: `base + slope * time`.
#[derive(Clone, Copy, Debug)]
struct Line {
    base: f64,
    slope: f64,
}

/// A TSC that is off by more than this part is no TSC.
pub(super) const STEEPEST: f64 = 0.02;

impl Line {
    fn at(&self, x: f64) -> f64 {
        self.base + self.slope * x
    }

    /// The lowest line above all points: through the edge of their upper hull over their middle.
    fn above(points: &[(f64, f64)]) -> Option<Self> {
        let mut points = points.to_vec();
        points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        points.dedup_by_key(|p| p.0);
        let mut hull: Vec<(f64, f64)> = Vec::new();
        for p in points.iter().copied() {
            while let [.., a, b] = hull[..] {
                if (b.1 - a.1) * (p.0 - a.0) > (p.1 - a.1) * (b.0 - a.0) {
                    break;
                }
                hull.pop();
            }
            hull.push(p);
        }
        let (first, last) = (points.first()?.0, points.last()?.0);
        let middle = (first + last) / 2.0;
        let edge = hull.windows(2).find(|edge| edge[1].0 >= middle)?;
        let slope = (edge[1].1 - edge[0].1) / (edge[1].0 - edge[0].0);
        (slope.abs() < STEEPEST).then_some(Self { base: edge[0].1 - slope * edge[0].0, slope })
    }

    /// Whether a slope is needed: no constant satisfies all bounds, or the bounds lie far nearer to
    /// the line than to a constant.
    fn explains(&self, low: &[(f64, f64)], floor: f64, ceiling: f64) -> bool {
        let off = |at: &dyn Fn(f64) -> f64| {
            let mut off: Vec<_> = low.iter().map(|p| at(p.0) - p.1).collect();
            off.sort_by(f64::total_cmp);
            off.get(off.len() / 2).copied().unwrap_or(0.0)
        };
        low.len() >= 4
            && (floor > ceiling || off(&|_| floor) > 4.0 * off(&|x| self.at(x)) + 1_000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::Line;

    #[test]
    fn the_lowest_line_above() {
        // A slope of 10 ppm with noise below.
        let points: Vec<_> = (0..64)
            .map(|n| (f64::from(n) * 1e6, f64::from(n) * 10.0 - f64::from(n * 7 % 5)))
            .collect();
        let line = Line::above(&points).unwrap();
        assert!((line.slope - 1e-5).abs() < 1e-6, "{line:?}");
        assert!(points.iter().all(|p| p.1 <= line.at(p.0) + 1e-6));
        assert!(Line::above(&[]).is_none() && Line::above(&[(1.0, 1.0)]).is_none());
    }
}
