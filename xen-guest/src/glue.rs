//! The join: `pvlock` on `evtchn` on Xen. What an integrator copies.
//!
//! Owns the lock's storage (nodes, hash table), one [`Kicker`] a vCPU, and the answers to the
//! questions a lock asks its kernel. It decides nothing about locking (that is `pvlock`) and nothing
//! about event channels (that is `evtchn`).
//!
//! A kernel of its own needs four things from this file: the statics, [`bind`] for each vCPU before it
//! takes its first contended lock, [`configure`] once, and the `impl Platform`.
//!
//! # Alone
//!
//! With boot code of one's own, on each vCPU, before it takes a lock, `boot` here:
//!
//! ```no_run
//! use xen_guest::percpu::PerCpu;
//! use xen_guest::{glue, smp, trap};
//!
//! fn boot(vcpu: u32, write_gs_base: impl Fn(u64)) -> Result<(), evtchn::Errno> {
//!     write_gs_base(PerCpu::prepare(vcpu)); // who am I
//!     smp::register_vcpu_info(vcpu)?; // the clock: deadlines of waits
//!     trap::register_runstate(vcpu)?; // optional: waiters see who is preempted
//!     glue::bind(vcpu).map(drop) // the port on which it is kicked
//! }
//! # let _ = boot(0, |_| {});
//! ```
//!
//! and before the first, hypercalls and the shared page: [`hypercall`], [`shared_info`](crate::shared_info).

use core::fmt::{self, Write};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU32, Ordering};

use crossbeam_utils::CachePadded;
use evtchn::{Abi, Errno, Kicker, NmiGuard, Port, WaitCounts, WaitOutcome};
use pvlock::{
    Counter, CpuNodes, HashStorage, HashTable, Interrupts, Mode, ModeCell, ModeSettled, Platform,
};

use crate::events::{self, events};
use crate::hypercall::Xen;
use crate::percpu::{MAX_VCPUS, PerCpu, current_vcpu};
use crate::{clock, upcall};

/// The lock around a value, on this kernel.
///
/// ```
/// use xen_guest::glue::Mutex;
///
/// static BALANCE: Mutex<u64> = Mutex::new(0);
/// *BALANCE.lock() += 1; // uncontended: one atomic instruction, no hypercall
/// ```
pub type Mutex<T, K = pvlock::KickAtUnlock> = pvlock::Mutex<T, XenPlatform, K>;

/// The lock around a value that upcall handlers take too: held only with upcalls held back.
///
/// ```no_run
/// use xen_guest::glue::IrqMutex;
///
/// static TICKS: IrqMutex<u64> = IrqMutex::new(0);
/// *TICKS.lock() += 1; // in a task or in a handler
/// ```
pub type IrqMutex<T, K = pvlock::KickAtUnlock> = pvlock::IrqMutex<T, XenPlatform, Upcalls, K>;

/// Event upcalls as what [`IrqMutex`] keeps off: by the vCPU's upcall mask on PV, by the interrupt flag
/// on PVH.
#[derive(Debug)]
pub struct Upcalls;

// SAFETY: nothing but event upcalls interrupts a vCPU and takes a lock for good (an NMI handler only
// tries), and nothing migrates between vCPUs.
unsafe impl Interrupts for Upcalls {
    type Saved = bool;

    fn save() -> bool {
        upcall::are_enabled()
    }

    fn disable() {
        upcall::disable();
    }

    fn restore(were_enabled: bool) {
        if were_enabled {
            upcall::enable();
        }
    }
}

/// How long a waiter polls before it looks for itself.
pub const POLL_NS: u64 = 1_000_000_000;

/// How many whole polls a kick that is owed may be late before it is called lost. Far beyond the longest
/// critical section and preemption: on an emulator that shared its cores with other work, waits of 6 s
/// were seen. Polls and not time: a domain may be paused for as long as its owner likes, and that
/// costs one poll.
const LATE_POLLS: u32 = 20;

/// Four queue nodes a vCPU: task, soft interrupt, hard interrupt, NMI.
static NODES: [CpuNodes; MAX_VCPUS] = [const { CpuNodes::new() }; MAX_VCPUS];

/// Four entries a vCPU, four to a line.
static STORAGE: HashStorage<MAX_VCPUS> = HashStorage::new();
static SLEEPERS: HashTable = HashTable::new(&STORAGE);

static KICKERS: [CachePadded<Kicker>; MAX_VCPUS] =
    [const { CachePadded::new(Kicker::new()) }; MAX_VCPUS];

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

/// Gives `vcpu` the port on which it can be kicked. Before it takes its first contended lock, and
/// again after a resume.
///
/// # Errors
///
/// As [`evtchn::bind_ipi`].
pub fn bind(vcpu: u32) -> Result<Port, Errno> {
    loop {
        match KICKERS[vcpu as usize].bind(&Xen, &events(), vcpu) {
            // Xen has the port, but there is no word for it yet.
            Err(Errno::ENOSPC) => events::grow()?,
            bound => return bound,
        }
    }
}

/// Takes that port away from `vcpu`, which is down.
///
/// # Errors
///
/// As [`evtchn::close`].
pub fn unbind(vcpu: u32) -> Result<(), Errno> {
    KICKERS[vcpu as usize].unbind(&Xen)
}

/// Gives every vCPU that had a port a new one, after a restore, while no other vCPU runs; and kicks it:
/// a kick that was latched or under way is gone with the old port.
///
/// # Errors
///
/// As [`bind`].
pub fn bind_again() -> Result<(), Errno> {
    for (kicker, vcpu) in KICKERS.iter().zip(0..) {
        if kicker.port().is_some() {
            bind(vcpu)?;
            kicker.kick(&Xen)?;
        }
    }
    Ok(())
}

/// Marks `vcpu`, which runs this, as being in an NMI until the value is dropped: it cannot block then.
pub fn enter_nmi(vcpu: u32) -> NmiGuard<'static> {
    KICKERS[vcpu as usize].enter_nmi()
}

/// What the waits of `vcpu` came to since boot.
#[inline]
pub fn wait_counts(vcpu: usize) -> WaitCounts {
    KICKERS[vcpu].counts()
}

/// What a kernel is told of its locks' waits and kicks, on the vCPU that waits or kicks. Every method is
/// empty unless it is written anew, and costs nothing then.
pub trait Hooks: Send + Sync + 'static {
    /// `vcpu`, which runs this, has to wait for a lock: `wait` is that wait, and is called once.
    #[inline]
    fn around_wait(vcpu: u32, wait: impl FnOnce() -> WaitOutcome) -> WaitOutcome {
        let _ = vcpu;
        wait()
    }

    /// A kick of `target` is about to be sent.
    #[inline]
    fn before_kick(target: u32) {
        let _ = target;
    }

    /// A poll of `vcpu`, which runs this, has reached its deadline of [`POLL_NS`]: the lock is held for
    /// long, or a kick was lost.
    #[inline]
    fn poll_expired(vcpu: u32) {
        let _ = vcpu;
    }
}

/// Nothing is told.
#[derive(Debug)]
pub struct NoHooks;

impl Hooks for NoHooks {}

/// What a lock asks of this kernel, which is told of waits and kicks by `H`.
#[derive(Debug)]
pub struct XenPlatform<H = NoHooks>(PhantomData<fn() -> H>);

// SAFETY: 1. A vCPU's number is in its own area, found through its GS base; nothing migrates
// between vCPUs. 2. The statics above are used by this platform alone. 3. Upcall handlers and NMI
// handlers return before what they interrupted goes on. 4, 5. As `Kicker::wait` and `Kicker::kick`
// promise: the token is taken before the condition is looked at, both sides' hypercalls and locked
// instructions are full barriers, and a nested wait leaves the token alone.
unsafe impl<H: Hooks> Platform for XenPlatform<H> {
    const MAX_CPUS: usize = MAX_VCPUS;

    #[inline]
    fn current_cpu() -> usize {
        current_vcpu() as usize
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
        let vcpu = current_vcpu();
        H::around_wait(vcpu, || {
            let outcome = poll_once(vcpu, &still_blocked);
            if outcome != WaitOutcome::TimedOut {
                return outcome;
            }
            // A wait can be that long on a crowded host. It is a fault only if there was nothing
            // left to wait for and the kick is missing.
            H::poll_expired(vcpu);
            if still_blocked() { outcome } else { wait_for_late_kick::<H>(vcpu) }
        });
    }

    fn kick(cpu: usize) {
        H::before_kick(cpu as u32);
        // It fails only where the port is gone, with its vCPU. There is nobody to wake then.
        let _ = KICKERS[cpu].kick(&Xen);
    }

    #[inline]
    fn now() -> u64 {
        clock::now()
    }

    #[inline]
    fn spin_turns() -> u32 {
        // Relaxed: see `configure`.
        SPIN_TURNS.load(Ordering::Relaxed)
    }

    #[inline]
    fn vcpu_is_preempted(cpu: usize) -> bool {
        // Relaxed: a hint. Xen writes it when that vCPU comes and goes: 0 is running, and "blocked"
        // stays there until a woken vCPU has really run.
        PerCpu::of(cpu as u32).runstate.state.load(Ordering::Relaxed) != 0
    }

    #[inline]
    fn mode() -> Mode {
        MODE.get()
    }
}

/// One poll with a deadline.
fn poll_once(vcpu: u32, still_blocked: &impl Fn() -> bool) -> WaitOutcome {
    let deadline = clock::now() + POLL_NS;
    KICKERS[vcpu as usize].wait(&Xen, &events(), deadline, still_blocked)
}

/// The condition of a wait has gone, so somebody owes this vCPU a kick: `KickAtUnlock` registers a
/// sleeper while its predecessor still holds the lock and kicks it at unlock, and any kicker may be
/// preempted before its send. Only a kick that does not come for [`LATE_POLLS`] is lost.
#[cold]
fn wait_for_late_kick<H: Hooks>(vcpu: u32) -> WaitOutcome {
    for _ in 0..LATE_POLLS {
        match poll_once(vcpu, &|| true) {
            WaitOutcome::TimedOut => H::poll_expired(vcpu),
            // Also after another event: nothing can be told of the kick then.
            outcome => return outcome,
        }
    }
    pvlock::add_to_counter::<XenPlatform<H>>(vcpu as usize, Counter::PollTimeout, 1);
    WaitOutcome::TimedOut
}

/// Writes each bound kicker's port, its bits and its vCPU's runstate, for a person who looks for a
/// hang. Takes no lock and allocates nothing.
///
/// # Errors
///
/// Those of `out`.
pub fn dump_pending(out: &mut dyn Write) -> fmt::Result {
    let events = events();
    for (vcpu, kicker) in KICKERS.iter().enumerate() {
        let Some(port) = kicker.port() else { continue };
        let pending = events.is_pending(port);
        let masked = events.is_masked(port);
        // Relaxed: a number to look at.
        let runstate = PerCpu::of(vcpu as u32).runstate.state.load(Ordering::Relaxed);
        let runstate =
            ["running", "preempted", "blocked", "offline"].get(runstate as usize).unwrap_or(&"?");
        let WaitCounts { polls, kicked, timed_out, timed_out_unblocked, early, .. } =
            kicker.counts();
        writeln!(
            out,
            "vCPU {vcpu}: {runstate}, port {} pending={pending} masked={masked}; {polls} polls, \
             {kicked} kicked, {early} early, {timed_out} timed out ({timed_out_unblocked} with \
             nothing to wait for)",
            port.get()
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uncontended_lock_needs_nothing_of_xen() {
        static LOCK: Mutex<u32> = Mutex::new(1);
        *LOCK.lock() += 1;
        assert_eq!(*LOCK.lock(), 2);
    }

    #[test]
    fn a_mode_cannot_be_chosen_once_a_lock_was_used() {
        static LOCK: Mutex<u32> = Mutex::new(1);
        drop(LOCK.lock());
        let error = configure(Mode::Native, 7).unwrap_err();
        assert_eq!((error.mode, <XenPlatform>::mode()), (Mode::Pv, Mode::Pv));
        assert_eq!(<XenPlatform>::spin_turns(), 7);
    }

    #[test]
    fn the_table_has_four_entries_a_vcpu() {
        assert!(size_of_val(&STORAGE) >= MAX_VCPUS * 4 * 16);
    }
}
