//! A policy of one's own, and the lock under it: `cargo run --example custom_policy`.
//!
//! The policy is the part between the lines. The machine is threads that play vCPUs.

#[allow(dead_code)]
#[path = "../tests/common/threads.rs"]
mod machine;

use machine::Threads;
use pvlock::{Platform, Policy, Spin, Stage};

// ---------------------------------------------------------------------------------------------
/// A newcomer takes a free lock past the queue while it spins for ten microseconds, and so does a
/// head; a waiter behind the head sleeps at once. Who has waited for a millisecond comes first.
struct TenMicroseconds;

impl Policy for TenMicroseconds {
    const NAME: &'static str = "ten-microseconds";
    const HORIZON: Option<u64> = Some(1_000_000);

    fn keep_spinning<P: Platform>(spin: &mut Spin) -> bool {
        if spin.stage() == Stage::Behind {
            return false;
        }
        if spin.memo == 0 {
            spin.memo = P::now() + 10_000;
        }
        P::now() < spin.memo
    }
}
// ---------------------------------------------------------------------------------------------

static TOTAL: pvlock::Mutex<u64, Threads, TenMicroseconds> = pvlock::Mutex::new(0);

fn main() {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..10_000).for_each(|_| *TOTAL.lock() += 1));
        }
    });
    println!("{} acquisitions, policy {}", *TOTAL.lock(), TenMicroseconds::NAME);
    assert_eq!(*TOTAL.lock(), 80_000);
}
