//! The lock without contention, beside its peers: `cargo bench -p pvlock --bench locks`.
//!
//! Criterion measures lock + unlock beside the bare instructions that any lock of this kind needs;
//! the ratios to those are printed at the end. Under contention: `--bench contended`.
#![cfg(not(loom))]
#![allow(missing_docs)] // `criterion_group!` makes a public function.

#[allow(dead_code)] // Without contention nobody asks who is who.
mod machine;
mod subjects;

use criterion::{Criterion, criterion_group};
use std::hint::black_box;
use std::time::Instant;
use subjects::{BareExchange, BareStore, Mcs, Native, Pv, Subject, for_all};

fn uncontended(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("uncontended");
    macro_rules! measure {
        ($name:expr, $type:ty) => {
            let lock = <$type>::make();
            group.bench_function($name, |bencher| {
                bencher.iter(|| black_box(&lock).locked(|value| *value += 1))
            });
        };
    }
    measure!("bare cmpxchg + store", BareStore);
    measure!("bare cmpxchg + cmpxchg", BareExchange);
    for_all!(measure);
    group.finish();
}

/// The ratios: the shortest of many short runs of each, taken in turn, so that other load on the
/// machine hits all alike and the undisturbed runs decide.
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
                (0..TURNS).for_each(|_| black_box(&lock).locked(|value| *value += 1));
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
    }
}
