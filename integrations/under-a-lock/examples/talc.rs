//! `talc`: its `TalcLock` takes any `lock_api` lock as a parameter, so the lock's name is all there is to say.

#[allow(dead_code)]
mod common;

use common::{Arena, Raw};
use talc::TalcLock;
use talc::source::Claim;

static ARENA: Arena = Arena::new();

// In a kernel: `#[global_allocator]`.
// SAFETY: the arena is this heap's alone.
static HEAP: TalcLock<Raw, Claim> = TalcLock::new(unsafe { Claim::array(ARENA.bytes()) });

fn main() {
    common::contend(HEAP.lock(), |cpu| common::churn(&HEAP, cpu));
    println!(
        "talc: {} vCPUs slept in the allocator's lock, and no block overlapped",
        common::VCPUS
    );
}

#[test]
fn runs() {
    main();
}
