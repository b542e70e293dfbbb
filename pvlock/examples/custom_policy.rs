//! A policy of one's own, and the lock under it: `cargo run --example custom_policy`.
//!
//! The policy is the part between the lines. The machine is threads that play vCPUs.

#[allow(dead_code)]
#[path = "../tests/common/threads.rs"]
mod machine;

use machine::Threads;
use pvlock::{Platform, Policy, Spin, Stage};

// ---------------------------------------------------------------------------------------------
/// A waiter behind the head sleeps at once, a head spins for ten microseconds, and a newcomer may
/// take a free lock past a sleeping head, but no more than three times.
struct PatientHead;

impl Policy for PatientHead {
    const NAME: &'static str = "patient-head";
    const STEALS: u32 = 8;
    const MAX_THEFTS: u32 = 3;

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

static TOTAL: pvlock::Mutex<u64, Threads, PatientHead> = pvlock::Mutex::new(0);

fn main() {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..10_000).for_each(|_| *TOTAL.lock() += 1));
        }
    });
    println!("{} acquisitions, policy {}", *TOTAL.lock(), PatientHead::NAME);
    assert_eq!(*TOTAL.lock(), 80_000);
}
