//! A few thousand damaged traces, the same ones each time: an error or a summary, never a panic. The
//! fuzz target in `fuzz/` goes on from here for as long as it is let.

use kicktrace::output::record::{WhoRuns, text};
use kicktrace::reader::{ReadOptions, Record, read};
use kicktrace::synth::{Guest, Plan, generate};
use kicktrace::{Options, summarise};

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

#[test]
fn damaged_traces_never_panic() {
    let mut random = Random(0x5eed);
    let mut seeds = Vec::new();
    for (guest, markers) in [(Guest::Pv, true), (Guest::Pvh, false), (Guest::PvhAmd419, true)] {
        let plan = Plan {
            guest,
            markers,
            padding: true,
            ring: 600,
            drain_ns: 30_000,
            drain_when_half_full: false,
            duration_ns: 100_000,
            ..Plan::default()
        };
        let mut trace = Vec::new();
        generate(&plan, &mut trace).expect("a Vec takes everything");
        seeds.push(trace);
    }
    let (mut good, mut bad) = (0, 0);
    for round in 0..1_500 {
        let mut trace = seeds[round % seeds.len()].clone();
        damage(&mut trace, &mut random);
        let mut options = Options::default();
        options.read.buffer_limit = if round % 2 == 0 { 4 << 10 } else { 1 << 20 };
        match summarise(&trace[..], &options) {
            Ok(summary) => {
                good += 1;
                assert!((0.0..=100.0).contains(&summary.coverage_percent));
                assert!(!summary.to_string().is_empty());
                assert!(serde_json::to_string(&summary).is_ok());
            }
            Err(error) => {
                bad += 1;
                assert!(error.to_string().contains("byte"), "round {round}: {error}");
            }
        }
        let mut who = WhoRuns::default();
        let _ = read(&trace[..], &ReadOptions::default(), &mut |record: &Record<'_>| {
            who.record(record);
            assert!(!text(record).to_string().is_empty());
            Ok(())
        });
    }
    assert!(good > 100 && bad > 100, "{good} good, {bad} bad: the damage is of both kinds");
}
