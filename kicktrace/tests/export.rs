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
    let query = format!(
        "import duckdb; print(duckdb.sql(\"select count(*) from '{dir}/waits.parquet'\").fetchone()[0])"
    );
    let out = Command::new("python3").args(["-c", &query]).output();
    match out {
        Ok(out) if out.status.success() => {
            assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), waits.to_string());
        }
        _ => eprintln!("no DuckDB for python3 here: read back by the parquet crate alone"),
    }
}
