//! Small traces, each with one property that a real host's trace may have (data/cases): what is
//! right for each. The kinds behind them are tested on generated traces in `kinds.rs`.

use kicktrace::summary::{Domain, Verdict};
use kicktrace::{Certainty, Options, Summary, fix_skew, summarise};

macro_rules! case {
    ($name:literal) => {
        include_bytes!(concat!("data/cases/", $name, ".bin"))
    };
}

fn read(trace: &[u8]) -> Summary {
    summarise(trace, &Options::default()).expect("a sound file")
}

fn guest(summary: &Summary) -> &Domain {
    summary.domains.iter().find(|domain| domain.id != 0).expect("a guest")
}

/// What was found under this topic.
fn found<'a>(summary: &'a Summary, topic: &str) -> &'a str {
    let finding = summary.findings.iter().find(|finding| finding.topic == topic);
    &finding.unwrap_or_else(|| panic!("nothing on {topic}: {:?}", summary.findings)).what
}

fn is_sound(summary: &Summary) {
    assert!(summary.verdict <= Verdict::Note, "{:?}", summary.warnings);
}

/// Fifty waits, each ended by one kick; times in ticks of 1 ns, within the histogram's 1 %.
fn is_like_the_base(summary: &Summary) {
    let guest = guest(summary);
    let counts = &guest.counts;
    assert_eq!((counts.waits.value, counts.waking_kicks.value), (50, 50));
    assert_eq!((counts.waits_kicked.value, counts.waits_other.value), (50, 0));
    let near = |of: u64, right: u64| of.abs_diff(right) * 20 <= right;
    assert!(near(guest.latencies.wake_to_run.p50, 2_600), "{:?}", guest.latencies.wake_to_run);
    assert!(near(guest.latencies.wait.p50, 52_700), "{:?}", guest.latencies.wait);
    assert_eq!(summary.reading.ticks() / 1_000_000, 4, "five ms");
}

#[test]
fn base() {
    let summary = read(case!("00_base"));
    is_sound(&summary);
    is_like_the_base(&summary);
}

#[test]
fn a_first_record_without_a_tsc_has_the_time_of_the_next() {
    let summary = read(case!("01_untimed_first"));
    is_sound(&summary);
    is_like_the_base(&summary);
}

#[test]
fn a_number_that_is_used_again_is_another_domain() {
    let summary = read(case!("03_domid_reuse"));
    is_sound(&summary);
    let [first, second] = &summary.domains[..] else { panic!("two lives: {:?}", summary.domains) };
    assert_eq!((first.id, first.life, second.id, second.life), (5, 0, 5, 1));
    assert!(first.ended.is_some() && second.ended.is_none());
    assert_eq!((first.counts.waits.value, second.counts.waits.value), (20, 10));
    assert_eq!(first.counts.polls_unresolved.value, 1, "it died in a poll");
    assert!(second.latencies.wait.max < 100_000, "no wait spans both");
}

#[test]
fn a_block_whose_call_began_before_the_trace_is_unknown() {
    let counts = guest(&read(case!("06_mid_hypercall"))).counts;
    assert_eq!((counts.idle_blocks.value, counts.blocks_unknown.value), (0, 1));
    assert_eq!((counts.waits.value, counts.waking_kicks.value), (10, 10));
}

#[test]
fn tscs_that_start_again_are_told() {
    let summary = read(case!("07_tsc_reset"));
    assert_eq!(summary.verdict, Verdict::Doubtful);
    assert!(found(&summary, "TSC restart").contains("start again"));
    assert_eq!((summary.ticks / 1_000_000, summary.reading.late_records), (3, 0));
    assert_eq!(guest(&summary).counts.waking_kicks.value, 40, "both halves are in order");
}

#[test]
fn records_of_an_old_session_are_told_and_take_no_time() {
    let summary = read(case!("08_stale_start"));
    assert_eq!(summary.verdict, Verdict::Doubtful);
    assert!(found(&summary, "silence").contains("7200.000 s"));
    assert!(summary.warnings.iter().any(|text| text.contains("xentrace -D")));
    assert!(summary.seconds.unwrap() < 0.01);
}

#[test]
fn a_timer_in_an_open_operation_is_no_kick() {
    let counts = guest(&read(case!("12_timer_in_open_op"))).counts;
    assert_eq!((counts.waking_kicks.value, counts.waits_kicked.value), (0, 0));
    assert_eq!((counts.waits_other.value, counts.kicks_without_wake.value), (20, 20));
}

#[test]
fn a_pcpu_without_records_is_named_and_not_taken_for_lost_records() {
    for trace in [&case!("13_subset_pcpu")[..], case!("14_subset_pcpu_migrate")] {
        let summary = read(trace);
        assert_eq!(summary.verdict, Verdict::Doubtful);
        assert!(found(&summary, "pCPUs").contains("beside 0"), "{:?}", summary.warnings);
        let text = summary.warnings.join("\n");
        assert!(
            text.contains("-c") && text.contains("-M") && !text.contains("were lost"),
            "{text}"
        );
        assert_ne!(guest(&summary).counts.evtchn_ops.certainty, Certainty::Exact);
    }
    // Its BLOCKs show that the class was captured.
    let summary = read(case!("14_subset_pcpu_migrate"));
    assert!(summary.found(Verdict::Missing).next().is_none());
}

#[test]
fn core_scheduling_is_told_and_gives_nobodys_sends_to_a_sibling() {
    for trace in [&case!("17_core_sched")[..], case!("35_core_sched_busy")] {
        let summary = read(trace);
        assert!(summary.verdict >= Verdict::Doubtful);
        assert!(found(&summary, "cores").contains("sched-gran"));
        for domain in &summary.domains {
            assert_eq!(domain.vcpus[1].counts.evtchn_ops.value, 0, "v1 sends nothing");
            let exact = domain.counts.named().into_iter().find(|(name, count)| {
                ["evtchn_ops", "waking_kicks", "polls", "waits"].contains(name)
                    && count.certainty == Certainty::Exact
            });
            assert_eq!(exact, None);
        }
    }
}

#[test]
fn certainty_follows_each_vcpus_marks() {
    let summary = read(case!("18_one_marks"));
    let [v0, v1] = &guest(&summary).vcpus[..] else { panic!("two vCPUs") };
    assert_eq!(v0.counts.waking_kicks, kicktrace::Count::exact(10));
    assert_eq!(v1.counts.waking_kicks.certainty, Certainty::Inferred);
    // What ended a wait is known where the other one marked its kick.
    assert_eq!(v1.counts.waits_kicked.certainty, Certainty::Exact);
    assert_eq!(v0.counts.waits_kicked.certainty, Certainty::Inferred);
    assert_eq!(guest(&summary).counts.waking_kicks.certainty, Certainty::Inferred);
    assert!(found(&summary, "partial marks").contains("d1v1"));
}

#[test]
fn a_nested_entry_ends_an_operation() {
    let counts = guest(&read(case!("20_nested_hvm"))).counts;
    assert_eq!((counts.waking_kicks.value, counts.waits_other.value), (0, 20));
}

#[test]
fn a_poll_lost_in_a_gap_is_tainted() {
    let summary = read(case!("24_two_gaps_same"));
    assert_eq!(summary.verdict, Verdict::Doubtful);
    let counts = guest(&summary).counts;
    assert_eq!((counts.polls.value, counts.polls_blocked.value), (21, 20));
    assert_eq!((counts.polls_unresolved.value, counts.waits_tainted.value), (1, 1));
}

/// Learns corrections as `--fix-skew` does, and reads with them.
fn corrected(trace: &[u8]) -> (Options, Summary) {
    let mut options = Options::default();
    let fixed = fix_skew(|| Ok(trace), |error| error, &mut options).expect("a sound file");
    assert!(fixed.before > 0 && fixed.left == 0, "{fixed:?}");
    let summary = summarise(trace, &options).expect("a sound file");
    (options, summary)
}

#[test]
fn tscs_out_of_step_are_corrected_and_nothing_across_pcpus_is_exact() {
    for (name, trace, offset, ppm) in [
        ("26", &case!("26_skew_first")[..], 1e9, 0.0),
        ("60", case!("60_skew_30us"), 30e3, 0.0),
        ("36", case!("36_seven_ppm_drift"), 0.0, -10.0),
    ] {
        let before = read(trace);
        assert_eq!(before.verdict, Verdict::Doubtful, "{name}");
        assert!(found(&before, "TSCs").contains("out of step"), "{name}");
        let (options, after) = corrected(trace);
        let counts = guest(&after).counts;
        assert_eq!(counts.inconsistent.value, 0, "{name}: {:?}", after.warnings);
        assert!(found(&after, "TSCs").contains("are corrected"), "{name}");
        // Wakes in one direction only leave open how long the fastest took: 2.6 us, and no more.
        let [(cpu, ticks)] = options.read.tsc_offsets[..] else { panic!("{name}: one correction") };
        assert_eq!(cpu, 1);
        assert!((ticks as f64 - offset).abs() < 2_700.0, "{name}: {ticks}");
        let slope = options.read.tsc_drifts.first().map_or(0.0, |drift| drift.per_tick * 1e6);
        assert!((slope - ppm).abs() < 0.1, "{name}: {slope} ppm");
        for summary in [&before, &after] {
            let latencies = &guest(summary).latencies;
            for of in [&latencies.wake_to_run, &latencies.kick_to_run, &latencies.wait] {
                assert_ne!(of.certainty, Certainty::Exact, "{name}");
            }
        }
        assert_eq!(counts.waking_kicks.value, counts.polls_blocked.value, "{name}");
        assert!(guest(&after).latencies.wait.p50.abs_diff(52_700) < 600, "{name}");
    }
}

#[test]
fn time_after_the_end_of_a_domain_is_none() {
    let summary = read(case!("29_dead_domain"));
    is_sound(&summary);
    let guest = guest(&summary);
    assert_eq!(guest.ended.map(|tsc| (tsc - summary.reading.first_tsc) / 1_000), Some(5_011));
    let share = guest.times.running as f64 / guest.ticks as f64;
    assert!((0.70..0.76).contains(&share), "running {share}");
    assert_eq!(guest.counts.waits.value, 50);
}

#[test]
fn two_sessions_in_one_file_are_doubtful() {
    let summary = read(case!("30_cat"));
    assert_eq!(summary.verdict, Verdict::Doubtful);
    assert!(found(&summary, "silence").contains("no other pause"));
    assert!(summary.coverage_percent < 1.0);
}

#[test]
fn none_happened_is_not_not_captured() {
    let summary = read(case!("33_busy_no_wake"));
    is_sound(&summary);
    assert!(found(&summary, "wake or block records").contains("none happened"));
}

#[test]
fn a_clock_of_long_runs_and_an_honest_error() {
    // One pCPU's nanoseconds are off by 39 %.
    let summary = read(case!("39_offset_clock"));
    let hz = summary.clock.hz.expect("the runs of the other one are sound");
    assert!((hz / 1e9 - 1.0).abs() < 0.001 && summary.clock.error_ppm.unwrap() > 1_000.0);
    assert!(found(&summary, "system time").contains("pCPU 2"));
    // The nanoseconds of runs of five seconds wrapped.
    let clock = read(case!("57_wrapped_ns")).clock;
    assert!((clock.hz.unwrap() / 1e9 - 1.0).abs() < 1e-6, "{clock:?}");
}

#[test]
fn a_wake_without_its_change_is_no_wake() {
    let summary = read(case!("47_unpause_wake"));
    is_sound(&summary);
    is_like_the_base(&summary);
}

#[test]
fn a_kick_of_a_paused_poller_is_a_kick() {
    let summary = read(case!("48_kick_paused"));
    is_sound(&summary);
    let counts = guest(&summary).counts;
    assert_eq!((counts.waking_kicks.value, counts.waits_kicked.value), (50, 50));
    assert!(guest(&summary).times.offline > 1_000_000);
}
