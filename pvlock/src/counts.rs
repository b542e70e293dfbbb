//! The counters and their storage.
//!
//! Owns their names. With the feature `counters` off nothing is stored. Who counts what is
//! [`counters`](crate::counters())'s and the slow paths'.

#[cfg(feature = "counters")]
use core::sync::atomic::AtomicU64;

use crate::sync::const_fn;

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident $name:literal,)*) => {
        /// One counter. The names follow the field's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum Counter { $($(#[$doc])* $variant,)* }

        impl Counter {
            /// All of them, in the order of a snapshot.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$variant),*];
            /// How many there are.
            pub const COUNT: usize = [$($name),*].len();

            /// The name in results and tables.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// Kicks by an unlock.
    KickUnlock "pv_kick_unlock",
    /// Kicks by a new owner, to make the next waiter spin as head.
    KickWake "pv_kick_wake",
    /// Nanoseconds spent in kicks.
    LatencyKick "pv_latency_kick",
    /// Nanoseconds from a kick to the end of the wait it ended. Needs one clock for all CPUs.
    LatencyWake "pv_latency_wake",
    /// Locks taken past the queue.
    LockStealing "pv_lock_stealing",
    /// Waits that ended while the condition still held.
    SpuriousWakeup "pv_spurious_wakeup",
    /// Heads that waited again after a wake-up.
    WaitAgain "pv_wait_again",
    /// Waits of a queue head.
    WaitHead "pv_wait_head",
    /// Waits behind the head.
    WaitNode "pv_wait_node",
    /// Lines of the hash table looked at beyond the first.
    HashHops "pv_hash_hops",
    /// Native mode: acquisitions as the pending waiter.
    LockPending "lock_pending",
    /// Acquisitions through a queue node.
    LockSlowpath "lock_slowpath",
    /// Of these, from the second level of nesting.
    UseNode2 "lock_use_node2",
    /// From the third level.
    UseNode3 "lock_use_node3",
    /// From the fourth level.
    UseNode4 "lock_use_node4",
    /// Acquisitions from a fifth level of nesting, which has no node.
    NoNode "lock_no_node",
    /// Heads that registered again after a theft.
    Rearm "pv_rearm",
    /// Waits ended by the platform's deadline. Counted by the platform; 0 in a healthy run.
    PollTimeout "pv_poll_timeout",
    /// Kicks before the unlock, to hide the wake-up.
    KickAhead "pv_kick_ahead",
}

/// The counts of one CPU.
pub(crate) struct Counts {
    #[cfg(feature = "counters")]
    pub(crate) values: [AtomicU64; Counter::COUNT],
    /// When this CPU was kicked last, by the kicker's clock; 0 = not since the last wait.
    #[cfg(feature = "counters")]
    pub(crate) kicked_at: AtomicU64,
}

impl Counts {
    const_fn! {
        pub(crate) fn new() -> Self {
            Self {
                #[cfg(feature = "counters")]
                values: [const { AtomicU64::new(0) }; Counter::COUNT],
                #[cfg(feature = "counters")]
                kicked_at: AtomicU64::new(0),
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_counters_have_the_names_of_the_field() {
        let names = "pv_kick_unlock pv_kick_wake pv_latency_kick pv_latency_wake pv_lock_stealing \
                     pv_spurious_wakeup pv_wait_again pv_wait_head pv_wait_node \
                     pv_hash_hops lock_pending lock_slowpath lock_use_node2 lock_use_node3 \
                     lock_use_node4 lock_no_node pv_rearm pv_poll_timeout pv_kick_ahead";
        let named: Vec<&str> = names.split(' ').collect();
        assert_eq!(Counter::ALL.map(Counter::name).as_slice(), named);
        assert_eq!(Counter::ALL.map(|counter| counter as usize), std::array::from_fn(|i| i));
    }
}
