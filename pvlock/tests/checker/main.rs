//! What the lock checker finds, whom it names, and what is no trouble.
#![cfg(feature = "checker")]

mod circles;
mod itself;
mod long_waits;
mod no_trouble;
mod reports;

use pvlock::{
    CpuNodes, HashStorage, HashTable, KickAtUnlock, Mode, Platform, RawPvLock, RawPvRwLock, Trouble,
};
use std::cell::{Cell, RefCell};
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{MutexGuard as StdGuard, PoisonError};

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

thread_local! {
    static CPU: Cell<usize> = const { Cell::new(0) };
    static CLOCK: Cell<u64> = const { Cell::new(0) };
    static LONGEST_WAIT: Cell<u64> = const { Cell::new(0) };
    /// Whether a wait ends when it has to, and not before.
    static SLEEPS: Cell<bool> = const { Cell::new(false) };
    /// Whether a CPU that would wait for itself is told so and goes on.
    static GOES_ON: Cell<bool> = const { Cell::new(false) };
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
        if let (Trouble::Twice { .. }, false) = (trouble, GOES_ON.get()) {
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
