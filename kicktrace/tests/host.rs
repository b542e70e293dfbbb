//! What `kicktrace host` tells: against the summary, which counts by other rules, and against the
//! records.

use std::collections::BTreeMap;

use kicktrace::analysis::{
    Analyser, Bounds, Cause, Concurrency, EntryKind, Host, HostSummary, Phases,
};
use kicktrace::reader::{ReadOptions, Record, read};
use kicktrace::synth::{Guest, Kicks, Plan, generate};
use kicktrace::{Certainty, Options, Summary, event};

fn told(trace: &[u8]) -> (Summary, HostSummary) {
    let mut analyser = Analyser::observed(&Options::default(), Host::default());
    let reading = read(trace, &ReadOptions::default(), &mut analyser).expect("a sound trace");
    let (summary, mut host) = analyser.finish(reading);
    let told = host.figures(&summary);
    (summary, told)
}

fn trace(plan: &Plan) -> Vec<u8> {
    let mut trace = Vec::new();
    generate(plan, &mut trace).expect("a Vec takes everything");
    trace
}

fn traces() -> Vec<Vec<u8>> {
    let base = Plan { markers: true, locks: 2, ..Plan::default() };
    vec![
        include_bytes!("data/kick-twice-pv.xentrace.bin").to_vec(),
        include_bytes!("data/mini-pv.xentrace.bin").to_vec(),
        trace(&Plan { kicks: Kicks::Twice, ..base.clone() }),
        trace(&Plan { guest: Guest::Pvh, ..base.clone() }),
        trace(&Plan { guest: Guest::PvhAmd419, timer_every: 5, ..base }),
    ]
}

#[test]
fn host_and_summary_agree() {
    for trace in traces() {
        let (summary, host) = told(&trace);
        assert_eq!(summary.domains.len(), host.domains.len());
        let events: u64 = host.events.iter().map(|of| of.records.value).sum();
        assert_eq!(events, summary.reading.records);
        for (domain, of) in summary.domains.iter().zip(&host.domains) {
            let ticks = |cause: Cause| of.runnable[cause as usize].ticks;
            assert_eq!(ticks(Cause::Woken), domain.times.stolen_after_wake);
            // What a vCPU's first record ends has no cause.
            let caused: u64 = Cause::ALL.into_iter().map(ticks).sum();
            assert!(caused <= domain.times.stolen, "{caused} of {}", domain.times.stolen);
            assert_eq!(of.poll_to_wake.count, domain.counts.waits.value);
            for cause in &of.runnable {
                // One of each vCPU may be under way at the end, or end otherwise.
                let ran = cause.to_run.count;
                assert!(ran <= cause.count.value);
                assert!(cause.count.value - ran <= domain.vcpus.len() as u64, "{cause:?}");
            }
            let called = of.entries.iter().filter(|of| {
                matches!(of.kind, EntryKind::Hypercall | EntryKind::MulticallEntry)
                    && of.number == event::HYPERCALL_EVENT_CHANNEL_OP
            });
            let called: u64 = called.map(|of| of.count.value).sum();
            assert_eq!(called, domain.counts.evtchn_ops.value);
            // Every instant of its life is one of the kinds: from the start of the trace, or from
            // when the domain begins.
            let Concurrency { all_run, some_run, hazard, none_runs, none_wants, unknown, .. } =
                of.concurrency;
            let sum = all_run + some_run + hazard + none_runs + none_wants + unknown;
            let lived = domain.vcpus.iter().map(|vcpu| vcpu.ticks).max().unwrap_or(0);
            assert!((lived..=summary.ticks).contains(&sum), "{sum} of {lived}");
            assert!(domain.id > 0 || sum == summary.ticks || domain.ended.is_some());
            // The sum over the numbers of running vCPUs is their running time, at least as much as
            // is told of them since they were first seen.
            let by_running = &of.concurrency.by_running;
            let ran: u64 = by_running.iter().enumerate().map(|(n, ticks)| n as u64 * ticks).sum();
            assert!(ran >= domain.times.running, "{ran} of {}", domain.times.running);
        }
        let on_pcpus: u64 = host.pcpus.iter().flat_map(|of| &of.vcpus).map(|who| who.ticks).sum();
        let running: u64 = summary.domains.iter().map(|domain| domain.times.running).sum();
        assert_eq!(on_pcpus, running);
        for of in &host.pcpus {
            assert_eq!(of.busy + of.idle + of.unknown, summary.ticks, "pCPU {}", of.cpu);
            assert_eq!(of.certainty, Certainty::Exact);
        }
    }
}

#[test]
fn hypercalls_are_those_of_the_records() {
    for trace in traces() {
        let (_, host) = told(&trace);
        let mut records: BTreeMap<(EntryKind, u32), u64> = BTreeMap::new();
        read(&trace[..], &ReadOptions::default(), &mut |record: &Record<'_>| {
            let first = record.words.first().copied().unwrap_or(0);
            let key = match record.event {
                event::PV_HYPERCALL => (EntryKind::Hypercall, first & 0xf_ffff),
                event::PV_SUBCALL => (EntryKind::MulticallEntry, first & 0xf_ffff),
                event::VMMCALL => (EntryKind::Hypercall, first),
                of if event::is_vmexit(of) => (EntryKind::Exit, first),
                _ => return Ok(()),
            };
            *records.entry(key).or_default() += 1;
            Ok(())
        })
        .expect("a sound trace");
        let mut counted: BTreeMap<(EntryKind, u32), u64> = BTreeMap::new();
        for of in host.domains.iter().flat_map(|domain| &domain.entries) {
            *counted.entry((of.kind, of.number)).or_default() += of.count.value;
        }
        let mut missing = 0;
        for (key, count) in &records {
            missing += count - counted.get(key).copied().unwrap_or(0);
        }
        assert!(missing <= host.unattributed_entries, "{missing} are nobody's");
        if host.unattributed_entries > 0 {
            let all = host.domains.iter().flat_map(|domain| &domain.entries);
            assert!(all.clone().all(|of| of.count.certainty == Certainty::LowerBound));
        }
    }
}

#[test]
fn a_stay_in_xen_is_without_the_time_off_the_pcpu() {
    let (summary, host) = told(&trace(&Plan { guest: Guest::Pvh, ..Plan::default() }));
    let exits = host.domains.iter().flat_map(|domain| &domain.entries);
    let exits: Vec<_> = exits.filter(|of| of.kind == EntryKind::Exit).collect();
    assert!(!exits.is_empty());
    let in_xen: u64 = exits.iter().filter_map(|of| of.in_xen).sum();
    let running: u64 = summary.domains.iter().map(|domain| domain.times.running).sum();
    assert!(in_xen > 0 && in_xen <= running, "{in_xen} of {running}");
    assert!(exits.iter().any(|of| of.name == Some("vmcall")), "{exits:?}");
}

#[test]
fn lost_records_leave_bounds() {
    let (_, host) = told(&trace(&Plan {
        ring: 4 << 10,
        drain_ns: 500_000,
        drain_when_half_full: false,
        markers: true,
        ..Plan::default()
    }));
    assert!(host.pcpus.iter().any(|of| of.lost_records > 0 && of.unknown > 0));
    for domain in &host.domains {
        assert_eq!(domain.concurrency.certainty, Certainty::Inferred);
        assert!(domain.entries.iter().all(|of| of.count.certainty == Certainty::LowerBound));
        for of in &domain.runnable {
            // A yield that is lost seems to be a preemption.
            let preempted = of.cause == Cause::Preempted;
            let bound = if preempted { Certainty::Inferred } else { Certainty::LowerBound };
            assert_eq!(of.count.certainty, bound, "{:?}", of.cause);
        }
    }
}

#[test]
fn phases_of_the_host_add_up() {
    let trace = trace(&Plan { markers: true, ..Plan::default() });
    let (summary, whole) = told(&trace);
    let bounds = Bounds { every: Some(summary.ticks / 10), ..Bounds::default() };
    let mut parts = Vec::new();
    let mut phases =
        Phases::new(&Options::default(), Host::default(), bounds, |summary, host: &mut Host| {
            parts.push(host.figures(&summary));
        });
    let reading = read(&trace[..], &ReadOptions::default(), &mut phases).expect("a sound trace");
    phases.finish(reading);
    let sums = |of: &HostSummary| {
        let mut sums = Vec::new();
        for of in &of.pcpus {
            sums.extend([of.busy, of.idle, of.unknown, of.runs.value, of.migrations.value]);
        }
        for of in &of.domains {
            for of in &of.runnable {
                sums.extend([of.count.value, of.ticks, of.to_run.count]);
            }
            let of = &of.concurrency;
            sums.extend([of.all_run, of.some_run, of.hazard, of.none_runs, of.none_wants]);
        }
        sums
    };
    let mut all = vec![0; sums(&whole).len()];
    for part in &parts {
        for (sum, of) in all.iter_mut().zip(sums(part)) {
            *sum += of;
        }
    }
    assert!(parts.len() >= 10);
    // vCPUs and pCPUs that are first seen in a later phase are known from there on only.
    for (at, (sum, whole)) in all.iter().zip(sums(&whole)).enumerate() {
        assert!(sum.abs_diff(whole) * 20 <= whole.max(20), "figure {at}: {sum} of {whole}");
    }
}

#[test]
fn owners_off_their_pcpu_are_found() {
    let (_, host) = told(include_bytes!("data/kick-twice-pv.xentrace.bin"));
    let locks: Vec<_> = host.domains.iter().flat_map(|domain| &domain.owners_off).collect();
    assert!(locks.iter().any(|of| of.kicks > 300 && of.off.value > 0), "{locks:?}");
    assert!(locks.iter().all(|of| of.off.value <= of.kicks && of.each.count == of.off.value));
}

#[test]
fn the_table_fits_60_and_80_columns() {
    for trace in traces() {
        let (_, host) = told(&trace);
        for columns in [60, 80] {
            let mut out = Vec::new();
            kicktrace::output::host::table(&mut out, &host, Some(columns))
                .expect("a Vec takes all");
            let text = String::from_utf8(out).expect("it is text");
            let long = text.lines().find(|line| line.chars().count() > columns);
            assert_eq!(long, None, "{columns} columns");
        }
        let mut out = Vec::new();
        kicktrace::output::host::csv(&mut out, &host).expect("a Vec takes all");
        let text = String::from_utf8(out).expect("it is text");
        assert!(text.lines().all(|line| line.split(',').count() == 8));
    }
}

#[test]
fn credit2_s_own_records_have_names_and_fields() {
    let (mut named, mut candidates) = (0, 0);
    let trace = include_bytes!("data/mini-pv.xentrace.bin");
    read(&trace[..], &ReadOptions::default(), &mut |record: &Record<'_>| {
        if record.event & 0x0fff_ff00 == 0x0002_2200 {
            let text = kicktrace::output::record::text(record).to_string();
            assert!(text.starts_with("csched2_") && !text.contains(" 0x"), "{text}");
            named += 1;
            candidates += u32::from(text.starts_with("csched2_runq_candidate"));
            // The number that the formats file gives this event is another one's.
            if let Some(of) = text.strip_prefix("csched2_schedule cpu=") {
                assert!(of.starts_with(&record.cpu.to_string()), "{text}");
            }
        }
        Ok(())
    })
    .expect("a sound trace");
    assert!(named > 100 && candidates > 10, "{named} records, {candidates} candidates");
}
