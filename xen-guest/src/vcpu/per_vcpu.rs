//! Memory that exists once for each vCPU.
//!
//! This file owns how many vCPUs there can be. It gives no meaning to the memory, and does not know
//! which vCPU asks.

use crossbeam_utils::CachePadded;

/// How many vCPUs one domain can have.
pub const MAX_VCPUS: usize = 128;

/// A `T` for each vCPU, in cache lines of its own, found by the vCPU's number.
///
/// ```
/// use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
/// use xen_guest::vcpu::{MAX_VCPUS, PerVcpu};
///
/// static TICKS: PerVcpu<AtomicU32> =
///     PerVcpu::new([const { PerVcpu::entry(AtomicU32::new(0)) }; MAX_VCPUS]);
///
/// TICKS.of(3).fetch_add(1, Relaxed);
/// assert_eq!((TICKS.of(3).load(Relaxed), TICKS.of(4).load(Relaxed)), (1, 0));
/// ```
#[derive(Debug)]
pub struct PerVcpu<T>([CachePadded<T>; MAX_VCPUS]);

impl<T> PerVcpu<T> {
    /// All of them.
    pub const fn new(entries: [CachePadded<T>; MAX_VCPUS]) -> Self {
        PerVcpu(entries)
    }

    /// One of them, for [`new`](PerVcpu::new).
    pub const fn entry(value: T) -> CachePadded<T> {
        CachePadded::new(value)
    }

    /// That of `vcpu`.
    ///
    /// # Panics
    ///
    /// If `vcpu` is not below [`MAX_VCPUS`].
    #[inline]
    pub fn of(&self, vcpu: u32) -> &T {
        &self.0[vcpu as usize]
    }
}
