//! `kicktrace export`, read back: the rows add up to what the summary tells.

use std::process::Command;

const TWICE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/kick-twice-pv.xentrace.bin");

fn export(kind: &str, dir: &str) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_kicktrace"))
        .args(["export", kind, dir, TWICE])
        .output()
        .expect("it starts")
}

fn summary() -> kicktrace::Summary {
    let trace = std::fs::File::open(TWICE).expect("it is there");
    kicktrace::summarise(trace, &kicktrace::Options::default()).expect("a sound trace")
}

#[test]
fn csv_rows_are_the_summary_s() {
    let dir = format!("{}/export-csv", env!("CARGO_TARGET_TMPDIR"));
    assert!(export("--csv", &dir).status.success());
    let rows = |name: &str| {
        let text = std::fs::read_to_string(format!("{dir}/{name}.csv")).expect("it was written");
        let columns = text.lines().next().unwrap().split(',').count();
        assert!(text.lines().all(|line| line.split(',').count() == columns), "{name}");
        text.lines().count() as u64 - 1
    };
    let summary = summary();
    let sum = |of: &dyn Fn(&kicktrace::summary::Domain) -> u64| -> u64 {
        summary.domains.iter().map(of).sum()
    };
    assert_eq!(rows("waits"), sum(&|of| of.counts.waits.value));
    assert_eq!(rows("kicks"), sum(&|of| of.counts.waits_kicked.value));
    assert_eq!(rows("acquisitions"), sum(&|of| of.marked.as_ref().map_or(0, |of| of.blocked)));
    assert_eq!(rows("domains"), summary.domains.len() as u64);
    assert!(rows("runs") > 1000);
}

/// Both kinds are written in one reading, so a pipe has them both, and a cut file too.
#[cfg(feature = "parquet")]
#[test]
fn both_kinds_are_written_of_a_pipe_and_of_a_cut_file() {
    let trace = std::fs::read(TWICE).expect("it is there");
    let cut = format!("{}/export-cut.bin", env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(&cut, &trace[..300_000]).expect("there is room");
    for (name, file, code) in [("pipe", "-", 0), ("cut", &cut, 2)] {
        let dir = |kind: &str| format!("{}/export-both-{name}-{kind}", env!("CARGO_TARGET_TMPDIR"));
        let _ = ["csv", "parquet"].map(|kind| std::fs::remove_dir_all(dir(kind)));
        let status = Command::new(env!("CARGO_BIN_EXE_kicktrace"))
            .args([
                "export",
                "--cpu-hz",
                "2.6G",
                "--csv",
                &dir("csv"),
                "--parquet",
                &dir("parquet"),
            ])
            .arg(file)
            .stdin(std::fs::File::open(TWICE).expect("it is there"))
            .status();
        assert_eq!(status.expect("it starts").code(), Some(code), "{name}");
        let rows = std::fs::read_to_string(format!("{}/waits.csv", dir("csv"))).expect("written");
        let file =
            std::fs::File::open(format!("{}/waits.parquet", dir("parquet"))).expect("written");
        let parquet = parquet::file::reader::SerializedFileReader::new(file).expect("whole");
        assert_eq!(rows.lines().count() - 1, parquet.into_iter().count(), "{name}");
        assert!(rows.lines().count() > 10, "{name}");
    }
}

/// What has no room names its file.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_named_by_its_file() {
    let dir = format!("{}/export-full", env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(&dir).expect("there is room");
    for (kind, file) in [("--csv", "runs.csv"), ("--parquet", "runs.parquet")] {
        if kind == "--parquet" && cfg!(not(feature = "parquet")) {
            continue;
        }
        let full = format!("{dir}/{file}");
        let _ = std::fs::remove_file(&full);
        std::os::unix::fs::symlink("/dev/full", &full).expect("a link");
        let out = export(kind, &dir);
        assert_eq!(out.status.code(), Some(2));
        let message = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(message.contains(&format!("{full}: No space left")), "{message}");
    }
}

/// A number that a second domain got has a row for each, and the first one's says when it ended.
#[test]
fn a_domain_of_a_used_number_has_a_row_of_its_own() {
    let dir = format!("{}/export-life", env!("CARGO_TARGET_TMPDIR"));
    let trace = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/cases/03_domid_reuse.bin");
    let mut program = Command::new(env!("CARGO_BIN_EXE_kicktrace"));
    assert!(program.args(["export", "--csv", &dir, trace]).status().expect("it starts").success());
    let text = std::fs::read_to_string(format!("{dir}/domains.csv")).expect("it was written");
    let rows: Vec<Vec<_>> = text.lines().map(|line| line.split(',').collect()).collect();
    assert_eq!(rows[0][..3], ["domain", "life", "ended_ns"]);
    assert_eq!((rows[1][1], rows[2][1]), ("0", "1"));
    assert!(rows[1][2].parse::<u64>().expect("a time") > 0 && rows[2][2].is_empty(), "{text}");
}

#[cfg(not(feature = "parquet"))]
#[test]
fn without_the_feature_it_says_what_to_do() {
    let out = export("--parquet", env!("CARGO_TARGET_TMPDIR"));
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("--features parquet"));
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_rows_are_the_summary_s() {
    use parquet::file::reader::SerializedFileReader;
    use parquet::record::RowAccessor;

    let dir = format!("{}/export-parquet", env!("CARGO_TARGET_TMPDIR"));
    assert!(export("--parquet", &dir).status.success());
    let open = |name: &str| {
        let file = std::fs::File::open(format!("{dir}/{name}.parquet")).expect("it was written");
        SerializedFileReader::new(file).expect("a Parquet file")
    };
    let summary = summary();
    let hz = summary.clock.hz.expect("it is measured");
    for domain in &summary.domains {
        let of_domain = |name: &str| {
            let rows = open(name).into_iter().map(|row| row.expect("a row"));
            rows.filter(|row| row.get_long(0).expect("a domain") == i64::from(domain.id))
                .collect::<Vec<_>>()
        };
        assert_eq!(of_domain("waits").len() as u64, domain.counts.waits.value);
        assert_eq!(of_domain("kicks").len() as u64, domain.counts.waits_kicked.value);
        let running = of_domain("runs").into_iter();
        let running = running.filter(|row| row.get_string(2).expect("a state") == "running");
        let running: i64 =
            running.map(|row| row.get_long(5).expect("to") - row.get_long(4).expect("from")).sum();
        let told = domain.times.running as f64 * 1e9 / hz;
        assert!((running as f64 / told - 1.0).abs() < 1e-3, "d{}: {running}, {told}", domain.id);
        let kicked: i64 = of_domain("acquisitions")
            .into_iter()
            .map(|row| row.get_long(9).expect("waking kicks"))
            .sum();
        let marked = domain.marked.as_ref().map_or(0, |of| of.waking_kicks);
        assert_eq!(kicked as u64, marked);
    }
    duckdb(&dir, summary.domains.iter().map(|of| of.counts.waits.value).sum());
}

/// DuckDB reads them too, where Python has it.
#[cfg(feature = "parquet")]
fn duckdb(dir: &str, waits: u64) {
    let python = |code: &str| Command::new("python3").args(["-c", code]).output();
    if !python("import duckdb").is_ok_and(|out| out.status.success()) {
        eprintln!("no DuckDB for python3 here: read back by the parquet crate alone");
        return;
    }
    let query = format!("select count(*), count(lock) from '{dir}/waits.parquet'");
    let out = python(&format!("import duckdb; print(*duckdb.sql(\"{query}\").fetchall()[0])"));
    let out = out.expect("it starts");
    let text = String::from_utf8_lossy(&out.stdout);
    let (rows, locks) = text.trim().split_once(' ').expect("two numbers");
    assert_eq!(rows, waits.to_string(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(locks.parse::<u64>().expect("a number") < waits, "waits without a mark have no lock");
}
