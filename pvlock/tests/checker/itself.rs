//! AA: a CPU that would wait for itself, and who is named.

use crate::*;
use pvlock::{Interrupts, IrqMutex, Mode, Mutex, RwLock};

#[test]
fn a_lock_taken_twice_is_named_with_both_places() {
    for mode in MODES {
        let _machine = machine(mode);
        static LOCK: Lock = Lock::new();
        let first = site(1);
        LOCK.lock();
        let again = site(1);
        let text = trouble(|| LOCK.lock());
        let address = format!("{:#x}", (&raw const LOCK).addr());
        assert!([&first, &again, &address].iter().all(|part| text.contains(*part)), "{text}");
        // SAFETY: taken above.
        unsafe { LOCK.unlock() };
        LOCK.lock();
        // SAFETY: taken just now.
        unsafe { LOCK.unlock() };
        assert!(FOUND.take().is_empty(), "one after the other is no trouble");
    }
}

struct NoInterrupts;

// SAFETY: this machine's interrupts take no lock that is held this way.
unsafe impl Interrupts for NoInterrupts {
    type Saved = ();
    fn save() {}
    fn disable() {}
    fn restore((): ()) {}
}

/// Each method of `lock_api` that may wait is named by its caller, not by a line of this crate.
#[test]
fn every_face_names_its_caller() {
    let _machine = machine(Mode::Pv);
    macro_rules! names_its_caller {
        ($lock:ty, $first:ident, $again:ident) => {
            static LOCK: $lock = <$lock>::new(0);
            let guard = LOCK.$first();
            let text = trouble(|| drop(LOCK.$again()));
            assert_eq!(text.matches(file!()).count(), 2, "{text}");
            drop(guard);
        };
    }
    {
        names_its_caller!(Mutex<u8, Machine>, lock, lock);
    }
    {
        names_its_caller!(IrqMutex<u8, Machine, NoInterrupts>, lock, lock);
    }
    {
        names_its_caller!(RwLock<u8, Machine>, write, write);
    }
    {
        names_its_caller!(RwLock<u8, Machine>, write, read);
    }
    {
        names_its_caller!(RwLock<u8, Machine>, read, write);
    }
    #[cfg(feature = "lock_api_05")]
    {
        names_its_caller!(pvlock::v05::Mutex<u8, Machine>, lock, lock);
    }
    #[cfg(feature = "lock_api_05")]
    {
        names_its_caller!(pvlock::v05::IrqMutex<u8, Machine, NoInterrupts>, lock, lock);
    }
    #[cfg(feature = "lock_api_05")]
    {
        names_its_caller!(pvlock::v05::RwLock<u8, Machine>, read, write);
    }
    static TRIED: Mutex<u8, Machine> = Mutex::new(0);
    let guard = TRIED.try_lock();
    let text = trouble(|| drop(TRIED.lock()));
    assert_eq!(text.matches(file!()).count(), 2, "{text}");
    drop(guard);
}

#[test]
fn a_reader_that_reads_again_behind_a_writer_is_named() {
    let _machine = machine(Mode::Pv);
    static LOCK: Shared = Shared::new();
    CPU.set(0);
    LOCK.lock_shared();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            CPU.set(1);
            LOCK.lock_exclusive();
            // SAFETY: taken just now.
            unsafe { LOCK.unlock_exclusive() };
        });
        while LOCK.try_lock_shared() {
            // SAFETY: taken just now.
            unsafe { LOCK.unlock_shared() };
            std::thread::yield_now();
        }
        assert!(trouble(|| LOCK.lock_shared()).contains("would wait for itself"));
        LOCK.lock_shared_recursive();
        // SAFETY: taken just now.
        unsafe { LOCK.unlock_shared() };
        // SAFETY: taken above.
        unsafe { LOCK.unlock_shared() };
    });
    assert!(FOUND.take().is_empty(), "reading past the writer is no trouble");
}

/// A handler takes a lock that the context which it interrupts waits for.
#[test]
fn a_handler_that_queues_behind_the_context_it_interrupts_is_named() {
    let _machine = machine(Mode::Pv);
    static LOCK: Lock = Lock::new();
    CPU.set(1);
    LOCK.lock();
    CPU.set(0);
    INTERRUPT.set(Some(Box::new(|| {
        assert!(trouble(|| LOCK.lock()).contains("would wait for itself"));
        // SAFETY: taken for CPU 1 above, and not used by it.
        unsafe { LOCK.unlock() };
    })));
    LOCK.lock();
    // SAFETY: taken just now.
    unsafe { LOCK.unlock() };
}

/// Its wait is no queue's, so it is found as a circle of one.
#[test]
fn a_writer_that_reads_past_the_queue_is_named() {
    let _machine = machine(Mode::Pv);
    static LOCK: Shared = Shared::new();
    let first = site(1);
    LOCK.lock_exclusive();
    GOES_ON.set(true);
    // SAFETY: taken above.
    WHEN_FOUND.set(Some(Box::new(|| unsafe { LOCK.unlock_exclusive() })));
    let again = site(1);
    LOCK.lock_shared_recursive();
    // SAFETY: taken just now.
    unsafe { LOCK.unlock_shared() };
    GOES_ON.set(false);
    let found = FOUND.take();
    let [trouble @ Trouble::Twice { cpu: 0, .. }] = &found[..] else { panic!("{found:?}") };
    let text = trouble.to_string();
    assert!(text.contains(&first) && text.contains(&again), "{text}");
}

#[test]
fn a_lock_that_is_held_is_known_below_others() {
    let _machine = machine(Mode::Pv);
    static LOCKS: [Lock; 3] = [const { Lock::new() }; 3];
    LOCKS.iter().for_each(Lock::lock);
    for lock in &LOCKS {
        let text = trouble(|| lock.lock());
        assert!(text.contains(&format!("{:#x}", (&raw const *lock).addr())), "{text}");
    }
    // SAFETY: taken above.
    LOCKS.iter().for_each(|lock| unsafe { lock.unlock() });
}
