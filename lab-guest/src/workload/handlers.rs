//! What the handler of a vCPU's timer does in the workload `handoff`: it takes the lock that the
//! tasks take, for as long as they do.
//!
//! Owns when the handler comes again, and its waits, which are told apart from the tasks'.

use alloc::vec::Vec;

use crossbeam_utils::CachePadded;
use experiment::record::Histogram;
use spin::mutex::SpinMutex;
use xen_guest::markers;

use super::rng::Stream;
use super::work::work;
use super::{Guarded, Plan, Vcpu};
use crate::locks::TestedLock;

/// The handlers of all vCPUs.
pub struct Handlers(Vec<CachePadded<SpinMutex<Handler>>>);

/// One vCPU's. Nobody else locks it before all vCPUs are done.
struct Handler {
    rng: Stream,
    /// From asking for the lock to owning it, in nanoseconds.
    latency: Histogram,
}

impl Handlers {
    /// Those of `vcpus` vCPUs.
    pub fn new(vcpus: u32, seed: u64) -> Self {
        // The streams behind those of the tasks.
        let handler =
            |vcpu| Handler { rng: Stream::new(seed, vcpus + vcpu), latency: Histogram::default() };
        Handlers((0..vcpus).map(|vcpu| CachePadded::new(SpinMutex::new(handler(vcpu)))).collect())
    }

    /// The timer of `vcpu` has interrupted it while it did not have `lock`: takes the lock, and
    /// lets the timer come again.
    pub fn interrupted<L: TestedLock<Guarded>>(&self, vcpu: &impl Vcpu, plan: &Plan, lock: &L) {
        let mut own = self.0[vcpu.number() as usize].lock();
        let (number, id) = (vcpu.number(), markers::lock_id(lock));
        let before = vcpu.wait_counts();
        let interrupted = markers::acquiring(number, id);
        let asked = vcpu.now();
        let owned = lock.with(|guarded| {
            let owned = vcpu.now();
            guarded.increment_around(|| work(plan.critical_turns));
            owned
        });
        markers::acquiring(number, interrupted);
        own.latency.record(owned.saturating_sub(asked));
        let waited = vcpu.wait_counts().since(before);
        if waited.waits > 0 && markers::enabled() {
            vcpu.acquired_after_block(id, waited);
        }
        vcpu.interrupt_in(own.rng.below(plan.timer_ns));
    }

    /// All their waits; how many there are is how often they took the lock. When every vCPU is
    /// done.
    pub fn latency(&self) -> Histogram {
        let mut all = Histogram::default();
        self.0.iter().for_each(|handler| all.merge(&handler.lock().latency));
        all
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;
    use core::sync::atomic::AtomicU64;
    use std::time::Instant;

    use experiment::Limit;

    use super::super::tests::{Thread, plan};
    use super::super::{WaitCounts, contend, free_locks};
    use super::*;
    use crate::locks::{Family, Spin};

    type Lock = <Spin as Family>::Lock<Guarded>;

    /// A vCPU whose timer fires between two acquisitions.
    struct Interrupted<'a> {
        thread: Thread,
        plan: &'a Plan,
        lock: &'a Lock,
        handlers: &'a Handlers,
        is_due: Cell<bool>,
        is_masked: Cell<bool>,
    }

    impl Vcpu for Interrupted<'_> {
        fn number(&self) -> u32 {
            self.thread.number
        }

        fn now(&self) -> u64 {
            self.thread.now()
        }

        fn wait_counts(&self) -> WaitCounts {
            assert!(self.is_masked.get(), "an interrupt may come while it asks for the lock");
            WaitCounts::default()
        }

        fn acquired_after_block(&self, _: u32, _: WaitCounts) {}

        fn proceed(&self) -> bool {
            if self.is_due.take() {
                self.uninterrupted(|| self.handlers.interrupted(self, self.plan, self.lock));
            }
            true
        }

        fn interrupt_in(&self, ns: u64) {
            assert!(ns < self.plan.timer_ns);
            self.is_due.set(true);
        }

        fn uninterrupted<R>(&self, section: impl FnOnce() -> R) -> R {
            self.is_masked.set(true);
            let done = section();
            self.is_masked.set(false);
            done
        }

        fn sleep(&self) {}
    }

    #[test]
    fn handlers_take_the_tasks_lock_and_are_counted_apart() {
        let plan = Plan { timer_ns: 1_000, ..plan(Limit::Acquisitions(1_000)) };
        let (locks, handlers) = (free_locks::<Lock>(1), Handlers::new(2, 1));
        let start = Instant::now();
        std::thread::scope(|scope| {
            for number in 0..2 {
                let (plan, locks, handlers) = (&plan, &locks, &handlers);
                scope.spawn(move || {
                    let vcpu = Interrupted {
                        thread: Thread { number, start },
                        plan,
                        lock: &locks[0],
                        handlers,
                        is_due: Cell::new(false),
                        is_masked: Cell::new(false),
                    };
                    let share = contend(&vcpu, plan, locks, &AtomicU64::new(0));
                    assert_eq!((share.acquisitions, share.latency.count()), (1_000, 1_000));
                });
            }
        });
        assert_eq!(handlers.latency().count(), 2_000, "one before each turn");
        assert_eq!(locks[0].with(|guarded| guarded.counter()), 4_000);
    }
}
