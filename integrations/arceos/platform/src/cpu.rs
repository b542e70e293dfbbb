//! vCPUs: which one is this, starting the others, the end.
//!
//! Owns each vCPU's number, as ArceOS and Xen both know it.

use axplat::power::PowerIf;
use spin::Once;
use xen_guest::daemons::console;
use xen_guest::glue;
use xen_guest::vcpu::{area, identity, start};
use xen_guest::xen::hypercall::{self, ShutdownReason};

/// This vCPU's number. ArceOS has it too, but asks for it with preemption held off, and letting that go
/// may switch tasks: not in the middle of a lock.
#[percpu::def_percpu]
static NUMBER: u32 = 0;

/// Says which vCPU this is: first thing on each.
pub(crate) fn set_number(cpu_id: usize) {
    // SAFETY: nothing runs on this vCPU but this.
    unsafe { NUMBER.write_current_raw(cpu_id as u32) };
    if cpu_id == 0 {
        // SAFETY: the number never changes. Whoever asks holds preemption off: `kspin` around
        // locks, `console.rs`, `irq.rs` and `time.rs` by interrupts off.
        unsafe { identity::identify_by(number) };
    }
}

/// The number of the vCPU this runs on.
pub(crate) fn number() -> u32 {
    // SAFETY: one instruction; what the caller holds off is its own affair.
    unsafe { NUMBER.read_current_raw() }
}

/// Lets vCPU `cpu_id`, which is this one or down, read the clock and be kicked out of a wait for a lock.
pub(crate) fn prepare(cpu_id: usize) {
    area::register(cpu_id as u32).expect("a vCPU is registered once");
    glue::bind(cpu_id as u32).expect("a vCPU gets a port");
}

struct Power;

#[impl_plat_interface]
impl PowerIf for Power {
    fn cpu_boot(cpu_id: usize, stack_top_paddr: usize) {
        extern "C" fn entry(number: u32) -> ! {
            axplat::call_secondary_main(number as usize)
        }
        // Before it runs: it may wait for a lock as soon as it has its number.
        prepare(cpu_id);
        // SAFETY: ArceOS gives each vCPU a stack of its own, and `entry` needs no more.
        unsafe { start::start_pvh(cpu_id as u32, entry, stack_top_paddr) }
            .expect("Xen starts a vCPU that it said there is");
    }

    fn system_off() -> ! {
        console::flush();
        hypercall::sched_shutdown(ShutdownReason::Poweroff)
    }

    /// Asked of Xen once: ArceOS asks again and again while it waits for all CPUs.
    fn cpu_num() -> usize {
        static COUNT: Once<usize> = Once::new();
        let ask =
            || start::count().map_or(crate::config::plat::MAX_CPU_NUM, |count| count as usize);
        *COUNT.call_once(ask)
    }
}
