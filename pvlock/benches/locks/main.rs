//! The lock beside its peers: `cargo bench -p pvlock`.
//!
//! Criterion measures lock + unlock without contention, beside the bare instructions that any lock of
//! this kind needs. Then a table of throughput and waiting times under contention, with threads that
//! are one, two, four and eight times the cores. The ratios are printed at the end of each part.
#![cfg(not(loom))]
#![allow(missing_docs)] // `criterion_group!` makes a public function.

mod machine;

use core::arch::asm;
use criterion::{Criterion, criterion_group};
use machine::{CPUS, native, pv};
use std::cell::UnsafeCell;
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

type Pv<K> = pvlock::Mutex<u64, pv::Machine, K>;
type Native = pvlock::Mutex<u64, native::Machine, pvlock::KickAtUnlock>;

/// A lock around a number.
trait Subject: Sync {
    fn make() -> Self;
    fn add_one(&self);
}

macro_rules! subject {
    ($type:ty) => {
        impl Subject for $type {
            fn make() -> Self {
                <$type>::new(0)
            }
            #[inline]
            fn add_one(&self) {
                *self.lock() += 1;
            }
        }
    };
}

subject!(Native);
subject!(Pv<pvlock::KickTwice>);
subject!(Pv<pvlock::KickAtUnlock>);
subject!(Pv<pvlock::Hybrid>);
subject!(Pv<pvlock::Adaptive>);
subject!(spin::Mutex<u64>);
subject!(spin::mutex::TicketMutex<u64>);
subject!(parking_lot::Mutex<u64>);

impl Subject for std::sync::Mutex<u64> {
    fn make() -> Self {
        Self::new(0)
    }
    #[inline]
    fn add_one(&self) {
        *self.lock().unwrap() += 1;
    }
}

type Mcs = mcslock::raw::spins::Mutex<u64>;

impl Subject for Mcs {
    fn make() -> Self {
        Self::new(0)
    }
    #[inline]
    fn add_one(&self) {
        self.lock_then(|value| *value += 1);
    }
}

/// `lock cmpxchg`, then a store of one byte: no lock does with less and wakes nobody.
struct BareStore(AtomicU32, UnsafeCell<u64>);
/// `lock cmpxchg`, then `lock cmpxchg` of one byte: no lock does with less and can wake somebody.
struct BareExchange(AtomicU32, UnsafeCell<u64>);

// SAFETY: used by one thread.
unsafe impl Sync for BareStore {}
// SAFETY: used by one thread.
unsafe impl Sync for BareExchange {}

fn bare_take(word: &AtomicU32) {
    while word.compare_exchange(0, 1, std::sync::atomic::Ordering::Acquire, Relaxed).is_err() {}
}

impl Subject for BareStore {
    fn make() -> Self {
        Self(AtomicU32::new(0), UnsafeCell::new(0))
    }
    #[inline]
    fn add_one(&self) {
        bare_take(&self.0);
        // SAFETY: used by one thread.
        unsafe { *self.1.get() += 1 };
        // SAFETY: writes one byte of a word that lives, as one instruction.
        unsafe { asm!("mov byte ptr [{}], 0", in(reg) self.0.as_ptr(), options(nostack)) };
    }
}

impl Subject for BareExchange {
    fn make() -> Self {
        Self(AtomicU32::new(0), UnsafeCell::new(0))
    }
    #[inline]
    fn add_one(&self) {
        bare_take(&self.0);
        // SAFETY: used by one thread.
        unsafe { *self.1.get() += 1 };
        // SAFETY: exchanges one byte of a word that lives, as one instruction.
        unsafe {
            asm!("lock cmpxchg byte ptr [{}], {}", in(reg) self.0.as_ptr(), in(reg_byte) 0_u8,
                 inout("al") 1_u8 => _, options(nostack));
        }
    }
}

/// Runs `$do!(name, type)` for every lock.
macro_rules! for_all {
    ($do:ident) => {
        $do!("pvlock native", Native);
        $do!("pvlock kick-twice", Pv<pvlock::KickTwice>);
        $do!("pvlock kick-at-unlock", Pv<pvlock::KickAtUnlock>);
        $do!("pvlock hybrid", Pv<pvlock::Hybrid>);
        $do!("pvlock adaptive", Pv<pvlock::Adaptive>);
        $do!("spin::Mutex", spin::Mutex<u64>);
        $do!("spin::TicketMutex", spin::mutex::TicketMutex<u64>);
        $do!("mcslock", Mcs);
        $do!("parking_lot", parking_lot::Mutex<u64>);
        $do!("std::sync::Mutex", std::sync::Mutex<u64>);
    };
}

fn uncontended(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("uncontended");
    macro_rules! measure {
        ($name:expr, $type:ty) => {
            let lock = <$type>::make();
            group.bench_function($name, |bencher| bencher.iter(|| black_box(&lock).add_one()));
        };
    }
    measure!("bare cmpxchg + store", BareStore);
    measure!("bare cmpxchg + cmpxchg", BareExchange);
    for_all!(measure);
    group.finish();
}

/// What threads on one lock came to in a fixed time.
struct Contended {
    per_second: f64,
    p50: Duration,
    p99: Duration,
    longest: Duration,
}

fn contended<L: Subject>(threads: usize) -> Contended {
    const FOR: Duration = Duration::from_millis(400);
    let lock = L::make();
    let stop = AtomicBool::new(false);
    let start = Barrier::new(threads + 1);
    let mut waits: Vec<u64> = Vec::new();
    let mut took = FOR;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| {
                let (lock, stop, start) = (&lock, &stop, &start);
                scope.spawn(move || {
                    // Both machines: a lock knows which one it lives in.
                    pv::become_cpu(thread % CPUS);
                    native::become_cpu(thread % CPUS);
                    let mut waits = Vec::with_capacity(1 << 20);
                    start.wait();
                    while !stop.load(Relaxed) {
                        let begin = Instant::now();
                        lock.add_one();
                        waits.push(begin.elapsed().as_nanos() as u64);
                        // Some work of one's own, about a hundred nanoseconds.
                        (0..32).for_each(|turn| {
                            black_box(turn);
                        });
                    }
                    waits
                })
            })
            .collect();
        start.wait();
        let begin = Instant::now();
        std::thread::sleep(FOR);
        stop.store(true, Relaxed);
        waits = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        took = begin.elapsed();
    });
    waits.sort_unstable();
    let at = |share: f64| {
        let index = ((waits.len() - 1) as f64 * share) as usize;
        Duration::from_nanos(waits[index])
    };
    Contended {
        per_second: waits.len() as f64 / took.as_secs_f64(),
        p50: at(0.5),
        p99: at(0.99),
        longest: at(1.0),
    }
}

fn table() {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    for times in [1, 2, 4, 8] {
        let threads = (cores * times).min(CPUS);
        let mut rows = Vec::new();
        macro_rules! measure {
            ($name:expr, $type:ty) => {
                rows.push(($name, contended::<$type>(threads)));
            };
        }
        for_all!(measure);
        let best = rows.iter().map(|(_, row)| row.per_second).fold(0.0, f64::max);
        println!("\n{threads} threads on {cores} cores: lock + unlock of one lock");
        println!(
            "{:24}{:>12}{:>8}{:>12}{:>12}{:>12}",
            "", "per second", "best", "p50", "p99", "max"
        );
        for (name, row) in rows {
            println!(
                "{name:24}{:>12.0}{:>8.2}{:>12?}{:>12?}{:>12.1?}",
                row.per_second,
                row.per_second / best,
                row.p50,
                row.p99,
                row.longest
            );
        }
    }
}

/// The ratios of part one: the shortest of many short runs of each, taken in turn, so that other
/// load on the machine hits all alike and the undisturbed runs decide.
fn ratios() {
    const ROUNDS: usize = 400;
    const TURNS: u32 = 20_000;
    let mut best: Vec<(&str, f64)> = Vec::new();
    for _ in 0..ROUNDS {
        let mut at = 0;
        macro_rules! measure {
            ($name:expr, $type:ty) => {
                let lock = <$type>::make();
                let begin = Instant::now();
                (0..TURNS).for_each(|_| black_box(&lock).add_one());
                let took = begin.elapsed().as_nanos() as f64 / f64::from(TURNS);
                match best.get_mut(at) {
                    Some((_, least)) => *least = least.min(took),
                    None => best.push(($name, took)),
                }
                at += 1;
            };
        }
        measure!("bare cmpxchg + store", BareStore);
        measure!("bare cmpxchg + cmpxchg", BareExchange);
        for_all!(measure);
        assert_eq!(at, best.len());
    }
    println!(
        "\nuncontended lock + unlock, shortest of {ROUNDS} runs of {TURNS}, and the ratio to the two bare pairs"
    );
    println!("{:24}{:>10}{:>10}{:>10}", "", "ns", "+ store", "+ cmpxchg");
    for (name, took) in &best {
        println!("{name:24}{took:>10.2}{:>10.3}{:>10.3}", took / best[0].1, took / best[1].1);
    }
}

criterion_group!(benches, uncontended);

fn main() {
    benches();
    Criterion::default().configure_from_args().final_summary();
    // `cargo test --benches` and filters run the first part alone.
    if std::env::args().any(|argument| argument == "--bench") {
        ratios();
        table();
    }
}
