//! What the booted machine offers the programme that runs on it.
//!
//! This file owns the boundary between "how this domain boots" (everything under it) and "what it
//! does" (the programme above). One value, made at boot and shared by all vCPUs.

use spin::Once;

use super::smp;
use crate::daemons::console;
use crate::daemons::xenstore::{Client, Ring, StorePort};
use crate::events::sleep;
use crate::vcpu::{self, clock};
use crate::xen::{frames, hypercall};

pub use crate::xen::frames::DomainType;
pub use crate::xen::hypercall::ShutdownReason;
pub use evtchn::{Errno, Port};

/// The booted domain.
pub struct Machine {
    pub(super) cmdline: &'static str,
    pub(super) vcpus: u32,
    pub(super) xenstore: Option<&'static Ring>,
}

static MACHINE: Once<Machine> = Once::new();

impl Machine {
    /// Makes `machine` the one that [`get`](Machine::get) returns. The first call counts.
    pub(super) fn install(machine: Machine) -> &'static Machine {
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
        frames::domain_type()
    }

    /// How many vCPUs the domain has, started or not.
    pub fn vcpus(&self) -> u32 {
        self.vcpus
    }

    /// The number of the vCPU this runs on.
    #[inline]
    pub fn current_vcpu() -> u32 {
        vcpu::current()
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

    /// A client of xenstore. `None` where there is no xenstored: in the initial domain.
    pub fn xenstore(&self) -> Option<Client<'static, StorePort>> {
        Some(Client::new(self.xenstore?, StorePort))
    }

    /// Starts a vCPU that is down: it runs `entry(vcpu)` on a stack of its own, with upcalls
    /// masked. If `entry` returns, the vCPU parks.
    #[doc(alias = "VCPUOP_initialise")]
    #[doc(alias = "VCPUOP_up")]
    pub fn start_vcpu(&self, vcpu: u32, entry: fn(u32)) -> Result<(), Errno> {
        if vcpu >= self.vcpus() {
            return Err(Errno::EINVAL);
        }
        smp::start(vcpu, entry)
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
        sleep::sleep_until(ns);
    }
}
