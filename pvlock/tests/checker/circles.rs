//! ABBA: CPUs that wait for each other.

use crate::*;
use pvlock::{Circle, Mode, Trouble};
use std::sync::Barrier;

/// One CPU of a circle: how it takes the lock that it has, how it gives that back, how it takes the
/// next one's and gives that back.
struct Crossing {
    take: fn(),
    give: fn(),
    want: fn(),
    done: fn(),
}

/// Runs `crossings` on a CPU each, which wait for each other until one finds it and gives way.
fn circles(crossings: &[Crossing]) -> Vec<Circle> {
    let all_have_one = Barrier::new(crossings.len());
    let found = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (cpu, &Crossing { take, give, want, done }) in crossings.iter().enumerate() {
            let (all_have_one, found) = (&all_have_one, &found);
            scope.spawn(move || {
                CPU.set(cpu);
                take();
                all_have_one.wait();
                WHEN_FOUND.set(Some(Box::new(give)));
                want();
                done();
                if WHEN_FOUND.take().is_some() {
                    give();
                }
                found.lock().unwrap().extend(FOUND.take());
            });
        }
    });
    let found = found.into_inner().unwrap();
    assert!(!found.is_empty(), "nobody noticed");
    let circle = |trouble: &Trouble| match trouble {
        Trouble::Circle(circle) => *circle,
        other => panic!("{other}"),
    };
    found.iter().map(circle).collect()
}

/// The steps of a CPU that has `$have` and wants `$want`.
macro_rules! crossing {
    ($have:ident $lock:ident $unlock:ident, $want:ident $lock_next:ident $unlock_next:ident) => {
        Crossing {
            take: || $have.$lock(),
            // SAFETY: taken by `take`.
            give: || unsafe { $have.$unlock() },
            want: || $want.$lock_next(),
            // SAFETY: taken by `want`.
            done: || unsafe { $want.$unlock_next() },
        }
    };
}

#[test]
fn two_cpus_that_cross_two_locks_are_named() {
    for mode in MODES {
        let _machine = machine(mode);
        static A: Lock = Lock::new();
        static B: Lock = Lock::new();
        let line = line!() + 1;
        let one = crossing!(A lock unlock, B lock unlock);
        let two = crossing!(B lock unlock, A lock unlock);
        let (a, b) = ((&raw const A).addr(), (&raw const B).addr());
        for circle in circles(&[one, two]) {
            let mut links: Vec<_> = circle.links().collect();
            links.sort_by_key(|link| link.cpu);
            let [first, second] = &links[..] else { panic!("{circle:?}") };
            assert_eq!((first.cpu, first.holds, first.wants), (0, a, b));
            assert_eq!((second.cpu, second.holds, second.wants), (1, b, a));
            assert_eq!((first.taken.line(), first.here.line()), (line, line));
            assert_eq!((second.taken.line(), second.here.line()), (line + 1, line + 1));
            let text = Trouble::Circle(circle).to_string();
            assert_eq!(text.matches(file!()).count(), 4, "{text}");
        }
    }
}

#[test]
fn a_circle_may_go_through_many_cpus_and_kinds_of_lock() {
    let _machine = machine(Mode::Pv);
    static A: Lock = Lock::new();
    static B: Shared = Shared::new();
    static C: Shared = Shared::new();
    let four = [
        crossing!(A lock unlock, B lock_shared unlock_shared),
        crossing!(B lock_exclusive unlock_exclusive, C lock_exclusive unlock_exclusive),
        crossing!(C lock_shared unlock_shared, A lock unlock),
        // Reads beside the third, and waits for nobody.
        Crossing {
            take: || C.lock_shared(),
            // SAFETY: taken by `take`.
            give: || unsafe { C.unlock_shared() },
            want: || {},
            done: || {},
        },
    ];
    for circle in circles(&four) {
        assert_eq!(circle.links().count(), 3, "{circle:?}");
    }
}

/// A lock that two CPUs read: one of them waits for a CPU that runs, the other closes the circle.
#[test]
fn a_way_that_leads_nowhere_is_no_part_of_a_circle() {
    let _machine = machine(Mode::Pv);
    static READ: Shared = Shared::new();
    static A: Lock = Lock::new();
    static D: Lock = Lock::new();
    REPORTS.store(0, SeqCst);
    let four = [
        crossing!(READ lock_shared unlock_shared, D lock unlock),
        crossing!(READ lock_shared unlock_shared, A lock unlock),
        crossing!(A lock unlock, READ lock_exclusive unlock_exclusive),
        Crossing {
            take: || D.lock(),
            // SAFETY: taken by `take`.
            give: || unsafe { D.unlock() },
            want: || {
                while REPORTS.load(SeqCst) == 0 {
                    std::thread::yield_now();
                }
            },
            done: || {},
        },
    ];
    for circle in circles(&four) {
        let mut cpus: Vec<_> = circle.links().map(|link| link.cpu).collect();
        cpus.sort_unstable();
        assert_eq!(cpus, [1, 2], "{circle:?}");
    }
}

/// Nobody gives way for a while: each CPU tells of the circle once, however often it looks.
#[test]
fn a_circle_is_told_of_once_a_wait() {
    /// Looks, some times, and then gives way.
    fn linger(turns: u32, give: fn()) {
        if turns == 0 {
            return give();
        }
        INTERRUPT.set(Some(Box::new(move || linger(turns - 1, give))));
    }

    static A: Lock = Lock::new();
    static B: Lock = Lock::new();
    static FOUND_BY: AtomicUsize = AtomicUsize::new(0);
    let _machine = machine(Mode::Native);
    let all_have_one = Barrier::new(2);
    let cross = |cpu, have: &'static Lock, want: &'static Lock, gives_way: bool| {
        CPU.set(cpu);
        have.lock();
        all_have_one.wait();
        WHEN_FOUND.set(Some(Box::new(|| {
            FOUND_BY.fetch_add(1, SeqCst);
        })));
        if gives_way {
            // Ten looks after the circle is there, whoever has found it.
            linger(10 * 1024, || {
                // SAFETY: taken above; CPU 0 has A.
                unsafe { A.unlock() };
            });
        }
        want.lock();
        // SAFETY: taken just now.
        unsafe { want.unlock() };
        if !gives_way {
            // SAFETY: taken above.
            unsafe { have.unlock() };
        }
        FOUND.take().len()
    };
    std::thread::scope(|scope| {
        let one = scope.spawn(|| cross(0, &A, &B, true));
        let two = scope.spawn(|| cross(1, &B, &A, false));
        let told = [one.join().unwrap(), two.join().unwrap()];
        assert_eq!(told[0], 1, "it has looked ten times");
        assert!(told[1] <= 1, "{told:?}");
        assert_eq!(FOUND_BY.load(SeqCst), told[0] + told[1]);
    });
}
