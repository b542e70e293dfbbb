//! The join: `pvlock` on `evtchn` on Xen. What an integrator copies.
//!
//! Owns the lock's storage (nodes, hash table), one [`Kicker`] a vCPU, and the answers to the
//! questions a lock asks its kernel. It decides nothing about locking (that is `pvlock`) and
//! nothing about event channels (that is `evtchn`).
//!
//! # With boot code of one's own
//!
//! `kernel!` is not needed. Hypercalls ([`hypercall`](crate::xen::hypercall)) and the shared page
//! ([`shared_info`](crate::events::shared_info)) come first; then vCPU 0 says [who it
//! is](crate::vcpu::identity), and each vCPU, in whatever order, calls what `join` has here before
//! it takes its first contended lock:
//!
//! ```no_run
//! use xen_guest::{glue, vcpu};
//!
//! fn join(vcpu: u32) -> Result<(), evtchn::Errno> {
//!     vcpu::area::register(vcpu)?; // clock: deadlines of waits; runstate: for a report
//!     glue::bind(vcpu).map(drop) // the port on which it is kicked
//! }
//! # let _ = join(0);
//! ```
//!
//! # Alone
//!
//! A kernel that has hypercalls, event channels, clock and per-CPU areas by itself takes this file
//! only. It writes a [`Kernel`], in which it answers for each of them, and uses
//! [`XenPlatform<ItsKernel>`](XenPlatform):
//!
//! ```
//! # // What this kernel has by itself; here it is Xen's double on a host.
//! # use std::sync::LazyLock;
//! # use evtchn::fake::FakeXen;
//! # static XEN: LazyLock<FakeXen> = LazyLock::new(|| FakeXen::new(1));
//! # fn cpu_id() -> u32 { 0 }
//! # fn hypervisor() -> impl evtchn::Hypercalls { XEN.vcpu(cpu_id()) }
//! # fn ports() -> evtchn::TwoLevel { XEN.two_level() }
//! use evtchn::{Abi, Hypercalls};
//! use xen_guest::glue::{self, XenPlatform};
//!
//! struct MyKernel;
//!
//! // SAFETY: a CPU's number never changes, and no task moves while it is in a lock.
//! unsafe impl glue::Kernel for MyKernel {
//!     fn current_vcpu() -> u32 {
//!         cpu_id()
//!     }
//!     fn xen() -> impl Hypercalls {
//!         hypervisor()
//!     }
//!     fn events() -> impl Abi {
//!         ports()
//!     }
//! }
//!
//! type Mutex<T> = pvlock::Mutex<T, XenPlatform<MyKernel>>;
//!
//! static BALANCE: Mutex<u64> = Mutex::new(0);
//!
//! XenPlatform::<MyKernel>::bind(0)?; // each vCPU
//! *BALANCE.lock() += 1;
//! # Ok::<(), evtchn::Errno>(())
//! ```

use core::fmt::{self, Write};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;
use evtchn::{Abi, Errno, Hypercalls, Kicker, NmiGuard, Port, WaitCounts, WaitOutcome};
use pvlock::{
    Counter, CpuNodes, HashStorage, HashTable, Interrupts, Mode, ModeCell, ModeSettled, Platform,
};

use crate::events::{self, Xen};
use crate::vcpu::{self, Area, MAX_VCPUS, mask};

/// The lock around a value, on this crate's kernel.
///
/// ```
/// use xen_guest::glue::Mutex;
///
/// static BALANCE: Mutex<u64> = Mutex::new(0);
/// *BALANCE.lock() += 1; // uncontended: no hypercall, one atomic instruction each way
/// ```
pub type Mutex<T, K = pvlock::Adaptive> = pvlock::Mutex<T, XenPlatform, K>;

/// The lock around a value that upcall handlers take too: held only with upcalls held back.
///
/// ```no_run
/// use xen_guest::glue::IrqMutex;
///
/// static TICKS: IrqMutex<u64> = IrqMutex::new(0);
/// *TICKS.lock() += 1; // in a task or in a handler
/// ```
pub type IrqMutex<T, K = pvlock::Adaptive> = pvlock::IrqMutex<T, XenPlatform, Upcalls, K>;

/// Event upcalls as what [`IrqMutex`] keeps off: by the vCPU's upcall mask on PV, by the interrupt
/// flag on PVH.
#[derive(Debug)]
pub struct Upcalls;

// SAFETY: nothing but event upcalls interrupts a vCPU and takes a lock for good (an NMI handler
// only tries), and nothing migrates between vCPUs.
unsafe impl Interrupts for Upcalls {
    type Saved = bool;

    fn save() -> bool {
        mask::are_enabled()
    }

    fn disable() {
        mask::disable();
    }

    fn restore(were_enabled: bool) {
        if were_enabled {
            mask::enable();
        }
    }
}

/// How long a waiter polls before it looks for itself.
pub const POLL_NS: u64 = 1_000_000_000;

/// How many whole polls a kick that is owed may be late before it is called lost. Far beyond the
/// longest critical section and preemption: on an emulator that shared its cores with other work,
/// waits of 6 s were seen. Polls and not time: a domain may be paused for as long as its owner
/// likes, and that costs one poll.
const LATE_POLLS: u32 = 20;

/// Four queue nodes a vCPU: task, soft interrupt, hard interrupt, NMI.
static NODES: [CpuNodes; MAX_VCPUS] = [const { CpuNodes::new() }; MAX_VCPUS];

/// Four entries a vCPU, four to a line.
static STORAGE: HashStorage<MAX_VCPUS> = HashStorage::new();
static SLEEPERS: HashTable = HashTable::new(&STORAGE);

static KICKERS: [CachePadded<Kicker>; MAX_VCPUS] =
    [const { CachePadded::new(Kicker::new()) }; MAX_VCPUS];

/// vCPUs that have a port.
static ONLINE: AtomicUsize = AtomicUsize::new(0);

static MODE: ModeCell = ModeCell::new(Mode::Pv);
static SPIN_TURNS: AtomicU32 = AtomicU32::new(1 << 15);

/// Chooses which lock to be and how many turns a waiter spins before it blocks.
///
/// # Errors
///
/// If a lock was released or waited for before: a lock in use must not change its mode.
pub fn configure(mode: Mode, spin_turns: u32) -> Result<(), ModeSettled> {
    // Relaxed: set before the other vCPUs are started, and the hypercall that starts one orders it.
    SPIN_TURNS.store(spin_turns, Ordering::Relaxed);
    MODE.init(mode)
}

/// [`XenPlatform::bind`], for the kernel of this crate.
///
/// # Errors
///
/// As there.
pub fn bind(vcpu: u32) -> Result<Port, Errno> {
    <XenPlatform>::bind(vcpu)
}

/// [`XenPlatform::unbind`], for the kernel of this crate.
///
/// # Errors
///
/// As there.
pub fn unbind(vcpu: u32) -> Result<(), Errno> {
    <XenPlatform>::unbind(vcpu)
}

/// [`XenPlatform::bind_again`], for the kernel of this crate.
///
/// # Errors
///
/// As there.
pub fn bind_again() -> Result<(), Errno> {
    <XenPlatform>::bind_again()
}

/// [`XenPlatform::dump_pending`], for the kernel of this crate.
///
/// # Errors
///
/// Those of `out`.
pub fn dump_pending(out: &mut dyn Write) -> fmt::Result {
    <XenPlatform>::dump_pending(out)
}

/// Marks `vcpu`, which runs this, as being in an NMI until the value is dropped: it cannot block
/// then.
pub fn enter_nmi(vcpu: u32) -> NmiGuard<'static> {
    KICKERS[vcpu as usize].enter_nmi()
}

/// What the waits of `vcpu` came to since boot.
#[inline]
pub fn wait_counts(vcpu: usize) -> WaitCounts {
    KICKERS[vcpu].counts()
}

/// The [`polls`](WaitCounts::polls) of [`wait_counts`] alone: one load.
#[inline]
pub fn polls(vcpu: usize) -> u64 {
    KICKERS[vcpu].polls()
}

/// The kernel that the lock is in: what the joint asks of it, and what it is told. Each method has
/// this crate's own answer, and tells nobody.
///
/// One program has one kernel: what is asked of two of them here goes to the same kickers and queue
/// nodes.
///
/// # Safety
///
/// 1. `current_vcpu` is the number that Xen gives the vCPU it runs on, below [`MAX_VCPUS`], and
///    stays the same as long as a lock is being taken or released.
/// 2. `xen` is the hypervisor under that vCPU, and `events` are the bits it shares with the domain.
/// 3. No lock is taken in what it is told.
pub unsafe trait Kernel: Send + Sync + 'static {
    /// Which vCPU this is.
    #[inline]
    fn current_vcpu() -> u32 {
        vcpu::current()
    }

    /// The hypervisor, with the clock that deadlines are compared with.
    #[inline]
    fn xen() -> impl Hypercalls {
        Xen
    }

    /// The state of the domain's event channels.
    #[inline]
    fn events() -> impl Abi {
        events::events()
    }

    /// Makes room for ports beyond [`events`](Kernel::events)' last.
    ///
    /// # Errors
    ///
    /// `ENOSPC`: there is none.
    fn more_ports() -> Result<(), Errno> {
        events::grow()
    }

    /// Told: `vcpu`, which runs this, has to wait for a lock. `wait` is that wait, and is called
    /// once.
    #[inline]
    fn around_wait(vcpu: u32, wait: impl FnOnce() -> WaitOutcome) -> WaitOutcome {
        let _ = vcpu;
        wait()
    }

    /// Told: a kick of `target` is about to be sent.
    #[inline]
    fn before_kick(target: u32) {
        let _ = target;
    }

    /// Told: a poll of `vcpu`, which runs this, has reached its deadline of [`POLL_NS`]. The lock
    /// is held for long, or a kick was lost.
    #[inline]
    fn poll_expired(vcpu: u32) {
        let _ = vcpu;
    }
}

/// The kernel as this crate makes it.
#[derive(Debug)]
pub struct XenGuest;

// SAFETY: 1. `vcpu::identity` was promised it. 2. `Xen` and `events` are the hypervisor's. 3.
// Nothing is told.
unsafe impl Kernel for XenGuest {}

/// What a lock asks of the kernel `K`.
#[derive(Debug)]
pub struct XenPlatform<K = XenGuest>(PhantomData<fn() -> K>);

impl<K: Kernel> XenPlatform<K> {
    /// Gives `vcpu` the port on which it can be kicked. Before it takes its first contended lock,
    /// and again after a resume. From the first time on it counts as
    /// [online](Platform::online_cpus).
    ///
    /// # Errors
    ///
    /// As [`evtchn::bind_ipi`].
    pub fn bind(vcpu: u32) -> Result<Port, Errno> {
        let kicker = &KICKERS[vcpu as usize];
        let is_new = kicker.port().is_none();
        let port = loop {
            match kicker.bind(&K::xen(), &K::events(), vcpu) {
                // Xen has the port, but there is no word for it yet.
                Err(Errno::ENOSPC) => K::more_ports()?,
                bound => break bound?,
            }
        };
        if is_new {
            // Relaxed, here and below: a number that decides who is late, and orders nothing.
            ONLINE.fetch_add(1, Ordering::Relaxed);
        }
        Ok(port)
    }

    /// Takes that port away from `vcpu`, which is down, once nobody can still decide to kick it:
    /// waits for kicks that other vCPUs are about to make, and for no lock. It does not count as
    /// online any more.
    ///
    /// # Errors
    ///
    /// As [`evtchn::close`].
    pub fn unbind(vcpu: u32) -> Result<(), Errno> {
        pvlock::wait_for_kicks::<Self>();
        let kicker = &KICKERS[vcpu as usize];
        if kicker.port().is_some() {
            ONLINE.fetch_sub(1, Ordering::Relaxed);
        }
        kicker.unbind(&K::xen())
    }

    /// Gives every vCPU that had a port a new one, after a restore, while no other vCPU runs; and
    /// kicks it: a kick that was latched or under way is gone with the old port.
    ///
    /// # Errors
    ///
    /// As [`bind`](XenPlatform::bind).
    pub fn bind_again() -> Result<(), Errno> {
        for (kicker, vcpu) in KICKERS.iter().zip(0..) {
            if kicker.port().is_some() {
                Self::bind(vcpu)?;
                kicker.kick(&K::xen())?;
            }
        }
        Ok(())
    }

    /// That of a poll that begins now.
    fn deadline() -> u64 {
        K::xen().system_time_ns() + POLL_NS
    }

    /// The condition of a wait has gone, so somebody owes this vCPU a kick: `KickAtUnlock`
    /// registers a sleeper while its predecessor still holds the lock and kicks it at unlock, and
    /// any kicker may be preempted before its send. Only a kick that does not come for
    /// [`LATE_POLLS`] is lost.
    #[cold]
    fn wait_for_late_kick(vcpu: u32) -> WaitOutcome {
        let kicker = &KICKERS[vcpu as usize];
        for _ in 0..LATE_POLLS {
            match kicker.wait_for_owed_kick(&K::xen(), &K::events(), Self::deadline()) {
                WaitOutcome::TimedOut => K::poll_expired(vcpu),
                // Also after another event: nothing can be told of the kick then.
                outcome => return outcome,
            }
        }
        pvlock::add_to_counter::<Self>(vcpu as usize, Counter::PollTimeout, 1);
        WaitOutcome::TimedOut
    }

    /// Writes each bound kicker's port, its bits and its vCPU's runstate, for a person who looks
    /// for a hang. Takes no lock and allocates nothing.
    ///
    /// # Errors
    ///
    /// Those of `out`.
    pub fn dump_pending(out: &mut dyn Write) -> fmt::Result {
        let events = K::events();
        for (kicker, vcpu) in KICKERS.iter().zip(0..) {
            let Some(port) = kicker.port() else { continue };
            let pending = events.is_pending(port);
            let masked = events.is_masked(port);
            // Relaxed: a number to look at.
            let runstate = Area::of(vcpu).runstate.state.load(Ordering::Relaxed);
            let runstate = ["running", "preempted", "blocked", "offline"]
                .get(runstate as usize)
                .unwrap_or(&"?");
            let WaitCounts { polls, kicked, timed_out, timed_out_unblocked, early, .. } =
                kicker.counts();
            writeln!(
                out,
                "vCPU {vcpu}: {runstate}, port {} pending={pending} masked={masked}; \
                 {polls} polls, {kicked} kicked, {early} early, {timed_out} timed out \
                 ({timed_out_unblocked} with nothing to wait for)",
                port.get()
            )?;
        }
        Ok(())
    }
}

// SAFETY: 1. As `Kernel` promises. 2. The statics above are used by this platform alone, whatever
// its kernel, of which there is one. 3. Upcall handlers and NMI handlers return before what they
// interrupted goes on. 4, 5. As `Kicker::wait` and `Kicker::kick` promise: the token is taken
// before the condition is looked at, both sides' hypercalls and locked instructions are full
// barriers, and a nested wait leaves a token where it found one.
unsafe impl<K: Kernel> Platform for XenPlatform<K> {
    const MAX_CPUS: usize = MAX_VCPUS;

    #[inline]
    fn current_cpu() -> usize {
        K::current_vcpu() as usize
    }

    #[inline]
    fn nodes(cpu: usize) -> &'static CpuNodes {
        &NODES[cpu]
    }

    #[inline]
    fn hash() -> &'static HashTable {
        &SLEEPERS
    }

    fn wait(still_blocked: impl Fn() -> bool) {
        let vcpu = K::current_vcpu();
        K::around_wait(vcpu, || {
            let kicker = &KICKERS[vcpu as usize];
            let outcome = kicker.wait(&K::xen(), &K::events(), Self::deadline(), &still_blocked);
            if outcome != WaitOutcome::TimedOut {
                return outcome;
            }
            // A wait can be that long on a crowded host. It is a fault only if there was nothing
            // left to wait for and the kick is missing.
            K::poll_expired(vcpu);
            if still_blocked() { outcome } else { Self::wait_for_late_kick(vcpu) }
        });
    }

    fn kick(cpu: usize) {
        K::before_kick(cpu as u32);
        // It fails only where the port is gone, with its vCPU. There is nobody to wake then.
        let _ = KICKERS[cpu].kick(&K::xen());
    }

    #[inline]
    fn now() -> u64 {
        K::xen().system_time_ns()
    }

    #[inline]
    fn online_cpus() -> usize {
        ONLINE.load(Ordering::Relaxed)
    }

    #[inline]
    fn spin_turns() -> u32 {
        // Relaxed: see `configure`.
        SPIN_TURNS.load(Ordering::Relaxed)
    }

    #[inline]
    fn mode() -> Mode {
        MODE.get()
    }

    #[inline]
    fn plain_unlock() -> bool {
        MODE.plain_unlock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use evtchn::fake::FakeXen;
    use std::sync::LazyLock;

    #[test]
    fn an_uncontended_lock_needs_nothing_of_xen() {
        static LOCK: Mutex<u32> = Mutex::new(1);
        *LOCK.lock() += 1;
        assert_eq!(*LOCK.lock(), 2);
    }

    #[test]
    fn a_mode_cannot_be_chosen_once_a_lock_was_waited_for() {
        // As a waiter does.
        assert_eq!(<XenPlatform>::mode(), Mode::Pv);
        let error = configure(Mode::Native, 7).unwrap_err();
        assert_eq!((error.mode, <XenPlatform>::mode()), (Mode::Pv, Mode::Pv));
        assert_eq!(<XenPlatform>::spin_turns(), 7);
    }

    #[test]
    fn a_vcpu_is_online_while_it_has_a_port() {
        static XEN: LazyLock<FakeXen> = LazyLock::new(|| FakeXen::new(3));
        struct OnFake;
        // SAFETY: 1. One thread is vCPU 0. 2. They are one fake's. 3. Nothing is told.
        unsafe impl Kernel for OnFake {
            fn xen() -> impl Hypercalls {
                XEN.vcpu(0)
            }
            fn events() -> impl Abi {
                XEN.two_level()
            }
        }
        type P = XenPlatform<OnFake>;
        let online = |change: Result<(), Errno>| {
            change.unwrap();
            P::online_cpus()
        };
        assert_eq!(P::online_cpus(), 0);
        assert_eq!([1, 2, 1].map(|vcpu| online(P::bind(vcpu).map(drop))), [1, 2, 2]);
        assert_eq!(online(P::bind_again()), 2);
        assert_eq!([2, 2, 1].map(|vcpu| online(P::unbind(vcpu))), [1, 1, 0]);
    }

    #[test]
    fn the_table_has_four_entries_a_vcpu() {
        assert!(size_of_val(&STORAGE) >= MAX_VCPUS * 4 * 16);
    }
}
