//! Being saved and coming back: what a domain does when it is suspended under full load.
//!
//! This file owns the order of it: hold every other vCPU, suspend, tell Xen again all that it has
//! forgotten, let go. vCPUs are held where they are, in a critical section, in a wait for a lock or
//! anywhere else, by an upcall that does not return until the domain is whole again. What each kind
//! of domain has of its own is in `pv.rs` and `pvh.rs`; what the kernel above has bound (its
//! kickers, say) is its own business, told by a closure.
//!
//! Between holding and letting go nothing here allocates, locks or writes to the console: a held
//! vCPU may have been interrupted in the middle of just that.

use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{AtomicBool, AtomicU32};

use evtchn::{Abi, Errno, Port};

use super::machine::Machine;
use super::{descriptors, pv, pvh, smp};
use crate::events::{self, Xen, shared_info, sleep, timer, upcall};
use crate::vcpu::{self, Area, MAX_VCPUS, PerVcpu, area, mask};
use crate::xen::frames::{DomainType, domain_type};
use crate::xen::hypercall;

pub use crate::xen::hypercall::Resumed;

/// The port by which each vCPU is held while the domain is suspended, or 0.
static HOLD_PORTS: PerVcpu<AtomicU32> =
    PerVcpu::new([const { PerVcpu::entry(AtomicU32::new(0)) }; MAX_VCPUS]);

/// Odd while vCPUs are to be held.
static EPOCH: AtomicU32 = AtomicU32::new(0);
/// vCPUs that are held.
static HELD: AtomicU32 = AtomicU32::new(0);
/// Whether the vCPUs held come back in a restored domain.
static RESTORED: AtomicBool = AtomicBool::new(false);

/// How often vCPU 0 looks whether the others are held.
const STEP_NS: u64 = 500_000;
/// How long they may take: far longer than upcalls are ever held back.
const PATIENCE_NS: u64 = 60_000_000_000;

/// `ETIMEDOUT`: a vCPU could not be held.
const ETIMEDOUT: Errno = Errno(110);

/// Gives `vcpu` the port by which it is held. The vCPU must have upcalls enabled most of the time,
/// and its handler of upcalls must call [`upcall`](fn@upcall).
///
/// # Errors
///
/// As [`evtchn::bind_ipi`].
pub fn prepare(vcpu: u32) -> Result<(), Errno> {
    let port = evtchn::bind_ipi(&Xen, vcpu)?;
    // Release: pairs with the load in `upcall`.
    HOLD_PORTS.of(vcpu).store(port.get(), Release);
    events::handle_on(vcpu, port)?;
    events::events().unmask(&Xen, port)
}

/// Takes that port away again, from a vCPU that is down.
///
/// # Errors
///
/// As [`evtchn::close`].
pub fn forget(vcpu: u32) -> Result<(), Errno> {
    match Port::new(HOLD_PORTS.of(vcpu).swap(0, Relaxed)) {
        Some(port) => {
            events::handle_no_more(vcpu, port);
            evtchn::close(&Xen, port)
        }
        None => Ok(()),
    }
}

/// For the handler of upcalls: whether `port` was the one by which this vCPU is held. Returns when
/// it is let go.
pub fn upcall(port: Port) -> bool {
    let vcpu = vcpu::current();
    // Acquire: pairs with the store in `prepare`.
    if HOLD_PORTS.of(vcpu).load(Acquire) != port.get() {
        return false;
    }
    // Acquire: pairs with the increments in `suspend`, here and below.
    if EPOCH.load(Acquire) % 2 == 1 {
        // Release: what this vCPU did before is seen by whoever suspends.
        HELD.fetch_add(1, Release);
        while EPOCH.load(Acquire) % 2 == 1 {
            // No poll: ports come and go meanwhile.
            hypercall::sched_yield();
        }
        // Relaxed: ordered by the epoch.
        if RESTORED.load(Relaxed) {
            rejoin(vcpu).expect("a restored vCPU can be registered again");
        }
        HELD.fetch_sub(1, Release);
    }
    true
}

/// Suspends the domain, from vCPU 0, and returns when it goes on. `reconnect` runs while all other
/// vCPUs are still held: it must bind what the kernel uses anew if the domain was restored, and
/// must neither allocate nor lock nor write to the console.
///
/// # Errors
///
/// If a vCPU cannot be held, or if Xen refuses; the domain then goes on as it was.
///
/// # Panics
///
/// If a restored domain cannot have again what it had.
pub fn suspend(machine: &Machine, reconnect: impl FnOnce(Resumed)) -> Result<Resumed, Errno> {
    let held = hold(machine);
    let resumed = held.and_then(|()| {
        let before = mask::disable();
        let resumed = match domain_type() {
            DomainType::Pv => pv::suspend(),
            DomainType::Pvh => pvh::suspend(),
        };
        if resumed == Ok(Resumed::Restored) {
            restore(machine).expect("a restored domain can have its ports again");
        }
        // Relaxed: the epoch below orders it.
        RESTORED.store(resumed == Ok(Resumed::Restored), Relaxed);
        if let Ok(resumed) = resumed {
            reconnect(resumed);
        }
        if before {
            mask::enable();
        }
        resumed
    });
    // Release: pairs with the loads in `upcall`.
    EPOCH.fetch_add(1, Release);
    // Acquire: pairs with the decrement there.
    while HELD.load(Acquire) != 0 {
        hypercall::sched_yield();
    }
    resumed
}

/// Holds every other vCPU that is up.
fn hold(machine: &Machine) -> Result<(), Errno> {
    // Release: as in `suspend`.
    EPOCH.fetch_add(1, Release);
    let mut others = 0;
    for vcpu in 1..machine.vcpus() {
        if hypercall::vcpu_is_up(vcpu)? {
            let port = Port::new(HOLD_PORTS.of(vcpu).load(Acquire)).ok_or(Errno::EINVAL)?;
            evtchn::send(&Xen, port)?;
            others += 1;
        }
    }
    let limit = machine.now() + PATIENCE_NS;
    // Acquire: pairs with the increment in `upcall`.
    while HELD.load(Acquire) < others {
        if machine.now() > limit {
            return Err(ETIMEDOUT);
        }
        machine.sleep_until(machine.now() + STEP_NS);
    }
    Ok(())
}

/// Makes a restored domain whole, as far as vCPU 0 can: its own registrations, and all ports of
/// this crate.
fn restore(machine: &Machine) -> Result<(), Errno> {
    shared_info::two_level().mask_all();
    shared_info::hold_upcalls_back();
    rejoin(0)?;
    events::restore(machine.vcpus())?;
    for vcpu in 0..machine.vcpus() {
        // That vCPU is held, or down.
        sleep::forget(vcpu);
        if hypercall::vcpu_is_up(vcpu)? {
            // Relaxed, here and below: as above.
            if HOLD_PORTS.of(vcpu).load(Relaxed) != 0 {
                prepare(vcpu)?;
            }
            timer::bind_again(vcpu)?;
        } else {
            // Xen saves nothing of a vCPU that is down.
            smp::forget(vcpu);
            HOLD_PORTS.of(vcpu).store(0, Relaxed);
        }
    }
    Ok(())
}

/// Registers again what Xen keeps of a vCPU, which runs this with upcalls held back.
fn rejoin(vcpu: u32) -> Result<(), Errno> {
    area::register_vcpu_info(vcpu)?;
    if domain_type() == DomainType::Pv {
        // Xen marks everything as pending; the upcall comes when this one has returned.
        let _ = Area::of(vcpu).flags().mask_upcalls();
    }
    area::register_runstate(vcpu)?;
    area::stop_periodic_timer(vcpu);
    timer::set_again();
    match domain_type() {
        DomainType::Pv => Ok(()),
        DomainType::Pvh => upcall::connect_pvh(vcpu, descriptors::UPCALL_VECTOR),
    }
}
