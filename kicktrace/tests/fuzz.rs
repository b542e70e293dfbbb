//! Thousands of hostile traces: an error that names a byte, or a summary that can be printed in
//! every form; never a panic, never much memory.
//!
//! Two sources, both from one seed: sound traces with damage done to them, and files put together
//! from the format's grammar with absurd contents. Each round has a number; a failure names it.
//!
//! `KICKTRACE_FUZZ_ROUNDS` sets how many rounds (1,500 of each by default, the same ones each
//! time), `KICKTRACE_FUZZ_SEED` where they start: with the seed a failure names, it is the first.

use std::panic::{AssertUnwindSafe, catch_unwind};

use kicktrace::analysis::{Analyser, Bounds, Host, HostSummary, Phases};
use kicktrace::output::record::{WhoRuns, text};
use kicktrace::output::series::Series;
use kicktrace::output::story::Story;
use kicktrace::output::{host, html};
use kicktrace::reader::{Record, read};
use kicktrace::synth::{Guest, Plan, generate};
use kicktrace::{Options, Summary, summarise};

/// xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        ((self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize) % n.max(1)
    }
}

/// Words that mean something at many places of a trace.
const WORDS: [u32; 14] = [
    0,
    1,
    3,
    0x7fff_0000,
    u32::MAX,
    0x2001_f003,
    0xc001_f001,
    0xf001_f002,
    0x9002_1101,
    0xa002_8004,
    0xa002_8006,
    0xa020_100d,
    0x3800_f701,
    0x4800_f704,
];

fn damage(trace: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(6) {
        let at = random.below(trace.len());
        match random.below(5) {
            0 => trace[at] ^= 1 << random.below(8),
            1 => {
                let at = at & !3;
                let word = WORDS[random.below(WORDS.len())].to_le_bytes();
                trace.iter_mut().skip(at).zip(word).for_each(|(byte, new)| *byte = new);
            }
            2 => trace.truncate(at.max(1)),
            3 => {
                let end = (at + 4 * random.below(20)).min(trace.len());
                trace.drain(at..end);
            }
            _ => {
                let from = random.below(trace.len());
                let piece = trace[from..(from + 4 * random.below(20)).min(trace.len())].to_vec();
                trace.splice(at..at, piece);
            }
        }
        if trace.is_empty() {
            trace.push(0);
        }
    }
}

/// A number from the environment, or the default.
fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text}"))
    })
}

/// Runs `make` and then every way to read, for each round's own seed; returns how many traces were
/// read and how many ended with an error.
fn rounds(name: &str, make: impl Fn(&mut Random) -> Vec<u8>) -> (u64, u64) {
    let first = setting("KICKTRACE_FUZZ_SEED", 1);
    let (mut good, mut bad) = (0, 0);
    for seed in first..first + setting("KICKTRACE_FUZZ_ROUNDS", 1_500) {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        // The first numbers of like seeds are alike.
        for _ in 0..4 {
            random.below(2);
        }
        let trace = make(&mut random);
        let done = catch_unwind(AssertUnwindSafe(|| digest(&trace, &mut random)));
        match done {
            Ok(true) => good += 1,
            Ok(false) => bad += 1,
            Err(panic) => {
                eprintln!(
                    "{name}: this is round {seed}; again: KICKTRACE_FUZZ_SEED={seed} \
                     KICKTRACE_FUZZ_ROUNDS=1 cargo test -p kicktrace --test fuzz {name}"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    (good, bad)
}

/// Reads a trace in every way there is; whether it could be read.
fn digest(trace: &[u8], random: &mut Random) -> bool {
    let mut options = Options::default();
    options.read.buffer_limit = [1 << 10, 16 << 10, 1 << 20][random.below(3)];
    options.read.strict = random.below(4) == 0;
    if random.below(4) == 0 {
        options.read.tsc_offsets = vec![(0, i64::MIN + 5), (1, -5), (2, i64::MAX)];
    }
    if random.below(4) == 0 {
        options.domains = vec![1];
    }
    let mut who = WhoRuns::default();
    let plain = read(trace, &options.read, &mut |record: &Record<'_>| {
        who.record(record);
        assert!(!text(record).to_string().is_empty());
        assert!(record.offset + 4 <= trace.len() as u64);
        Ok(())
    });
    // Everything that is kept grows with the trace or has a limit.
    let mut analyser = Analyser::observed(&options, Story::with_limit(1_000));
    match read(trace, &options.read, &mut analyser) {
        Ok(reading) => {
            let records = plain.expect("what the analyser reads, anybody can").records;
            assert_eq!(reading.records, records);
            let (summary, story) = analyser.finish(reading);
            let mut told = None;
            if random.below(8) == 0 {
                let mut analyser = Analyser::observed(&options, Host::default());
                let reading =
                    read(trace, &options.read, &mut analyser).expect("it was read before");
                let (summary, mut host) = analyser.finish(reading);
                let host = host.figures(&summary);
                print_host(&host);
                told = Some(host);
            }
            let mut series = Series::default();
            // Some in which a record lies far out have thousands of phases.
            if random.below(100) == 0 {
                let bounds = Bounds { every: Some(summary.ticks / 5 + 1), ..Bounds::default() };
                let mut phases =
                    Phases::new(&options, (), bounds, |phase, _: &mut ()| drop(series.push(phase)));
                match read(trace, &options.read, &mut phases) {
                    Ok(reading) => drop(phases.finish(reading)),
                    // A record out of order may lie far beyond the last one.
                    Err(error) => assert!(error.to_string().contains("--every"), "{error}"),
                }
            }
            print(&summary, story, series, told);
            assert!(summarise(trace, &options).is_ok());
            true
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.contains("byte") || message.contains("empty"), "{message}");
            if let Some(offset) = error.offset() {
                assert!(offset <= trace.len() as u64, "{message}");
            }
            false
        }
    }
}

fn print_host(told: &HostSummary) {
    let mut out = Vec::new();
    host::table(&mut out, told, Some(60)).expect("a Vec takes everything");
    host::csv(&mut out, told).expect("a Vec takes everything");
    assert!(!String::from_utf8(out).expect("all of it is text").contains("NaN"));
    assert!(serde_json::to_string(told).is_ok());
}

/// Every output takes every summary.
fn print(summary: &Summary, story: Story, series: Series, host: Option<HostSummary>) {
    assert!((0.0..=100.0).contains(&summary.coverage_percent));
    assert!(!summary.to_string().is_empty());
    assert!(serde_json::to_string(summary).is_ok());
    // The report once panicked on an interval that a skewed TSC had end before it began.
    assert!(story.intervals.iter().all(|interval| interval.from <= interval.to));
    let mut out = Vec::new();
    kicktrace::output::csv::write(&mut out, summary).expect("a Vec takes everything");
    series.csv(&mut out).expect("a Vec takes everything");
    series.table(&mut out, Some(60)).expect("a Vec takes everything");
    kicktrace::output::locks::csv(&mut out, summary).expect("a Vec takes everything");
    kicktrace::output::gantt::write(&mut out, &story, &summary.clock, 40, None)
        .expect("a Vec takes everything");
    let worst = story.waits.iter().take(20).copied().collect();
    let parts = html::Parts { title: "fuzz".into(), window: story, worst, series, host };
    html::write(&mut out, summary, &parts).expect("a Vec takes everything");
    let page = String::from_utf8(out).expect("all of it is text");
    assert!(!page.contains("NaN") && page.ends_with("</html>\n"));
}

/// Small sound traces of every kind of guest, and a piece of a real one.
fn sound() -> Vec<Vec<u8>> {
    let mut traces = Vec::new();
    for (guest, markers) in [(Guest::Pv, true), (Guest::Pvh, false), (Guest::PvhAmd419, true)] {
        let plan = Plan {
            guest,
            markers,
            locks: 2,
            padding: true,
            ring: 600,
            drain_ns: 30_000,
            drain_when_half_full: false,
            duration_ns: 100_000,
            ..Plan::default()
        };
        let mut trace = Vec::new();
        generate(&plan, &mut trace).expect("a Vec takes everything");
        traces.push(trace);
    }
    traces.push(include_bytes!("data/kick-twice-pv.xentrace.bin")[..20_000].to_vec());
    traces
}

#[test]
fn damaged_traces() {
    let sound = sound();
    let (good, bad) = rounds("damaged_traces", |random| {
        let mut trace = sound[random.below(sound.len())].clone();
        damage(&mut trace, random);
        trace
    });
    if good + bad > 1_000 {
        assert!(good > 100 && bad > 100, "{good} good, {bad} bad: the damage is of both kinds");
    }
}

/// Events that mean something, and the words they carry at least.
const EVENTS: [(u32, usize); 22] = [
    (0x0001_f001, 4),
    (0x0001_f002, 0),
    (0x0002_1002, 1),
    (0x0002_1011, 1),
    (0x0002_1021, 1),
    (0x0002_1031, 1),
    (0x0002_1101, 1),
    (0x0002_1211, 1),
    (0x0002_1311, 1),
    (0x0002_8004, 2),
    (0x0002_8005, 2),
    (0x0002_8006, 2),
    (0x0002_800e, 3),
    (0x0002_800f, 3),
    (0x0020_100d, 1),
    (0x0020_200e, 1),
    (0x0008_1001, 0),
    (0x0008_1102, 2),
    (0x0008_1103, 2),
    (0x0008_2012, 1),
    (0x0800_f701, 3),
    (0x0800_f704, 4),
];

/// A file that keeps to the grammar of windows and records, and to nothing else.
fn grammatical(random: &mut Random) -> Vec<u8> {
    let mut trace: Vec<u32> = Vec::new();
    let mut tsc = [1_000_000u64; 4];
    for _ in 0..1 + random.below(30) {
        let cpu = random.below(4);
        let mut window = Vec::new();
        for _ in 0..random.below(40) {
            let (mut event, least) = EVENTS[random.below(EVENTS.len())];
            if event & 0x0800_f000 == 0x0800_f000 {
                event = 0x0800_f701 + random.below(4) as u32;
            }
            let extra = (least + random.below(3)).min(7);
            let timed = event == 0x0001_f001 || random.below(10) > 0;
            window.push(event | (extra as u32) << 28 | u32::from(timed) << 31);
            let now = &mut tsc[cpu];
            *now = match random.below(200) {
                0 => random.below(usize::MAX) as u64,
                1 => u64::MAX - random.below(3) as u64,
                2 => 0,
                _ => now.wrapping_add(random.below(5_000) as u64),
            };
            if timed {
                window.extend([*now as u32, (*now >> 32) as u32]);
            }
            for word in 0..extra {
                let who = (random.below(3) as u32, random.below(4) as u32);
                window.push(match (event, word) {
                    (0x0002_1000..=0x0002_1fff, 0) => who.0 << 16 | who.1,
                    (0x0002_8000..=0x0002_8fff, 0) => who.0,
                    (0x0002_8000..=0x0002_8fff, 1) => who.1,
                    (0x0020_1000..=0x0020_2fff, 0) => [29 | 1 << 20, 32, 34, 1][random.below(4)],
                    (0x0020_1000..=0x0020_2fff, 1) => 3,
                    (0x0008_2012, 0) => [29, 32, 34, 1][random.below(4)],
                    (0x0800_f000.., 0) => who.1,
                    (0x0800_f000.., 1) => random.below(3) as u32,
                    (0x0001_f001, 2) => *now as u32 ^ random.below(1 << 16) as u32,
                    (0x0001_f001, 3) => (*now >> 32) as u32,
                    _ => WORDS[random.below(WORDS.len())],
                });
            }
        }
        trace.extend([0x2001_f003, cpu as u32, window.len() as u32 * 4]);
        trace.extend(window);
    }
    trace.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[test]
fn absurd_traces() {
    let (good, bad) = rounds("absurd_traces", grammatical);
    assert!(good > bad, "{good} good, {bad} bad: most keep to what is checked");
}
