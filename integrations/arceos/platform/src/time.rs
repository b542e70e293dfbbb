//! Clocks and the timer.
//!
//! Owns when ArceOS' time begins: at its boot, where Xen's begins at the host's.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

use axplat::time::TimeIf;
use x86_64::instructions::interrupts;
use xen_guest::events::{shared_info, timer};
use xen_guest::vcpu::clock::{self, SharedClock};

use crate::config::devices::TIMER_IRQ;

/// Time since ArceOS booted.
static UPTIME: SharedClock = SharedClock::new();

/// When ArceOS booted, in nanoseconds since 1970. Xen changes its own wall clock when the host's is
/// set; ArceOS sleeps and measures by this one, so it stays.
static EPOCH: AtomicU64 = AtomicU64::new(0);

/// From now on there is a time. On vCPU 0, once its clock is registered.
pub(crate) fn init() {
    let boot = clock::now();
    UPTIME.start(boot);
    // Relaxed: read by vCPUs that are started afterwards, by a hypercall.
    EPOCH.store(shared_info::epoch_offset_ns() + boot, Relaxed);
}

/// Sets the timer of this vCPU to come soon.
pub(crate) fn set_first_tick() {
    Time::set_oneshot_timer(Time::current_ticks());
}

struct Time;

#[impl_plat_interface]
impl TimeIf for Time {
    /// A tick is a nanosecond.
    fn current_ticks() -> u64 {
        // A task that moves between the question for its vCPU and the clock reads another's.
        UPTIME.elapsed(interrupts::without_interrupts(clock::now))
    }

    fn ticks_to_nanos(ticks: u64) -> u64 {
        ticks
    }

    fn nanos_to_ticks(nanos: u64) -> u64 {
        nanos
    }

    fn epochoffset_nanos() -> u64 {
        EPOCH.load(Relaxed)
    }

    fn irq_num() -> usize {
        TIMER_IRQ
    }

    fn set_oneshot_timer(deadline_ns: u64) {
        interrupts::without_interrupts(|| timer::set(UPTIME.system_time(deadline_ns)))
            .expect("a vCPU sets its own timer");
    }
}
