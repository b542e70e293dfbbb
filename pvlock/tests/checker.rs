//! What the lock checker finds, whom it names, and what is no trouble.
#![cfg(feature = "checker")]

use pvlock::{
    Adaptive, Circle, CpuNodes, HashStorage, HashTable, Interrupts, IrqMutex, KickAtUnlock, Mode,
    Mutex, MutexGuard, Platform, Policy, RawPvLock, RawPvRwLock, RwLock, Spin, Trouble,
};
use std::cell::{Cell, RefCell};
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Barrier, MutexGuard as StdGuard, PoisonError};

/// Threads as CPUs that sleep by looking again, and tell of troubles to themselves.
struct Machine;

const CPUS: usize = 8;
static NODES: [CpuNodes; CPUS] = [const { CpuNodes::new() }; CPUS];
static STORAGE: HashStorage<64> = HashStorage::new();
static TABLE: HashTable = HashTable::new(&STORAGE);
const MODES: [Mode; 3] = [Mode::Pv, Mode::Native, Mode::TestAndSet];
/// One of [`MODES`].
static MODE: AtomicUsize = AtomicUsize::new(0);
static REPORTS: AtomicUsize = AtomicUsize::new(0);
static ASLEEP: AtomicUsize = AtomicUsize::new(0);
static PANICS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
    static CLOCK: Cell<u64> = const { Cell::new(0) };
    static LONGEST_WAIT: Cell<u64> = const { Cell::new(0) };
    /// Whether a wait ends when it has to, and not before.
    static SLEEPS: Cell<bool> = const { Cell::new(false) };
    static FOUND: RefCell<Vec<Trouble>> = const { RefCell::new(Vec::new()) };
    /// What runs when something is found.
    static WHEN_FOUND: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
    /// What interrupts the CPU at its next turn of a spin.
    static INTERRUPT: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
}

// SAFETY: a thread keeps its number inside `lock` and `unlock`; statics; an interrupt is a call
// from `relax`; `wait` looks again. `report` unwinds where nothing has been done yet.
unsafe impl Platform for Machine {
    const MAX_CPUS: usize = CPUS;

    fn current_cpu() -> usize {
        CPU.get()
    }

    fn nodes(cpu: usize) -> &'static CpuNodes {
        &NODES[cpu]
    }

    fn hash() -> &'static HashTable {
        &TABLE
    }

    fn wait(still_blocked: impl Fn() -> bool) {
        std::thread::yield_now();
        if SLEEPS.get() {
            ASLEEP.fetch_add(1, SeqCst);
            while still_blocked() {
                std::thread::yield_now();
            }
        }
    }

    fn kick(_cpu: usize) {}

    fn now() -> u64 {
        // Each look at the clock takes a millisecond.
        CLOCK.set(CLOCK.get() + 1_000_000);
        CLOCK.get()
    }

    fn spin_turns() -> u32 {
        8
    }

    fn mode() -> Mode {
        MODES[MODE.load(SeqCst)]
    }

    fn relax(_turn: u32) {
        if let Some(handler) = INTERRUPT.take() {
            handler();
        }
        std::thread::yield_now();
    }

    fn longest_wait() -> u64 {
        LONGEST_WAIT.get()
    }

    fn report(trouble: &Trouble) {
        FOUND.with_borrow_mut(|found| found.push(*trouble));
        REPORTS.fetch_add(1, SeqCst);
        if let Trouble::Twice { .. } = trouble {
            panic!("{trouble}");
        }
        if let Some(then) = WHEN_FOUND.take() {
            then();
        }
    }
}

type Lock = RawPvLock<Machine, KickAtUnlock>;
type Shared = RawPvRwLock<Machine, KickAtUnlock>;

/// The machine, for one test at a time; the thread of the test is CPU 0.
fn machine(mode: Mode) -> StdGuard<'static, ()> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mode = MODES.iter().position(|known| *known == mode);
    MODE.store(mode.expect("one of all modes"), SeqCst);
    one
}

/// What `f` panics with, when it would wait for itself.
fn trouble(f: impl FnOnce() + std::panic::UnwindSafe) -> String {
    catch_unwind(f).expect_err("it would wait for itself");
    let found = FOUND.take();
    let [Trouble::Twice { cpu: 0, .. }] = *found else { panic!("{found:?}") };
    found[0].to_string()
}

/// Where the caller stands, `lines` further down.
#[track_caller]
fn site(lines: u32) -> String {
    let here = std::panic::Location::caller();
    format!("{}:{}:", here.file(), here.line() + lines)
}

#[test]
fn a_lock_taken_twice_is_named_with_both_places() {
    for mode in MODES {
        let _machine = machine(mode);
        static LOCK: Lock = Lock::new();
        let first = site(1);
        LOCK.lock();
        let again = site(1);
        let text = trouble(|| LOCK.lock());
        let address = format!("{:#x}", (&raw const LOCK).addr());
        assert!([&first, &again, &address].iter().all(|part| text.contains(*part)), "{text}");
        // SAFETY: taken above.
        unsafe { LOCK.unlock() };
        LOCK.lock();
        // SAFETY: taken just now.
        unsafe { LOCK.unlock() };
        assert!(FOUND.take().is_empty(), "one after the other is no trouble");
    }
}

struct NoInterrupts;

// SAFETY: this machine's interrupts take no lock that is held this way.
unsafe impl Interrupts for NoInterrupts {
    type Saved = ();
    fn save() {}
    fn disable() {}
    fn restore((): ()) {}
}

/// Each method of `lock_api` that may wait is named by its caller, not by a line of this crate.
#[test]
fn every_face_names_its_caller() {
    let _machine = machine(Mode::Pv);
    macro_rules! names_its_caller {
        ($lock:ty, $first:ident, $again:ident) => {
            static LOCK: $lock = <$lock>::new(0);
            let guard = LOCK.$first();
            let text = trouble(|| drop(LOCK.$again()));
            assert_eq!(text.matches(file!()).count(), 2, "{text}");
            drop(guard);
        };
    }
    {
        names_its_caller!(Mutex<u8, Machine>, lock, lock);
    }
    {
        names_its_caller!(IrqMutex<u8, Machine, NoInterrupts>, lock, lock);
    }
    {
        names_its_caller!(RwLock<u8, Machine>, write, write);
    }
    {
        names_its_caller!(RwLock<u8, Machine>, write, read);
    }
    {
        names_its_caller!(RwLock<u8, Machine>, read, write);
    }
    #[cfg(feature = "lock_api_05")]
    {
        names_its_caller!(pvlock::v05::Mutex<u8, Machine>, lock, lock);
    }
    #[cfg(feature = "lock_api_05")]
    {
        names_its_caller!(pvlock::v05::IrqMutex<u8, Machine, NoInterrupts>, lock, lock);
    }
    #[cfg(feature = "lock_api_05")]
    {
        names_its_caller!(pvlock::v05::RwLock<u8, Machine>, read, write);
    }
    static TRIED: Mutex<u8, Machine> = Mutex::new(0);
    let guard = TRIED.try_lock();
    let text = trouble(|| drop(TRIED.lock()));
    assert_eq!(text.matches(file!()).count(), 2, "{text}");
    drop(guard);
}

/// One CPU of a circle: how it takes the lock that it has, how it gives that back, how it takes the
/// next one's and gives that back.
struct Crossing {
    take: fn(),
    give: fn(),
    want: fn(),
    done: fn(),
}

/// Runs `crossings` on a CPU each, which wait for each other until one finds it and gives way.
fn circles(crossings: &[Crossing]) -> Vec<Circle> {
    let all_have_one = Barrier::new(crossings.len());
    let found = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (cpu, &Crossing { take, give, want, done }) in crossings.iter().enumerate() {
            let (all_have_one, found) = (&all_have_one, &found);
            scope.spawn(move || {
                CPU.set(cpu);
                take();
                all_have_one.wait();
                WHEN_FOUND.set(Some(Box::new(give)));
                want();
                done();
                if WHEN_FOUND.take().is_some() {
                    give();
                }
                found.lock().unwrap().extend(FOUND.take());
            });
        }
    });
    let found = found.into_inner().unwrap();
    assert!(!found.is_empty(), "nobody noticed");
    let circle = |trouble: &Trouble| match trouble {
        Trouble::Circle(circle) => *circle,
        other => panic!("{other}"),
    };
    found.iter().map(circle).collect()
}

/// The steps of a CPU that has `$have` and wants `$want`.
macro_rules! crossing {
    ($have:ident $lock:ident $unlock:ident, $want:ident $lock_next:ident $unlock_next:ident) => {
        Crossing {
            take: || $have.$lock(),
            // SAFETY: taken by `take`.
            give: || unsafe { $have.$unlock() },
            want: || $want.$lock_next(),
            // SAFETY: taken by `want`.
            done: || unsafe { $want.$unlock_next() },
        }
    };
}

#[test]
fn two_cpus_that_cross_two_locks_are_named() {
    for mode in MODES {
        let _machine = machine(mode);
        static A: Lock = Lock::new();
        static B: Lock = Lock::new();
        let line = line!() + 1;
        let one = crossing!(A lock unlock, B lock unlock);
        let two = crossing!(B lock unlock, A lock unlock);
        let (a, b) = ((&raw const A).addr(), (&raw const B).addr());
        for circle in circles(&[one, two]) {
            let mut links: Vec<_> = circle.links().collect();
            links.sort_by_key(|link| link.cpu);
            let [first, second] = &links[..] else { panic!("{circle:?}") };
            assert_eq!((first.cpu, first.holds, first.wants), (0, a, b));
            assert_eq!((second.cpu, second.holds, second.wants), (1, b, a));
            assert_eq!((first.taken.line(), first.here.line()), (line, line));
            assert_eq!((second.taken.line(), second.here.line()), (line + 1, line + 1));
            let text = Trouble::Circle(circle).to_string();
            assert_eq!(text.matches(file!()).count(), 4, "{text}");
        }
    }
}

#[test]
fn a_circle_may_go_through_many_cpus_and_kinds_of_lock() {
    let _machine = machine(Mode::Pv);
    static A: Lock = Lock::new();
    static B: Shared = Shared::new();
    static C: Shared = Shared::new();
    let four = [
        crossing!(A lock unlock, B lock_shared unlock_shared),
        crossing!(B lock_exclusive unlock_exclusive, C lock_exclusive unlock_exclusive),
        crossing!(C lock_shared unlock_shared, A lock unlock),
        // Reads beside the third, and waits for nobody.
        Crossing {
            take: || C.lock_shared(),
            // SAFETY: taken by `take`.
            give: || unsafe { C.unlock_shared() },
            want: || {},
            done: || {},
        },
    ];
    for circle in circles(&four) {
        assert_eq!(circle.links().count(), 3, "{circle:?}");
    }
}

#[test]
fn a_reader_that_reads_again_behind_a_writer_is_named() {
    let _machine = machine(Mode::Pv);
    static LOCK: Shared = Shared::new();
    CPU.set(0);
    LOCK.lock_shared();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            CPU.set(1);
            LOCK.lock_exclusive();
            // SAFETY: taken just now.
            unsafe { LOCK.unlock_exclusive() };
        });
        while LOCK.try_lock_shared() {
            // SAFETY: taken just now.
            unsafe { LOCK.unlock_shared() };
            std::thread::yield_now();
        }
        assert!(trouble(|| LOCK.lock_shared()).contains("would wait for itself"));
        LOCK.lock_shared_recursive();
        // SAFETY: taken just now.
        unsafe { LOCK.unlock_shared() };
        // SAFETY: taken above.
        unsafe { LOCK.unlock_shared() };
    });
    assert!(FOUND.take().is_empty(), "reading past the writer is no trouble");
}

/// A handler takes a lock that the context which it interrupts waits for.
#[test]
fn a_handler_that_queues_behind_the_context_it_interrupts_is_named() {
    let _machine = machine(Mode::Pv);
    static LOCK: Lock = Lock::new();
    CPU.set(1);
    LOCK.lock();
    CPU.set(0);
    INTERRUPT.set(Some(Box::new(|| {
        assert!(trouble(|| LOCK.lock()).contains("would wait for itself"));
        // SAFETY: taken for CPU 1 above, and not used by it.
        unsafe { LOCK.unlock() };
    })));
    LOCK.lock();
    // SAFETY: taken just now.
    unsafe { LOCK.unlock() };
}

/// The waits of a CPU that were found too long. The owner releases the lock after `enough` of them.
fn long_waits(longest_wait: u64, sleeps: bool, enough: usize) -> Vec<u64> {
    static LOCK: Lock = Lock::new();
    REPORTS.store(0, SeqCst);
    ASLEEP.store(0, SeqCst);
    CPU.set(0);
    LOCK.lock();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            CPU.set(1);
            LONGEST_WAIT.set(longest_wait);
            SLEEPS.set(sleeps);
            LOCK.lock();
            // SAFETY: taken just now.
            unsafe { LOCK.unlock() };
            let wait = |trouble: &Trouble| match *trouble {
                Trouble::LongWait { cpu: 1, lock, nanoseconds, here, .. } => {
                    assert_eq!((lock, here.file()), ((&raw const LOCK).addr(), file!()));
                    nanoseconds
                }
                ref other => panic!("{other}"),
            };
            FOUND.take().iter().map(wait).collect()
        });
        while REPORTS.load(SeqCst) < enough || (sleeps && ASLEEP.load(SeqCst) == 0) {
            std::thread::yield_now();
        }
        // SAFETY: taken above.
        unsafe { LOCK.unlock() };
        waiter.join().unwrap()
    })
}

#[test]
fn a_wait_beyond_the_bound_is_told_of_after_each_such_time() {
    for mode in MODES {
        let _machine = machine(mode);
        let waits = long_waits(5_000_000, false, 2);
        assert!(waits.iter().all(|wait| *wait > 5_000_000), "{waits:?}");
        assert!(waits[1] > waits[0] + 5_000_000, "{waits:?}");
    }
}

/// A sleeper does not look, and tells when it has got the lock.
#[test]
fn a_long_sleep_is_told_of_in_the_end() {
    let _machine = machine(Mode::Pv);
    // Between two looks at the clock there is a millisecond at least.
    let waits = long_waits(999_999, true, 0);
    assert!(waits.len() == 1 && waits[0] >= 1_000_000, "{waits:?}");
    assert_eq!(long_waits(1_000_000_000, true, 0), []);
    assert_eq!(long_waits(0, true, 0), [], "0 is no bound");
}

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

/// A console behind a lock, which may be the very one that is told of.
#[test]
fn a_report_may_take_locks() {
    let _machine = machine(Mode::Pv);
    static LOCK: Mutex<(), Machine> = Mutex::new(());
    static CONSOLE: Mutex<u8, Machine> = Mutex::new(0);
    let report = || {
        *CONSOLE.lock() += 1;
        assert!(LOCK.try_lock().is_none());
    };
    let other = Barrier::new(2);
    let crossing =
        |cpu: usize, first: &'static Mutex<(), Machine>, second: &'static Mutex<(), Machine>| {
            CPU.set(cpu);
            let guard = first.lock();
            other.wait();
            WHEN_FOUND.set(Some(Box::new(move || {
                report();
                // SAFETY: held by `guard`, which is forgotten.
                unsafe { first.force_unlock() };
            })));
            drop(second.lock());
            match WHEN_FOUND.take() {
                None => std::mem::forget(guard),
                Some(_) => drop(guard),
            }
            FOUND.take()
        };
    static SECOND: Mutex<(), Machine> = Mutex::new(());
    std::thread::scope(|scope| {
        let one = scope.spawn(|| crossing(0, &LOCK, &SECOND));
        let two = scope.spawn(|| crossing(1, &SECOND, &LOCK));
        let found = one.join().unwrap().len() + two.join().unwrap().len();
        assert!((1..=2).contains(&found));
        assert_eq!(usize::from(*CONSOLE.lock()), found);
    });
}

/// A platform that leaves `report` as it is.
struct Plain;

// SAFETY: one thread, no interrupts.
unsafe impl Platform for Plain {
    const MAX_CPUS: usize = 1;
    fn current_cpu() -> usize {
        0
    }
    fn nodes(cpu: usize) -> &'static CpuNodes {
        &NODES[CPUS - 1 - cpu]
    }
    fn hash() -> &'static HashTable {
        &TABLE
    }
    fn wait(_still_blocked: impl Fn() -> bool) {}
    fn kick(_cpu: usize) {}
    fn now() -> u64 {
        0
    }
}

/// Runs itself as a process, which takes a lock twice.
#[test]
fn a_report_without_a_hook_panics_and_does_not_unwind() {
    if std::env::var_os("TAKES_A_LOCK_TWICE").is_some() {
        static LOCK: RawPvLock<Plain, KickAtUnlock> = RawPvLock::new();
        LOCK.lock();
        let _ = catch_unwind(|| LOCK.lock());
        println!("unwound");
        return;
    }
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_report_without_a_hook_panics_and_does_not_unwind", "--nocapture"])
        .env("TAKES_A_LOCK_TWICE", "1")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&run.stdout), text(&run.stderr));
    assert!(!run.status.success() && !out.contains("unwound"), "{out}{err}");
    assert!(err.contains("pvlock: cpu 0 would wait for itself"), "{err}");
    assert!(err.contains("cannot unwind"), "{err}");
}
