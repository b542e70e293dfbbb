//! A readers-writer lock on top of the queue lock.
//!
//! Owns the word that counts readers, and the sleep of the one waiter who stands at its head. The
//! queue behind that one is a [`RawPvLock`], whose owner the head is.

use core::marker::PhantomData;

use crate::checker::{self, Checked, How};
use crate::counters::{count, timed_kick, timed_wait};
use crate::counts::Counter;
use crate::policy::{Spin, Stage};
use crate::sync::{AtomicU32, Ordering::Relaxed, const_fn, ord, step};
use crate::word::{LEVELS, Tail};
use crate::{CpuNodes, Mode, Platform, Policy, RawPvLock, pv, queue};

/// Many readers or one writer: eight bytes, and waiters that sleep in the hypervisor.
///
/// Their order is that of the queue lock behind the word: with a strict policy such as
/// [`KickAtUnlock`](crate::KickAtUnlock) first come, first served; with
/// [`Adaptive`](crate::Adaptive) running newcomers may pass for as long as its horizon.
///
/// ```text
///  31          4   3   2        1         0
/// +-------------+-------+---------+--------+
/// |   readers   | sleep | waiting | writer |
/// +-------------+-------+---------+--------+
/// ```
///
/// | field | changed by | meaning |
/// |-------|------------|---------|
/// | writer | the writer | held for writing |
/// | readers | each reader | held for reading, as often |
/// | waiting | the head | somebody waits: newcomers queue behind, readers too |
/// | sleep 1 | the head | it is in the hash table, and sleeps or is about to |
/// | sleep 3 | the last owner | it is taking the head's entry out |
///
/// Who finds the lock taken, or somebody waiting, queues on the inner lock. Its owner, the head,
/// sets `waiting`, waits for the word alone, takes it, and gives the inner lock to the next. So a
/// writer is not overtaken by readers that came after it, and readers in a row enter one after the
/// other without waiting for each other to leave.
///
/// A reader, or a waiter, that is interrupted by a handler which reads the same lock would wait for
/// itself if a writer came in between. Such a handler takes the lock by `read_recursive`, which
/// passes everybody that waits.
#[repr(C)]
pub struct RawPvRwLock<P, K> {
    word: AtomicU32,
    queue: RawPvLock<P, K>,
    _types: PhantomData<fn() -> (P, K)>,
}

const WRITER: u32 = 1 << 0;
const WAITING: u32 = 1 << 1;
const ASLEEP: u32 = 1 << 2;
/// The head's entry is being taken out of the hash table, by the owner that is about to leave.
const WAKING: u32 = 3 << 2;
const SLEEP: u32 = 3 << 2;
const READER: u32 = 1 << 4;
/// The counted readers.
const READERS: u32 = !(READER - 1);
/// More readers than any machine has: guards are forgotten somewhere. Nobody begins to read then,
/// or the count would begin anew, beside those who read. Contexts that look at the same time may
/// add one more each; they are fewer than there is room for.
const CROWDED: u32 = 1 << 31;

/// What the head of the queue wants.
#[derive(Clone, Copy)]
enum Want {
    Read,
    Write,
}

impl Want {
    /// What keeps it out.
    fn blocked_by(self) -> u32 {
        match self {
            Self::Read => WRITER,
            Self::Write => WRITER | READERS,
        }
    }

    /// The word when it is in, and waits no more.
    fn taken(self, seen: u32) -> u32 {
        let rest = seen & !(WAITING | SLEEP);
        match self {
            Self::Read => rest + READER,
            Self::Write => rest | WRITER,
        }
    }
}

impl<P: Platform, K: Policy> RawPvRwLock<P, K> {
    const_fn! {
        /// A free lock.
        pub fn new() -> Self {
            Self { word: AtomicU32::new(0), queue: RawPvLock::new(), _types: PhantomData }
        }
    }

    /// Takes the lock for reading.
    ///
    /// # Panics
    ///
    /// As [`RawPvLock::lock`]; and when 134,217,728 readers hold it, which is what forgotten guards
    /// come to.
    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    pub fn lock_shared(&self) {
        let wanted = checker::want::<P>(self.key(), How::Shared);
        if !self.try_add_reader(WRITER | WAITING | CROWDED) {
            self.lock_slow(Want::Read);
        }
        checker::got::<P>(wanted);
    }

    /// Takes the lock for reading, past whoever waits for it: for contexts that may hold it for
    /// reading already, and for handlers that may have interrupted one that waits for it.
    ///
    /// Waits for the writer that is in, and for nobody else: it is counted as a reader at once, and
    /// does not queue, since the context below may stand in the queue. It spins, in every mode.
    ///
    /// # Panics
    ///
    /// When 134,217,728 readers hold the lock.
    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    pub fn lock_shared_recursive(&self) {
        let wanted = checker::want::<P>(self.key(), How::Shared);
        // Acquire, with the last writer's release. The next one waits for us.
        let seen = self.word.fetch_add(READER, ord!("rw-recursive", Acquire));
        if seen & (WRITER | CROWDED) != 0 {
            self.read_slow(seen);
        }
        checker::got::<P>(wanted);
    }

    /// Counted as a reader already, of a word that was as `seen`.
    #[cold]
    #[inline(never)]
    fn read_slow(&self, seen: u32) {
        if seen & CROWDED != 0 {
            // Not the last one: nobody is to be woken.
            self.word.fetch_sub(READER, Relaxed);
            too_many_readers();
        }
        step!(P::current_cpu(), "rw: reads after the writer");
        let mut turn = 0_u32;
        // Acquire, with the writer's release.
        while self.word.load(ord!("rw-after-writer", Acquire)) & WRITER != 0 {
            Checked::<P>::relax(turn);
            turn = turn.saturating_add(1);
        }
    }

    /// Takes the lock for writing.
    ///
    /// # Panics
    ///
    /// As [`RawPvLock::lock`].
    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    pub fn lock_exclusive(&self) {
        let wanted = checker::want::<P>(self.key(), How::Exclusive);
        if !self.try_add_writer() {
            self.lock_slow(Want::Write);
        }
        checker::got::<P>(wanted);
    }

    /// Takes the lock for reading if there is no writer, nobody waits, and there are less than
    /// 134,217,728 readers.
    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    pub fn try_lock_shared(&self) -> bool {
        self.noted(self.try_add_reader(WRITER | WAITING | CROWDED), How::Shared)
    }

    /// Takes the lock for reading if there is no writer, past whoever waits.
    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    pub fn try_lock_shared_recursive(&self) -> bool {
        self.noted(self.try_add_reader(WRITER | CROWDED), How::Shared)
    }

    /// Tells the checker of a try: whether it succeeded.
    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    fn noted(&self, taken: bool, how: How) -> bool {
        if taken {
            checker::got::<P>(checker::want::<P>(self.key(), how));
        }
        taken
    }

    #[inline]
    fn try_add_reader(&self, unless: u32) -> bool {
        let mut seen = self.word.load(Relaxed);
        while seen & unless == 0 {
            // Acquire, with the last writer's release.
            let acquire = ord!("rw-read", Acquire);
            match self.word.compare_exchange_weak(seen, seen + READER, acquire, Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        false
    }

    /// Takes the lock for writing if it is free and nobody waits.
    #[inline]
    #[cfg_attr(feature = "checker", track_caller)]
    pub fn try_lock_exclusive(&self) -> bool {
        self.noted(self.try_add_writer(), How::Exclusive)
    }

    #[inline]
    fn try_add_writer(&self) -> bool {
        // The look first keeps a polled lock's cache line shared. Acquire, with all owners'
        // releases.
        self.word.load(Relaxed) == 0
            && self.word.compare_exchange(0, WRITER, ord!("rw-write", Acquire), Relaxed).is_ok()
    }

    /// Ends one reading.
    ///
    /// # Safety
    ///
    /// The calling context holds the lock for reading.
    #[inline]
    pub unsafe fn unlock_shared(&self) {
        checker::leave::<P>(self.key());
        self.leave(READER, 0);
    }

    /// Ends the writing.
    ///
    /// # Safety
    ///
    /// The calling context holds the lock for writing.
    #[inline]
    pub unsafe fn unlock_exclusive(&self) {
        checker::leave::<P>(self.key());
        // Release, with the next owner's acquire.
        let release = ord!("rw-unlock", Release);
        if self.word.compare_exchange(WRITER, 0, release, Relaxed).is_err() {
            self.leave(WRITER, 0);
        }
    }

    /// Goes on reading what was written; readers that wait may come in.
    ///
    /// # Safety
    ///
    /// The calling context holds the lock for writing.
    #[inline]
    pub unsafe fn downgrade(&self) {
        checker::share::<P>(self.key());
        self.leave(WRITER, READER);
    }

    /// Whether anybody holds the lock. A snapshot.
    #[inline]
    pub fn is_locked(&self) -> bool {
        self.word.load(Relaxed) & (WRITER | READERS) != 0
    }

    /// Whether a writer holds the lock. A snapshot.
    #[inline]
    pub fn is_locked_exclusive(&self) -> bool {
        self.word.load(Relaxed) & WRITER != 0
    }

    /// What the hash table and the checker know this lock by.
    #[inline]
    fn key(&self) -> usize {
        core::ptr::from_ref(&self.word).addr()
    }

    /// Exchanges `own`, which the caller holds, for `instead`, and wakes the head if it may go on
    /// then.
    #[inline]
    fn leave(&self, own: u32, instead: u32) {
        let mut sleeper = None;
        let mut seen = self.word.load(Relaxed);
        loop {
            // A reader that others read beside leaves the head asleep: the last one wakes it.
            let is_last = own == WRITER || seen & READERS == READER;
            if is_last && seen & SLEEP == ASLEEP {
                // Before the release: after it the lock's memory may be gone (R5), and the head may
                // have gone on and be back. Acquire, with `rw-asleep`: who sees it sleep sees the
                // entry.
                let acquire = ord!("rw-waking", Acquire);
                match self.word.compare_exchange(seen, seen | WAKING, acquire, Relaxed) {
                    Ok(_) => {
                        P::nodes(P::current_cpu()).begin_kick();
                        sleeper = Some(P::hash().remove(self.key()).0.cpu());
                        step!(P::current_cpu(), "rw: takes the head's entry out");
                        seen |= WAKING;
                    }
                    Err(now) => seen = now,
                }
                continue;
            }
            let mut left = seen - own + instead;
            if sleeper.is_some() {
                left &= !SLEEP;
            }
            // Release, with the next owner's acquire.
            match self.word.compare_exchange_weak(seen, left, ord!("rw-unlock", Release), Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        if let Some(cpu) = sleeper {
            step!(P::current_cpu(), "rw: left, kicks cpu {cpu}");
            timed_kick::<P>(P::current_cpu(), cpu, Counter::KickUnlock);
            P::nodes(P::current_cpu()).end_kick();
        }
    }

    #[cold]
    #[inline(never)]
    fn lock_slow(&self, want: Want) {
        /// A policy panics while its waiter is the head: the next one has to be, and says so in the
        /// word by itself. The policy is asked by a head that is not in the hash table. Never
        /// dropped otherwise.
        struct Unwinding<'a, P: Platform, K: Policy>(&'a RawPvRwLock<P, K>);

        impl<P: Platform, K: Policy> Drop for Unwinding<'_, P, K> {
            fn drop(&mut self) {
                self.0.word.fetch_and(!WAITING, Relaxed);
                self.0.queue.release();
            }
        }

        // Before anything is done.
        queue::current_cpu::<P>();
        if P::mode() == Mode::Pv {
            pv::check_table::<P>();
        }
        if matches!(want, Want::Read) && self.word.load(Relaxed) & CROWDED != 0 {
            too_many_readers();
        }
        checker::blocked::<P>(self.key());
        self.queue.acquire();
        let unwinding = Unwinding(self);
        // The head from here on. Relaxed: it orders nothing, it keeps newcomers out.
        self.word.fetch_or(WAITING, Relaxed);
        self.wait_as_head(want);
        core::mem::forget(unwinding);
        self.queue.release();
    }

    /// Returns when the lock is taken as wanted.
    fn wait_as_head(&self, want: Want) {
        let cpu = P::current_cpu();
        let nodes = P::nodes(cpu);
        let mut spin = Spin::new(Stage::Woken);
        // The hash table has room for as many sleepers of a CPU as it has nodes: to sleep is to
        // claim a node.
        let mut claim = Level { nodes, claimed: None };
        loop {
            let seen = self.word.load(Relaxed);
            if seen & want.blocked_by() == 0 && seen & SLEEP != WAKING {
                // Acquire, with the release of every owner before.
                let acquire = ord!("rw-head", Acquire);
                if self.word.compare_exchange(seen, want.taken(seen), acquire, Relaxed).is_ok() {
                    if seen & SLEEP == ASLEEP {
                        // Nobody else takes it out: that was to be said in the word first.
                        P::hash().remove(self.key());
                    }
                    break;
                }
            } else if seen & SLEEP != 0 {
                // In the table, or being taken out, and then the kick is still to come.
                step!(cpu, "rw: the head sleeps");
                count::<P>(cpu, Counter::WaitHead);
                timed_wait::<Checked<P>>(cpu, || self.word.load(Relaxed) & SLEEP != 0);
            } else if P::mode() != Mode::Pv || K::keep_spinning::<P>(&mut spin) {
                Checked::<P>::relax(spin.turn());
                spin.advance();
            } else {
                let level = claim.claim();
                if level >= LEVELS {
                    Checked::<P>::relax(0);
                    continue;
                }
                step!(cpu, "rw: the head enters itself");
                P::hash().insert(self.key(), Tail::new(cpu, level));
                // Release, with `rw-waking`: the entry comes first. If the lock has become free,
                // the next look finds it.
                self.word.fetch_or(ASLEEP, ord!("rw-asleep", Release));
            }
        }
    }
}

#[cold]
fn too_many_readers() -> ! {
    panic!("pvlock: {} readers hold a lock: guards are forgotten somewhere", CROWDED / READER);
}

/// A node that is claimed when it is needed, and given back.
struct Level {
    nodes: &'static CpuNodes,
    claimed: Option<usize>,
}

impl Level {
    fn claim(&mut self) -> usize {
        *self.claimed.get_or_insert_with(|| self.nodes.enter())
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        if let Some(level) = self.claimed {
            self.nodes.leave(level);
        }
    }
}

impl<P: Platform, K: Policy> Default for RawPvRwLock<P, K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Platform, K: Policy> core::fmt::Debug for RawPvRwLock<P, K> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let seen = self.word.load(Relaxed);
        let waits = if seen & WAITING != 0 { ", waited for" } else { "" };
        write!(f, "RawPvRwLock<{}>(", K::NAME)?;
        match (seen & WRITER, seen / READER) {
            (0, 0) => write!(f, "free")?,
            (0, readers) => write!(f, "{readers} readers")?,
            _ => write!(f, "a writer")?,
        }
        write!(f, "{waits})")
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;
    use crate::{HashStorage, HashTable, KickAtUnlock};
    use std::panic::catch_unwind;

    use std::cell::{Cell, RefCell};

    thread_local! {
        // Leaked, because `Platform` wants them for ever.
        static NODES: &'static CpuNodes = Box::leak(Box::new(CpuNodes::new()));
        static TABLE: &'static HashTable = {
            let storage: &'static HashStorage<64> = Box::leak(Box::new(HashStorage::new()));
            Box::leak(Box::new(HashTable::new(storage)))
        };
        /// What the other CPUs do while this one sleeps.
        static OTHERS: RefCell<Option<Box<dyn FnOnce()>>> = const { RefCell::new(None) };
        static KICKS: Cell<u32> = const { Cell::new(0) };
    }

    /// One CPU that sleeps, number 0 in each test's own thread.
    struct Single;

    // SAFETY: one thread; the other CPUs are calls out of its sleep.
    unsafe impl Platform for Single {
        const MAX_CPUS: usize = 1;
        fn current_cpu() -> usize {
            0
        }
        fn nodes(_cpu: usize) -> &'static CpuNodes {
            NODES.with(|nodes| *nodes)
        }
        fn hash() -> &'static HashTable {
            TABLE.with(|table| *table)
        }
        fn wait(still_blocked: impl Fn() -> bool) {
            assert!(still_blocked(), "it was made ready to sleep");
            OTHERS.take().expect("somebody wakes it")();
            let more = OTHERS.with_borrow(Option::is_some);
            assert_eq!(still_blocked(), more, "it was woken, or by nobody");
        }
        fn kick(_cpu: usize) {
            KICKS.set(KICKS.get() + 1);
        }
        fn now() -> u64 {
            0
        }
        fn spin_turns() -> u32 {
            0
        }
        // The other CPUs' locks are taken by this one.
        fn report(_trouble: &crate::Trouble) {}
    }

    type Lock = RawPvRwLock<Single, KickAtUnlock>;

    /// `acts` while the next waiter sleeps.
    fn others(lock: &'static Lock, acts: fn(&'static Lock)) {
        KICKS.set(0);
        OTHERS.set(Some(Box::new(move || acts(lock))));
    }

    fn free() -> &'static Lock {
        Box::leak(Box::new(Lock::new()))
    }

    /// Whether newcomers (reader, recursive reader, writer) get the lock; they give it back.
    fn newcomers(lock: &Lock) -> [bool; 3] {
        let (read, past, write) =
            (lock.try_lock_shared(), lock.try_lock_shared_recursive(), lock.try_lock_exclusive());
        for _ in 0..u32::from(read) + u32::from(past) {
            // SAFETY: taken just now.
            unsafe { lock.unlock_shared() };
        }
        if write {
            // SAFETY: taken just now.
            unsafe { lock.unlock_exclusive() };
        }
        [read, past, write]
    }

    #[test]
    fn a_writer_waits_for_all_readers_and_newcomers_for_it() {
        let lock = free();
        lock.lock_shared();
        lock.lock_shared();
        assert_eq!(newcomers(lock), [true, true, false], "readers share");
        others(lock, |lock| {
            assert_eq!(newcomers(lock), [false, true, false], "past the queue alone");
            assert!(lock.is_locked() && !lock.is_locked_exclusive());
            for kicks in [0, 1] {
                assert_eq!(KICKS.replace(0), 0);
                // SAFETY: taken above.
                unsafe { lock.unlock_shared() };
                assert_eq!(KICKS.get(), kicks, "the last one wakes it");
            }
        });
        lock.lock_exclusive();
        assert!(lock.is_locked_exclusive() && Single::hash().is_empty());
        assert_eq!(newcomers(lock), [false; 3]);
        // SAFETY: taken just now.
        unsafe { lock.unlock_exclusive() };
        assert_eq!(lock.word.load(Relaxed), 0);
    }

    #[test]
    fn a_reader_waits_for_the_writer() {
        let lock = free();
        lock.lock_exclusive();
        others(lock, |lock| {
            assert_eq!(newcomers(lock), [false; 3]);
            // SAFETY: taken above.
            unsafe { lock.unlock_exclusive() };
            assert_eq!(KICKS.get(), 1);
        });
        lock.lock_shared();
        assert_eq!(lock.word.load(Relaxed), READER);
        assert_eq!(newcomers(lock), [true, true, false]);
        // SAFETY: taken just now.
        unsafe { lock.unlock_shared() };
        assert_eq!(lock.word.load(Relaxed), 0);
    }

    #[test]
    fn a_writer_that_goes_on_reading_lets_the_reader_that_waits_in() {
        let lock = free();
        lock.lock_exclusive();
        others(lock, |lock| {
            // SAFETY: taken above.
            unsafe { lock.downgrade() };
            assert_eq!((KICKS.get(), lock.is_locked_exclusive()), (1, false));
        });
        lock.lock_shared();
        assert_eq!(lock.word.load(Relaxed), 2 * READER);
        for _ in 0..2 {
            // SAFETY: held twice.
            unsafe { lock.unlock_shared() };
        }
        assert_eq!((lock.word.load(Relaxed), Single::nodes(0).depth()), (0, 0));
    }

    /// Safe code may forget guards. The count must not come round to 0 beside one that is left.
    #[test]
    fn readers_that_are_forgotten_never_let_a_writer_in() {
        static LOCK: Lock = Lock::new();
        LOCK.word.store(CROWDED - READER, Relaxed);
        assert!(LOCK.try_lock_shared(), "one more");
        assert!(!LOCK.try_lock_shared() && !LOCK.try_lock_shared_recursive());
        for lock in [|| LOCK.lock_shared(), || LOCK.lock_shared_recursive()] {
            let panic = catch_unwind(lock).expect_err("too many");
            let text = panic.downcast_ref::<String>().expect("a text");
            assert!(text.starts_with("pvlock: 134217728 readers hold a lock"), "{text}");
            assert_eq!(LOCK.word.load(Relaxed), CROWDED, "as it was");
        }
        LOCK.word.fetch_or(WRITER, Relaxed);
        catch_unwind(|| LOCK.lock_shared_recursive()).expect_err("beside a writer, too");
        LOCK.word.fetch_and(!WRITER, Relaxed);
        assert!(!LOCK.try_lock_exclusive() && !LOCK.queue.is_locked());
        // SAFETY: one of those that are counted.
        unsafe { LOCK.unlock_shared() };
        LOCK.lock_shared();
        assert_eq!(Single::nodes(0).depth(), 0);
    }

    /// The last reader is leaving: it has the head's entry already, and clears the head's bits in
    /// the end. A head that wakes by itself must not go on, and sleep again, before that.
    #[test]
    fn a_head_whose_entry_is_being_taken_out_waits_for_the_end_of_that() {
        let lock = free();
        lock.lock_exclusive();
        others(lock, |lock| {
            lock.word.store(READER | WAITING | WAKING, Relaxed);
            Single::hash().remove(lock.key());
            others(lock, |lock| lock.word.store(WAITING, Relaxed));
        });
        lock.lock_shared();
        assert!(OTHERS.take().is_none(), "it waited for the reader, too");
        assert_eq!(lock.word.load(Relaxed), READER);
    }

    /// The writer left before it could see that the head sleeps.
    #[test]
    fn a_head_that_finds_the_lock_free_takes_its_own_entry_out() {
        let lock = free();
        lock.lock_exclusive();
        others(lock, |lock| {
            lock.word.fetch_and(!WRITER, Relaxed);
            others(lock, |_| {});
        });
        lock.lock_shared();
        assert!(OTHERS.take().is_some(), "it did not sleep on a free lock");
        assert!(Single::hash().is_empty());
        assert_eq!(lock.word.load(Relaxed), READER);
    }

    #[test]
    #[cfg(feature = "checker")]
    fn the_checker_knows_a_downgraded_lock_as_shared() {
        static LOCK: Lock = Lock::new();
        LOCK.lock_exclusive();
        // SAFETY: taken just now.
        unsafe { LOCK.downgrade() };
        let held = &Single::nodes(0).held;
        // It tells of what is below a wait.
        held.claim(!0, false, core::panic::Location::caller());
        let (taken, _) = held.stuck_with(LOCK.key()).expect("it is held");
        assert!(taken.shared);
    }
}
