//! The same traces read by `xenalyze --dump-all` and by this crate: every runstate change, wake,
//! block and hypercall must be in both, at the same time.
//!
//! xenalyze is a separate program (Debian's xen-utils). It is looked for in `$XENALYZE`, in the
//! `PATH`, and among the packages pvlab has unpacked into its cache. Where there is none these
//! tests say so and compare nothing.

#[path = "common/filter.rs"]
mod filter;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use filter::without;
use kicktrace::event;
use kicktrace::output::record::subjects;
use kicktrace::reader::{ReadOptions, Record, read};
use kicktrace::synth::{Guest, Plan, generate};

fn xenalyze() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("XENALYZE") {
        return Some(path.into());
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&paths).map(|dir| dir.join("xenalyze"));
    let cache = std::env::var_os("PVLAB_CACHE").map(PathBuf::from).or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        Some(base.or(home)?.join("pvlab"))
    });
    let found = on_path.into_iter().find(|path| path.is_file());
    let found = found.or_else(|| unpacked(&cache?, 4));
    if found.is_none() {
        eprintln!(
            "xenalyze is not here: nothing was compared (install xen-utils, set XENALYZE, or run \
             `pvlab lab prepare`)"
        );
    }
    found
}

/// `DIR/.../usr/bin/xenalyze`, at most `depth` directories down.
fn unpacked(dir: &Path, depth: u32) -> Option<PathBuf> {
    let here = dir.join("usr/bin/xenalyze");
    if here.is_file() {
        return Some(here);
    }
    let entries = std::fs::read_dir(dir).ok()?.flatten();
    let mut dirs = entries.map(|entry| entry.path()).filter(|path| path.is_dir());
    if depth == 0 { None } else { dirs.find_map(|dir| unpacked(&dir, depth - 1)) }
}

/// What both programs tell, in one form: time in ticks from the first runstate change, and a line.
type Story = Vec<(u64, String)>;

/// At 1 GHz xenalyze prints one tick as one nanosecond.
fn told_by_xenalyze(program: &Path, trace: &Path) -> Story {
    let out = Command::new(program)
        .args(["--dump-all", "--cpu-hz=1000000000"])
        .arg(trace)
        .output()
        .expect("xenalyze starts");
    let mut story = Vec::new();
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let Some(time) = words.first().and_then(|word| word.replace('.', "").parse().ok()) else {
            continue;
        };
        let told = match words.iter().position(|word| word.starts_with('d') && word.contains('v')) {
            Some(at) => &words[at + 1..],
            None => continue,
        };
        match told {
            ["runstate_change", who, change, ..] => story.push((time, format!("{who} {change}"))),
            ["vcpu_wake", who, ..] => story.push((time, format!("wake {who}"))),
            ["vcpu_block", who, ..] => story.push((time, format!("block {who}"))),
            // In hexadecimal.
            ["hypercall", number, ..] => {
                let number = u32::from_str_radix(number, 16).expect("a hypercall's number");
                story.push((time, format!("hypercall {number}")));
            }
            _ => {}
        }
    }
    aligned(story)
}

fn told_by_us(trace: &[u8]) -> Story {
    let mut story = Vec::new();
    read(trace, &ReadOptions::default(), &mut |record: &Record<'_>| {
        let who = subjects(record)[0].map(|id| id.to_string()).unwrap_or_default();
        if let Some((old, new)) = event::runstate_change(record.event) {
            story.push((record.tsc, format!("{who} {}->{}", old.name(), new.name())));
        }
        match record.event {
            event::WAKE => story.push((record.tsc, format!("wake {who}"))),
            event::BLOCK => story.push((record.tsc, format!("block {who}"))),
            // xenalyze tells the entries of a multicall as hypercalls.
            event::PV_HYPERCALL | event::PV_SUBCALL => {
                story.push((record.tsc, format!("hypercall {}", record.words[0] & 0xf_ffff)));
            }
            _ => {}
        }
        Ok(())
    })
    .expect("a sound trace");
    aligned(story)
}

fn aligned(mut story: Story) -> Story {
    let is_change = |(_, line): &&(u64, String)| line.contains("->");
    let start = story.iter().find(is_change).expect("runstate changes").0;
    story.retain(|&(time, _)| time >= start);
    story.iter_mut().for_each(|(time, _)| *time -= start);
    story.sort();
    story
}

/// xenalyze leaves out what comes before it knows who runs on a pCPU, so a few lines at the start
/// may be ours alone; nothing may be its alone, and no time may differ.
fn compare(name: &str, trace: &[u8], at_start: usize) {
    let Some(program) = xenalyze() else { return };
    // xenalyze ends with an error at the first record a guest wrote, so those are taken out.
    let trace = &without(trace, 0x0800_f000)[..];
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let path = dir.join(format!("{name}.xentrace.bin"));
    std::fs::write(&path, trace).expect("the target directory is writable");
    let theirs = told_by_xenalyze(&program, &path);
    let ours = told_by_us(trace);
    assert!(theirs.len() > 500, "xenalyze told {} lines of {name}", theirs.len());
    let mut left: BTreeMap<&(u64, String), i64> = BTreeMap::new();
    ours.iter().for_each(|line| *left.entry(line).or_default() += 1);
    theirs.iter().for_each(|line| *left.entry(line).or_default() -= 1);
    left.retain(|_, count| *count != 0);
    let theirs_alone: Vec<_> = left.iter().filter(|(_, count)| **count < 0).take(5).collect();
    assert!(theirs_alone.is_empty(), "{name}: only xenalyze tells {theirs_alone:?}");
    assert!(
        left.len() <= at_start,
        "{name}: only we tell {:?}",
        left.iter().take(5).collect::<Vec<_>>()
    );
    eprintln!("{name}: {} lines equal, {} ours alone at the start", theirs.len(), left.len());
}

#[test]
fn real_traces() {
    compare("mini", include_bytes!("data/mini-pv.xentrace.bin"), 5);
    compare("twice", include_bytes!("data/kick-twice-pv.xentrace.bin"), 5);
    compare("unlock", include_bytes!("data/kick-at-unlock-pv.xentrace.bin"), 5);
}

#[test]
fn synthetic_traces() {
    for (name, guest, pcpus) in
        [("pv4", Guest::Pv, 4), ("pv24", Guest::Pv, 24), ("pvh", Guest::Pvh, 3)]
    {
        let mut trace = Vec::new();
        let plan = Plan { guest, pcpus, domains: 3, duration_ns: 5_000_000, ..Plan::default() };
        generate(&plan, &mut trace).expect("a Vec takes everything");
        compare(name, &trace, 5);
    }
}

/// What `xenalyze --summary` tells of a vCPU: by the name of a figure how often and how many ticks.
type Figures = BTreeMap<String, (u64, u64)>;

/// At 1 GHz its averages are ticks; sums of seconds have too few digits, so count times average is
/// taken.
fn summarised_by_xenalyze(program: &Path, trace: &Path) -> BTreeMap<(u16, u16), Figures> {
    let out = Command::new(program)
        .args(["--summary", "--cpu-hz=1000000000"])
        .arg(trace)
        .output()
        .expect("xenalyze starts");
    let mut vcpus: BTreeMap<(u16, u16), Figures> = BTreeMap::new();
    let (mut domain, mut vcpu) = (None, None);
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if let ["|--", "Domain", id, "--|"] = words[..] {
            (domain, vcpu) = (id.parse().ok(), None);
        } else if let ["--", id, "--"] = words[..] {
            vcpu = id.strip_prefix('v').and_then(|id| id.parse().ok());
        }
        let (Some(domain), Some(vcpu)) = (domain, vcpu) else { continue };
        let figures = vcpus.entry((domain, vcpu)).or_default();
        let number = |text: &str| text.parse::<u64>().ok();
        match words[..] {
            [name, count, _, average, ..] if name.ends_with(':') => {
                if let (Some(count), Some(average)) = (number(count), number(average)) {
                    figures.insert(name.trim_end_matches(':').into(), (count, count * average));
                }
            }
            // mmu_update                   [ 1]:   3727
            [_, "[", id, count] | [_, id, count] if id.ends_with("]:") => {
                let id = id.trim_matches(|c| "[]:".contains(c));
                if let (Some(id), Some(count)) = (number(id), number(count)) {
                    figures.insert(format!("hypercall {id}"), (count, 0));
                }
            }
            _ => {}
        }
    }
    vcpus
}

/// Wake to run, runstates and hypercalls of every vCPU, as both programs sum them up. xenalyze
/// counts intervals that have ended, we count time up to the trace's end; it drops what comes
/// before it knows who runs on a pCPU, and its averages are cut to whole ticks.
fn compare_summaries(name: &str, trace: &[u8]) {
    use kicktrace::analysis::{Analyser, Cause, EntryKind, Host};

    let Some(program) = xenalyze() else { return };
    let trace = &without(trace, 0x0800_f000)[..];
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-sums.xentrace.bin"));
    std::fs::write(&path, trace).expect("the target directory is writable");
    let theirs = summarised_by_xenalyze(&program, &path);
    let mut analyser = Analyser::observed(&kicktrace::Options::default(), Host::default());
    let reading = read(trace, &ReadOptions::default(), &mut analyser).expect("a sound trace");
    let (summary, mut host) = analyser.finish(reading);
    let host = host.figures(&summary);
    let mut compared = 0;
    for (domain, of_host) in summary.domains.iter().zip(&host.domains) {
        for (vcpu, of) in domain.vcpus.iter().zip(&of_host.vcpus) {
            let who = format!("{name}: d{}v{}", domain.id, vcpu.id);
            let theirs = theirs.get(&(domain.id, vcpu.id)).unwrap_or_else(|| panic!("{who}"));
            let their = |figure: &str| theirs.get(figure).copied().unwrap_or_default();
            for (figure, cause) in [("wake", Cause::Woken), ("preempt", Cause::Preempted)] {
                let ours = &of.runnable[cause as usize];
                let (count, ticks) = their(figure);
                // What a yield leaves runnable is a preemption to xenalyze.
                let yielded = &of.runnable[Cause::Yielded as usize];
                let (mut runs, mut time) = (ours.to_run.count, ours.ticks);
                if cause == Cause::Preempted {
                    (runs, time) = (runs + yielded.to_run.count, time + yielded.ticks);
                }
                assert!(runs.abs_diff(count) <= 1, "{who}: {figure} {runs}, xenalyze {count}");
                let slack = count + 1 + time / 100 + if runs == count { 0 } else { time };
                let underway = summary.ticks / 20;
                assert!(
                    time.abs_diff(ticks) <= slack + underway,
                    "{who}: {figure} {time}, {ticks}"
                );
                compared += count;
            }
            for (figure, time) in [("running", vcpu.times.running), ("blocked", vcpu.times.blocked)]
            {
                let (count, ticks) = their(figure);
                // The interval under way at the end is ours alone. At the start xenalyze takes a
                // vCPU for running a few microseconds before its first runstate change.
                let most = time + count + 1 + time / 1_000;
                assert!(most >= ticks, "{who}: {figure} {time}, xenalyze {ticks}");
                assert!(
                    time.saturating_sub(ticks) <= count + summary.ticks / 10,
                    "{who}: {figure} {time}, xenalyze {ticks}"
                );
            }
            // xenalyze lists the entries of multicalls among the hypercalls.
            let mut called: BTreeMap<u32, u64> = BTreeMap::new();
            for entry in &of.entries {
                if matches!(entry.kind, EntryKind::Hypercall | EntryKind::MulticallEntry) {
                    *called.entry(entry.number).or_default() += entry.count.value;
                }
            }
            for (number, ours) in called {
                let (count, _) = their(&format!("hypercall {number}"));
                assert!(ours.abs_diff(count) <= 1, "{who}: {number} {ours}, xenalyze {count}");
                compared += count;
            }
        }
    }
    assert!(compared > 100, "{name}: {compared}");
    eprintln!("{name}: {compared} wakes, preemptions and hypercalls equal in sum");
}

#[test]
fn sums_of_real_traces() {
    compare_summaries("mini", include_bytes!("data/mini-pv.xentrace.bin"));
    compare_summaries("twice", include_bytes!("data/kick-twice-pv.xentrace.bin"));
    compare_summaries("unlock", include_bytes!("data/kick-at-unlock-pv.xentrace.bin"));
}

#[test]
fn sums_of_synthetic_traces() {
    for (name, pcpus) in [("pv4", 4), ("pv24", 24)] {
        let mut trace = Vec::new();
        let plan = Plan { pcpus, domains: 3, duration_ns: 5_000_000, ..Plan::default() };
        generate(&plan, &mut trace).expect("a Vec takes everything");
        compare_summaries(&format!("{name}-sums"), &trace);
    }
}
