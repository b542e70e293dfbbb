//! A machine of two or three CPUs inside the model checker.
//!
//! A CPU is a model thread. The wake token is a model atomic, so that the checker explores every
//! order of kick and wait; the sleep itself is the model's park, so that a lost wake-up is a
//! deadlock that the checker reports.

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicBool, Ordering::SeqCst};
use loom::thread::{self, Thread};
use pvlock::{CpuNodes, HashStorage, HashTable, Mode, Platform};
use std::cell::{Cell, RefCell};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool as PlainBool, AtomicU32, AtomicU64, Ordering::Relaxed};

pub(crate) const CPUS: usize = 3;

pub(crate) struct Machine;

struct Cpu {
    nodes: CpuNodes,
    kicked: AtomicBool,
    /// Whether the CPU can be kicked. Not atomic: the checker reports a kick that comes too late.
    port: UnsafeCell<bool>,
    /// Outside the model: the thread to unpark while it is parked. A thread that is blocked in a
    /// join must not be.
    parked: Mutex<Option<Thread>>,
}

// SAFETY: `port` is reached as `Platform::kick` promises; the checker reports it otherwise.
unsafe impl Sync for Cpu {}

impl Cpu {
    fn new() -> Self {
        Self {
            nodes: CpuNodes::new(),
            kicked: AtomicBool::new(false),
            port: UnsafeCell::new(true),
            parked: Mutex::new(None),
        }
    }

    fn park(&self) {
        *self.parked.lock().unwrap() = Some(thread::current());
        thread::park();
    }
}

loom::lazy_static! {
    static ref ALL: [Cpu; CPUS] = std::array::from_fn(|_| Cpu::new());
    static ref STORAGE: HashStorage<1> = HashStorage::new();
    static ref TABLE: HashTable = HashTable::new(&STORAGE);
}

loom::thread_local! {
    static CPU: Cell<usize> = Cell::new(usize::MAX);
}

/// The spin budget of every waiter, in turns.
pub(crate) static SPIN_TURNS: AtomicU32 = AtomicU32::new(1);

/// Whether each CPU starts with a token left over: its first wait ends at once, without a look at
/// the condition.
pub(crate) static SPURIOUS: PlainBool = PlainBool::new(false);
/// Whether the machine runs the lock in native mode.
pub(crate) static NATIVE: PlainBool = PlainBool::new(false);

/// The clock of all CPUs. Outside the model: the order of steps decides what it says.
static TIME: AtomicU64 = AtomicU64::new(0);

/// Turns of spin loops so far in this execution, all CPUs together.
static TURNS: AtomicU32 = AtomicU32::new(0);
/// Turns after which an execution is run to its end without further choices.
pub(crate) const MAX_TURNS: u32 = 24;

/// When an interrupt comes to CPU 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// Between two turns of a spin.
    WhileSpinning,
    /// At the begin of a wait, before the token is armed.
    BeforeSleep,
    /// When the CPU is about to sleep: the hypervisor delivers it instead.
    InSleep,
    /// Before the access to shared memory of this number, from when it was armed on.
    AtAccess(usize),
}

type Handler = Box<dyn FnOnce()>;

loom::thread_local! {
    /// The interrupt that is still to come to this CPU.
    static INTERRUPT: RefCell<Option<(Arrival, Handler)>> = RefCell::new(None);
    /// Levels of nesting in a wait.
    static WAITS: Cell<usize> = Cell::new(0);
}

/// Whether the interrupt of this execution came.
static INTERRUPTED: PlainBool = PlainBool::new(false);

/// Runs the interrupt if it comes now.
fn interrupt(now: Arrival) {
    let handler = INTERRUPT.with(|interrupt| {
        interrupt.borrow_mut().take_if(|(arrival, _)| *arrival == now).map(|(_, handler)| handler)
    });
    if let Some(handler) = handler {
        INTERRUPTED.store(true, Relaxed);
        handler();
    }
}

/// Counts down to an interrupt [`Arrival::AtAccess`], on the CPU that it is for.
fn count_access() {
    let due = INTERRUPT.with(|interrupt| match &mut *interrupt.borrow_mut() {
        Some((Arrival::AtAccess(0), _)) => true,
        Some((Arrival::AtAccess(left), _)) => {
            *left -= 1;
            false
        }
        _ => false,
    });
    if due {
        interrupt(Arrival::AtAccess(0));
    }
}

impl Machine {
    /// Nobody may kick `cpu` any more.
    pub(crate) fn take_port_away(cpu: usize) {
        // SAFETY: the checker reports a race.
        ALL[cpu].port.with_mut(|port| unsafe { *port = false });
    }

    /// Lets `handler` interrupt the calling CPU, once.
    pub(crate) fn interrupt_once(arrival: Arrival, handler: impl FnOnce() + 'static) {
        if let Arrival::AtAccess(_) = arrival {
            pvlock::model::before_every_access(Some(count_access));
        }
        INTERRUPT.with(|interrupt| *interrupt.borrow_mut() = Some((arrival, Box::new(handler))));
    }

    /// The interrupt does not come any more.
    pub(crate) fn disarm() {
        INTERRUPT.with(|interrupt| interrupt.borrow_mut().take());
    }

    /// Whether the interrupt came.
    pub(crate) fn was_interrupted() -> bool {
        INTERRUPTED.load(Relaxed)
    }

    /// Makes the per-machine memory; call first in each execution, before any CPU starts.
    pub(crate) fn boot() {
        pvlock::model::begin();
        pvlock::model::before_every_access(None);
        TURNS.store(0, Relaxed);
        TIME.store(0, Relaxed);
        INTERRUPTED.store(false, Relaxed);
        let _ = (&*ALL, &*STORAGE, &*TABLE);
        if SPURIOUS.load(Relaxed) {
            ALL.iter().for_each(|cpu| cpu.kicked.store(true, SeqCst));
        }
    }

    /// The calling model thread becomes `cpu`.
    pub(crate) fn become_cpu(cpu: usize) {
        CPU.with(|own| own.set(cpu));
    }

    /// After all CPUs are done: nobody waits, nobody sleeps.
    pub(crate) fn assert_idle() {
        for cpu in 0..CPUS {
            assert_eq!(Self::nodes(cpu).depth(), 0, "cpu {cpu} still uses a node");
        }
        assert!(Self::hash().is_empty(), "stale hash entry left behind");
    }
}

// SAFETY: 1. a thread is one CPU for its life; 2. made once in an execution, and the checker ends
// the execution before it drops them; 3. nested contexts are calls; 4. and 5. `kicked` latches, and
// every access to it is SeqCst.
unsafe impl Platform for Machine {
    const MAX_CPUS: usize = CPUS;

    fn current_cpu() -> usize {
        CPU.with(Cell::get)
    }

    fn nodes(cpu: usize) -> &'static CpuNodes {
        &ALL[cpu].nodes
    }

    fn hash() -> &'static HashTable {
        &TABLE
    }

    fn wait(still_blocked: impl Fn() -> bool) {
        interrupt(Arrival::BeforeSleep);
        let own = &ALL[Self::current_cpu()];
        let level = WAITS.with(|waits| waits.replace(waits.get() + 1));
        if level == 0 {
            if !own.kicked.swap(false, SeqCst) && still_blocked() {
                interrupt(Arrival::InSleep);
                // No step of the model lies between a look at the token and the park.
                while !own.kicked.swap(false, SeqCst) {
                    own.park();
                }
            }
        } else if still_blocked() {
            // An inner level leaves the token for the outer one, which may be meant. While it is
            // there, a wait of the inner level ends at once: it spins.
            Self::relax(0);
            while !own.kicked.load(SeqCst) {
                own.park();
            }
        }
        WAITS.with(|waits| waits.set(level));
        TIME.fetch_add(1, Relaxed);
    }

    fn kick(cpu: usize) {
        let target = &ALL[cpu];
        // SAFETY: the checker reports a race.
        assert!(target.port.with(|port| unsafe { *port }), "a kick to a CPU that is gone");
        // A read-modify-write, because the checker orders a plain store against the waiter's swaps
        // by happens-before alone, and could place it before one that it came after.
        target.kicked.swap(true, SeqCst);
        let parked = target.parked.lock().unwrap().take();
        if let Some(thread) = parked {
            thread.unpark();
        }
    }

    fn now() -> u64 {
        TIME.load(Relaxed)
    }

    fn spin_turns() -> u32 {
        SPIN_TURNS.load(Relaxed)
    }

    fn mode() -> Mode {
        if NATIVE.load(Relaxed) { Mode::Native } else { Mode::Pv }
    }

    fn relax(_turn: u32) {
        interrupt(Arrival::WhileSpinning);
        TIME.fetch_add(1, Relaxed);
        // Two spinners can yield to each other for ever while a third CPU could go on, which is no
        // progress but no defect either. After that many turns the rest of the execution is run,
        // with all its checks, but its orders are explored no further.
        if TURNS.fetch_add(1, Relaxed) == MAX_TURNS {
            loom::skip_branch();
        }
        thread::yield_now();
    }
}
