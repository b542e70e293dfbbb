//! `kicktrace summary` beside `xenalyze --summary`: whole processes on the same files, in turns.
//!
//! `cargo bench -p kicktrace --bench xenalyze` makes two traces, of 8 and of 64 pCPUs, in the
//! target directory (`KICKTRACE_BENCH_MB` megabytes each, 500 by default) and prints the time and
//! the rate of each program. xenalyze is taken from `$XENALYZE` or the `PATH`; without it only
//! kicktrace is measured. Medians of seven turns are printed, and the range of the CPU times (a
//! program that takes longer than ten seconds gets two turns); the CPU time is user and system.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kicktrace::synth::{Plan, generate};

const TURNS: usize = 7;

/// A program that takes longer gets two turns.
const LONG: Duration = Duration::from_secs(10);

fn main() {
    let mb = std::env::var("KICKTRACE_BENCH_MB").ok().and_then(|mb| mb.parse().ok()).unwrap_or(500);
    let xenalyze = std::env::var_os("XENALYZE").map(PathBuf::from).or_else(|| {
        let paths = std::env::var_os("PATH")?;
        std::env::split_paths(&paths).map(|dir| dir.join("xenalyze")).find(|path| path.is_file())
    });
    if xenalyze.is_none() {
        println!("xenalyze is not here (set XENALYZE): kicktrace alone");
    }
    for (pcpus, domains, vcpus, wanted) in [(8, 4, 4, 3.5), (64, 16, 8, 40.0)] {
        let trace = trace(mb, pcpus, domains, vcpus);
        let bytes = std::fs::metadata(&trace).map_or(0, |meta| meta.len());
        println!("\n{pcpus} pCPUs, {:.1} MB", bytes as f64 / 1e6);
        let mut ours = Measured::default();
        let mut theirs = Measured::default();
        for _ in 0..TURNS {
            ours.run(env!("CARGO_BIN_EXE_kicktrace").as_ref(), &["summary"], &trace);
            let enough = theirs.wall.len() >= 2 && median(&theirs.wall) > LONG;
            if let Some(program) = xenalyze.as_ref().filter(|_| !enough) {
                theirs.run(program, &["--summary"], &trace);
            }
        }
        ours.tell("kicktrace summary", bytes);
        if xenalyze.is_some() {
            theirs.tell("xenalyze --summary", bytes);
            println!(
                "  ratio: {:.2} by the wall clock, {:.2} by CPU time (target {wanted})",
                median(&theirs.wall).as_secs_f64() / median(&ours.wall).as_secs_f64(),
                median(&theirs.cpu).as_secs_f64() / median(&ours.cpu).as_secs_f64()
            );
        }
    }
}

fn trace(mb: u64, pcpus: u32, domains: u16, vcpus: u16) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{pcpus}-{mb}.bin"));
    if std::fs::metadata(&path).is_ok_and(|meta| meta.len() >= mb * 1_000_000) {
        return path;
    }
    let plan = Plan {
        pcpus,
        domains,
        vcpus,
        duration_ns: u64::MAX,
        max_bytes: mb * 1_000_000,
        ..Plan::default()
    };
    let file = File::create(&path).expect("the target directory is writable");
    generate(&plan, BufWriter::new(file)).expect("there is room on the disk");
    path
}

/// What each turn took.
#[derive(Default)]
struct Measured {
    wall: Vec<Duration>,
    cpu: Vec<Duration>,
}

impl Measured {
    fn run(&mut self, program: &Path, args: &[&str], trace: &Path) {
        let (start, cpu) = (Instant::now(), children_cpu());
        let done = Command::new(program)
            .args(args)
            .arg(trace)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .expect("it starts");
        assert!(done.success(), "{} failed", program.display());
        self.wall.push(start.elapsed());
        self.cpu.push(children_cpu() - cpu);
    }

    fn tell(&self, name: &str, bytes: u64) {
        let (wall, cpu) = (median(&self.wall), median(&self.cpu));
        let (least, most) = (self.cpu.iter().min(), self.cpu.iter().max());
        let [least, most] = [least, most].map(|cpu| cpu.copied().unwrap_or_default());
        println!(
            "  {name:<20} {:>7.3} s wall, {:>7.3} s CPU ({:.3} to {:.3}), {:>7.1} MB/s, {} turns",
            wall.as_secs_f64(),
            cpu.as_secs_f64(),
            least.as_secs_f64(),
            most.as_secs_f64(),
            bytes as f64 / 1e6 / wall.as_secs_f64(),
            self.wall.len()
        );
    }
}

fn median(of: &[Duration]) -> Duration {
    let mut sorted = of.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// CPU time of all children so far (user and system), from /proc/self/stat, in steps of 10 ms.
fn children_cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The fields after the name in parentheses; cutime and cstime are the 16th and 17th of all.
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks: u64 =
        after.split_whitespace().skip(13).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}
