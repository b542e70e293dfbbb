//! The PV clock: system time from the TSC and the vCPU's [`TimeInfo`].
//!
//! This file owns the arithmetic (Xen public/xen.h, "struct vcpu_time_info") and the protocol of
//! reading it while Xen may write. It sets no timer.
//!
//! Alone it needs to know [which vCPU](super::identity) this is, and that vCPU's area
//! [registered](super::area::register).

use core::sync::atomic::Ordering::{Acquire, Relaxed};
use core::sync::atomic::fence;

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
