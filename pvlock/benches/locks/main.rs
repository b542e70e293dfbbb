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
use subjects::{Alone, BareExchange, BareStore, Mcs, Native, Pv, Subject, for_all, for_bare};

fn uncontended(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("uncontended");
    macro_rules! measure {
        ($name:expr, $type:ty) => {
            let lock = Alone(<$type>::make());
            group.bench_function($name, |bencher| {
                bencher.iter(|| black_box(&lock.0).locked(|value| *value += 1))
            });
        };
    }
    for_bare!(measure);
    for_all!(measure);
    group.finish();
}

/// The ratios: the shortest of many short runs of each, taken in turn, so that other load on the
/// machine hits all alike and the undisturbed runs decide.
fn ratios() {
    const ROUNDS: usize = 4000;
    const TURNS: u32 = 20_000;
    let mut best: Vec<(&str, f64)> = Vec::new();
    for _ in 0..ROUNDS {
        let mut at = 0;
        macro_rules! measure {
            ($name:expr, $type:ty) => {
                let lock = Alone(<$type>::make());
                let begin = Instant::now();
                (0..TURNS).for_each(|_| black_box(&lock.0).locked(|value| *value += 1));
                let took = begin.elapsed().as_nanos() as f64 / f64::from(TURNS);
                match best.get_mut(at) {
                    Some((_, least)) => *least = least.min(took),
                    None => best.push(($name, took)),
                }
                at += 1;
            };
        }
        for_bare!(measure);
        for_all!(measure);
        assert_eq!(at, best.len());
    }
    println!(
        "\nuncontended lock + unlock, shortest of {ROUNDS} runs of {TURNS}, and the ratio to the bare \
         instructions"
    );
    println!("{:24}{:>10}{:>10}{:>12}{:>12}", "", "ns", "+ store", "pair, byte", "pair, word");
    for (name, took) in &best {
        let [store, byte, word] = std::array::from_fn(|at| took / best[at].1);
        println!("{name:24}{took:>10.2}{store:>10.3}{byte:>12.3}{word:>12.3}");
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
