//! Memory does not grow with the trace: pipes of different lengths, and the most memory kicktrace
//! had.
//!
//! `KICKTRACE_MEMORY_MB` sets the length of the longer one (90 by default; 2000 is what the book
//! quotes).
#![cfg(target_os = "linux")]

use std::process::{Command, Stdio};
use std::time::Duration;

/// The most memory resident at one time, in KiB, of `summary -` on a generated trace.
fn peak(mb: u64, pcpus: u32) -> u64 {
    let program = env!("CARGO_BIN_EXE_kicktrace");
    // Enough vCPUs to keep every pCPU's ring filling.
    let domains = (pcpus / 4).to_string();
    let (mb, pcpus) = (mb.to_string(), pcpus.to_string());
    let mut writer = Command::new(program)
        .args(["generate", "--mb", &mb, "--pcpus", &pcpus, "--domains", &domains, "--vcpus", "8"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut reader = Command::new(program)
        .args(["summary", "-"])
        .stdin(writer.stdout.take().expect("it is piped"))
        .stdout(Stdio::null())
        .spawn()
        .expect("it starts");
    let status = format!("/proc/{}/status", reader.id());
    let mut most = 0;
    // The mark only rises, and a process that has ended has none: the last one seen counts.
    let ended = loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let mark = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = mark.and_then(|mark| mark.trim().trim_end_matches(" kB").parse().ok());
        most = most.max(kib.unwrap_or(0));
        if let Some(ended) = reader.try_wait().expect("it is our child") {
            break ended;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(ended.success() && writer.wait().expect("it is our child").success());
    assert!(most > 0, "{status} tells memory");
    most
}

#[test]
fn memory_is_independent_of_the_length_and_below_64_mib() {
    let long = std::env::var("KICKTRACE_MEMORY_MB").map_or(90, |mb| mb.parse().expect("a number"));
    for pcpus in [8, 64] {
        // The shorter one is long enough for every ring to have filled once.
        let (short, long) = (peak(long.min(45), pcpus), peak(long, pcpus));
        eprintln!("{pcpus} pCPUs: {short} KiB for the shorter pipe, {long} KiB for the longer");
        assert!(long < 64 << 10, "{pcpus} pCPUs: {long} KiB");
        assert!(long < short * 3 / 2 + 8192, "{pcpus} pCPUs: {short} KiB, then {long} KiB");
    }
}
