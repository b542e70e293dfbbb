//! The readers-writer lock: writers alone, readers together, nobody asleep for ever.

use crate::explore::{Bounds, SLEEP, SPIN, on_cpus, run};
use crate::machine::Machine;
use loom::cell::UnsafeCell;
use pvlock::{KickAtUnlock, Mode, Policy, RawPvRwLock};
use std::cell;
use std::sync::Arc;

/// A number that writers change and readers read: the checker reports a race if one is in beside a
/// writer.
struct Shared<K: Policy> {
    lock: RawPvRwLock<Machine, K>,
    value: UnsafeCell<usize>,
}

// SAFETY: `value` is reached under `lock`; that this holds is what the checker checks.
unsafe impl<K: Policy> Sync for Shared<K> {}
// SAFETY: as above.
unsafe impl<K: Policy> Send for Shared<K> {}

impl<K: Policy> Shared<K> {
    fn new() -> Self {
        Self { lock: RawPvRwLock::new(), value: UnsafeCell::new(0) }
    }

    fn look(&self) -> usize {
        // SAFETY: the lock is held for reading or writing.
        self.value.with(|value| unsafe { *value })
    }

    fn read(&self) -> usize {
        self.lock.lock_shared();
        let seen = self.look();
        // SAFETY: taken above.
        unsafe { self.lock.unlock_shared() };
        seen
    }

    /// Adds one, and returns the sum.
    fn write(&self) -> usize {
        self.lock.lock_exclusive();
        // SAFETY: the lock is held for writing.
        self.value.with_mut(|value| unsafe { *value += 1 });
        let sum = self.look();
        // SAFETY: taken above.
        unsafe { self.lock.unlock_exclusive() };
        sum
    }

    fn assert_done(&self, sum: usize) {
        assert_eq!(self.look(), sum);
        assert_eq!(format!("{:?}", self.lock), format!("RawPvRwLock<{}>(free)", K::NAME));
    }
}

/// What each CPU does, one letter an acquisition: `r` reads, `w` writes, `n` reads and reads again
/// inside, `p` reads past the queue, `d` writes and goes on reading.
fn explore<K: Policy>(cpus: &'static [&'static str], bounds: Bounds) {
    let reached = run(&format!("{}: readers and writers {cpus:?}", K::NAME), bounds, move || {
        let shared = Arc::new(Shared::<K>::new());
        on_cpus(cpus.len(), {
            let shared = shared.clone();
            move |cpu| {
                for act in cpus[cpu].chars() {
                    match act {
                        'r' => {
                            shared.read();
                        }
                        'p' => {
                            shared.lock.lock_shared_recursive();
                            shared.look();
                            // SAFETY: taken just now.
                            unsafe { shared.lock.unlock_shared() };
                        }
                        'w' => {
                            shared.write();
                        }
                        'n' => {
                            shared.lock.lock_shared();
                            let seen = shared.look();
                            shared.lock.lock_shared_recursive();
                            assert_eq!(shared.look(), seen);
                            for _ in 0..2 {
                                // SAFETY: taken twice above.
                                unsafe { shared.lock.unlock_shared() };
                            }
                        }
                        _ => {
                            shared.lock.lock_exclusive();
                            // SAFETY: the lock is held for writing.
                            shared.value.with_mut(|value| unsafe { *value += 1 });
                            let sum = shared.look();
                            // SAFETY: taken above.
                            unsafe { shared.lock.downgrade() };
                            assert_eq!(shared.look(), sum, "no writer came in between");
                            // SAFETY: it is held for reading now.
                            unsafe { shared.lock.unlock_shared() };
                        }
                    }
                }
            }
        });
        let writes = cpus.iter().flat_map(|acts| acts.chars()).filter(|act| "wd".contains(*act));
        shared.assert_done(writes.count());
    });
    let slept = reached.contains("rw: the head sleeps");
    let sleeps = bounds.mode == Mode::Pv && bounds.spin_turns == 0;
    let passes = cpus.iter().any(|acts| acts.contains('p'));
    assert!(slept == sleeps || passes, "{reached:#?}");
    assert!(!passes || reached.contains("rw: reads after the writer"), "{reached:#?}");
}

#[test]
fn two_cpus_read_and_write() {
    const ACTS: [&[&str]; 5] =
        [&["ww", "w"], &["rw", "w"], &["wr", "rw"], &["n", "w"], &["d", "w"]];
    for acts in ACTS {
        explore::<KickAtUnlock>(acts, SLEEP);
    }
    explore::<KickAtUnlock>(&["wr", "rw"], Bounds { preemptions: 4, mode: Mode::Native, ..SPIN });
    explore::<crate::Adaptive>(&["wr", "w"], SLEEP);
    explore::<KickAtUnlock>(&["wr", "w"], Bounds { spurious: true, ..SLEEP });
}

#[test]
fn a_recursive_reader_passes_the_queue() {
    const ACTS: [&[&str]; 3] = [&["w", "p"], &["ww", "p"], &["d", "pw"]];
    for acts in ACTS {
        explore::<KickAtUnlock>(acts, SLEEP);
    }
    explore::<KickAtUnlock>(&["w", "w", "p"], Bounds { preemptions: 2, ..SLEEP });
}

/// CPU 1 writes, and then reads past CPU 0. That one says that it sleeps when the writer has gone
/// already, and wakes up beside the reader that takes its entry out.
#[test]
fn a_head_wakes_while_its_entry_is_taken_out() {
    // Two entries of one CPU look like one to whoever takes them out.
    pvlock::model::watch_table(true);
    run("a head beside its entry", Bounds { preemptions: 4, ..SLEEP }, || {
        let shared = Arc::new(Shared::<KickAtUnlock>::new());
        shared.lock.lock_exclusive();
        on_cpus(2, {
            let shared = shared.clone();
            move |cpu| match cpu {
                0 => {
                    shared.read();
                    shared.write();
                }
                _ => {
                    // SAFETY: taken above, for this CPU.
                    unsafe { shared.lock.unlock_exclusive() };
                    shared.lock.lock_shared_recursive();
                    shared.look();
                    // SAFETY: taken just now.
                    unsafe { shared.lock.unlock_shared() };
                }
            }
        });
        shared.assert_done(1);
    });
    pvlock::model::watch_table(false);
}

#[test]
fn three_cpus_read_and_write() {
    const ACTS: [&[&str]; 3] = [&["w", "w", "w"], &["r", "w", "r"], &["d", "w", "r"]];
    for acts in ACTS {
        explore::<KickAtUnlock>(acts, Bounds { preemptions: 2, ..SLEEP });
    }
}

/// A lock that is made anew in place by whoever used it last.
struct Reused(cell::UnsafeCell<Shared<KickAtUnlock>>);

// SAFETY: replaced only by the last user: an unlock that touched the memory after its release would
// meet the new lock, and the checker reports that.
unsafe impl Sync for Reused {}
// SAFETY: as above.
unsafe impl Send for Reused {}

#[test]
fn memory_of_a_rwlock_reused_right_after_unlock() {
    run("a readers-writer lock, memory reused", SLEEP, || {
        let memory = Arc::new(Reused(cell::UnsafeCell::new(Shared::new())));
        on_cpus(2, {
            let memory = memory.clone();
            move |_| {
                // SAFETY: nobody replaces the lock before both have used it.
                if unsafe { &*memory.0.get() }.write() == 2 {
                    // SAFETY: the other has used the lock and is done with it, if unlock keeps its
                    // promise (R5).
                    unsafe { *memory.0.get() = Shared::new() };
                    // SAFETY: as above.
                    unsafe { &*memory.0.get() }.write();
                }
            }
        });
        // SAFETY: both are done.
        unsafe { &*memory.0.get() }.assert_done(1);
    });
}
