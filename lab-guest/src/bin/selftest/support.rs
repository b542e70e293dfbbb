//! What several tests need.

use core::sync::atomic::AtomicU32;

use xen_guest::kernel::machine::Machine;

/// Whether `condition` holds within a minute, which a crowded host needs.
pub(crate) fn soon(machine: &Machine, condition: impl Fn() -> bool) -> bool {
    let limit = machine.now() + 60_000_000_000;
    while !condition() {
        if machine.now() > limit {
            return false;
        }
        machine.yield_now();
    }
    true
}

/// An error that says `why` unless `condition` holds.
pub(crate) fn check(condition: bool, why: &'static str) -> Result<(), &'static str> {
    if condition { Ok(()) } else { Err(why) }
}

/// For the test that runs: one a domain.
pub(crate) static COUNT: AtomicU32 = AtomicU32::new(0);

/// Starts every other vCPU and waits until each has counted.
pub(crate) fn start_others(machine: &Machine, entry: fn(u32)) -> Result<(), &'static str> {
    for vcpu in 1..machine.vcpus() {
        // One that was just parked may not be down yet.
        let started = soon(machine, || machine.start_vcpu(vcpu, entry).is_ok());
        check(started, "a vCPU could not be started")?;
    }
    Ok(())
}
