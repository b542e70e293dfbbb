//! What the vCPUs do with the locks.
//!
//! Owns the measured loop: work outside, acquire, work inside, release, record. In the loop it
//! allocates nothing, writes to no console and no xenstore, and shares no cache line but those of
//! the locks. [`torture`](mod@torture) is the exception: it is for finding faults, not for
//! measuring. It knows neither boot nor Xen: [`Vcpu`] is what it needs of the vCPU under it, and in
//! tests that is a thread.

pub mod alloc;
pub mod handlers;
pub mod rng;
pub mod torture;
pub mod work;

use ::alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use crossbeam_utils::CachePadded;
use experiment::record::Histogram;
use experiment::{Fault, Key, Limit};
use xen_guest::markers;

use self::rng::{Around, Stream};
use self::work::work;
use crate::locks::TestedLock;

/// The vCPU a workload runs on.
pub trait Vcpu {
    /// Its number, from 0.
    fn number(&self) -> u32;

    /// Its clock, in nanoseconds; cheap, and never compared with that of another vCPU.
    fn now(&self) -> u64;

    /// How often it has blocked for a lock so far.
    fn wait_counts(&self) -> WaitCounts;

    /// Its [`waits`](WaitCounts::waits) alone: for a loop that looks whether it has blocked.
    #[inline]
    fn waits(&self) -> u64 {
        self.wait_counts().waits
    }

    /// Called once per acquisition that blocked, after the release, if markers are on.
    fn acquired_after_block(&self, lock: u32, waits: WaitCounts);

    /// Called between two acquisitions, with no lock held; may take its time. Whether to go on.
    #[inline]
    fn proceed(&self) -> bool {
        true
    }

    /// Lets the vCPU's timer interrupt it once, `ns` nanoseconds from now; an earlier order is
    /// forgotten.
    fn interrupt_in(&self, ns: u64) {
        let _ = ns;
    }

    /// Runs `section` with interrupts held back.
    fn uninterrupted<R>(&self, section: impl FnOnce() -> R) -> R {
        section()
    }

    /// How long vCPUs of this domain could have run so far and had no pCPU, all together, in
    /// nanoseconds. Up to `now` those that have none now, if that is given.
    fn stolen_from_all(&self, now: Option<u64>) -> u64 {
        let _ = now;
        0
    }

    /// Gives up the pCPU for a while. For the fault that hangs, and for who has nothing to do.
    fn sleep(&self);
}

/// How often a vCPU has blocked in the hypervisor to wait for a lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitCounts {
    /// Waits in all.
    pub waits: u64,
    /// Those that ended by a kick.
    pub kicked: u64,
}

impl WaitCounts {
    fn since(self, before: WaitCounts) -> WaitCounts {
        WaitCounts {
            waits: self.waits.wrapping_sub(before.waits),
            kicked: self.kicked.wrapping_sub(before.kicked),
        }
    }
}

/// What every vCPU is to do; the same for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Turns of work inside the critical section.
    pub critical_turns: u64,
    /// Turns of work between two acquisitions.
    pub outside: Around,
    /// When a vCPU is done.
    pub limit: Limit,
    /// The start line, by the clock that all vCPUs share: a duration counts from there, and all have the same
    /// window. Without it, each vCPU's own start counts.
    pub start_at: Option<u64>,
    /// Seed of the random numbers.
    pub seed: u64,
    /// A fault made on purpose.
    pub fault: Fault,
    /// How many vCPUs take part.
    pub vcpus: u32,
    /// How long after a turn, or after the handler before, the vCPU's timer interrupts it, at most;
    /// 0 = never.
    pub timer_ns: u64,
    /// How long a wait for a lock of which that can be said may last, in nanoseconds in which the
    /// vCPUs that can run have a pCPU.
    pub wait_bound_ns: Option<u64>,
}

impl Plan {
    /// After how many acquisitions `vcpu` commits its fault; never, in an ordinary run.
    fn fault_at(&self, vcpu: u32) -> u64 {
        match (self.fault, self.limit) {
            (Fault::Off, _) => u64::MAX,
            _ if vcpu + 1 != self.vcpus => u64::MAX,
            (_, Limit::Acquisitions(n)) => n / 2,
            (_, Limit::Duration(_)) => 100,
        }
    }
}

/// What one vCPU did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Times it owned a lock.
    pub acquisitions: u64,
    /// Acquisitions that were asked for before the window's end and came after it.
    pub late_acquisitions: u64,
    /// Acquisitions that blocked at least once.
    pub blocked_acquisitions: u64,
    /// How often it blocked.
    pub waits: WaitCounts,
    /// Time from its start to its last release, in nanoseconds.
    pub elapsed_ns: u64,
    /// How long the hypervisor ran somebody else although the vCPU could run, in nanoseconds.
    pub stolen_ns: u64,
    /// How long it slept in the hypervisor, in nanoseconds.
    pub blocked_ns: u64,
    /// How long it ran, in nanoseconds.
    pub running_ns: u64,
    /// Time from asking for a lock to owning it, in nanoseconds.
    pub latency: Histogram,
    /// The longest wait that has a bound, without what the hypervisor took away meanwhile, in
    /// nanoseconds.
    pub longest_bounded_ns: u64,
}

/// What a lock protects: a counter that only exclusion keeps exact.
#[derive(Debug, Default)]
pub struct Guarded {
    counter: AtomicU64,
    /// As `counter`, of handlers that interrupt whoever holds the lock, and therefore only try.
    tried: u64,
}

impl Guarded {
    /// Reads the counter, does `section`, and writes the counter back one higher: whoever was in
    /// the section at the same time has its increment lost.
    #[inline]
    fn increment_around(&mut self, section: impl FnOnce()) {
        // Relaxed, and no exchange: the lock orders them. Atomic and between fences, because the
        // compiler must neither move the read behind the section nor the write before it.
        let read = self.counter.load(Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        section();
        compiler_fence(Ordering::SeqCst);
        self.counter.store(read + 1, Ordering::Relaxed);
    }

    /// Counts one more in a handler that tried the lock and got it.
    #[inline]
    fn increment_tried(&mut self) {
        let read = *core::hint::black_box(&mut self.tried);
        *core::hint::black_box(&mut self.tried) = read + 1;
    }

    /// Tries the lock in a handler, and counts if it gets it; whether it did.
    pub fn try_in_handler(lock: &impl TestedLock<Guarded>) -> bool {
        lock.try_with(Guarded::increment_tried).is_some()
    }

    /// How often a handler that tried was in the section, if exclusion held.
    pub fn tried(&self) -> u64 {
        self.tried
    }

    /// How often somebody was in the section, if exclusion held.
    pub fn counter(&self) -> u64 {
        self.counter.load(Ordering::Relaxed)
    }
}

/// `n` free locks, each in cache lines of its own.
pub fn free_locks<L: TestedLock<Guarded>>(n: u32) -> Vec<CachePadded<L>> {
    (0..n).map(|_| CachePadded::new(L::new(Guarded::default()))).collect()
}

/// The workloads `handoff` (one lock) and `spread` (several, one of them picked at random each
/// time), on one vCPU, from its start to its end. `progress` shows its acquisitions to the
/// watchdog. Where timers interrupt it, their [handlers](handlers::Handlers) take the lock too, and
/// it is asked for and held uninterrupted.
pub fn contend<L: TestedLock<Guarded>>(
    vcpu: &impl Vcpu,
    plan: &Plan,
    locks: &[CachePadded<L>],
    progress: &AtomicU64,
) -> Share {
    // Chosen here and not at each turn: what a turn costs is part of what is measured.
    if plan.timer_ns == 0 {
        contend_as::<false, L>(vcpu, plan, locks, progress)
    } else {
        contend_as::<true, L>(vcpu, plan, locks, progress)
    }
}

/// The same; `TIMED`: timers' handlers take the lock too. Two functions, so that neither pays for
/// the registers of the other.
#[inline(never)]
fn contend_as<const TIMED: bool, L: TestedLock<Guarded>>(
    vcpu: &impl Vcpu,
    plan: &Plan,
    locks: &[CachePadded<L>],
    progress: &AtomicU64,
) -> Share {
    let number = vcpu.number();
    let mut rng = Stream::new(plan.seed, vcpu.number());
    let mut share = Share::default();
    let started = plan.start_at.unwrap_or_else(|| vcpu.now());
    let (most, end) = match plan.limit {
        Limit::Acquisitions(n) => (n, u64::MAX),
        Limit::Duration(time) => (u64::MAX, started.saturating_add(time.ns())),
    };
    let fault_at = plan.fault_at(vcpu.number());
    if TIMED {
        vcpu.interrupt_in(rng.below(plan.timer_ns));
    }
    // As they were last read, which is with interrupts held back.
    let mut counts = WaitCounts::default();
    while share.acquisitions < most && vcpu.proceed() {
        if share.acquisitions == fault_at {
            commit(plan.fault, vcpu, &*locks[0], &mut share);
            continue;
        }
        work(rng.of(plan.outside));
        let lock = match locks {
            [only] => only,
            _ => &locks[rng.below(locks.len() as u64) as usize],
        };
        let mut turn = || {
            if vcpu.waits() != counts.waits {
                // It has blocked elsewhere: in a handler, or for an order.
                counts = vcpu.wait_counts();
            }
            markers::acquiring(number, markers::lock_id(&**lock));
            let asked = vcpu.now();
            if asked >= end {
                return None;
            }
            let owned = lock.with(|guarded| {
                let owned = vcpu.now();
                guarded.increment_around(|| work(plan.critical_turns));
                owned
            });
            markers::acquiring(number, 0);
            if vcpu.waits() != counts.waits {
                let before = core::mem::replace(&mut counts, vcpu.wait_counts());
                let waited = counts.since(before);
                share.blocked_acquisitions += 1;
                share.waits.waits += waited.waits;
                share.waits.kicked += waited.kicked;
                // Before a handler may come and leave marks of its own.
                if markers::enabled() {
                    vcpu.acquired_after_block(markers::lock_id(&**lock), waited);
                }
            }
            Some((asked, owned))
        };
        let turn = if TIMED { vcpu.uninterrupted(turn) } else { turn() };
        let Some((asked, owned)) = turn else { break };
        share.latency.record(owned.saturating_sub(asked));
        share.acquisitions += 1;
        share.late_acquisitions += u64::from(owned >= end);
        // Relaxed: a number to look at; nothing else is published by it.
        progress.store(share.acquisitions, Ordering::Relaxed);
    }
    share.elapsed_ns = vcpu.now().saturating_sub(started);
    share
}

/// The workload `hog`: units of work, as long as a critical section, until the window's end.
pub fn compute(vcpu: &impl Vcpu, plan: &Plan, progress: &AtomicU64) -> Share {
    until_the_end(vcpu, plan, |share| {
        work(plan.critical_turns);
        share.acquisitions += 1;
        // Relaxed: as above.
        progress.store(share.acquisitions, Ordering::Relaxed);
    })
}

/// The workload `sleeper`: sleep until the window's end.
pub fn doze(vcpu: &impl Vcpu, plan: &Plan) -> Share {
    until_the_end(vcpu, plan, |_| vcpu.sleep())
}

/// Does one thing again and again until the window's end.
fn until_the_end(vcpu: &impl Vcpu, plan: &Plan, mut once: impl FnMut(&mut Share)) -> Share {
    let started = plan.start_at.unwrap_or_else(|| vcpu.now());
    let end = match plan.limit {
        Limit::Duration(time) => started.saturating_add(time.ns()),
        Limit::Acquisitions(_) => started,
    };
    let mut share = Share::default();
    while vcpu.now() < end && vcpu.proceed() {
        once(&mut share);
    }
    share.elapsed_ns = vcpu.now().saturating_sub(started);
    share
}

/// Does wrong on purpose.
#[cold]
fn commit<L: TestedLock<Guarded>>(fault: Fault, vcpu: &impl Vcpu, lock: &L, share: &mut Share) {
    // Counted, so that it is done once.
    share.acquisitions += 1;
    markers::acquiring(vcpu.number(), markers::lock_id(lock));
    match fault {
        Fault::Off | Fault::Lose => {}
        Fault::Hang => lock.with(|_| {
            loop {
                vcpu.sleep();
            }
        }),
        Fault::Panic => {
            lock.with(|_| panic!("{}={fault}: asked to panic in the critical section", Key::fault))
        }
        Fault::Null => lock.with(|_| read_through_null()),
        Fault::Overflow => lock.with(|_| {
            use_up_the_stack(0);
        }),
    }
}

// Functions of their own, whose names a backtrace must show.

#[inline(never)]
fn read_through_null() {
    let null = core::hint::black_box(core::ptr::null::<u64>());
    // SAFETY: page 0 is not mapped: the read is a fault that ends the domain, and nothing comes
    // after it.
    unsafe { core::arch::asm!("mov {0}, [{0}]", inout(reg) null => _, options(readonly)) };
}

#[inline(never)]
fn use_up_the_stack(depth: u64) -> u64 {
    let frame = core::hint::black_box([depth; 16]);
    if depth == u64::MAX { 0 } else { use_up_the_stack(depth + 1) + frame[3] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use experiment::Time;
    use spin::mutex::{SpinMutex, TicketMutex};
    use std::time::Instant;

    pub(super) struct Thread {
        pub(super) number: u32,
        pub(super) start: Instant,
    }

    impl Vcpu for Thread {
        fn number(&self) -> u32 {
            self.number
        }

        fn now(&self) -> u64 {
            self.start.elapsed().as_nanos() as u64
        }

        fn wait_counts(&self) -> WaitCounts {
            WaitCounts::default()
        }

        fn acquired_after_block(&self, _: u32, _: WaitCounts) {}

        fn sleep(&self) {
            std::thread::yield_now();
        }
    }

    fn run<L: TestedLock<Guarded> + Send>(
        threads: u32,
        locks: u32,
        plan: &Plan,
    ) -> (u64, Vec<Share>) {
        let locks = free_locks::<L>(locks);
        let start = Instant::now();
        let shares = std::thread::scope(|scope| {
            let vcpu = |number| {
                let locks = &locks;
                scope.spawn(move || {
                    let progress = AtomicU64::new(0);
                    let share = contend(&Thread { number, start }, plan, locks, &progress);
                    assert_eq!(progress.into_inner(), share.acquisitions);
                    share
                })
            };
            let running: Vec<_> = (0..threads).map(vcpu).collect();
            running.into_iter().map(|vcpu| vcpu.join().unwrap()).collect()
        });
        (locks.iter().map(|lock| lock.with(|guarded| guarded.counter())).sum(), shares)
    }

    pub(super) fn plan(limit: Limit) -> Plan {
        Plan {
            critical_turns: 20,
            outside: Around::new(40, 50),
            limit,
            start_at: None,
            seed: 1,
            fault: Fault::Off,
            vcpus: 1,
            timer_ns: 0,
            wait_bound_ns: None,
        }
    }

    #[test]
    fn the_counter_equals_the_acquisitions_under_every_lock() {
        let plan = plan(Limit::Acquisitions(5_000));
        for (counter, shares) in
            [run::<SpinMutex<Guarded>>(3, 1, &plan), run::<TicketMutex<Guarded>>(2, 3, &plan)]
        {
            assert_eq!(counter, 5_000 * shares.len() as u64);
            for share in shares {
                assert_eq!((share.acquisitions, share.latency.count()), (5_000, 5_000));
                assert_eq!((share.blocked_acquisitions, share.waits), (0, WaitCounts::default()));
            }
        }
    }

    #[test]
    fn a_duration_ends_each_vcpu_by_its_own_clock() {
        let (counter, shares) =
            run::<SpinMutex<Guarded>>(2, 1, &plan(Limit::Duration(Time::ms(20))));
        assert_eq!(counter, shares.iter().map(|share| share.acquisitions).sum::<u64>());
        assert!(
            shares.iter().all(|share| share.elapsed_ns >= 20_000_000 && share.acquisitions > 0)
        );
    }

    #[test]
    fn all_vcpus_have_one_window_whenever_they_start() {
        let start_at = Some(10_000_000);
        let plan = Plan { start_at, ..plan(Limit::Duration(Time::ms(20))) };
        // One that is not run until the window is over makes no acquisition.
        let late = Instant::now() - std::time::Duration::from_millis(31);
        let locks = free_locks::<SpinMutex<Guarded>>(1);
        let share = contend(&Thread { number: 0, start: late }, &plan, &locks, &AtomicU64::new(0));
        assert_eq!(share.acquisitions, 0);
        // One that starts in the middle ends with the others.
        let middle = Instant::now() - std::time::Duration::from_millis(15);
        let vcpu = Thread { number: 0, start: middle };
        let share = contend(&vcpu, &plan, &locks, &AtomicU64::new(0));
        assert!(share.acquisitions > 0 && vcpu.now() >= 30_000_000);
        assert!(share.late_acquisitions <= 1);
    }

    #[test]
    fn a_hog_works_until_the_end() {
        let plan = plan(Limit::Duration(Time::ms(5)));
        let vcpu = Thread { number: 0, start: Instant::now() };
        let share = compute(&vcpu, &plan, &AtomicU64::new(0));
        assert!(share.acquisitions > 10 && share.elapsed_ns >= 5_000_000);
        assert_eq!(share.latency.count(), 0);
    }

    #[test]
    fn two_in_the_section_at_once_lose_an_increment() {
        let mut guarded = Guarded::default();
        let stale = Guarded { counter: guarded.counter().into(), tried: 0 };
        guarded.increment_around(|| {});
        // The other one had read before the first one wrote, and writes after it.
        let mut other = stale;
        other.increment_around(|| {});
        assert_eq!(other.counter(), 1, "two sections, one increment: the check sees it");
        assert_eq!(guarded.counter(), 1);
    }

    #[test]
    fn a_fault_is_committed_once_half_way_by_the_last_vcpu() {
        let plan = Plan { fault: Fault::Lose, vcpus: 2, ..plan(Limit::Acquisitions(1_000)) };
        let (counter, shares) = run::<SpinMutex<Guarded>>(2, 1, &plan);
        assert_eq!(shares.iter().map(|share| share.acquisitions).collect::<Vec<_>>(), [1_000; 2]);
        assert_eq!(counter, 1_999);
    }

    #[test]
    #[should_panic(expected = "fault=panic")]
    fn a_panic_on_purpose_comes_in_the_critical_section() {
        let plan = Plan { fault: Fault::Panic, ..plan(Limit::Duration(Time::LONGEST)) };
        let locks = free_locks::<SpinMutex<Guarded>>(1);
        contend(&Thread { number: 0, start: Instant::now() }, &plan, &locks, &AtomicU64::new(0));
    }

    /// A vCPU on which time and waits go by script: every second acquisition blocks twice.
    struct Scripted {
        calls: core::cell::Cell<u64>,
        marked: core::cell::RefCell<Vec<(u32, WaitCounts)>>,
    }

    impl Vcpu for Scripted {
        fn number(&self) -> u32 {
            5
        }

        fn now(&self) -> u64 {
            self.calls.set(self.calls.get() + 1);
            self.calls.get() * 100
        }

        fn wait_counts(&self) -> WaitCounts {
            // Two clock readings an acquisition: asked, owned.
            let acquisition = self.calls.get() / 2;
            WaitCounts { waits: acquisition / 2 * 2, kicked: acquisition / 2 }
        }

        fn acquired_after_block(&self, lock: u32, waits: WaitCounts) {
            self.marked.borrow_mut().push((lock, waits));
        }

        fn sleep(&self) {}
    }

    #[test]
    fn an_acquisition_that_blocked_is_counted_once_and_marked_once() {
        let locks = free_locks::<SpinMutex<Guarded>>(1);
        let vcpu = Scripted { calls: 0.into(), marked: Vec::new().into() };
        markers::enable(true);
        let share = contend(&vcpu, &plan(Limit::Acquisitions(10)), &locks, &AtomicU64::new(0));
        markers::enable(false);
        assert_eq!(share.blocked_acquisitions, 5);
        assert_eq!(share.waits, WaitCounts { waits: 10, kicked: 5 });
        let expected = (markers::lock_id(&*locks[0]), WaitCounts { waits: 2, kicked: 1 });
        assert_eq!(vcpu.marked.into_inner(), [expected; 5]);
        assert_eq!(share.latency.max(), 100);
    }
}
