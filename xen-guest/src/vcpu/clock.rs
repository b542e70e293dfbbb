//! The PV clock: system time from the TSC and the vCPU's [`TimeInfo`].
//!
//! This file owns the arithmetic (Xen public/xen.h, "struct vcpu_time_info") and the protocol of
//! reading it while Xen may write; and a clock for kernels whose tasks move between vCPUs
//! ([`SharedClock`]). It sets no timer.
//!
//! Alone it needs to know [which vCPU](super::identity) this is, and that vCPU's area
//! [registered](super::area::register).

use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::sync::atomic::{AtomicU64, fence};

use super::area::Area;
use super::identity;
use crate::xen::abi::TimeInfo;

/// System time of the current vCPU, in nanoseconds since Xen booted.
#[inline]
pub fn now() -> u64 {
    now_on(identity::current())
}

/// [`now`] on `vcpu`, for who knows that it runs this.
#[inline]
pub fn now_on(vcpu: u32) -> u64 {
    read(&Area::of(vcpu).info.time, tsc)
}

/// One time for all vCPUs, in nanoseconds since it was started: nobody sees it go back.
///
/// The clocks of two vCPUs may disagree: on an emulator whose cores had other work, by 8 ms. A task
/// that moves between them would see [`now`] jump back, and what a vCPU that is behind has read
/// lies before the start. Here it reads what was read last, anywhere; at first, 0.
///
/// ```
/// use xen_guest::vcpu::clock::SharedClock;
///
/// static UPTIME: SharedClock = SharedClock::new();
///
/// // Each number is what `now` says on some vCPU.
/// UPTIME.start(1_000);
/// assert_eq!(UPTIME.elapsed(1_500), 500);
/// assert_eq!(UPTIME.elapsed(1_400), 500); // on another, whose clock is behind
/// ```
#[derive(Debug)]
pub struct SharedClock {
    start: AtomicU64,
    latest: AtomicU64,
}

impl SharedClock {
    /// A clock that was started when Xen was.
    #[must_use]
    pub const fn new() -> Self {
        SharedClock { start: AtomicU64::new(0), latest: AtomicU64::new(0) }
    }

    /// Starts it at the system time `now`. Once, before any other vCPU runs.
    pub fn start(&self, now: u64) {
        // Relaxed: read by vCPUs that are started afterwards, by a hypercall.
        self.start.store(now, Relaxed);
    }

    /// The time since its start, where the system time of the vCPU is `now`.
    pub fn elapsed(&self, now: u64) -> u64 {
        let elapsed = now.saturating_sub(self.start.load(Relaxed));
        // Relaxed: the one value is all there is to agree on.
        self.latest.fetch_max(elapsed, Relaxed).max(elapsed)
    }

    /// The system time at which it shows `elapsed`: for a timer.
    pub fn system_time(&self, elapsed: u64) -> u64 {
        self.start.load(Relaxed).saturating_add(elapsed)
    }
}

impl Default for SharedClock {
    fn default() -> Self {
        Self::new()
    }
}

/// The time-stamp counter.
#[inline]
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Xen lets a guest execute it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// System time by `time` at what `tsc` reads, tried again while Xen writes.
fn read(time: &TimeInfo, tsc: impl Fn() -> u64) -> u64 {
    loop {
        // Acquire: pairs with Xen's write barrier after it made the version odd or even, so the
        // fields below are not older than this version.
        let version = time.version.load(Acquire);
        let ticks = tsc().wrapping_sub(time.tsc_timestamp.load(Relaxed));
        let ns = time.system_time.load(Relaxed).wrapping_add(scale(
            ticks,
            time.tsc_to_system_mul.load(Relaxed),
            time.tsc_shift.load(Relaxed),
        ));
        // The fields above are read before the version is read again.
        fence(Acquire);
        if version & 1 == 0 && time.version.load(Relaxed) == version {
            return ns;
        }
        core::hint::spin_loop();
    }
}

/// Nanoseconds of `ticks`: shifted, then multiplied by `mul` / 2^32.
fn scale(ticks: u64, mul: u32, shift: i8) -> u64 {
    let shifted = if shift < 0 { ticks >> -shift } else { ticks << shift };
    ((u128::from(shifted) * u128::from(mul)) >> 32) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    #[test]
    fn scales_like_the_header_says() {
        // 2.5 GHz: 0.4 ns a tick, as Xen expresses it.
        let mul = (0.4 * 4294967296.0 * 2.0) as u32;
        assert_eq!(scale(2_500_000_000, mul, -1), 999_999_999);
        assert_eq!(scale(1, 1 << 31, 1), 1);
        assert_eq!(scale(u64::MAX, 1 << 31, -1), u64::MAX >> 2);
    }

    #[test]
    fn a_vcpu_whose_clock_is_behind_the_start_does_not_send_all_to_the_end_of_time() {
        let clock = SharedClock::new();
        clock.start(97_518_010_250);
        assert_eq!(clock.elapsed(97_510_207_077), 0);
        assert_eq!(clock.elapsed(97_518_010_251), 1);
        assert_eq!(clock.elapsed(97_510_207_077), 1);
        assert_eq!(clock.system_time(u64::MAX), u64::MAX);
    }

    #[test]
    fn reads_again_while_xen_writes() {
        let time = TimeInfo::default();
        time.version.store(3, Relaxed); // odd: Xen writes
        time.system_time.store(1, Relaxed);
        time.tsc_to_system_mul.store(1 << 31, Relaxed);
        time.tsc_shift.store(1, Relaxed);
        let turns = Cell::new(0);
        let ns = read(&time, || {
            turns.set(turns.get() + 1);
            if turns.get() == 2 {
                time.version.store(4, Relaxed);
                time.system_time.store(1000, Relaxed);
            }
            7
        });
        assert_eq!((ns, turns.get()), (1007, 3));
    }
}
