//! The table of sleeping queue heads: lock -> the waiter to kick.
//!
//! Owns the entries. Never kicks, never touches the lock word: the order of entry and word is the
//! business of [`pv`](crate::pv).
//!
//! A lock owns at most one entry at a time, and a CPU waits on at most four locks, so a table of
//! four entries a CPU is never full.

use crate::sync::{AtomicU32, AtomicUsize, Ordering::Relaxed, const_fn, ord};
use crate::word::Tail;

/// Entries in a cache line.
const WAYS: usize = 4;
/// The least number of lines: 256 entries.
#[cfg(not(loom))]
const MIN_LINES: usize = 64;
/// The model checker pays for every entry it makes; a model has two or three CPUs.
#[cfg(loom)]
const MIN_LINES: usize = 1;

struct Entry {
    /// Address of the lock; 0 = free.
    lock: AtomicUsize,
    /// Who sleeps: the [`Tail`] of its node.
    sleeper: AtomicU32,
}

#[repr(align(64))]
struct Line([Entry; WAYS]);

impl Line {
    const_fn! {
        fn new() -> Self {
            Self([Entry::new(), Entry::new(), Entry::new(), Entry::new()])
        }
    }
}

impl Entry {
    const_fn! {
        fn new() -> Self {
            Self { lock: AtomicUsize::new(0), sleeper: AtomicU32::new(0) }
        }
    }
}

/// Memory for a [`HashTable`] of `LINES` cache lines, four entries each.
///
/// `LINES` is a power of two, at least 64, and at least the number of CPUs.
pub struct HashStorage<const LINES: usize>([Line; LINES]);

impl<const LINES: usize> HashStorage<LINES> {
    #[cfg(not(loom))]
    /// Empty lines.
    pub const fn new() -> Self {
        const { assert!(LINES.is_power_of_two(), "the number of lines must be a power of two") };
        const { assert!(LINES >= MIN_LINES, "a hash table has at least 64 lines") };
        Self([const { Line::new() }; LINES])
    }

    #[cfg(loom)]
    /// Empty lines.
    pub fn new() -> Self {
        assert!(LINES.is_power_of_two() && LINES >= MIN_LINES);
        Self(std::array::from_fn(|_| Line::new()))
    }
}

impl<const LINES: usize> Default for HashStorage<LINES> {
    fn default() -> Self {
        Self::new()
    }
}

/// The table, over storage that the kernel places.
///
/// ```
/// # #[cfg(not(loom))] {
/// use pvlock::{HashStorage, HashTable};
///
/// static STORAGE: HashStorage<64> = HashStorage::new();
/// static TABLE: HashTable = HashTable::new(&STORAGE);
/// assert!(TABLE.is_empty());
/// # }
/// ```
pub struct HashTable {
    lines: &'static [Line],
    /// Every (lock, sleeper) pair in the table, kept outside the model's memory, to check the rule
    /// of one entry a lock at the moment it breaks.
    #[cfg(loom)]
    truth: std::sync::Mutex<std::vec::Vec<(usize, Tail)>>,
    /// Changes of `truth`, where a model watches them.
    #[cfg(loom)]
    changes: AtomicU32,
}

impl HashTable {
    const_fn! {
        /// A table over `storage`, which no other table uses.
        pub fn new<const LINES: usize>(storage: &'static HashStorage<LINES>) -> Self {
            Self {
                lines: &storage.0,
                #[cfg(loom)]
                truth: std::sync::Mutex::new(std::vec::Vec::new()),
                #[cfg(loom)]
                changes: AtomicU32::new(0),
            }
        }
    }

    /// How many entries there is room for.
    pub fn capacity(&self) -> usize {
        self.lines.len() * WAYS
    }

    /// Whether no head sleeps. A snapshot.
    pub fn is_empty(&self) -> bool {
        self.entries().next().is_none()
    }

    /// (address of the lock, CPU) of every entry. A snapshot.
    pub fn entries(&self) -> impl Iterator<Item = (usize, usize)> {
        self.lines.iter().flat_map(|line| &line.0).filter_map(|entry| {
            let lock = entry.lock.load(Relaxed);
            // An entry that is being made has the sleeper of its last use, or none.
            let sleeper = Tail::from_bits(entry.sleeper.load(Relaxed) as u16);
            sleeper.filter(|_| lock != 0).map(|sleeper| (lock, sleeper.cpu()))
        })
    }

    /// The lines from the home line of `lock` on, once around, with how many were looked at before.
    fn probe(&self, lock: usize) -> impl Iterator<Item = (usize, &Line)> {
        let mask = self.lines.len() - 1;
        // Fibonacci hashing: the high bits of the product depend on all bits of the address.
        let home = (lock as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        (0..self.lines.len()).map(move |hop| (hop, &self.lines[(home as usize + hop) & mask]))
    }

    /// Enters `lock` -> `sleeper` and returns the lines looked at beyond the first.
    ///
    /// # Panics
    ///
    /// When the table is full, which the rule of one entry a lock excludes if it has a line a CPU.
    pub(crate) fn insert(&self, lock: usize, sleeper: Tail) -> usize {
        self.check_single(lock, sleeper);
        for (hop, line) in self.probe(lock) {
            for entry in &line.0 {
                // Acquire, with the release in `remove`: the last reader of `sleeper` is done with
                // it. A plain look first spares a locked instruction on entries that are taken.
                if entry.lock.load(Relaxed) == 0
                    && entry
                        .lock
                        .compare_exchange(0, lock, ord!("entry-claim", Acquire), Relaxed)
                        .is_ok()
                {
                    // Relaxed: the slow byte, set after this, publishes the entry to the unlocker.
                    entry.sleeper.store(sleeper.bits().into(), Relaxed);
                    return hop;
                }
            }
        }
        panic!("pvlock: the table of {} sleeping heads is full", self.capacity());
    }

    /// Takes the entry of `lock` out: who sleeps, and the lines looked at beyond the first.
    ///
    /// # Panics
    ///
    /// When there is none: the slow byte was set without an entry.
    pub(crate) fn remove(&self, lock: usize) -> (Tail, usize) {
        for (hop, line) in self.probe(lock) {
            for entry in &line.0 {
                if entry.lock.load(Relaxed) == lock {
                    let sleeper = Tail::from_bits(entry.sleeper.load(Relaxed) as u16)
                        .expect("an entry names who sleeps");
                    // Before the entry is free for others, and before the lock is.
                    self.forget(lock, sleeper);
                    // Release, with the claim in `insert`: the read of `sleeper` comes first.
                    entry.lock.store(0, ord!("entry-free", Release));
                    return (sleeper, hop);
                }
            }
        }
        panic!("pvlock: lock {lock:#x} is marked slow, but no sleeping head is entered for it");
    }

    /// In debug builds: no entry for `lock` yet.
    #[cfg(not(loom))]
    fn check_single(&self, lock: usize, sleeper: Tail) {
        let other = || self.entries().find(|&(entered, _)| entered == lock);
        if let Some((_, other)) = cfg!(debug_assertions).then(other).flatten() {
            let cpu = sleeper.cpu();
            panic!("pvlock: two entries for lock {lock:#x}: cpu {other} and cpu {cpu}");
        }
    }

    /// A change of `truth` is about to come.
    #[cfg(loom)]
    fn changes(&self) {
        if crate::model::table_is_watched() {
            self.changes.fetch_add(1, Relaxed);
        }
    }

    #[cfg(loom)]
    fn check_single(&self, lock: usize, sleeper: Tail) {
        self.changes();
        let mut truth = self.truth.lock().expect("the model runs one thread at a time");
        if let Some(&(_, other)) = truth.iter().find(|&&(entered, _)| entered == lock) {
            drop(truth);
            let (other, cpu) = (other.cpu(), sleeper.cpu());
            panic!("pvlock: two entries for one lock: cpu {other} and cpu {cpu}");
        }
        truth.push((lock, sleeper));
    }

    #[cfg(not(loom))]
    fn forget(&self, _lock: usize, _sleeper: Tail) {}

    #[cfg(loom)]
    fn forget(&self, lock: usize, sleeper: Tail) {
        self.changes();
        let mut truth = self.truth.lock().expect("the model runs one thread at a time");
        truth.retain(|&entry| entry != (lock, sleeper));
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    static STORAGE: HashStorage<64> = HashStorage::new();

    #[test]
    fn holds_as_many_entries_as_it_says_and_finds_each() {
        static STORAGE: HashStorage<64> = HashStorage::new();
        let table = HashTable::new(&STORAGE);
        for lock in 1..=table.capacity() {
            table.insert(lock * 4, Tail::new(lock, lock % 4));
        }
        assert_eq!(table.entries().count(), 256);
        assert!(!table.is_empty());
        for lock in (1..=table.capacity()).rev() {
            assert_eq!(table.remove(lock * 4).0, Tail::new(lock, lock % 4));
        }
        assert!(table.is_empty());
    }

    /// With one sleeper on each CPU of a table of the prescribed size, an unlock looks at one line,
    /// whatever the distance between the locks.
    #[test]
    fn the_home_line_is_enough_in_the_common_case() {
        static STORAGE: HashStorage<64> = HashStorage::new();
        let table = HashTable::new(&STORAGE);
        let mut hops = 0;
        let strides = [4, 16, 64, 128, 192, 4096, 65_536];
        for stride in strides {
            let locks = (1..=64).map(|lock| 0x1000_0000 + lock * stride);
            hops += locks.clone().map(|lock| table.insert(lock, Tail::new(0, 0))).sum::<usize>();
            hops += locks.map(|lock| table.remove(lock).1).sum::<usize>();
        }
        // Of as many look-ups and inserts as this, no more than one in fifty leaves its line.
        assert!(hops * 50 <= strides.len() * 128, "{hops} hops");
        assert!(table.is_empty());
    }

    #[test]
    #[should_panic(expected = "no sleeping head is entered")]
    fn a_missing_entry_is_named() {
        HashTable::new(&STORAGE).remove(4);
    }

    #[test]
    #[should_panic(expected = "two entries for lock 0x40: cpu 1 and cpu 2")]
    #[cfg(debug_assertions)]
    fn a_second_entry_is_named() {
        static STORAGE: HashStorage<64> = HashStorage::new();
        let table = HashTable::new(&STORAGE);
        table.insert(0x40, Tail::new(1, 0));
        table.insert(0x40, Tail::new(2, 0));
    }
}
