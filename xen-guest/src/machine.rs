//! What the booted machine offers the programme that runs on it.
//!
//! This file owns the boundary between "how this domain boots" (everything under it) and "what it
//! does" (parameters, workloads, reports). The programme uses nothing of the boot half but this and
//! [`glue`](crate::glue). One value, made at boot and shared by all vCPUs.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use evtchn::Abi;
use spin::Once;

use crate::events::events;
use crate::hypercall::{self, Xen};
use crate::xenstore::Ring as XenstoreRing;
use crate::{clock, console, percpu, smp};

pub use evtchn::{Errno, Port};

/// Why a domain ends; what the toolstack does then stands in its configuration (`on_poweroff`,
/// `on_crash`, ...). Xen public/sched.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ShutdownReason {
    /// Everything done.
    #[doc(alias = "SHUTDOWN_poweroff")]
    Poweroff = xen_sys::SHUTDOWN_poweroff,
    /// Start again.
    #[doc(alias = "SHUTDOWN_reboot")]
    Reboot = xen_sys::SHUTDOWN_reboot,
    /// Be saved.
    #[doc(alias = "SHUTDOWN_suspend")]
    Suspend = xen_sys::SHUTDOWN_suspend,
    /// Something went wrong.
    #[doc(alias = "SHUTDOWN_crash")]
    Crash = xen_sys::SHUTDOWN_crash,
}

/// How the domain was booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DomainType {
    /// 64-bit paravirtual: no hardware virtualisation at all.
    Pv,
    /// Hardware-virtualised, booted by the PVH protocol.
    Pvh,
}

/// The booted domain.
pub struct Machine {
    pub(crate) domain_type: DomainType,
    pub(crate) cmdline: &'static str,
    pub(crate) vcpus: u32,
    pub(crate) xenstore: Option<&'static XenstoreRing>,
}

static MACHINE: Once<Machine> = Once::new();

/// The event channel beside the xenstore ring, or 0. It changes when the domain is restored.
static XENSTORE_PORT: AtomicU32 = AtomicU32::new(0);

/// Says which port xenstored listens on.
pub(crate) fn set_xenstore_port(port: Option<Port>) {
    // Relaxed: a number; the ring has its own ordering.
    XENSTORE_PORT.store(port.map_or(0, Port::get), Relaxed);
}

pub(crate) fn xenstore_port() -> Option<Port> {
    // Relaxed: as above.
    Port::new(XENSTORE_PORT.load(Relaxed))
}

impl Machine {
    /// Makes `machine` the one that [`get`](Machine::get) returns. The first call counts.
    pub(crate) fn install(machine: Machine) -> &'static Machine {
        MACHINE.call_once(|| machine)
    }

    /// The machine, for code that was handed none (a vCPU's entry function, a lock's platform).
    ///
    /// # Panics
    ///
    /// Before the machine was set up, which happens before the programme's `main`.
    pub fn get() -> &'static Machine {
        MACHINE.get().expect("the machine is used before it was set up")
    }

    /// The kernel command line (`extra=` in the domain's configuration). Bytes that are not UTF-8
    /// end the domain before the programme starts.
    pub fn cmdline(&self) -> &str {
        self.cmdline
    }

    /// How the domain was booted.
    pub fn domain_type(&self) -> DomainType {
        self.domain_type
    }

    /// How many vCPUs the domain has, started or not.
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// The number of the vCPU this runs on.
    #[inline]
    pub fn current_vcpu() -> u32 {
        percpu::current_vcpu()
    }

    /// System time in nanoseconds since Xen booted, by this vCPU's clock. Clocks of two vCPUs may
    /// differ (by up to about a millisecond under emulation).
    #[inline]
    pub fn now(&self) -> u64 {
        clock::now()
    }

    /// Writes to the domain's console, all of it, waiting while the ring is full. Lines of several
    /// vCPUs do not mix. The `log` macros end here too.
    pub fn console_write(&self, bytes: &[u8]) {
        console::write(bytes);
    }

    /// The page shared with xenstored, and the port that tells either side of new bytes; the port
    /// stays masked, so wait with [`poll_port`](Machine::poll_port). Another port after a restore. None for
    /// the initial domain.
    pub fn xenstore_ring(&self) -> Option<(&'static XenstoreRing, Port)> {
        Some((self.xenstore?, xenstore_port()?))
    }

    /// Notifies the other end of a port.
    #[doc(alias = "EVTCHNOP_send")]
    pub fn notify(&self, port: Port) -> Result<(), Errno> {
        evtchn::send(&Xen, port)
    }

    /// Clears the port's pending bit and says whether it was set. Clear *before* looking at what the
    /// port announces, or a later announcement is lost.
    pub fn take_pending(&self, port: Port) -> bool {
        events().clear(port)
    }

    /// Blocks until `port` is pending (it stays so), an unmasked event arrives, or the clock reaches
    /// `deadline_ns`. May return early, as any wait here may.
    #[doc(alias = "SCHEDOP_poll")]
    pub fn poll_port(&self, port: Port, deadline_ns: u64) -> Result<(), Errno> {
        // 0 would mean "no limit".
        evtchn::poll(&Xen, port, deadline_ns.max(1))
    }

    /// Starts a vCPU that is down: it runs `entry(vcpu)` on a stack of its own, with upcalls masked.
    /// If `entry` returns, the vCPU parks.
    #[doc(alias = "VCPUOP_initialise")]
    #[doc(alias = "VCPUOP_up")]
    pub fn start_vcpu(&self, vcpu: u32, entry: fn(u32)) -> Result<(), Errno> {
        smp::start(self, vcpu, entry)
    }

    /// Takes this vCPU down for good: its work is done.
    #[doc(alias = "VCPUOP_down")]
    pub fn vcpu_park() -> ! {
        smp::park()
    }

    /// Ends the domain.
    #[doc(alias = "SCHEDOP_shutdown")]
    pub fn shutdown(&self, reason: ShutdownReason) -> ! {
        console::flush();
        hypercall::sched_shutdown(reason)
    }

    /// Writes a record into the hypervisor's trace: an event number below 0x1000, at most 7 words.
    #[doc(alias = "HVMOP_xentrace")]
    #[inline]
    pub fn trace_marker(&self, event: u16, words: &[u32]) {
        // A lost marker shows in the trace; there is nothing to do about it here.
        let _ = hypercall::xentrace(event, words);
    }

    /// Offers the pCPU to somebody else; the vCPU stays runnable.
    #[doc(alias = "SCHEDOP_yield")]
    pub fn yield_now(&self) {
        hypercall::sched_yield();
    }

    /// Blocks until the clock reaches `ns`; serves upcalls meanwhile if they are unmasked.
    pub fn sleep_until(&self, ns: u64) {
        smp::sleep_until(ns);
    }
}
