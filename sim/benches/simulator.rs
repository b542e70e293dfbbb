//! Simulated acquisitions in a second of real time.
//!
//! Owns what is measured: a small contended guest and one of two thousand vCPUs, with each policy
//! whose waiters sleep.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pvlock_sim::{Config, Policy, simulate};

fn acquisitions(criterion: &mut Criterion) {
    let small = Config::default();
    let large =
        Config { vcpus: 2_000, pcpus: 1_000, locks: 500, acquisitions: 10, ..Config::default() };
    for (name, config) in [("16-vcpus-4-locks", small), ("2000-vcpus-500-locks", large)] {
        let mut group = criterion.benchmark_group(name);
        group.sample_size(10);
        group.throughput(Throughput::Elements(config.vcpus as u64 * config.acquisitions));
        for policy in [Policy::KickTwice, Policy::KickAtUnlock, Policy::Adaptive] {
            group.bench_function(policy.to_string(), |bencher| {
                bencher.iter(|| simulate(&config, policy).expect("all holds"));
            });
        }
    }
}

criterion_group!(benches, acquisitions);
criterion_main!(benches);
