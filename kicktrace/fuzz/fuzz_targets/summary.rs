//! Any bytes: an error or a summary, never a panic, never much memory.
//!
//! `cargo +nightly fuzz run summary -- -max_total_time=60` in `kicktrace/`. The seeds are made by
//! `cargo run -p kicktrace -- generate`; the first byte chooses how the rest is read.
#![no_main]

use kicktrace::output::record::{WhoRuns, text};
use kicktrace::reader::{ReadOptions, Record, read};
use kicktrace::{Options, summarise};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&mode, trace)) = data.split_first() else { return };
    let mut options = Options::default();
    options.read.buffer_limit = if mode & 1 != 0 { 1 << 10 } else { 1 << 20 };
    options.read.strict = mode & 2 != 0;
    if mode & 4 != 0 {
        options.read.tsc_offsets = vec![(0, i64::from(mode) << 55), (1, -5)];
    }
    if let Ok(summary) = summarise(trace, &options) {
        assert!((0.0..=100.0).contains(&summary.coverage_percent));
        assert!(!summary.to_string().is_empty());
    }
    let mut who = WhoRuns::default();
    let read_options = ReadOptions { strict: mode & 2 != 0, ..ReadOptions::default() };
    let _ = read(trace, &read_options, &mut |record: &Record<'_>| {
        who.record(record);
        assert!(!text(record).to_string().is_empty());
        Ok(())
    });
});
