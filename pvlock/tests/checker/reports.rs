//! What a report may do, and what comes where there is no hook.

use crate::*;
use pvlock::{CpuNodes, HashTable, Mode, Mutex, Platform};
use std::sync::Barrier;

/// A console behind a lock, which may be the very one that is told of.
#[test]
fn a_report_may_take_locks() {
    let _machine = machine(Mode::Pv);
    static LOCK: Mutex<(), Machine> = Mutex::new(());
    static CONSOLE: Mutex<u8, Machine> = Mutex::new(0);
    let report = || {
        *CONSOLE.lock() += 1;
        assert!(LOCK.try_lock().is_none());
    };
    let other = Barrier::new(2);
    let crossing =
        |cpu: usize, first: &'static Mutex<(), Machine>, second: &'static Mutex<(), Machine>| {
            CPU.set(cpu);
            let guard = first.lock();
            other.wait();
            WHEN_FOUND.set(Some(Box::new(move || {
                report();
                // SAFETY: held by `guard`, which is forgotten.
                unsafe { first.force_unlock() };
            })));
            drop(second.lock());
            match WHEN_FOUND.take() {
                None => std::mem::forget(guard),
                Some(_) => drop(guard),
            }
            FOUND.take()
        };
    static SECOND: Mutex<(), Machine> = Mutex::new(());
    std::thread::scope(|scope| {
        let one = scope.spawn(|| crossing(0, &LOCK, &SECOND));
        let two = scope.spawn(|| crossing(1, &SECOND, &LOCK));
        let found = one.join().unwrap().len() + two.join().unwrap().len();
        assert!((1..=2).contains(&found));
        assert_eq!(usize::from(*CONSOLE.lock()), found);
    });
}

/// A platform that leaves `report` as it is.
struct Plain;

// SAFETY: one thread, no interrupts.
unsafe impl Platform for Plain {
    const MAX_CPUS: usize = 1;
    fn current_cpu() -> usize {
        0
    }
    fn nodes(cpu: usize) -> &'static CpuNodes {
        &NODES[CPUS - 1 - cpu]
    }
    fn hash() -> &'static HashTable {
        &TABLE
    }
    fn wait(_still_blocked: impl Fn() -> bool) {}
    fn kick(_cpu: usize) {}
    fn now() -> u64 {
        0
    }
}

/// Runs itself as a process, which takes a lock twice.
#[test]
fn a_report_without_a_hook_panics_and_does_not_unwind() {
    if std::env::var_os("TAKES_A_LOCK_TWICE").is_some() {
        static LOCK: RawPvLock<Plain, KickAtUnlock> = RawPvLock::new();
        LOCK.lock();
        let _ = catch_unwind(|| LOCK.lock());
        println!("unwound");
        return;
    }
    let run = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "reports::a_report_without_a_hook_panics_and_does_not_unwind",
            "--nocapture",
        ])
        .env("TAKES_A_LOCK_TWICE", "1")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&run.stdout), text(&run.stderr));
    assert!(!run.status.success() && !out.contains("unwound"), "{out}{err}");
    assert!(err.contains("pvlock: cpu 0 would wait for itself"), "{err}");
    assert!(err.contains("cannot unwind"), "{err}");
}
