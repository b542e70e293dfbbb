//! `generic_once_cell` 0.2, whose traits are those of `lock_api` 0.5: lazy statics. Whoever comes while another makes
//! the value sleeps in the queue of the lock.
//!
//! `pvlock/examples/once.rs` has 0.1, with the traits of `lock_api` 0.4.

#[allow(dead_code)]
mod common;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use common::{Raw, VCPUS, waits};
use generic_once_cell::Lazy;

static MADE: AtomicU64 = AtomicU64::new(0);

static TABLE: Lazy<Raw, Vec<u64>> = Lazy::new(|| {
    MADE.fetch_add(1, Relaxed);
    // All others come meanwhile.
    while waits() < VCPUS - 1 {
        std::thread::yield_now();
    }
    (0..VCPUS).map(|n| n * n).collect()
});

fn main() {
    std::thread::scope(|cpus| {
        for cpu in 0..VCPUS {
            cpus.spawn(move || assert_eq!(TABLE[cpu as usize], cpu * cpu));
        }
    });
    assert_eq!(MADE.load(Relaxed), 1);
    println!("generic_once_cell: made once, while {} vCPUs slept", VCPUS - 1);
}

#[test]
fn runs() {
    main();
}
