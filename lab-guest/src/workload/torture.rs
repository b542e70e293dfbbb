//! The workload `torture`: everything a lock may meet, at random, to find faults in it.
//!
//! Owns locks that last, and locks that live for a moment and whose memory is another lock the
//! next. Each vCPU, at random: nests up to four locks, tries a lock, or visits a short-lived one
//! and frees it if it is the last. Where timers interrupt it, their handlers take locks of their
//! own kind, which it also takes itself, uninterrupted. Where a plan says how long a wait may last,
//! all meet at one more lock, whose waits are timed. Everything done under a lock is counted
//! without atomics, and the counts must be exact in the end.
//!
//! It measures nothing worth quoting: acquisitions are of several kinds.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use crossbeam_utils::CachePadded;
use experiment::Limit;
use xen_guest::markers;

use super::rng::Stream;
use super::work::work;
use super::{Guarded, Plan, Share, Vcpu, WaitCounts, free_locks};
use crate::locks::{Family, TestedLock};

/// Most locks held at once by one vCPU outside interrupts.
const DEPTH: u64 = 4;
/// How often in a row a vCPU takes the lock whose waits are timed, so that others meet it there.
const ROUNDS: u64 = 500;

/// The locks of one run.
pub struct Torture<F: Family> {
    lasting: Vec<CachePadded<F::Lock<Guarded>>>,
    /// Where the short-lived locks are found.
    slots: Vec<CachePadded<F::Lock<Slot<F>>>>,
    /// Counts of the short-lived locks that are gone.
    retired: CachePadded<AtomicU64>,
    /// The locks that interrupt handlers take. Elsewhere they are taken uninterrupted only.
    interrupt: Vec<CachePadded<F::Lock<Guarded>>>,
    /// How often those were taken.
    interrupts: CachePadded<AtomicU64>,
    /// Held for a critical section at most, and for nothing inside it: a wait for it has a bound.
    timed: CachePadded<F::Lock<Guarded>>,
}

struct Slot<F: Family> {
    /// The slot is one of its users.
    short: Option<Short<F>>,
}

/// A short-lived lock, alive as long as it has users.
struct Short<F: Family>(NonNull<F::Lock<Shared>>);

// SAFETY: it refers to a lock, which is `Sync`, and to nothing of the thread it was made on.
unsafe impl<F: Family> Send for Short<F> {}

/// What a short-lived lock protects.
#[derive(Default)]
struct Shared {
    /// Who may still come: each vCPU that has joined and not left, and the slot.
    users: u32,
    guarded: Guarded,
}

impl<F: Family> Torture<F> {
    /// `locks` lasting locks, and as many slots for short-lived ones.
    pub fn new(locks: u32) -> Self {
        let slot = |_| CachePadded::new(F::Lock::new(Slot { short: None }));
        Torture {
            lasting: free_locks(locks),
            slots: (0..locks).map(slot).collect(),
            retired: CachePadded::default(),
            interrupt: free_locks(locks),
            interrupts: CachePadded::default(),
            timed: CachePadded::new(F::Lock::new(Guarded::default())),
        }
    }

    /// What an interrupt handler does: takes a lock, and often a second one inside it, each for so
    /// many turns.
    pub fn interrupted(&self, turns: u64) {
        // Relaxed: a number to choose by; handlers of two vCPUs may choose alike.
        let count = self.interrupts.load(Ordering::Relaxed) as usize;
        let first = count % self.interrupt.len();
        self.take_interrupt_lock(first, turns, || {
            // Upwards only, as in `nest`.
            if !count.is_multiple_of(3) && first + 1 < self.interrupt.len() {
                self.take_interrupt_lock(first + 1, turns, || {});
            }
        });
    }

    /// In a handler, or uninterrupted.
    fn take_interrupt_lock(&self, at: usize, turns: u64, inside: impl FnOnce()) {
        self.interrupt[at].with(|guarded| {
            guarded.increment_around(|| {
                work(turns);
                inside();
            });
        });
        // Relaxed: a sum; read when every vCPU is done.
        self.interrupts.fetch_add(1, Ordering::Relaxed);
    }

    /// How often the locks of interrupt handlers were taken, and how often by their own counters;
    /// when every vCPU is done.
    pub fn interrupts(&self) -> (u64, u64) {
        let counted = self.interrupt.iter().map(|lock| lock.with(|g| g.counter())).sum();
        (self.interrupts.load(Ordering::Relaxed), counted)
    }

    /// The lock that an NMI tries: one that lasts.
    pub fn lasting(&self) -> &[CachePadded<F::Lock<Guarded>>] {
        &self.lasting
    }

    /// Tortures the locks from one vCPU, from its start to its end.
    pub fn take_part(&self, vcpu: &impl Vcpu, plan: &Plan, progress: &AtomicU64) -> Share {
        let mut party = Party {
            torture: self,
            vcpu,
            plan,
            rng: Stream::new(plan.seed, vcpu.number()),
            share: Share::default(),
        };
        let started = vcpu.now();
        let (most, end) = match plan.limit {
            Limit::Acquisitions(n) => (n, u64::MAX),
            Limit::Duration(time) => (u64::MAX, started.saturating_add(time.ns())),
        };
        while party.share.acquisitions < most && vcpu.now() < end && vcpu.proceed() {
            party.turn(most);
            // Relaxed: a number to look at.
            progress.store(party.share.acquisitions, Ordering::Relaxed);
        }
        party.share.elapsed_ns = vcpu.now().saturating_sub(started);
        party.share
    }

    /// The sum of what the lasting and the short-lived locks counted, when every vCPU is done.
    pub fn counter(&self) -> u64 {
        for slot in &self.slots {
            if let Some(short) = slot.with(|slot| slot.short.take()) {
                self.leave(short);
            }
        }
        let lasting: u64 = self.lasting.iter().map(|lock| lock.with(|g| g.counter())).sum();
        let timed = self.timed.with(|guarded| guarded.counter());
        // Relaxed: every vCPU is done, and whoever found that out synchronised with it.
        lasting + timed + self.retired.load(Ordering::Relaxed)
    }

    /// See [`TestedLock::describe`].
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn describe(&self, out: &mut dyn Write) -> fmt::Result {
        self.lasting.iter().try_for_each(|lock| lock.describe(out))?;
        self.slots.iter().try_for_each(|lock| lock.describe(out))?;
        self.timed.describe(out)?;
        self.interrupt.iter().try_for_each(|lock| lock.describe(out))
    }

    /// Finds the short-lived lock of a slot, or puts the one in `spare` there, and joins its users.
    fn join(&self, slot: usize, spare: &mut Option<Box<F::Lock<Shared>>>) -> Short<F> {
        self.slots[slot].with(|slot| {
            let found: Short<F> = match &slot.short {
                Some(short) => Short(short.0),
                None => {
                    let new = spare.take().unwrap_or_else(fresh::<F>);
                    let new = NonNull::from(Box::leak(new));
                    slot.short = Some(Short(new));
                    Short(new)
                }
            };
            found.lock().with(|shared| shared.users += 1);
            found
        })
    }

    /// Gives up one use of a short-lived lock; the last one frees it, at once, while whoever
    /// released it before may still be on the way out of its unlock.
    fn leave(&self, short: Short<F>) {
        let last = short.lock().with(|shared| {
            shared.users -= 1;
            (shared.users == 0).then(|| shared.guarded.counter())
        });
        if let Some(counter) = last {
            // Relaxed: a sum; read when every vCPU is done.
            self.retired.fetch_add(counter, Ordering::Relaxed);
            // SAFETY: made by `Box::leak` in `join`. Nobody can find it any more: the slot, itself
            // a user, has left, and so has everybody who joined through it. A vCPU that is still in
            // the unlock of its own leaving does not touch the lock after the store that let us in:
            // that is what every lock here promises, and what this workload is to show.
            drop(unsafe { Box::from_raw(short.0.as_ptr()) });
        }
    }
}

/// A lock with one user, the slot.
fn fresh<F: Family>() -> Box<F::Lock<Shared>> {
    Box::new(F::Lock::new(Shared { users: 1, guarded: Guarded::default() }))
}

impl<F: Family> Short<F> {
    fn lock(&self) -> &F::Lock<Shared> {
        // SAFETY: alive, because the holder of this value is one of its users.
        unsafe { self.0.as_ref() }
    }
}

/// One vCPU at work.
struct Party<'a, F: Family, V> {
    torture: &'a Torture<F>,
    vcpu: &'a V,
    plan: &'a Plan,
    rng: Stream,
    share: Share,
}

impl<F: Family, V: Vcpu> Party<'_, F, V> {
    /// One thing at random; at most as many acquisitions as are missing to `most`.
    fn turn(&mut self, most: u64) {
        if self.plan.timer_ns != 0 {
            self.vcpu.interrupt_in(self.rng.below(self.plan.timer_ns));
        }
        work(self.rng.of(self.plan.outside));
        if self.plan.wait_bound_ns.is_some() && self.rng.below(4) == 0 {
            return self.meet(most);
        }
        let locks = self.torture.lasting.len();
        match self.rng.below(if self.plan.timer_ns == 0 { 4 } else { 5 }) {
            4 => {
                let at = self.rng.below(locks as u64) as usize;
                let turns = self.plan.critical_turns;
                self.vcpu.uninterrupted(|| self.torture.take_interrupt_lock(at, turns, || {}));
            }
            0 | 1 => {
                let left = most - self.share.acquisitions;
                let depth = (1 + self.rng.below(DEPTH)).min(left);
                self.nest(0, depth);
            }
            2 => {
                let lock = &*self.torture.lasting[self.rng.below(locks as u64) as usize];
                let turns = self.holding_time();
                let owned = lock.try_with(|guarded| guarded.increment_around(|| work(turns)));
                self.share.acquisitions += u64::from(owned.is_some());
            }
            _ => self.visit(),
        }
    }

    /// Takes up to `depth` locks, each inside the one before. Upwards only: no cycle, no deadlock.
    fn nest(&mut self, from: usize, depth: u64) {
        let torture = self.torture;
        let locks = torture.lasting.len();
        if depth == 0 || from >= locks {
            return;
        }
        let at = from + self.rng.below((locks - from) as u64) as usize;
        let lock = &*torture.lasting[at];
        let turns = self.holding_time();
        let (number, id) = (self.vcpu.number(), markers::lock_id(lock));
        let waits = self.vcpu.wait_counts();
        let before = markers::acquiring(number, id);
        let asked = self.vcpu.now();
        let waited = lock.with(|guarded| {
            let owned = self.vcpu.now();
            let waited = self.vcpu.wait_counts().since(waits);
            self.share.latency.record(owned.saturating_sub(asked));
            self.share.acquisitions += 1;
            guarded.increment_around(|| {
                work(turns);
                self.nest(at + 1, depth - 1);
            });
            waited
        });
        markers::acquiring(number, before);
        self.note(id, waited);
    }

    /// Joins a short-lived lock, uses it, and leaves it; sometimes takes it out of its slot, so
    /// that it dies with its last user and its memory becomes another.
    fn visit(&mut self) {
        let torture = self.torture;
        let slot = self.rng.below(torture.slots.len() as u64) as usize;
        // Made before a lock is held: the heap has a lock of its own.
        let mut spare = Some(fresh::<F>());
        let short = torture.join(slot, &mut spare);
        drop(spare);
        let turns = self.holding_time();
        let number = self.vcpu.number();
        let before = markers::acquiring(number, markers::lock_id(short.lock()));
        short.lock().with(|shared| shared.guarded.increment_around(|| work(turns)));
        markers::acquiring(number, before);
        self.share.acquisitions += 1;
        if self.rng.below(3) == 0 {
            let retired =
                torture.slots[slot].with(|slot| slot.short.take_if(|current| current.0 == short.0));
            if let Some(retired) = retired {
                torture.leave(retired);
            }
        }
        torture.leave(short);
    }

    /// Takes the lock whose waits are timed, again and again.
    fn meet(&mut self, most: u64) {
        let (vcpu, lock) = (self.vcpu, &*self.torture.timed);
        let (number, id) = (vcpu.number(), markers::lock_id(lock));
        for _ in 0..ROUNDS.min(most - self.share.acquisitions) {
            let turns = self.rng.below(self.plan.critical_turns + 1);
            let waits = vcpu.wait_counts();
            // A handler inside would make the section longer than it may be.
            let (wait, waited) = vcpu.uninterrupted(|| {
                let before = markers::acquiring(number, id);
                let (asked, stolen) = (vcpu.now(), vcpu.stolen_from_all(None));
                let (owned, waited) = lock.with(|guarded| {
                    let (owned, waited) = (vcpu.now(), vcpu.wait_counts().since(waits));
                    guarded.increment_around(|| work(turns));
                    (owned, waited)
                });
                markers::acquiring(number, before);
                let stolen = vcpu.stolen_from_all(Some(owned)).saturating_sub(stolen);
                (owned.saturating_sub(asked).saturating_sub(stolen), waited)
            });
            self.share.longest_bounded_ns = self.share.longest_bounded_ns.max(wait);
            self.share.acquisitions += 1;
            self.note(id, waited);
        }
    }

    /// What an acquisition that blocked came to.
    fn note(&mut self, lock: u32, waited: WaitCounts) {
        if waited.waits > 0 {
            self.share.blocked_acquisitions += 1;
            self.share.waits.waits += waited.waits;
            self.share.waits.kicked += waited.kicked;
            if markers::enabled() {
                self.vcpu.acquired_after_block(lock, waited);
            }
        }
    }

    /// Often nothing, now and then eight times the critical section.
    fn holding_time(&mut self) -> u64 {
        let most = self.plan.critical_turns * 2;
        match self.rng.below(16) {
            0..4 => 0,
            15 => most * 4,
            _ => self.rng.below(most + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Thread, plan};
    use super::*;
    use crate::locks::{Spin, Ticket};
    use std::time::Instant;

    fn torture<F: Family>(threads: u32, locks: u32, limit: Limit) -> (Torture<F>, u64) {
        let torture = Torture::<F>::new(locks);
        let start = Instant::now();
        let acquisitions = std::thread::scope(|scope| {
            let vcpu = |number| {
                let torture = &torture;
                scope.spawn(move || {
                    let vcpu = Thread { number, start };
                    let share = torture.take_part(&vcpu, &plan(limit), &AtomicU64::new(0));
                    share.acquisitions
                })
            };
            let running: Vec<_> = (0..threads).map(vcpu).collect();
            running.into_iter().map(|vcpu| vcpu.join().unwrap()).sum()
        });
        (torture, acquisitions)
    }

    #[test]
    fn every_count_is_exact_whatever_was_nested_tried_and_freed() {
        let (spin, acquisitions) = torture::<Spin>(3, 3, Limit::Acquisitions(3_000));
        assert_eq!((acquisitions, spin.counter()), (9_000, 9_000));
        let (ticket, acquisitions) = torture::<Ticket>(2, 1, Limit::Acquisitions(1_000));
        assert_eq!((acquisitions, ticket.counter()), (2_000, 2_000));
    }

    #[test]
    fn the_locks_of_interrupts_are_counted_apart() {
        let torture = Torture::<Spin>::new(3);
        for _ in 0..10 {
            torture.interrupted(1);
        }
        let (taken, counted) = torture.interrupts();
        assert_eq!(taken, counted);
        assert!(taken > 10, "some are nested");
        assert_eq!(torture.counter(), 0);
    }

    /// Two vCPUs, and the hypervisor takes away what `stolen` says while one of them waits.
    #[test]
    fn waits_are_timed_without_what_was_stolen() {
        struct Robbed<'a>(Thread, &'a AtomicU64);

        impl Vcpu for Robbed<'_> {
            fn number(&self) -> u32 {
                self.0.number
            }

            fn now(&self) -> u64 {
                // A millisecond a look: each wait lasts one.
                self.1.fetch_add(1_000_000, Ordering::Relaxed)
            }

            fn wait_counts(&self) -> WaitCounts {
                WaitCounts::default()
            }

            fn acquired_after_block(&self, _: u32, _: WaitCounts) {}

            fn stolen_from_all(&self, now: Option<u64>) -> u64 {
                now.map_or(0, |_| 400_000)
            }

            fn sleep(&self) {}
        }

        let torture = Torture::<Spin>::new(1);
        let clock = AtomicU64::new(0);
        let vcpu = Robbed(Thread { number: 0, start: Instant::now() }, &clock);
        let limit = Limit::Acquisitions(5_000);
        let plan = Plan { wait_bound_ns: Some(1), ..plan(limit) };
        let share = torture.take_part(&vcpu, &plan, &AtomicU64::new(0));
        assert_eq!(share.longest_bounded_ns, 600_000);
        assert_eq!((share.acquisitions, torture.counter()), (5_000, 5_000));
    }

    #[test]
    fn no_short_lived_lock_outlives_the_run() {
        let (torture, _) = torture::<Spin>(2, 2, Limit::Duration(experiment::Time::ms(5)));
        torture.counter();
        assert!(torture.slots.iter().all(|slot| slot.with(|slot| slot.short.is_none())));
    }
}
