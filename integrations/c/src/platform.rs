//! The joint: `pvlock` on `evtchn` in a kernel in C.
//!
//! Owns the kernel's hooks, the lock's storage and one kicker a vCPU.

use core::ffi::c_void;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use evtchn::{Errno, EventChannelOp, Hypercalls, Kicker, Port, SchedOp, TwoLevel, WaitCounts};
use pvlock::{CpuNodes, HashStorage, HashTable, Mode, ModeCell, ModeSettled, Platform};

use crate::KernelHooks;

/// vCPUs there may be.
pub(crate) const MAX_VCPUS: usize = 128;

/// How long a wait polls before it looks for itself: a kick that is lost then costs a second, and shows in the
/// counts.
const POLL_NS: u64 = 1_000_000_000;

/// The kernel's hooks; null before [`install`].
static HOOKS: AtomicPtr<KernelHooks> = AtomicPtr::new(core::ptr::null_mut());

static NODES: [CpuNodes; MAX_VCPUS] = [const { CpuNodes::new() }; MAX_VCPUS];
/// Four entries a vCPU, four to a line.
static STORAGE: HashStorage<MAX_VCPUS> = HashStorage::new();
static SLEEPERS: HashTable = HashTable::new(&STORAGE);
static KICKERS: [Kicker; MAX_VCPUS] = [const { Kicker::new() }; MAX_VCPUS];
/// vCPUs that have a port.
static ONLINE: AtomicUsize = AtomicUsize::new(0);
static MODE: ModeCell = ModeCell::new(Mode::Pv);
static SPIN_TURNS: AtomicU32 = AtomicU32::new(1 << 15);

/// Makes `hooks` the kernel.
///
/// # Safety
///
/// As `pvlock_init`, and it is complete.
pub(crate) unsafe fn install(hooks: &'static KernelHooks) {
    // Release: pairs with the acquire in `hooks`.
    HOOKS.store(core::ptr::from_ref(hooks).cast_mut(), Ordering::Release);
}

/// The kernel, if it has said how to reach it.
pub(crate) fn hooks() -> Option<&'static KernelHooks> {
    // Acquire: pairs with the release in `install`.
    let hooks = HOOKS.load(Ordering::Acquire);
    // SAFETY: null, or a reference that lives for ever.
    unsafe { hooks.as_ref() }
}

/// The kernel, where it is needed.
fn kernel() -> &'static KernelHooks {
    hooks().expect("call pvlock_init before an event channel is bound or a lock is waited for")
}

/// A hook of a kernel that is installed.
fn given<T>(hook: Option<T>) -> T {
    hook.expect("pvlock_init has looked")
}

/// The state of the domain's event channels.
pub(crate) fn events() -> TwoLevel {
    let page = NonNull::new(kernel().shared_info.cast()).expect("pvlock_init has looked");
    // SAFETY: the caller of `pvlock_init` promised that the page is mapped for ever; its event bits
    // are accessed by atomics here, and by Xen.
    unsafe { TwoLevel::new(page) }
}

/// The hypervisor, by the kernel's hooks.
pub(crate) struct Xen;

impl Xen {
    fn call(number: u32, command: u32, argument: *mut c_void) -> Result<(), Errno> {
        Errno::check(given(kernel().hypercall)(number, command, argument))
    }
}

impl Hypercalls for Xen {
    fn event_channel_op(&self, mut op: EventChannelOp<'_>) -> Result<(), Errno> {
        let (command, argument) = op.raw();
        Self::call(xen_sys::__HYPERVISOR_event_channel_op, command, argument)
    }

    fn sched_op(&self, op: SchedOp) -> Result<(), Errno> {
        op.with_raw(|command, argument| {
            Self::call(xen_sys::__HYPERVISOR_sched_op, command, argument)
        })
    }

    fn system_time_ns(&self) -> u64 {
        given(kernel().system_time)()
    }
}

/// As `pvlock_configure`.
pub(crate) fn configure(mode: Mode, spin_turns: u32) -> Result<(), ModeSettled> {
    // Relaxed: set before the other vCPUs are started, and the hypercall that starts one orders it.
    SPIN_TURNS.store(spin_turns, Ordering::Relaxed);
    MODE.init(mode)
}

/// The kicker of `vcpu`, if there may be such a vCPU.
fn kicker(vcpu: u32) -> Result<&'static Kicker, Errno> {
    KICKERS.get(vcpu as usize).ok_or(Errno::EINVAL)
}

/// As `pvlock_bind`.
pub(crate) fn bind(vcpu: u32) -> Result<Port, Errno> {
    let kicker = kicker(vcpu)?;
    let is_new = kicker.port().is_none();
    let port = kicker.bind(&Xen, &events(), vcpu)?;
    if is_new {
        // Relaxed, here and below: a number that decides who is late, and orders nothing.
        ONLINE.fetch_add(1, Ordering::Relaxed);
    }
    Ok(port)
}

/// As `pvlock_unbind`.
pub(crate) fn unbind(vcpu: u32) -> Result<(), Errno> {
    let kicker = kicker(vcpu)?;
    pvlock::wait_for_kicks::<InC>();
    if kicker.port().is_some() {
        ONLINE.fetch_sub(1, Ordering::Relaxed);
    }
    kicker.unbind(&Xen)
}

/// As `pvlock_bind_again`.
pub(crate) fn bind_again() -> Result<(), Errno> {
    for (kicker, vcpu) in KICKERS.iter().zip(0..) {
        if kicker.port().is_some() {
            bind(vcpu)?;
            // One that was latched or under way is gone with the old port.
            kicker.kick(&Xen)?;
        }
    }
    Ok(())
}

/// As `pvlock_counts`.
pub(crate) fn counts(vcpu: u32) -> WaitCounts {
    kicker(vcpu).map_or_else(|_| WaitCounts::default(), Kicker::counts)
}

/// The kernel in C.
pub(crate) struct InC;

// SAFETY: 1. What `current_vcpu` is promised to be. 2. The statics are static and used by this platform
// alone. 3. What C's caller is told: preemption is off. 4, 5. As `Kicker::wait` and `Kicker::kick`
// promise. 6. Panics abort.
unsafe impl Platform for InC {
    const MAX_CPUS: usize = MAX_VCPUS;

    fn current_cpu() -> usize {
        given(kernel().current_vcpu)() as usize
    }

    fn nodes(cpu: usize) -> &'static CpuNodes {
        &NODES[cpu]
    }

    fn hash() -> &'static HashTable {
        &SLEEPERS
    }

    fn wait(still_blocked: impl Fn() -> bool) {
        let deadline = Xen.system_time_ns() + POLL_NS;
        KICKERS[Self::current_cpu()].wait(&Xen, &events(), deadline, still_blocked);
    }

    fn kick(cpu: usize) {
        // It fails only where the port is gone, with its vCPU.
        let _ = KICKERS[cpu].kick(&Xen);
    }

    fn now() -> u64 {
        Xen.system_time_ns()
    }

    fn online_cpus() -> usize {
        ONLINE.load(Ordering::Relaxed)
    }

    fn spin_turns() -> u32 {
        // Relaxed: see `configure`.
        SPIN_TURNS.load(Ordering::Relaxed)
    }

    fn mode() -> Mode {
        MODE.get()
    }

    #[inline]
    fn plain_unlock() -> bool {
        MODE.plain_unlock()
    }
}
