//! The lock word: four bytes, and every step that may be taken on them.
//!
//! Owns the layout, the states and the atomic operations. Never decides which step to take: that is
//! [`native`](crate::native) and [`pv`](crate::pv).
//!
//! ```text
//!  31        18 17 16 15      8 7       0
//! +------------+-----+---------+---------+
//! | tail cpu+1 | idx | pending | locked  |
//! +------------+-----+---------+---------+
//! ```
//!
//! | tail | pending | locked | meaning |
//! |------|---------|--------|---------|
//! | 0    | 0       | 0      | free |
//! | 0    | 0       | 1      | held, nobody waits |
//! | 0    | 1       | 1      | native: held, one waiter spins on the word and needs no node |
//! | 0    | 1       | 0      | native: being handed to that waiter; nobody else may take it |
//! | n    | 1       | 0 or 1 | native: as above, and a queue stands behind that waiter |
//! | n    | 0       | 0      | free for the head; where newcomers steal, for them too |
//! | n    | 0       | 1      | held, and queued for |
//! | n    | 0       | 3      | PV: held, the head's entry is in the hash table: the unlock kicks |
//! | n    | 1       | 0      | PV: reserved: free for the head alone |
//! | n    | 1       | 3 or 1 | PV: held by the head, which is about to clear pending |
//!
//! `n` names the last node in the queue. In native mode the locked byte may also be 1 for a moment
//! while nobody owns the lock: a newcomer has it, finds that somebody waits, and gives it back.
//!
//! `steps.rs` says which transitions there are and what each means. Most are on a part of the word,
//! one byte or two. Rust's memory model has no atomic accesses of mixed size, so on x86-64 those
//! are inline assembly, in `x86_64.rs`; elsewhere, and under the model checkers and Miri,
//! `portable.rs` does the same by 32-bit operations. A build with `--cfg pvlock_portable_word` has
//! that one on x86-64 too: sanitizers do not see into assembly.

// Unit tests run both on x86-64.
#[cfg(any(test, not(target_arch = "x86_64"), loom, shuttle, miri, pvlock_portable_word))]
mod portable;
mod steps;
#[cfg(all(target_arch = "x86_64", not(any(loom, shuttle, miri, pvlock_portable_word))))]
mod x86_64;

#[cfg(any(not(target_arch = "x86_64"), loom, shuttle, miri, pvlock_portable_word))]
pub(crate) use portable::Word;
pub(crate) use steps::Steps;
#[cfg(all(target_arch = "x86_64", not(any(loom, shuttle, miri, pvlock_portable_word))))]
pub(crate) use x86_64::Word;

/// The locked byte of a free lock.
pub(crate) const FREE: u8 = 0;
/// The locked byte of a held lock whose unlock wakes nobody.
pub(crate) const LOCKED: u8 = 1;
/// The locked byte of a held lock whose sleeping head is in the hash table.
pub(crate) const SLOW: u8 = 3;

/// The pending byte, in place.
const PENDING: u32 = 1 << 8;
/// Bits of the locked byte.
const LOCKED_MASK: u32 = 0xff;
/// Where the tail begins.
const TAIL_SHIFT: u32 = 16;
/// Levels of nesting that own a queue node.
pub(crate) const LEVELS: usize = 4;
/// CPUs the tail field can name.
pub(crate) const MAX_CPUS: usize = (1 << 14) - 1;

/// Names one queue node: a CPU and a nesting level. Never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tail(u16);

impl Tail {
    /// The name of node `level` of `cpu`. `cpu` is less than [`MAX_CPUS`], `level` than [`LEVELS`].
    pub(crate) fn new(cpu: usize, level: usize) -> Self {
        debug_assert!(cpu < MAX_CPUS && level < LEVELS);
        Self((((cpu + 1) << 2) | level) as u16)
    }

    pub(crate) fn bits(self) -> u16 {
        self.0
    }

    pub(crate) fn from_bits(bits: u16) -> Option<Self> {
        (bits != 0).then_some(Self(bits))
    }

    pub(crate) fn cpu(self) -> usize {
        usize::from(self.0 >> 2) - 1
    }

    pub(crate) fn level(self) -> usize {
        usize::from(self.0 & 3)
    }
}

/// The word at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot(u32);

impl Snapshot {
    pub(crate) fn locked(self) -> u8 {
        (self.0 & LOCKED_MASK) as u8
    }

    pub(crate) fn pending(self) -> bool {
        self.0 & PENDING != 0
    }

    pub(crate) fn tail(self) -> Option<Tail> {
        Tail::from_bits((self.0 >> TAIL_SHIFT) as u16)
    }

    #[inline]
    pub(crate) fn is_free(self) -> bool {
        self.0 == 0
    }

    /// Somebody is pending, or the lock is reserved, or there is a queue.
    #[inline]
    pub(crate) fn is_waited_for(self) -> bool {
        self.pending() || self.tail().is_some()
    }

    /// Free, and not reserved; whether a queue stands before it or not.
    #[inline]
    pub(crate) fn is_free_for_newcomers(self) -> bool {
        self.0 & (PENDING | LOCKED_MASK) == 0
    }

    /// Being handed to the pending waiter, with no queue behind it.
    #[inline]
    pub(crate) fn is_pending_only(self) -> bool {
        self.0 == PENDING
    }
}

impl core::fmt::Display for Snapshot {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let locked = match self.locked() {
            FREE => "free",
            LOCKED => "locked",
            SLOW => "slow",
            _ => "corrupt",
        };
        write!(f, "{:#010x} ({locked}", self.0)?;
        if self.pending() {
            f.write_str(", pending")?;
        }
        match self.tail() {
            Some(tail) => write!(f, ", tail cpu {} level {})", tail.cpu(), tail.level()),
            None => f.write_str(", no queue)"),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_tail_names_its_cpu_and_level() {
        for cpu in [0, 1, 255, MAX_CPUS - 1] {
            for level in 0..LEVELS {
                let tail = Tail::new(cpu, level);
                assert_eq!((tail.cpu(), tail.level()), (cpu, level));
            }
        }
    }

    #[test]
    fn a_snapshot_has_three_fields() {
        for (word, locked, pending, tail, free, pending_only) in [
            (0, FREE, false, None, true, false),
            (1, LOCKED, false, None, false, false),
            (0x100, FREE, true, None, false, true),
            (0x101, LOCKED, true, None, false, false),
            (0x000d_0000, FREE, false, Some(Tail::new(2, 1)), false, false),
            (0x000d_0003, SLOW, false, Some(Tail::new(2, 1)), false, false),
            (0x000d_0100, FREE, true, Some(Tail::new(2, 1)), false, false),
        ] {
            let seen = Snapshot(word);
            assert_eq!((seen.locked(), seen.pending(), seen.tail()), (locked, pending, tail));
            assert_eq!(seen.is_waited_for(), pending || tail.is_some());
            assert_eq!((seen.is_free(), seen.is_pending_only()), (free, pending_only));
            assert_eq!(seen.is_free_for_newcomers(), locked == FREE && !pending);
        }
    }

    /// Every step on one implementation of the word.
    macro_rules! each_step_changes_its_own_field_only {
        ($name:ident, $word:ty) => {
            #[test]
            fn $name() {
                let word = <$word>::new();
                assert_eq!(word.try_acquire(), Ok(()));
                assert_eq!(word.try_release_unqueued(), Ok(()));
                assert_eq!(word.try_release_unqueued(), Err(Snapshot(0)));
                assert!(word.try_acquire_seen_free() && !word.try_acquire_seen_free());
                assert!(word.is_owned());
                assert_eq!(word.try_acquire(), Err(Snapshot(1)));
                assert_eq!(word.load_acquire().0, 1);
                assert_eq!(word.exchange_pending(), Snapshot(1));
                assert_eq!(word.exchange_pending(), Snapshot(0x101));
                assert_eq!(word.load().0, 0x101);
                assert!(!word.try_take_pending(), "it has an owner");
                word.release();
                assert_eq!(word.load().0, 0x100);
                assert!(!word.try_acquire_byte_seen_free());
                assert_eq!(word.try_acquire_byte(), Err(Snapshot(0x100)), "given back");
                assert!(word.try_take_pending() && !word.try_take_pending());
                assert_eq!(word.load().0, 1);
                assert_eq!(word.try_acquire_byte(), Err(Snapshot(1)));
                word.release();
                assert!(!word.try_take_pending(), "nobody is pending");
                assert_eq!(word.try_acquire_byte(), Ok(()));
                assert!(word.is_owned() && !word.try_acquire_byte_seen_free());
                word.release();
                assert!(word.try_acquire_byte_seen_free());
                assert_eq!(word.load().0, 1);

                let tail = Tail::new(2, 1);
                assert!(!word.is_waited_for(), "held, and nobody waits");
                assert_eq!(word.exchange_tail(tail), None);
                assert!(word.is_waited_for());
                assert_eq!(word.load().0, 0x000d_0001);
                assert_eq!(word.exchange_tail(Tail::new(3, 0)), Some(tail));
                assert!(!word.try_clear_tail(tail), "another node is the tail");
                assert_eq!(word.exchange_slow(), LOCKED);
                assert_eq!(word.load().0, 0x0010_0003);
                assert_eq!(word.try_release(), Err(SLOW));
                word.slow_to_locked();
                assert_eq!(word.try_release(), Ok(()));
                assert_eq!(word.try_release(), Err(FREE));
                assert_eq!(word.load().0, 0x0010_0000);

                assert!(!word.is_owned());
                assert_eq!(word.try_release_unqueued(), Err(Snapshot(0x0010_0000)));
                assert!(!word.try_acquire_byte_seen_free());
                assert_eq!(word.try_acquire_byte(), Err(Snapshot(0x0010_0000)), "given back");

                assert!(word.try_steal() && !word.try_steal());
                assert!(!word.try_take_as_head());
                word.release();
                assert!(word.try_take_as_head());
                assert_eq!(word.load().0, 0x0010_0001);
                assert_eq!(word.try_release_reserved(), Ok(()));
                assert_eq!(word.load().0, 0x0010_0100, "free, for the head");
                assert!(!word.try_steal());
                assert_eq!(word.try_release_reserved(), Err(FREE));
                assert!(word.try_take_as_head());
                assert_eq!(word.load().0, 0x0010_0001);
                word.set_slow();
                assert_eq!(word.try_release_reserved(), Err(SLOW));
                assert_eq!(word.load().0, 0x0010_0003);
                word.release_reserved();
                assert_eq!(word.load().0, 0x0010_0100);
                assert_eq!(word.exchange_slow(), FREE);
                word.slow_to_locked();
                assert_eq!(word.load().0, 0x0010_0101);
                word.clear_pending();
                assert!(word.try_clear_tail(Tail::new(3, 0)));
                assert_eq!(word.load().0, 1);
                word.release();
                word.set_locked();
                assert_eq!(word.load().0, 1);

                word.release();
                word.exchange_tail(tail);
                let alone = word.load();
                word.exchange_tail(Tail::new(3, 0));
                assert!(!word.try_take_alone(alone), "somebody stands behind");
                assert_eq!(word.exchange_pending().locked(), FREE);
                assert!(word.try_take_alone(word.load()));
                assert_eq!(word.load().0, 1);
            }
        };
    }

    each_step_changes_its_own_field_only!(each_portable_step_changes_its_own_field, portable::Word);
    #[cfg(all(target_arch = "x86_64", not(any(shuttle, miri, pvlock_portable_word))))]
    each_step_changes_its_own_field_only!(each_x86_64_step_changes_its_own_field, x86_64::Word);
}
