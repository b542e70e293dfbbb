// Threads as vCPUs: a wait is a park, a kick an unpark. Each process is one machine.

use pvlock::{CpuNodes, HashStorage, HashTable, Mode, Platform};
use std::cell::{Cell, RefCell};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::Thread;
use std::time::Instant;

pub(crate) const CPUS: usize = 16;

/// The machine.
pub(crate) struct Threads;

static NODES: [CpuNodes; CPUS] = [const { CpuNodes::new() }; CPUS];
static STORAGE: HashStorage<64> = HashStorage::new();
static TABLE: HashTable = HashTable::new(&STORAGE);
static THREADS: [std::sync::Mutex<Option<Thread>>; CPUS] =
    [const { std::sync::Mutex::new(None) }; CPUS];
static KICKED: [AtomicBool; CPUS] = [const { AtomicBool::new(false) }; CPUS];

/// The waiter's spin budget.
pub(crate) static SPIN_TURNS: AtomicUsize = AtomicUsize::new(100);
/// 0 PV, 1 native, 2 test-and-set.
pub(crate) static MODE: AtomicUsize = AtomicUsize::new(0);

/// A CPU number that goes back when the thread ends.
struct Number(usize);

impl Number {
    fn take() -> Self {
        for (cpu, thread) in THREADS.iter().enumerate() {
            let mut thread = thread.lock().unwrap();
            if thread.is_none() {
                *thread = Some(std::thread::current());
                return Self(cpu);
            }
        }
        panic!("more threads than the {CPUS} vCPUs of the machine");
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        *THREADS[self.0].lock().unwrap() = None;
    }
}

thread_local! {
    static CPU: Number = Number::take();
    /// Contexts that still have to interrupt this one, the next last.
    static INTERRUPTS: RefCell<Vec<Box<dyn FnOnce()>>> = const { RefCell::new(Vec::new()) };
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: 1. a thread keeps its number; 2. statics; 3. an interrupt is a call from `relax` or
// `wait`; 4. KICKED latches a kick, and unpark ends a park that comes later too; 5. all accesses to
// it are SeqCst, and an inner level puts the token back that it may have taken from an outer one.
unsafe impl Platform for Threads {
    const MAX_CPUS: usize = CPUS;

    fn current_cpu() -> usize {
        CPU.with(|cpu| cpu.0)
    }

    fn nodes(cpu: usize) -> &'static CpuNodes {
        &NODES[cpu]
    }

    fn hash() -> &'static HashTable {
        &TABLE
    }

    fn wait(still_blocked: impl Fn() -> bool) {
        interrupt();
        let kicked = &KICKED[Self::current_cpu()];
        if DEPTH.get() > 0 {
            // Inner level: does not sleep, so that it never eats an outer level's token.
            std::thread::yield_now();
            return;
        }
        if kicked.swap(false, Ordering::SeqCst) || !still_blocked() {
            return;
        }
        while !kicked.swap(false, Ordering::SeqCst) {
            std::thread::park();
        }
    }

    fn kick(cpu: usize) {
        KICKED[cpu].store(true, Ordering::SeqCst);
        if let Some(thread) = &*THREADS[cpu].lock().unwrap() {
            thread.unpark();
        }
    }

    fn now() -> u64 {
        static BEGIN: OnceLock<Instant> = OnceLock::new();
        BEGIN.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }

    fn spin_turns() -> u32 {
        SPIN_TURNS.load(Ordering::Relaxed) as u32
    }

    fn mode() -> Mode {
        match MODE.load(Ordering::Relaxed) {
            0 => Mode::Pv,
            1 => Mode::Native,
            _ => Mode::TestAndSet,
        }
    }

    fn relax(_turn: u32) {
        interrupt();
        std::hint::spin_loop();
        // More vCPUs than pCPUs: a spinning mode without this waits for the scheduler's tick.
        if MODE.load(Ordering::Relaxed) != 0 || DEPTH.get() > 3 {
            std::thread::yield_now();
        }
    }
}

/// Runs the next interrupt of this thread, if one is due: not before the context it interrupts has
/// claimed its queue node.
fn interrupt() {
    if NODES[Threads::current_cpu()].depth() <= DEPTH.get() {
        return;
    }
    if let Some(context) = INTERRUPTS.with_borrow_mut(Vec::pop) {
        DEPTH.set(DEPTH.get() + 1);
        context();
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// Runs `context(0)` on this thread; while it waits, `context(1)` interrupts it, and so on to 4.
pub(crate) fn nest(context: impl Fn(usize) + Clone + 'static) {
    for level in (1..5).rev() {
        let context = context.clone();
        INTERRUPTS.with_borrow_mut(|interrupts| interrupts.push(Box::new(move || context(level))));
    }
    context(0);
}
