//! What a CPU holds and waits for, as the lock checker keeps it.
//!
//! Owns the storage and the order of all accesses to it. Never decides what is wrong.
//!
//! Each acquisition has a place. A new one takes the place above all that are in use. So what
//! stands below a wait belongs to contexts that cannot go on before the wait is over. Only the CPU
//! itself fills its places. A handler that interrupts it leaves them as it found them, at any step;
//! other CPUs read them while they change.

use core::panic::Location;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use core::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize, Ordering, compiler_fence,
};

/// Acquisitions of one CPU that are kept at a time. Those beyond are not checked.
const PLACES: usize = 16;

/// In [`Place::lock`]: not in use.
const FREE: usize = 0;
/// In [`Place::lock`]: in use, and not to be read yet. No lock has this address.
const FILLING: usize = 1;
/// In [`Place::wait`]: the wait is over, the lock is held.
const HELD: u32 = 0;

/// One acquisition.
pub(crate) struct Place {
    /// The address of the lock.
    lock: AtomicUsize,
    /// Which wait of its CPU this is, or [`HELD`]. No other wait has the number, so who reads it
    /// twice knows that the wait went on in between.
    wait: AtomicU32,
    shared: AtomicBool,
    site: AtomicPtr<Location<'static>>,
    /// When the wait was first looked at, by this CPU's clock, and when it is too long. Of the CPU
    /// itself. 0 = not yet.
    begin: AtomicU64,
    due: AtomicU64,
    /// Whether it was found to be in a circle. Of the CPU itself.
    told: AtomicBool,
}

/// What a place was seen to say.
#[derive(Clone, Copy)]
pub(crate) struct Record {
    pub(crate) lock: usize,
    pub(crate) wait: u32,
    pub(crate) shared: bool,
    pub(crate) site: &'static Location<'static>,
}

impl Record {
    pub(crate) fn is_held(&self) -> bool {
        self.wait == HELD
    }
}

impl Place {
    const fn new() -> Self {
        Self {
            lock: AtomicUsize::new(FREE),
            wait: AtomicU32::new(HELD),
            shared: AtomicBool::new(false),
            site: AtomicPtr::new(core::ptr::null_mut()),
            begin: AtomicU64::new(0),
            due: AtomicU64::new(0),
            told: AtomicBool::new(false),
        }
    }

    /// What it says. Acquire, with `claim`: who sees a wait sees what its CPU wrote before it.
    fn read(&self) -> Option<Record> {
        let lock = self.lock.load(Acquire);
        if lock == FREE || lock == FILLING {
            return None;
        }
        let wait = self.wait.load(Acquire);
        let shared = self.shared.load(Relaxed);
        // SAFETY: nothing but null and references that live for ever is stored.
        let site = unsafe { self.site.load(Relaxed).as_ref() }?;
        Some(Record { lock, wait, shared, site })
    }

    /// The wait is over, and the lock is this CPU's.
    pub(crate) fn hold(&self) {
        self.wait.store(HELD, Release);
    }

    /// The acquisition is over, or was given up.
    pub(crate) fn clear(&self) {
        self.lock.store(FREE, Release);
    }

    /// For whoever tells of a circle: true once in each wait.
    pub(crate) fn tells_of_a_circle(&self) -> bool {
        !self.told.swap(true, Relaxed)
    }

    /// How long the wait has been going on `now`, if that is longer than `bound`, and once more
    /// after each such time.
    pub(crate) fn overdue(&self, now: u64, bound: u64) -> Option<u64> {
        let begin = self.begin.load(Relaxed);
        if begin == 0 {
            self.begin.store(now.max(1), Relaxed);
            self.due.store(now.saturating_add(bound), Relaxed);
            return None;
        }
        if now <= self.due.load(Relaxed) {
            return None;
        }
        self.due.store(now.saturating_add(bound), Relaxed);
        Some(now.saturating_sub(begin))
    }

    /// Whether the wait was long enough for somebody to look at it.
    pub(crate) fn was_looked_at(&self) -> bool {
        self.begin.load(Relaxed) != 0
    }
}

/// All places of a CPU.
pub(crate) struct Held {
    places: [Place; PLACES],
    /// Waits begun.
    waits: AtomicU32,
    /// Whether the platform is being told of something. What it does then is not checked.
    pub(crate) telling: AtomicBool,
}

impl Held {
    pub(crate) const fn new() -> Self {
        Self {
            places: [const { Place::new() }; PLACES],
            waits: AtomicU32::new(0),
            telling: AtomicBool::new(false),
        }
    }

    /// The calling CPU begins to wait for `lock`.
    pub(crate) fn claim(
        &self,
        lock: usize,
        shared: bool,
        site: &'static Location<'static>,
    ) -> Option<&Place> {
        let in_use = |place: &Place| place.lock.load(Relaxed) != FREE;
        let above = self.places.iter().rposition(in_use).map_or(0, |top| top + 1);
        let place = self.places.get(above)?;
        place.lock.store(FILLING, Relaxed);
        // For an interrupt on this CPU: the claim comes before what is filled in.
        compiler_fence(Ordering::SeqCst);
        let number = self.waits.fetch_add(1, Relaxed).wrapping_add(1);
        place.wait.store(if number == HELD { 1 } else { number }, Relaxed);
        place.shared.store(shared, Relaxed);
        place.site.store(core::ptr::from_ref(site).cast_mut(), Relaxed);
        place.begin.store(0, Relaxed);
        place.told.store(false, Relaxed);
        // Release, with `read`.
        place.lock.store(lock, Release);
        Some(place)
    }

    /// The uppermost place and what it says, if that is a wait: what keeps the CPU from going on.
    pub(crate) fn waiting(&self) -> Option<(&Place, Record)> {
        let top = self.places.iter().rfind(|place| place.lock.load(Relaxed) != FREE)?;
        top.read().filter(|record| !record.is_held()).map(|record| (top, record))
    }

    /// All that is held and waited for below the uppermost place.
    pub(crate) fn below(&self) -> impl Iterator<Item = (&Place, Record)> {
        let records = self.places.iter().rev().filter_map(|place| Some((place, place.read()?)));
        records.skip(1)
    }

    /// How this CPU holds `lock`, and the uppermost wait above that: it holds the lock at least
    /// until this wait is over.
    pub(crate) fn stuck_with(&self, lock: usize) -> Option<(Record, Record)> {
        let mut above = None;
        for record in self.places.iter().rev().filter_map(Place::read) {
            if record.is_held() && record.lock == lock {
                return above.map(|wait| (record, wait));
            }
            if !record.is_held() && above.is_none() {
                above = Some(record);
            }
        }
        None
    }

    /// Forgets that `lock` is held: whether it was. Any CPU that owns the lock may say so.
    pub(crate) fn forget(&self, lock: usize) -> bool {
        self.places.iter().rev().any(|place| {
            place.read().is_some_and(|record| record.lock == lock && record.is_held())
                && place.lock.compare_exchange(lock, FREE, Release, Relaxed).is_ok()
        })
    }

    /// The lock is held for writing, and from now on for reading.
    pub(crate) fn share(&self, lock: usize) {
        let held = |place: &&Place| {
            place.read().is_some_and(|record| record.lock == lock && record.is_held())
        };
        if let Some(place) = self.places.iter().rev().find(held) {
            place.shared.store(true, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: usize = 0x40;
    const B: usize = 0x44;
    const C: usize = 0x48;

    fn here() -> &'static Location<'static> {
        Location::caller()
    }

    fn take(held: &Held, lock: usize) {
        held.claim(lock, false, here()).expect("a place").hold();
    }

    #[test]
    fn each_wait_has_a_number_that_says_wait() {
        let held = Held::new();
        let mut numbers = Vec::new();
        // The last ones are beyond the largest number.
        for begin in [0, 1, u32::MAX - 2] {
            if begin > 1 {
                held.waits.store(begin, Relaxed);
            }
            for _ in 0..3 {
                let place = held.claim(A, false, here()).expect("a place");
                let record = place.read().expect("filled in");
                assert!(!record.is_held());
                numbers.push(record.wait);
                place.clear();
            }
        }
        assert_eq!(numbers, [1, 2, 3, 4, 5, 6, u32::MAX - 1, u32::MAX, 1]);
    }

    #[test]
    fn a_cpu_is_stuck_with_what_it_holds_below_its_uppermost_wait() {
        let held = Held::new();
        take(&held, A);
        take(&held, B);
        assert!(held.stuck_with(A).is_none(), "it runs");
        held.claim(C, false, here());
        // A handler interrupts the wait, takes a lock, and waits too.
        take(&held, C + 4);
        held.claim(C + 8, false, here());
        let stuck = |lock| held.stuck_with(lock).map(|(taken, wait)| (taken.lock, wait.lock));
        assert_eq!(stuck(A), Some((A, C + 8)));
        assert_eq!(stuck(B), Some((B, C + 8)));
        assert_eq!(stuck(C), None, "it waits for that");
        assert_eq!(stuck(C + 4), Some((C + 4, C + 8)));
    }

    #[test]
    fn a_place_above_all_that_are_in_use_is_claimed() {
        let held = Held::new();
        let locks = (1..=PLACES).map(|lock| lock * 4);
        for lock in locks.clone() {
            take(&held, lock);
        }
        assert!(held.claim(A, false, here()).is_none(), "it is full");
        assert!(held.forget(4) && !held.forget(4));
        assert!(held.claim(A, false, here()).is_none(), "the lowest place is no use");
        assert!(held.forget(PLACES * 4));
        assert!(held.claim(A, false, here()).is_some());
    }

    #[test]
    fn a_wait_is_overdue_once_in_each_bound() {
        let held = Held::new();
        let place = held.claim(A, false, here()).expect("a place");
        assert!(!place.was_looked_at());
        assert_eq!(place.overdue(100, 10), None, "it begins");
        assert!(place.was_looked_at());
        let told: Vec<_> = (100..135).filter_map(|now| place.overdue(now, 10)).collect();
        assert_eq!(told, [11, 22, 33]);
        assert!(place.tells_of_a_circle() && !place.tells_of_a_circle());
        place.clear();
        let place = held.claim(A, false, here()).expect("a place");
        assert!(!place.was_looked_at() && place.tells_of_a_circle(), "a new wait");
        assert_eq!(place.overdue(0, 10), None, "a clock that begins at 0");
        assert!(place.was_looked_at());
    }

    #[test]
    fn what_is_held_for_writing_can_be_shared() {
        let held = Held::new();
        held.claim(A, false, here());
        take(&held, B);
        let shared = |lock| {
            held.share(lock);
            held.places.iter().filter_map(Place::read).map(|r| r.shared).collect::<Vec<_>>()
        };
        assert_eq!(shared(A), [false, false], "it is waited for");
        assert_eq!(shared(B), [false, true]);
    }

    #[test]
    fn what_is_held_is_forgotten_and_what_is_waited_for_is_not() {
        let held = Held::new();
        take(&held, A);
        take(&held, B);
        held.claim(A, false, here());
        assert!(held.forget(A) && !held.forget(A));
        let left: Vec<_> = held.places.iter().filter_map(Place::read).collect();
        let left: Vec<_> = left.iter().map(|record| (record.lock, record.is_held())).collect();
        assert_eq!(left, [(B, true), (A, false)]);
    }
}
