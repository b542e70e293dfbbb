//! Damaged, cut and wrong input: a clear error with its byte, or a tail that is told; never a
//! panic.

use kicktrace::summary::Verdict;
use kicktrace::synth::{Guest, Plan, generate};
use kicktrace::{Error, ErrorKind, Options, Summary, summarise};

const REAL: &[u8] = include_bytes!("data/mini-pv.xentrace.bin");

fn small() -> Vec<u8> {
    let plan = Plan {
        guest: Guest::Pvh,
        markers: true,
        padding: true,
        ring: 600,
        drain_ns: 30_000,
        drain_when_half_full: false,
        duration_ns: 100_000,
        ..Plan::default()
    };
    let mut trace = Vec::new();
    let truth = generate(&plan, &mut trace).expect("a Vec takes everything");
    assert!(truth.gaps > 0, "the trace has lost records too");
    trace
}

fn read(trace: &[u8]) -> Result<Summary, Error> {
    summarise(trace, &Options::default())
}

fn strict(trace: &[u8]) -> Result<Summary, Error> {
    let mut options = Options::default();
    options.read.strict = true;
    summarise(trace, &options)
}

/// The ends of the windows, the only places where a cut cannot be told from the end.
fn window_ends(trace: &[u8]) -> Vec<usize> {
    let (mut at, mut ends) = (0, vec![0]);
    while at < trace.len() {
        let size = u32::from_le_bytes(trace[at + 8..at + 12].try_into().unwrap());
        at += 12 + size as usize;
        ends.push(at);
    }
    ends
}

#[test]
fn cut_at_every_byte() {
    let trace = small();
    assert!((4_000..20_000).contains(&trace.len()), "{} bytes", trace.len());
    let ends = window_ends(&trace);
    let mut records = 0;
    for cut in 1..trace.len() {
        let summary = read(&trace[..cut]).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        let reading = &summary.reading;
        assert_eq!(reading.bytes, cut as u64);
        assert!(reading.records >= records, "cut at {cut}: a longer file has no fewer records");
        records = reading.records;
        assert_eq!(reading.truncated.is_none(), ends.contains(&cut), "cut at {cut}");
        if let Some(truncated) = reading.truncated {
            assert_eq!(truncated.offset, cut as u64);
            let text = summary.warnings.join("\n");
            assert!(text.contains(&format!("byte {cut}")), "{text}");
            // Once for every place a cut can have within a record.
            if cut % 13 == 0 {
                let error = strict(&trace[..cut]).expect_err("a cut is an error when strict");
                assert_eq!(error.offset(), Some(cut as u64));
            }
        }
    }
}

#[test]
fn a_real_trace_cut_anywhere() {
    for cut in (1..REAL.len()).step_by(20_011).chain(REAL.len() - 50..REAL.len()) {
        let summary = read(&REAL[..cut]).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
        assert_eq!(summary.reading.bytes, cut as u64);
    }
}

#[test]
fn nothing_and_something_else() {
    assert!(matches!(read(b"").unwrap_err().kind(), ErrorKind::Empty));
    for wrong in [&b"\x7fELF\x02\x01\x01\0\0\0\0\0"[..], b"x", b"#!/bin/sh\n", &[0; 4096]] {
        let error = read(wrong).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::NotATrace { .. }), "{error}");
        assert_eq!(error.offset(), Some(0));
    }
}

fn window(cpu: u32, words: &[u32]) -> Vec<u8> {
    let head = [0x2001_f003, cpu, words.len() as u32 * 4];
    head.iter().chain(words).flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn absurd_windows_and_records() {
    let cases: [(&str, Vec<u8>, u64); 6] = [
        ("a pCPU that cannot be", window(1 << 20, &[]), 0),
        ("no window where one should be", [window(0, &[]), vec![1, 2, 3, 4]].concat(), 12),
        ("a record larger than its window", window(0, &[0xf002_8004, 1]), 12),
        ("a window in a window", window(0, &[0x2001_f003, 0, 0]), 12),
        ("a vCPU beyond 16 bits", window(0, &[0xa002_8004, 1, 0, 1, 1 << 16]), 12),
        ("a wake without a vCPU", window(0, &[0x8002_8004, 1, 0]), 12),
    ];
    for (what, trace, offset) in cases {
        let error = read(&trace).expect_err(what);
        assert_eq!(error.offset(), Some(offset), "{what}: {error}");
        assert!(error.to_string().contains(&format!("byte {offset}")), "{what}: {error}");
    }
}

#[test]
fn a_window_of_4_gib_that_is_not_there_takes_no_memory() {
    let mut trace = window(0, &[]);
    trace[8..12].copy_from_slice(&0xffff_fffcu32.to_le_bytes());
    trace.extend(window(0, &[0x1002_1002, 1])[12..].iter());
    let summary = read(&trace).expect("it is only cut");
    assert_eq!(summary.reading.records, 1);
    assert!(summary.reading.peak_buffered < 1 << 20);
}

#[test]
fn more_vcpus_than_are_told_is_a_limit_and_no_damage() {
    let vcpu = |n: u32| [0x1002_1011, (5 + (n >> 16)) << 16 | n & 0xffff];
    let all: Vec<u32> = (0..70_000).flat_map(vcpu).collect();
    let summary = read(&window(0, &all)).expect("a limit is no damage");
    let told: usize = summary.domains.iter().map(|domain| domain.vcpus.len()).sum();
    assert_eq!(told, kicktrace::analysis::MAX_VCPUS);
    let limit = summary.findings.iter().find(|finding| finding.topic == "limit").unwrap();
    assert_eq!(limit.verdict, Verdict::Doubtful);
    assert!(limit.what.contains("kicktrace's limit"), "{}", limit.what);
}

#[test]
fn times_that_jump_do_not_overflow() {
    let wake = |tsc: u64, event: u32| [event, tsc as u32, (tsc >> 32) as u32, 1, 1];
    let mut words = Vec::new();
    for tsc in [u64::MAX, 0, 1 << 63, 5, u64::MAX - 1] {
        for event in [0xa002_8004, 0xa002_8006, 0xa002_1101, 0xa002_1021, 0xa020_100d] {
            words.extend(wake(tsc, event));
        }
        words.extend([0xc001_f001, tsc as u32, (tsc >> 32) as u32, 3, 1 << 16 | 1, 9, 9]);
    }
    let trace = [window(0, &words), window(1, &words), window(0, &words)].concat();
    let summary = read(&trace).expect("every record is sound by itself");
    let pcpu = &summary.reading.pcpus[0];
    assert!(pcpu.backwards + pcpu.resets + pcpu.strays > 0, "{pcpu:?}");
}

#[test]
fn a_small_buffer_gives_up_order_before_memory() {
    let mut trace = Vec::new();
    let plan = Plan { drain_when_half_full: false, drain_ns: 20_000_000, ..Plan::default() };
    generate(&plan, &mut trace).expect("a Vec takes everything");
    let mut options = Options::default();
    options.read.buffer_limit = 64 << 10;
    let summary = summarise(&trace[..], &options).expect("it is only out of order");
    assert!(summary.reading.late_records > 0);
    // The limit, and the block of each pCPU that is under way.
    assert!(
        summary.reading.peak_buffered < (64 + 5 * 256) << 10,
        "{}",
        summary.reading.peak_buffered
    );
    assert!(summary.warnings.iter().any(|text| text.contains("--buffer")));
}
