//! What must hold for every trace: order, independence of how bytes arrive and how windows are cut,
//! and of the TSC's origin.

use std::io::{self, Read};

use kicktrace::analysis::{Analyser, Observe};
use kicktrace::reader::{ReadOptions, Reading, Record, Visit, read};
use kicktrace::synth::{Guest, Kicks, Plan, generate};
use kicktrace::{Options, Summary, summarise};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

/// One pass of `xentrace`: for each pCPU the steps of its TSC from record to record.
type Pass = Vec<Vec<u16>>;

/// A trace of passes. Within a pass every pCPU is emptied after its records were written and before
/// the next pass begins, as Xen's rings are; each record carries its number.
fn written(passes: &[Pass]) -> (Vec<u8>, Vec<(u64, u32, u32)>) {
    let (mut trace, mut told) = (Vec::new(), Vec::new());
    let (mut start, mut number) = (1_000u64, 0);
    for pass in passes {
        let mut end = start;
        for (cpu, steps) in pass.iter().enumerate() {
            let (mut words, mut tsc) = (Vec::new(), start);
            for step in steps {
                tsc += u64::from(*step);
                words.extend([0xa002_8009, tsc as u32, (tsc >> 32) as u32, number, 0]);
                told.push((tsc, cpu as u32, number));
                number += 1;
            }
            end = end.max(tsc);
            if !words.is_empty() {
                trace.extend([0x2001_f003, cpu as u32, words.len() as u32 * 4]);
                trace.extend(words);
            }
        }
        start = end;
    }
    (trace.into_iter().flat_map(u32::to_le_bytes).collect(), told)
}

/// Gives its bytes in pieces of the given sizes.
struct Pieces<'a> {
    bytes: &'a [u8],
    sizes: &'a [usize],
    at: usize,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let size = self.sizes[self.at % self.sizes.len()].clamp(1, buffer.len().max(1));
        self.at += 1;
        let size = size.min(buffer.len());
        self.bytes.read(&mut buffer[..size])
    }
}

/// Takes two of three records wherever they come.
#[derive(Default)]
struct Third {
    told: Vec<(u64, u32, u32)>,
}

impl Third {
    fn needs_its_place(number: u32) -> bool {
        number.is_multiple_of(3)
    }
}

impl Visit for Third {
    fn record(&mut self, record: &Record<'_>) -> Result<(), kicktrace::Error> {
        self.told.push((record.tsc, record.cpu, record.words[0]));
        Ok(())
    }

    fn is_local(_: u32, first: Option<u32>) -> bool {
        !first.is_some_and(Self::needs_its_place)
    }
}

/// Everything found.
fn found(summary: Summary) -> serde_json::Value {
    serde_json::to_value(summary).expect("a summary has a JSON form")
}

/// Hears everything and keeps nothing.
struct Listener;

impl Observe for Listener {}

fn heard(trace: &[u8]) -> serde_json::Value {
    let mut analyser = Analyser::observed(&Options::default(), Listener);
    let reading = read(trace, &ReadOptions::default(), &mut analyser).expect("a sound trace");
    found(analyser.finish(reading).0)
}

fn unheard(trace: &[u8]) -> serde_json::Value {
    found(summarise(trace, &Options::default()).expect("a sound trace"))
}

#[test]
fn an_observer_makes_no_difference_on_real_traces() {
    for trace in [
        &include_bytes!("data/mini-pv.xentrace.bin")[..],
        include_bytes!("data/kick-twice-pv.xentrace.bin"),
        include_bytes!("data/kick-at-unlock-pv.xentrace.bin"),
    ] {
        assert_eq!(heard(trace), unheard(trace));
    }
}

fn simulated() -> impl Strategy<Value = Vec<u8>> {
    let guests = prop_oneof![Just(Guest::Pv), Just(Guest::Pvh), Just(Guest::PvhAmd419)];
    let kicks = prop_oneof![Just(Kicks::Twice), Just(Kicks::AtUnlock)];
    (1..1_000u64, guests, kicks, any::<bool>(), 1..4u16, 2..6u32).prop_map(
        |(seed, guest, kicks, markers, locks, pcpus)| {
            let plan = Plan {
                seed,
                guest,
                kicks,
                markers,
                locks,
                pcpus,
                drain_ns: 100_000,
                duration_ns: 700_000,
                ..Plan::default()
            };
            let mut trace = Vec::new();
            generate(&plan, &mut trace).expect("a Vec takes everything");
            trace
        },
    )
}

/// The same cases on every run.
fn settings() -> ProptestConfig {
    ProptestConfig {
        cases: 64,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x5eed),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(settings())]

    /// Every record once, in order of TSC; among equal ones, each pCPU's own order.
    #[test]
    fn records_come_in_order(
        passes in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(0..50u16, 0..30), 1..6), 1..8)
    ) {
        let (trace, mut expected) = written(&passes);
        prop_assume!(!trace.is_empty());
        let mut told = Vec::new();
        let reading: Reading = read(&trace[..], &ReadOptions::default(), &mut |r: &Record<'_>| {
            told.push((r.tsc, r.cpu, r.words[0]));
            Ok(())
        }).expect("a sound trace");
        prop_assert_eq!(reading.late_records, 0);
        prop_assert!(told.windows(2).all(|pair| pair[0].0 <= pair[1].0));
        told.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(told, expected);
    }

    /// Records that need no place among other pCPUs' come in their own pCPU's order; all others are
    /// sorted by TSC.
    #[test]
    fn records_that_need_their_place_come_in_order(
        passes in prop::collection::vec(
            prop::collection::vec(prop::collection::vec(0..50u16, 0..30), 1..6), 1..8)
    ) {
        let (trace, expected) = written(&passes);
        prop_assume!(!trace.is_empty());
        let mut third = Third::default();
        read(&trace[..], &ReadOptions::default(), &mut third).expect("a sound trace");
        for cpu in 0..6 {
            let own = |of: &[(u64, u32, u32)]| -> Vec<_> {
                of.iter().filter(|of| of.1 == cpu).copied().collect()
            };
            prop_assert_eq!(own(&third.told), own(&expected));
        }
        let placed = third.told.iter().filter(|of| Third::needs_its_place(of.2));
        prop_assert!(placed.is_sorted_by_key(|of| of.0));
    }

    /// How the bytes of a pipe arrive changes nothing.
    #[test]
    fn pieces_make_no_difference(
        trace in simulated(),
        sizes in prop::collection::vec(1..5_000usize, 1..20),
    ) {
        let whole = summarise(&trace[..], &Options::default()).expect("a sound trace");
        let pieces = Pieces { bytes: &trace, sizes: &sizes, at: 0 };
        let pieced = summarise(pieces, &Options::default()).expect("a sound trace");
        prop_assert_eq!(found(whole), found(pieced));
    }

    /// With an observer every change of a runstate waits for its turn, without one those that
    /// nothing can come between do not: nothing else may differ.
    #[test]
    fn an_observer_makes_no_difference(trace in simulated()) {
        prop_assert_eq!(heard(&trace), unheard(&trace));
    }

    /// When the TSC began to count changes nothing but the times themselves.
    #[test]
    fn the_origin_of_time_makes_no_difference(trace in simulated(), later in 1..1i64 << 50) {
        let summary = |offset: i64| {
            let mut options = Options::default();
            options.read.tsc_offsets = (0..8).map(|cpu| (cpu, offset)).collect();
            summarise(&trace[..], &options).expect("a sound trace")
        };
        let (here, there) = (summary(0), summary(later));
        prop_assert_eq!(there.reading.first_tsc, here.reading.first_tsc + later as u64);
        prop_assert_eq!(here.clock, there.clock);
        for (one, other) in here.domains.iter().zip(&there.domains) {
            let figures = |of: &kicktrace::summary::Domain| {
                let locks: Vec<_> =
                    of.locks.iter().map(|of| (of.lock, of.waits, of.acquisitions.table)).collect();
                (format!("{:?} {:?} {:?}", of.counts, of.times, of.latencies), locks)
            };
            prop_assert_eq!(figures(one), figures(other));
        }
    }

    /// No figure of a part exceeds that of the whole: cut anywhere, a trace loses and never
    /// invents.
    #[test]
    fn a_longer_trace_has_no_fewer_events(trace in simulated(), at in 0.05..1.0f64) {
        let cut = (trace.len() as f64 * at) as usize;
        let part = summarise(&trace[..cut.max(12)], &Options::default()).expect("it is only cut");
        let whole = summarise(&trace[..], &Options::default()).expect("a sound trace");
        for domain in &part.domains {
            let all = whole.domains.iter().find(|of| of.id == domain.id).expect("it is in both");
            for ((name, of), (_, all)) in domain.counts.named().into_iter().zip(all.counts.named()) {
                let counted = !matches!(name, "inconsistent" | "waits_tainted" | "idle_blocks");
                // At the cut the last records of other pCPUs are missing: what a wake was for, and
                // whether a poll came back, may look otherwise for those under way.
                let slack = 2 * domain.vcpus.len() as u64;
                prop_assert!(!counted || of.value <= all.value + slack, "{}: {:?} {:?}", name, of, all);
            }
        }
    }
}
