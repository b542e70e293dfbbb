//! The checker at work.
//!
//! What is said to be held is held: it is written after the lock was taken, and erased before it is
//! released. What is said to wait may have got the lock a moment ago.

use core::marker::PhantomData;
use core::panic::Location;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use core::sync::atomic::fence;

use super::How;
use crate::held::{Held, Place, Record};
use crate::trouble::{Circle, Link, Trouble};
use crate::{CpuNodes, HashTable, Mode, Platform};

/// Turns of a spin between two looks.
const TURNS: u32 = 1024;
/// Owners that one search follows. Where readers share locks there may be many ways to go.
const STEPS: u32 = 64;

/// The calling CPU is about to take a lock. Dropped, as when a policy panics, it did not get it.
pub(crate) struct Wanted(Option<&'static Place>);

impl Drop for Wanted {
    fn drop(&mut self) {
        if let Some(place) = self.0 {
            place.clear();
        }
    }
}

/// The places of the calling CPU, unless it is busy telling, or has no number yet.
fn held<P: Platform>() -> Option<(usize, &'static Held)> {
    let cpu = P::current_cpu();
    let held = (cpu < P::MAX_CPUS).then(|| &P::nodes(cpu).held)?;
    (!held.telling.load(Relaxed)).then_some((cpu, held))
}

/// The calling CPU is about to take `lock`.
#[track_caller]
pub(crate) fn want<P: Platform>(lock: usize, how: How) -> Wanted {
    let site = Location::caller();
    Wanted(held::<P>().and_then(|(_, held)| held.claim(lock, how == How::Shared, site)))
}

/// The calling CPU has to wait for `lock`, which it wants.
pub(crate) fn blocked<P: Platform>(lock: usize) {
    let Some((cpu, held)) = held::<P>() else { return };
    let Some((place, again)) = held.waiting().filter(|(_, wait)| wait.lock == lock) else { return };
    let first = held.below().find(|(_, record)| record.lock == lock);
    if let Some((_, first)) = first.filter(|_| place.tells_of_a_circle()) {
        let (first, again) = (first.site, again.site);
        tell::<P>(held, &Trouble::Twice { cpu, lock, first, again });
    }
}

/// The calling CPU owns what it wanted.
pub(crate) fn got<P: Platform>(wanted: Wanted) {
    let place = wanted.0;
    core::mem::forget(wanted);
    let Some((place, (cpu, held))) = place.zip(held::<P>()) else { return };
    let Some((_, record)) = held.waiting() else { return };
    place.hold();
    // A lock that nobody released, and whose memory is another lock now.
    let stale = |other: &Record| {
        other.lock == record.lock && other.is_held() && !(other.shared && record.shared)
    };
    held.below().filter(|(_, other)| stale(other)).for_each(|(place, _)| place.clear());
    if place.was_looked_at() {
        tell_if_long::<P>(cpu, held, place, &record);
    }
}

/// The calling CPU is about to release `lock`.
pub(crate) fn leave<P: Platform>(lock: usize) {
    let here = held::<P>().is_some_and(|(_, held)| held.forget(lock));
    // Or it was taken on another CPU, or had no place.
    if !here {
        let _ = (0..P::MAX_CPUS).any(|cpu| P::nodes(cpu).held.forget(lock));
    }
}

/// The calling CPU held `lock` exclusively, and shares it now.
pub(crate) fn share<P: Platform>(lock: usize) {
    if let Some((_, held)) = held::<P>() {
        held.share(lock);
    }
}

/// Tells the platform, which may take locks meanwhile.
fn tell<P: Platform>(held: &Held, trouble: &Trouble) {
    struct Told<'a>(&'a Held);

    impl Drop for Told<'_> {
        fn drop(&mut self) {
            self.0.telling.store(false, Relaxed);
        }
    }

    held.telling.store(true, Relaxed);
    let _told = Told(held);
    P::report(trouble);
}

/// Looks whether this CPU waits for itself through others, or for too long.
#[cold]
fn look<P: Platform>() {
    let Some((cpu, held)) = held::<P>() else { return };
    let Some((place, wait)) = held.waiting() else { return };
    // Of CPUs that begin to wait for each other, the last one sees all.
    fence(SeqCst);
    // What is found twice was true in between, all of it at one time: each CPU was in the same wait
    // both times, and can have released nothing that it held when it began.
    let circle = circle::<P>(cpu, &wait).filter(|found| circle::<P>(cpu, &wait) == Some(*found));
    if let Some(circle) = circle.filter(|_| place.tells_of_a_circle()) {
        tell::<P>(held, &circle.trouble());
    }
    tell_if_long::<P>(cpu, held, place, &wait);
}

fn tell_if_long<P: Platform>(cpu: usize, held: &Held, place: &Place, wait: &Record) {
    let bound = P::longest_wait();
    if bound == 0 {
        return;
    }
    if let Some(nanoseconds) = place.overdue(P::now(), bound) {
        let Record { lock, site: here, .. } = *wait;
        tell::<P>(held, &Trouble::LongWait { cpu, lock, here, nanoseconds });
    }
}

/// The circle through `cpu` and its `wait`.
fn circle<P: Platform>(cpu: usize, wait: &Record) -> Option<Circle> {
    let mut circle = Circle::EMPTY;
    let mut steps = STEPS;
    close::<P>(cpu, wait, &mut circle, &mut steps).then_some(circle)
}

/// Goes on from a wait to those who hold the lock, until one of them is `first`: whether one is.
fn close<P: Platform>(first: usize, wait: &Record, way: &mut Circle, steps: &mut u32) -> bool {
    for cpu in 0..P::MAX_CPUS {
        let Some((taken, next)) = P::nodes(cpu).held.stuck_with(wait.lock) else { continue };
        if taken.shared && wait.shared {
            // It is a writer between them that keeps the second reader out.
            continue;
        }
        let link = Link {
            cpu,
            holds: wait.lock,
            taken: taken.site,
            wants: next.lock,
            here: next.site,
            wait: next.wait,
        };
        *steps = steps.saturating_sub(1);
        if *steps == 0 || !way.push(link) {
            return false;
        }
        if cpu == first || close::<P>(first, &next, way, steps) {
            return true;
        }
        way.pop();
    }
    false
}

/// A platform whose waiters look now and then.
pub(crate) struct Checked<P>(PhantomData<P>);

// SAFETY: everything is `P`'s.
unsafe impl<P: Platform> Platform for Checked<P> {
    const MAX_CPUS: usize = P::MAX_CPUS;

    fn current_cpu() -> usize {
        P::current_cpu()
    }

    fn nodes(cpu: usize) -> &'static CpuNodes {
        P::nodes(cpu)
    }

    fn hash() -> &'static HashTable {
        P::hash()
    }

    fn wait(still_blocked: impl Fn() -> bool) {
        look::<P>();
        P::wait(still_blocked);
    }

    fn kick(cpu: usize) {
        P::kick(cpu);
    }

    fn now() -> u64 {
        P::now()
    }

    fn online_cpus() -> usize {
        P::online_cpus()
    }

    fn spin_turns() -> u32 {
        P::spin_turns()
    }

    fn mode() -> Mode {
        P::mode()
    }

    fn plain_unlock() -> bool {
        P::plain_unlock()
    }

    fn relax(turn: u32) {
        if turn % TURNS == TURNS - 1 {
            look::<P>();
        }
        P::relax(turn);
    }

    fn report(trouble: &Trouble) {
        P::report(trouble);
    }

    fn longest_wait() -> u64 {
        P::longest_wait()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    thread_local! {
        static KICKED: Cell<usize> = const { Cell::new(0) };
        static REPORTS: Cell<u32> = const { Cell::new(0) };
    }

    /// Answers that no default gives.
    struct Odd;

    // SAFETY: nothing is locked here.
    unsafe impl Platform for Odd {
        const MAX_CPUS: usize = 7;
        fn current_cpu() -> usize {
            5
        }
        fn nodes(_cpu: usize) -> &'static CpuNodes {
            static NODES: CpuNodes = CpuNodes::new();
            &NODES
        }
        fn hash() -> &'static HashTable {
            unreachable!("nobody sleeps")
        }
        fn wait(_still_blocked: impl Fn() -> bool) {}
        fn kick(cpu: usize) {
            KICKED.set(cpu);
        }
        fn now() -> u64 {
            11
        }
        fn online_cpus() -> usize {
            3
        }
        fn spin_turns() -> u32 {
            13
        }
        fn mode() -> Mode {
            Mode::TestAndSet
        }
        fn plain_unlock() -> bool {
            KICKED.get() == 6
        }
        fn report(_trouble: &Trouble) {
            REPORTS.set(REPORTS.get() + 1);
        }
        fn longest_wait() -> u64 {
            17
        }
    }

    #[test]
    fn a_checked_platform_answers_as_the_one_below() {
        type P = Checked<Odd>;
        assert_eq!((P::MAX_CPUS, P::current_cpu(), P::now(), P::spin_turns()), (7, 5, 11, 13));
        assert_eq!((P::mode(), P::longest_wait(), P::online_cpus()), (Mode::TestAndSet, 17, 3));
        assert!(!P::plain_unlock());
        P::kick(6);
        assert!(P::plain_unlock());
        P::report(&Trouble::Circle(Circle::EMPTY));
        assert_eq!(REPORTS.get(), 1);
    }
}
