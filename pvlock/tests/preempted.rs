//! A kernel that lets a task be preempted inside `lock`, by another task of the same CPU, is told so.
#![cfg(debug_assertions)]

use pvlock::{CpuNodes, HashStorage, HashTable, KickAtUnlock, Platform, RawPvLock};
use std::cell::Cell;

/// Threads as tasks; more than one of them may be on a CPU, which is what is wrong here.
struct Machine;

static NODES: [CpuNodes; 2] = [const { CpuNodes::new() }; 2];
static STORAGE: HashStorage<64> = HashStorage::new();
static TABLE: HashTable = HashTable::new(&STORAGE);
thread_local!(static CPU: Cell<usize> = const { Cell::new(1) });

// SAFETY: clause 3 is broken on purpose; the debug build notices before a node is used by two tasks.
unsafe impl Platform for Machine {
    const MAX_CPUS: usize = 2;

    fn current_cpu() -> usize {
        CPU.get()
    }

    fn nodes(cpu: usize) -> &'static CpuNodes {
        &NODES[cpu]
    }

    fn hash() -> &'static HashTable {
        &TABLE
    }

    fn wait(_still_blocked: impl Fn() -> bool) {
        std::thread::yield_now();
    }

    fn kick(_cpu: usize) {}

    fn now() -> u64 {
        0
    }

    fn relax(_turn: u32) {
        std::thread::yield_now();
    }

    // The second task of the CPU looks as if it waited for what the first does.
    fn report(_trouble: &pvlock::Trouble) {}
}

static LOCKS: [RawPvLock<Machine, KickAtUnlock>; 2] = [const { RawPvLock::new() }; 2];

/// A task of CPU 0 that takes a lock, when so many tasks wait there.
fn task(lock: usize, depth: usize) -> std::thread::JoinHandle<()> {
    let task = std::thread::spawn(move || {
        CPU.set(0);
        LOCKS[lock].lock();
        // SAFETY: taken just now.
        unsafe { LOCKS[lock].unlock() };
    });
    while NODES[0].depth() < depth {
        std::thread::yield_now();
    }
    task
}

#[test]
fn a_task_that_is_preempted_inside_lock_is_noticed() {
    LOCKS.iter().for_each(RawPvLock::lock);
    let first = task(0, 1);
    let second = task(1, 2);
    // SAFETY: taken above. The first task goes on before the one that preempted it.
    unsafe { LOCKS[0].unlock() };
    let panic = first.join().expect_err("it leaves out of order");
    let text = panic.downcast_ref::<String>().expect("a text");
    assert!(text.contains("leaves level 0 of 2: a task was preempted inside `lock`"), "{text}");
    // SAFETY: taken above.
    unsafe { LOCKS[1].unlock() };
    second.join().expect("the inner one is in order");
}
