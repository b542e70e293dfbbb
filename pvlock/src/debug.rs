//! A picture of a lock and its platform, for watchdogs and crash reports.
//!
//! Reads, never writes. Every part is a snapshot taken while others may go on.

use core::fmt;

use crate::{Platform, Policy, RawPvLock};

/// A lock's word, the nodes of all CPUs that wait, and the hash table, as text.
///
/// ```
/// # #[allow(dead_code)] mod platform { include!("../tests/common/threads.rs"); }
/// # use platform::Threads;
/// # #[cfg(not(loom))] {
/// use pvlock::{KickAtUnlock, RawPvLock, debug::Dump};
///
/// let lock = RawPvLock::<Threads, KickAtUnlock>::new();
/// lock.lock();
/// assert!(Dump::new(&lock).to_string().contains("0x00000001 (locked, no queue)"));
/// # }
/// ```
pub struct Dump<'a, P: Platform, K: Policy> {
    lock: &'a RawPvLock<P, K>,
}

impl<'a, P: Platform, K: Policy> Dump<'a, P, K> {
    /// The picture of `lock`, taken when it is written out.
    pub fn new(lock: &'a RawPvLock<P, K>) -> Self {
        Self { lock }
    }
}

impl<P: Platform, K: Policy> fmt::Display for Dump<'_, P, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "lock {:p}, {}: {}", self.lock, K::NAME, self.lock.snapshot())?;
        for cpu in 0..P::MAX_CPUS {
            let nodes = P::nodes(cpu);
            if nodes.depth() > 0 {
                write!(f, "cpu {cpu}:\n{nodes}")?;
            }
        }
        for (lock, cpu) in P::hash().entries() {
            writeln!(f, "hash: lock {lock:#x} -> cpu {cpu}")?;
        }
        Ok(())
    }
}
