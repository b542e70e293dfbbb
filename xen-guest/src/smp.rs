//! vCPUs: starting, parking, sleeping.

use crate::errno::Errno;
use crate::machine::Machine;
use crate::{clock, hypercall, percpu};

/// See [`Machine::start_vcpu`].
pub(crate) fn start(machine: &Machine, vcpu: u32, entry: fn(u32)) -> Result<(), Errno> {
    let _ = (machine, vcpu, entry);
    Err(Errno(38))
}

/// See [`Machine::vcpu_park`].
pub(crate) fn park() -> ! {
    loop {
        let _ = hypercall::vcpu_down(percpu::current_vcpu());
    }
}

/// See [`Machine::sleep_until`].
pub(crate) fn sleep_until(ns: u64) {
    while clock::now() < ns {
        hypercall::sched_yield();
    }
}
