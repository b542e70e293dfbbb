//! A machine of vCPUs on the fake Xen, whose threads are shuttle's.
//!
//! Owns the join of `pvlock` and `evtchn` as `glue.rs` makes it for real Xen, with two differences:
//! polls have no deadline, so that one lost wake-up is a deadlock the fake Xen reports, and
//! interrupts come wherever a vCPU spins or waits.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use evtchn::fake::{FakeVcpu, FakeXen};
use evtchn::{Fifo, Kicker};
use pvlock::Platform;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use shuttle::rand::Rng;

pub(crate) const CPUS: usize = 8;

shuttle::lazy_static! {
    /// Made anew for every schedule.
    pub(crate) static ref XEN: FakeXen = FakeXen::new(CPUS as u32);
    /// See `now`.
    static ref TIME: AtomicU64 = AtomicU64::new(1);
    /// The event words, for schedules under the FIFO ABI.
    pub(crate) static ref FIFO: Option<Fifo> = USE_FIFO.with(Cell::get).then(fifo);
}

fn fifo() -> Fifo {
    for vcpu in 0..CPUS as u32 {
        let (queues, frame) = XEN.fifo_queues();
        queues.init(&XEN.vcpu(0), vcpu, frame, 0).expect("the fake offers FIFO");
    }
    let (events, frame) = XEN.fifo_memory(1);
    events.expand(&XEN.vcpu(0), frame).expect("the fake offers FIFO");
    events
}

type Interrupt = Box<dyn FnOnce()>;

std::thread_local! {
    /// Which ABI the schedules of this test use. Outside shuttle: the same for all of them.
    pub(crate) static USE_FIFO: Cell<bool> = const { Cell::new(false) };
    /// A defect: half of the kicks get lost.
    pub(crate) static DROPS_KICKS: Cell<bool> = const { Cell::new(false) };
    /// What a waiter found first, in a schedule that has failed.
    pub(crate) static FOUND: RefCell<Option<String>> = const { RefCell::new(None) };
}

shuttle::thread_local! {
    pub(crate) static CPU: Cell<usize> = Cell::new(usize::MAX);
    /// Interrupts that are due on this vCPU, the next last.
    pub(crate) static INTERRUPTS: RefCell<Vec<Interrupt>> = RefCell::new(Vec::new());
    /// Interrupts are off: a handler runs, or a lock is held that handlers take.
    pub(crate) static MASKED: Cell<bool> = Cell::new(false);
}

/// A platform whose kickers the tests can bind.
pub(crate) trait Vm: Platform {
    fn kickers() -> &'static [Kicker; CPUS];
}

pub(crate) fn current() -> usize {
    CPU.with(Cell::get)
}

pub(crate) fn vcpu() -> FakeVcpu<'static> {
    let xen: &'static FakeXen = &XEN;
    xen.vcpu(current() as u32)
}

pub(crate) fn bind<M: Vm>(cpu: usize) {
    let xen = XEN.vcpu(0);
    let kicker = &M::kickers()[cpu];
    match &*FIFO {
        Some(fifo) => kicker.bind(&xen, fifo, cpu as u32),
        None => kicker.bind(&xen, &XEN.two_level(), cpu as u32),
    }
    .expect("a free port");
}

pub(crate) fn wait<M: Vm>(still_blocked: impl Fn() -> bool) {
    interrupt();
    let looked = || {
        let blocked = still_blocked();
        // The worst moment: after the look, before the poll.
        interrupt();
        blocked
    };
    let kicker = &M::kickers()[current()];
    let waited = catch_unwind(AssertUnwindSafe(|| match &*FIFO {
        Some(fifo) => kicker.wait(&vcpu(), fifo, 0, looked),
        None => kicker.wait(&vcpu(), &XEN.two_level(), 0, looked),
    }));
    if let Err(panic) = waited {
        // A waiter that unwinds goes on through the queue, where nobody comes any more: it would
        // spin until shuttle gives up, and say that instead. It stays where it is.
        let told = panic.downcast_ref::<String>().cloned();
        FOUND.with(|found| {
            found.borrow_mut().get_or_insert(told.unwrap_or_default());
        });
        loop {
            shuttle::thread::park();
        }
    }
}

pub(crate) fn kick<M: Vm>(cpu: usize) {
    if DROPS_KICKS.with(Cell::get) && chance() {
        return;
    }
    M::kickers()[cpu].kick(&vcpu()).expect("the port is open");
}

pub(crate) fn relax() {
    interrupt();
    shuttle::thread::yield_now();
}

/// A clock that jumps a millisecond every other time somebody looks, so that a budget of time may
/// run out at any look.
pub(crate) fn now() -> u64 {
    let passed = if chance() { 1_000_000 } else { 1 };
    // Relaxed: one thread at a time. No shuttle atomic: the clock is no place to change threads.
    TIME.fetch_add(passed, Ordering::Relaxed)
}

/// Half of the time, as the schedule decides.
pub(crate) fn chance() -> bool {
    shuttle::rand::thread_rng().gen_bool(0.5)
}

/// An interrupt may come here: half of the time, if one is due and they are on.
fn interrupt() {
    if MASKED.with(Cell::get) || INTERRUPTS.with(|due| due.borrow().is_empty()) {
        return;
    }
    if chance()
        && let Some(handler) = INTERRUPTS.with(|due| due.borrow_mut().pop())
    {
        with_interrupts_off(handler);
    }
}

pub(crate) fn with_interrupts_off(section: impl FnOnce()) {
    MASKED.with(|masked| masked.set(true));
    section();
    MASKED.with(|masked| masked.set(false));
}

/// Puts `value` where it stands in every process, for ever. Where a lock stands in the hash table
/// depends on its address, and a schedule can only be run again if every lock is found in as many
/// steps as before.
pub(crate) fn at_fixed_address<T>(value: T) -> &'static T {
    const PAGE: usize = 4096;
    assert!(size_of::<T>() <= PAGE && align_of::<T>() <= PAGE);
    // The type's name has the test's in it: a place for each (FNV-1a).
    let hash = std::any::type_name::<T>().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let address = 0x0100_0000_0000 + (hash as usize & 0xf_ffff) * PAGE;
    // SAFETY: a new mapping, at an address where there is none, or an error.
    let page = unsafe {
        mmap_anonymous(
            std::ptr::without_provenance_mut(address),
            PAGE,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE,
        )
    }
    .unwrap_or_else(|error| panic!("no page at {address:#x}: {error}"));
    assert_eq!(page.addr(), address, "MAP_FIXED_NOREPLACE needs Linux 4.17");
    let place = page.cast::<T>();
    // SAFETY: the page is ours, large enough, and aligned.
    unsafe { place.write(value) };
    // SAFETY: written above, never unmapped, and shared only from here on.
    unsafe { &*place }
}

/// Two locks on a platform of their own for each test: nodes and entries stand in statics, and
/// tests run side by side.
macro_rules! machine {
    ($policy:ident) => {{
        struct Machine;

        const _: () = {
            use evtchn::Kicker;
            use pvlock::{CpuNodes, HashStorage, HashTable, Platform};

            static NODES: [CpuNodes; CPUS] = [const { CpuNodes::new() }; CPUS];
            static STORAGE: HashStorage<64> = HashStorage::new();
            static TABLE: HashTable = HashTable::new(&STORAGE);
            static KICKERS: [Kicker; CPUS] = [const { Kicker::new() }; CPUS];

            impl $crate::machine::Vm for Machine {
                fn kickers() -> &'static [Kicker; CPUS] {
                    &KICKERS
                }
            }

            // SAFETY: 1. A thread's number never changes. 2. The statics are this platform's
            // alone. 3. Interrupts are calls from `relax` and `wait`. 4., 5. As `Kicker`'s
            // documentation promises; the fake Xen's lock orders send and poll.
            unsafe impl Platform for Machine {
                const MAX_CPUS: usize = CPUS;

                fn current_cpu() -> usize {
                    $crate::machine::current()
                }

                fn nodes(cpu: usize) -> &'static CpuNodes {
                    &NODES[cpu]
                }

                fn hash() -> &'static HashTable {
                    &TABLE
                }

                fn wait(still_blocked: impl Fn() -> bool) {
                    $crate::machine::wait::<Self>(still_blocked);
                }

                fn kick(cpu: usize) {
                    $crate::machine::kick::<Self>(cpu);
                }

                fn now() -> u64 {
                    $crate::machine::now()
                }

                fn spin_turns() -> u32 {
                    1
                }

                fn relax(_turn: u32) {
                    $crate::machine::relax();
                }
            }
        };

        $crate::machine::at_fixed_address([
            Guarded::<Machine, $policy>::new(),
            Guarded::<Machine, $policy>::new(),
        ])
        .each_ref()
    }};
}
pub(crate) use machine;
