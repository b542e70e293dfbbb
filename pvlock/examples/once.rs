//! `Once` and lazy statics over this lock, by the crate `generic_once_cell`: who comes while
//! another makes the value sleeps in the queue of the lock.

#[allow(dead_code)]
#[path = "../tests/common/threads.rs"]
mod machine;

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use generic_once_cell::{Lazy, OnceCell};
use machine::Threads;
use pvlock::{KickAtUnlock, RawPvLock};

type Raw = RawPvLock<Threads, KickAtUnlock>;

static MADE: AtomicU32 = AtomicU32::new(0);
static TABLE: Lazy<Raw, Vec<u32>> = Lazy::new(|| {
    MADE.fetch_add(1, Relaxed);
    (0..4).map(|n| n * n).collect()
});
static NAME: OnceCell<Raw, &str> = OnceCell::new();

fn main() {
    std::thread::scope(|cpus| {
        for _ in 0..4 {
            cpus.spawn(|| assert_eq!(TABLE[3], 9));
        }
    });
    assert_eq!(MADE.load(Relaxed), 1);
    assert_eq!(NAME.set("once"), Ok(()));
    assert_eq!(NAME.set("twice"), Err("twice"));
    println!("{}: made {} time", NAME.get().expect("set above"), MADE.load(Relaxed));
}

#[test]
fn runs() {
    main();
}
