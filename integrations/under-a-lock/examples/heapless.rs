//! `heapless`: a bounded queue under the lock, for as many producers and consumers as there are.

#[allow(dead_code)]
mod common;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use common::{Mutex, VCPUS};
use heapless::Deque;

/// What each producer sends: the numbers up to this one.
const LAST: u64 = 2000;

static QUEUE: Mutex<Deque<u64, 16>> = Mutex::new(Deque::new());
static RECEIVED: AtomicU64 = AtomicU64::new(0);

fn send(number: u64) {
    while QUEUE.lock().push_back(number).is_err() {
        std::thread::yield_now();
    }
}

fn receive() -> u64 {
    loop {
        // The guard is gone before the vCPU lets others run.
        let first = QUEUE.lock().pop_front();
        match first {
            Some(number) => return number,
            None => std::thread::yield_now(),
        }
    }
}

fn main() {
    // Every other vCPU produces, and the one after it consumes as much.
    common::contend(QUEUE.lock(), |cpu| {
        for number in 1..=LAST {
            if cpu % 2 == 0 {
                send(number);
            } else {
                // Relaxed: a sum, read when all threads have ended.
                RECEIVED.fetch_add(receive(), Relaxed);
            }
        }
    });
    assert_eq!(RECEIVED.load(Relaxed), VCPUS / 2 * LAST * (LAST + 1) / 2);
    assert!(QUEUE.lock().is_empty());
    println!("heapless: {VCPUS} vCPUs slept in the queue's lock, and every number arrived");
}

#[test]
fn runs() {
    main();
}
