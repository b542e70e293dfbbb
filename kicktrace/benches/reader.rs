//! Bytes a second through the reader alone and through the whole analysis, in memory.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kicktrace::reader::{ReadOptions, Record, read};
use kicktrace::synth::{Plan, generate};
use kicktrace::{Options, summarise};

fn traces(criterion: &mut Criterion) {
    for (pcpus, domains, vcpus) in [(8, 4, 4), (64, 16, 8)] {
        let plan = Plan {
            pcpus,
            domains,
            vcpus,
            duration_ns: u64::MAX,
            max_bytes: 32_000_000,
            ..Plan::default()
        };
        let mut trace = Vec::new();
        generate(&plan, &mut trace).expect("a Vec takes everything");
        let mut group = criterion.benchmark_group(format!("{pcpus} pCPUs"));
        group.sample_size(10).throughput(Throughput::Bytes(trace.len() as u64));
        group.bench_function("all records in order", |bench| {
            bench.iter(|| {
                let mut records = 0u64;
                let count = &mut |_: &Record<'_>| {
                    records += 1;
                    Ok(())
                };
                read(&trace[..], &ReadOptions::default(), count).expect("a sound trace");
                records
            });
        });
        group.bench_function("summarise", |bench| {
            bench.iter(|| summarise(&trace[..], &Options::default()).expect("a sound trace"));
        });
        group.finish();
    }
}

criterion_group!(benches, traces);
criterion_main!(benches);
