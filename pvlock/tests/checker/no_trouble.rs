//! What is right, however it looks.

use crate::*;
use pvlock::{Adaptive, Mode, Mutex, MutexGuard, Platform, Policy, RwLock, Spin};

/// A handler may try a lock that the context which it interrupts waits for, and may get it.
#[test]
fn a_try_is_no_trouble() {
    let _machine = machine(Mode::Pv);
    static LOCK: Lock = Lock::new();
    static SHARED: Shared = Shared::new();
    CPU.set(1);
    SHARED.lock_exclusive();
    CPU.set(0);
    INTERRUPT.set(Some(Box::new(|| {
        assert!(!SHARED.try_lock_shared(), "CPU 1 has it");
        // SAFETY: taken for CPU 1 above, and not used by it.
        unsafe { SHARED.unlock_exclusive() };
        assert!(SHARED.try_lock_shared_recursive(), "past the context below");
        // SAFETY: taken just now.
        unsafe { SHARED.unlock_shared() };
    })));
    SHARED.lock_shared();
    // SAFETY: taken just now.
    unsafe { SHARED.unlock_shared() };
    LOCK.lock();
    assert!(!LOCK.try_lock());
    // SAFETY: taken above.
    unsafe { LOCK.unlock() };
    assert!(FOUND.take().is_empty());
}

#[test]
fn readers_that_read_again_are_no_trouble() {
    let _machine = machine(Mode::Pv);
    static DATA: RwLock<u8, Machine> = RwLock::new(1);
    let (one, two) = (DATA.read(), DATA.read_recursive());
    drop(one);
    let three = DATA.read();
    drop((two, three));
    let guard = pvlock::RwLockWriteGuard::downgrade(DATA.write());
    let another = DATA.read_recursive();
    drop((guard, another));
    drop(DATA.write());
    assert!(FOUND.take().is_empty());
}

#[test]
fn guards_may_be_dropped_in_any_order() {
    let _machine = machine(Mode::Pv);
    static LOCKS: [Mutex<u8, Machine>; 3] = [const { Mutex::new(0) }; 3];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut guards = [0, 1, 2].map(|lock| Some(LOCKS[lock].lock()));
        for lock in order {
            guards[lock] = None;
            guards[lock] = Some(LOCKS[lock].lock());
            if let Some(guard) = &mut guards[lock] {
                MutexGuard::bump(guard);
            }
            guards[lock] = None;
        }
    }
    assert!(FOUND.take().is_empty());
}

/// More locks than the checker has places for.
#[test]
fn many_locks_at_once_are_no_trouble() {
    let _machine = machine(Mode::Pv);
    static LOCKS: [Mutex<u8, Machine>; 40] = [const { Mutex::new(0) }; 40];
    for _ in 0..3 {
        let mut guards: Vec<_> = LOCKS.iter().map(Mutex::lock).collect();
        while !guards.is_empty() {
            drop(guards.swap_remove(guards.len() / 2));
        }
    }
    assert!(FOUND.take().is_empty());
    let _guard = LOCKS[0].lock();
    trouble(|| drop(LOCKS[0].lock()));
}

/// A task that holds a lock goes on on another CPU, and the first one takes the lock again.
#[test]
fn a_lock_released_on_another_cpu_is_no_trouble() {
    let _machine = machine(Mode::Pv);
    static LOCK: Lock = Lock::new();
    static SHARED: Shared = Shared::new();
    for _ in 0..20 {
        CPU.set(0);
        LOCK.lock();
        SHARED.lock_shared();
        CPU.set(1);
        // SAFETY: taken above.
        unsafe { LOCK.unlock() };
        // SAFETY: taken above.
        unsafe { SHARED.unlock_shared() };
        CPU.set(0);
        LOCK.lock();
        SHARED.lock_exclusive();
        // SAFETY: taken above.
        unsafe { SHARED.unlock_exclusive() };
        // SAFETY: taken above.
        unsafe { LOCK.unlock() };
    }
    assert!(FOUND.take().is_empty());
}

/// The memory of a lock that was never released is a new lock.
#[test]
fn a_lock_in_the_memory_of_a_forgotten_one_is_no_trouble() {
    let _machine = machine(Mode::Pv);
    let mut memory = Lock::new();
    memory.lock();
    memory = Lock::new();
    memory.lock();
    // SAFETY: taken just now.
    unsafe { memory.unlock() };
    memory.lock();
    assert!(FOUND.take().is_empty());
    // SAFETY: taken just now.
    unsafe { memory.unlock() };
}

/// The same of a lock that was held for reading: its record is in nobody's way later.
#[test]
fn a_rwlock_in_the_memory_of_a_forgotten_one_is_no_trouble() {
    let _machine = machine(Mode::Pv);
    static MEMORY: std::sync::OnceLock<Vec<Shared>> = std::sync::OnceLock::new();
    let locks = vec![Shared::new()];
    locks[0].lock_shared();
    let place = &raw const locks[0];
    let mut locks = locks;
    locks[0] = Shared::new();
    locks[0].lock_exclusive();
    // SAFETY: taken just now.
    unsafe { locks[0].unlock_exclusive() };
    let lock = &MEMORY.get_or_init(|| locks)[0];
    assert_eq!(&raw const *lock, place, "in the same memory");
    CPU.set(1);
    lock.lock_exclusive();
    CPU.set(0);
    // SAFETY: taken for CPU 1 above, and not used by it.
    INTERRUPT.set(Some(Box::new(|| unsafe { MEMORY.get().unwrap()[0].unlock_exclusive() })));
    lock.lock_exclusive();
    // SAFETY: taken just now.
    unsafe { lock.unlock_exclusive() };
    assert!(FOUND.take().is_empty());
}

/// Locks taken in one order, by contexts and by handlers that interrupt them, readers among them.
#[test]
fn an_order_that_all_keep_is_no_trouble() {
    for mode in MODES {
        let _machine = machine(mode);
        static TASKS: [Mutex<u64, Machine, Adaptive>; 3] = [const { Mutex::new(0) }; 3];
        static SHARED: RwLock<u64, Machine> = RwLock::new(0);
        static HANDLERS: [Mutex<u64, Machine>; 2] = [const { Mutex::new(0) }; 2];
        let handler = || {
            let first = HANDLERS[0].lock();
            let second = HANDLERS[1].lock();
            drop(first);
            drop(second);
        };
        std::thread::scope(|scope| {
            for cpu in 0..4 {
                scope.spawn(move || {
                    CPU.set(cpu);
                    for round in 0..400 {
                        INTERRUPT.set(Some(Box::new(handler)));
                        let first = TASKS[round % 2].lock();
                        let last = TASKS[2].lock();
                        if (round + cpu) % 4 == 0 {
                            drop(SHARED.write());
                        } else {
                            drop(SHARED.read());
                        }
                        drop(first);
                        drop(last);
                    }
                    INTERRUPT.take();
                    assert_eq!(FOUND.take().len(), 0);
                });
            }
        });
    }
}

static PANICS: AtomicUsize = AtomicUsize::new(0);
thread_local!(static FAULTY: Cell<bool> = const { Cell::new(false) });

/// Panics once when it is told to.
struct MayPanic;

impl Policy for MayPanic {
    const NAME: &'static str = "may-panic";

    fn keep_spinning<P: Platform>(spin: &mut Spin) -> bool {
        if FAULTY.take() {
            PANICS.fetch_add(1, SeqCst);
            panic!("a defect of a policy");
        }
        spin.turn() < 100
    }
}

/// Takes a lock that another CPU has, which keeps it until the policy has panicked.
fn panics_on(cpu: usize, lock: impl FnOnce()) {
    CPU.set(cpu);
    FAULTY.set(true);
    catch_unwind(std::panic::AssertUnwindSafe(lock)).expect_err("a defect of a policy");
}

fn until_a_policy_panics(times: usize) {
    while PANICS.load(SeqCst) < times {
        std::thread::yield_now();
    }
}

#[test]
fn a_policy_that_panics_leaves_nothing_behind() {
    let _machine = machine(Mode::Pv);
    static LOCK: Mutex<(), Machine, MayPanic> = Mutex::new(());
    CPU.set(0);
    let mut guard = LOCK.lock();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            panics_on(1, || drop(LOCK.lock()));
            (0..20).for_each(|_| drop(LOCK.lock()));
            FOUND.take()
        });
        until_a_policy_panics(1);
        drop(guard);
        assert_eq!(other.join().unwrap().len(), 0);

        guard = LOCK.lock();
        let other = scope.spawn(|| {
            CPU.set(1);
            let guard = LOCK.lock();
            until_a_policy_panics(2);
            drop(guard);
            FOUND.take()
        });
        // SAFETY: only looks.
        while !unsafe { LOCK.raw() }.is_contended() {
            std::thread::yield_now();
        }
        panics_on(0, || MutexGuard::bump(&mut guard));
        drop(guard);
        (0..20).for_each(|_| drop(LOCK.lock()));
        assert_eq!((FOUND.take().len(), other.join().unwrap().len()), (0, 0));
    });
}

/// A lock that nobody else wants has nothing to look at.
#[test]
fn a_lock_that_nobody_waits_for_asks_no_clock() {
    let _machine = machine(Mode::Pv);
    static LOCK: Lock = Lock::new();
    static SHARED: Shared = Shared::new();
    let before = CLOCK.get();
    LOCK.lock();
    SHARED.lock_shared();
    // SAFETY: taken just now.
    unsafe { SHARED.unlock_shared() };
    // SAFETY: taken just now.
    unsafe { LOCK.unlock() };
    assert_eq!(CLOCK.get(), before);
}

/// A CPU that the kernel has given no number yet says one beyond the last.
#[test]
fn a_cpu_without_a_number_is_not_checked() {
    let _machine = machine(Mode::Pv);
    static LOCK: Lock = Lock::new();
    CPU.set(CPUS);
    LOCK.lock();
    // SAFETY: taken just now.
    unsafe { LOCK.unlock() };
    CPU.set(0);
    LOCK.lock();
    // SAFETY: taken just now.
    unsafe { LOCK.unlock() };
    assert!(FOUND.take().is_empty());
}
