//! What a kernel can get wrong, and what it is told.

use pvlock::{CpuNodes, HashStorage, HashTable, KickAtUnlock, Platform, RawPvLock, RawPvRwLock};

/// A machine of `MAX` CPUs with a table of 256 entries, seen from CPU `NUMBER`.
struct Machine<const MAX: usize, const NUMBER: usize>;

static NODES: [CpuNodes; 128] = [const { CpuNodes::new() }; 128];
static STORAGE: HashStorage<64> = HashStorage::new();
static TABLE: HashTable = HashTable::new(&STORAGE);

// SAFETY: one thread and no interrupts; the tests end before anything waits.
unsafe impl<const MAX: usize, const NUMBER: usize> Platform for Machine<MAX, NUMBER> {
    const MAX_CPUS: usize = MAX;

    fn current_cpu() -> usize {
        NUMBER
    }

    fn nodes(cpu: usize) -> &'static CpuNodes {
        &NODES[cpu]
    }

    fn hash() -> &'static HashTable {
        &TABLE
    }

    fn wait(_still_blocked: impl Fn() -> bool) {}

    fn kick(_cpu: usize) {}

    fn now() -> u64 {
        0
    }

    // The second `lock` of these tests would wait for the first, if they got that far.
    fn report(_trouble: &pvlock::Trouble) {}
}

#[test]
#[should_panic(expected = "cpu 7 is beyond Platform::MAX_CPUS = 4")]
fn a_cpu_beyond_the_maximum_is_named() {
    let lock = RawPvLock::<Machine<4, 7>, KickAtUnlock>::new();
    lock.lock();
    lock.lock();
}

#[test]
#[should_panic(expected = "Platform::hash() has 256 entries, 65 CPUs need 4 each")]
fn a_table_too_small_is_named() {
    let lock = RawPvLock::<Machine<65, 0>, KickAtUnlock>::new();
    lock.lock();
    lock.lock();
}

/// A readers-writer lock says the same: its head may sleep without the queue having been asked.
#[test]
#[should_panic(expected = "cpu 7 is beyond Platform::MAX_CPUS = 4")]
fn a_cpu_beyond_the_maximum_is_named_by_a_rwlock_too() {
    let lock = RawPvRwLock::<Machine<4, 7>, KickAtUnlock>::new();
    lock.lock_exclusive();
    lock.lock_shared();
}

#[test]
#[should_panic(expected = "Platform::hash() has 256 entries, 65 CPUs need 4 each")]
fn a_table_too_small_is_named_by_a_rwlock_too() {
    let lock = RawPvRwLock::<Machine<65, 0>, KickAtUnlock>::new();
    lock.lock_shared();
    lock.lock_exclusive();
}

/// A lock may be taken and released before the kernel knows who it is, while nobody waits.
#[test]
fn an_uncontended_lock_needs_no_platform() {
    let lock = RawPvLock::<Machine<1, 99>, KickAtUnlock>::new();
    lock.lock();
    // SAFETY: taken just now.
    unsafe { lock.unlock() };
    assert!(lock.try_lock());
}
