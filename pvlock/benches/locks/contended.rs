//! One lock under contention, beside its peers: `cargo bench -p pvlock --bench contended`.
//!
//! With threads that are one, two, four and eight times the cores. All locks are measured in many
//! short rounds, in turn and in one process, and a lock's ratio to another is the median of the
//! ratios of neighbouring rounds, so that what else the machine does hits all alike. With one
//! thread a core the threads are pinned, and a round in which one of them had to wait for its core
//! is left out. `-- --rounds 20` makes it shorter, `-- --threads 2` measures one number of threads
//! alone.
#![cfg(not(loom))]

mod machine;
#[allow(dead_code, unused_imports, unused_macros)] // The other benchmark has bare instructions too.
mod subjects;

use machine::{CPUS, native, pv};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{
    AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::time::{Duration, Instant};
use subjects::{Alone, Mcs, Native, Pv, Subject, for_all};

thread_local!(static CPU: Cell<usize> = const { Cell::new(0) });

/// Waiting times in buckets, eight to a power of two.
#[derive(Clone)]
struct Histogram([u32; 512]);

impl Histogram {
    const SUB: u32 = 3;

    fn new() -> Self {
        Self([0; 512])
    }

    #[inline]
    fn add(&mut self, ticks: u64) {
        let ticks = ticks | 1 << Self::SUB;
        let power = ticks.ilog2();
        let index = (power << Self::SUB) + (ticks >> (power - Self::SUB)) as u32 - (1 << Self::SUB);
        self.0[index as usize] += 1;
    }

    fn merge(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, more)| *sum += more);
    }

    /// The upper end of the bucket that holds the given share.
    fn at(&self, share: f64) -> u64 {
        let total: u64 = self.0.iter().map(|&n| u64::from(n)).sum();
        let wanted = (total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (index, &count) in (0_u64..).zip(&self.0) {
            seen += u64::from(count);
            if seen >= wanted {
                let power = index >> Self::SUB;
                let within = (index & 7) + 8 + 1;
                return within << (power.max(3) - 3);
            }
        }
        0
    }
}

/// A clock that costs little beside a lock: the time stamp counter where there is one.
#[inline]
fn ticks() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has it.
    return unsafe { core::arch::x86_64::_rdtsc() };
    #[cfg(not(target_arch = "x86_64"))]
    {
        static BEGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        BEGIN.elapsed().as_nanos() as u64
    }
}

fn ticks_per_nanosecond() -> f64 {
    let (begin, from) = (Instant::now(), ticks());
    std::thread::sleep(Duration::from_millis(50));
    (ticks() - from) as f64 / begin.elapsed().as_nanos() as f64
}

/// Keeps the calling thread on one core, where the system can.
fn pin(core: usize) {
    #[cfg(target_os = "linux")]
    {
        let mut cores = rustix::thread::CpuSet::new();
        cores.set(core);
        // A core that is not ours is no reason not to measure.
        let _ = rustix::thread::sched_setaffinity(None, &cores);
    }
    let _ = core;
}

/// Nanoseconds that this thread could have run but had no core, since it began. 0 where nobody
/// knows.
fn waited_for_a_core() -> u64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// What a thread did in a round.
struct Share {
    acquisitions: u64,
    waits: Histogram,
    /// Nanoseconds without a core.
    disturbed: u64,
}

/// A round of one lock, as every thread sees it.
struct Round {
    threads: usize,
    /// In ticks.
    length: u64,
    /// Threads spin until all have arrived, so that they begin together. Only with a core for each.
    together: bool,
    arrived: AtomicUsize,
}

impl Round {
    /// Calls `acquire`, which returns when it was acquired, until the round is over.
    #[inline]
    fn run(&self, mut acquire: impl FnMut(u64) -> u64) -> Share {
        let mut share = Share { acquisitions: 0, waits: Histogram::new(), disturbed: 0 };
        self.arrived.fetch_add(1, Relaxed);
        while self.together && self.arrived.load(Relaxed) < self.threads {
            std::hint::spin_loop();
        }
        let disturbed = waited_for_a_core();
        let first = ticks();
        loop {
            let begin = ticks();
            if begin.saturating_sub(first) > self.length {
                break;
            }
            share.waits.add(acquire(begin).saturating_sub(begin));
            share.acquisitions += 1;
            // Some work of one's own, some tens of nanoseconds.
            (0..32).for_each(|turn| {
                black_box(turn);
            });
        }
        share.disturbed = waited_for_a_core() - disturbed;
        share
    }
}

trait Contender: Sync {
    fn take_part(&self, round: &Round) -> Share;
}

impl<L: Subject> Contender for Alone<L> {
    fn take_part(&self, round: &Round) -> Share {
        round.run(|begin| {
            let mut acquired = begin;
            self.0.locked(|value| {
                acquired = ticks();
                *value += 1;
            });
            acquired
        })
    }
}

/// What no lock that goes to each thread in turn can beat: a number says whose turn it is.
struct Turns(AtomicUsize);

impl Contender for Alone<Turns> {
    fn take_part(&self, round: &Round) -> Share {
        let turn = &self.0.0;
        let own = CPU.get();
        let deadline = ticks() + 2 * round.length;
        round.run(|_| {
            // The others stop at about the same time, and then it is nobody's turn.
            while turn.load(Acquire) != own && ticks() < deadline {
                std::hint::spin_loop();
            }
            let acquired = ticks();
            turn.store((own + 1) % round.threads, Release);
            acquired
        })
    }
}

/// One lock's measurements, one of each a round; NaN where the round was disturbed.
struct Row {
    name: &'static str,
    per_second: Vec<f64>,
    waits: Histogram,
    p99: Vec<f64>,
}

/// How to measure.
#[derive(Clone, Copy)]
struct Plan {
    threads: usize,
    rounds: usize,
    length: Duration,
    /// A core for each thread.
    pinned: bool,
    ticks_per_nanosecond: f64,
}

fn measure(plan: Plan) -> Vec<Row> {
    let Plan { threads, rounds, length, pinned, ticks_per_nanosecond } = plan;
    let mut contenders: Vec<Box<dyn Contender>> = Vec::new();
    let mut rows = Vec::new();
    macro_rules! add {
        ($name:expr, $lock:expr) => {
            contenders.push(Box::new(Alone($lock)));
            let name = $name;
            rows.push(Row { name, per_second: vec![], waits: Histogram::new(), p99: vec![] });
        };
    }
    macro_rules! add_lock {
        ($name:expr, $type:ty) => {
            add!($name, <$type>::make());
        };
    }
    for_all!(add_lock);
    if pinned {
        add!("bare turns", Turns(AtomicUsize::new(0)));
    }
    let contenders = &contenders;
    let next = &AtomicUsize::new(0);
    let round = &Round {
        threads,
        length: (length.as_nanos() as f64 * ticks_per_nanosecond) as u64,
        together: pinned,
        arrived: AtomicUsize::new(0),
    };
    let (start, end) = (&Barrier::new(threads + 1), &Barrier::new(threads + 1));
    let (send, shares) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for cpu in 0..threads {
            let send = send.clone();
            scope.spawn(move || {
                // Both machines: a lock knows which one it lives in.
                pv::become_cpu(cpu);
                native::become_cpu(cpu);
                CPU.set(cpu);
                if pinned {
                    pin(cpu);
                }
                loop {
                    start.wait();
                    let Some(contender) = contenders.get(next.load(Relaxed)) else { break };
                    send.send(contender.take_part(round)).expect("the main thread listens");
                    end.wait();
                }
            });
        }
        for _ in 0..rounds {
            for (at, row) in rows.iter_mut().enumerate() {
                next.store(at, Relaxed);
                round.arrived.store(0, Relaxed);
                start.wait();
                end.wait();
                let mut acquisitions = 0;
                let mut disturbed = Duration::ZERO;
                let mut waits = Histogram::new();
                for share in shares.try_iter() {
                    acquisitions += share.acquisitions;
                    disturbed = disturbed.max(Duration::from_nanos(share.disturbed));
                    waits.merge(&share.waits);
                }
                let counts = !pinned || disturbed < length / 50;
                let if_it_counts = |value: f64| if counts { value } else { f64::NAN };
                row.per_second.push(if_it_counts(acquisitions as f64 / length.as_secs_f64()));
                row.p99.push(if_it_counts(waits.at(0.99) as f64));
                if counts {
                    row.waits.merge(&waits);
                }
            }
        }
        next.store(usize::MAX, Relaxed);
        start.wait();
    });
    rows
}

fn median(mut values: Vec<f64>) -> f64 {
    values.retain(|value| !value.is_nan());
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median of the ratios round by round; of the medians where too few rounds were good for both.
fn ratio(of: &[f64], to: &[f64]) -> f64 {
    let pairs: Vec<f64> =
        of.iter().zip(to).map(|(of, to)| of / to).filter(|ratio| !ratio.is_nan()).collect();
    if pairs.len() >= 20 || pairs.len() * 2 > of.len() {
        median(pairs)
    } else {
        median(of.to_vec()) / median(to.to_vec())
    }
}

fn print(plan: Plan, cores: usize, rows: &[Row]) {
    let named = |name: &str| rows.iter().find(|row| row.name == name).expect("a measured lock");
    let faster =
        |a: &&Row, b: &&Row| median(a.per_second.clone()).total_cmp(&median(b.per_second.clone()));
    let best = |names: &[&str]| names.iter().map(|name| named(name)).max_by(faster).expect("one");
    let peers = [
        best(&["spin::TicketMutex", "mcslock"]),
        best(&["spin::Mutex", "spin::TicketMutex", "mcslock"]),
        best(&["parking_lot", "std::sync::Mutex"]),
    ];
    println!(
        "\n{} threads on {cores} cores, one lock; {} rounds of {:?} in turn; ratios: median of the rounds",
        plan.threads, plan.rounds, plan.length
    );
    if plan.pinned {
        let undisturbed = |row: &Row| row.per_second.iter().filter(|it| !it.is_nan()).count();
        let least = rows.iter().map(undisturbed).min().expect("a lock");
        println!("  rounds in which every thread had its core: {least} or more of each lock");
    }
    println!(
        "  best queue or ticket lock: {}; spinning lock: {}; sleeping lock: {}",
        peers[0].name, peers[1].name, peers[2].name
    );
    println!(
        "{:24}{:>11}{:>8}{:>8}{:>8}{:>12}{:>12}{:>12}",
        "", "per second", "/queue", "/spin", "/sleep", "wait p50", "p99", "p99.9"
    );
    for row in rows {
        let time =
            |ticks: u64| Duration::from_nanos((ticks as f64 / plan.ticks_per_nanosecond) as u64);
        let [queue, spin, sleep] = peers.map(|peer| ratio(&row.per_second, &peer.per_second));
        println!(
            "{:24}{:>11.0}{queue:>8.2}{spin:>8.2}{sleep:>8.2}{:>12.1?}{:>12.1?}{:>12.1?}",
            row.name,
            median(row.per_second.clone()),
            time(row.waits.at(0.5)),
            time(median(row.p99.clone()) as u64),
            time(row.waits.at(0.999)),
        );
    }
}

/// The number behind `name` on the command line.
fn argument(name: &str) -> Option<usize> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name).skip(1);
    arguments.next().map(|number| number.parse().expect("a number"))
}

fn main() {
    // `cargo test --benches` only wants to see that it runs.
    let real = std::env::args().any(|argument| argument == "--bench");
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let ticks_per_nanosecond = ticks_per_nanosecond();
    for times in [1, 2, 4, 8] {
        let threads = (cores * times).min(CPUS);
        if argument("--threads").is_some_and(|wanted| wanted != threads) {
            continue;
        }
        // With more threads than cores a round has to hold several turns of the scheduler.
        let (rounds, length) = if times == 1 { (400, 2) } else { (21, 50) };
        let rounds = if real { argument("--rounds").unwrap_or(rounds) } else { 1 };
        let length = Duration::from_millis(length);
        let plan = Plan { threads, rounds, length, pinned: times == 1, ticks_per_nanosecond };
        print(plan, cores, &measure(plan));
    }
}
