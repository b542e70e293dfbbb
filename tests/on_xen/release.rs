//! The lab of another release of Debian than the machine's: its Xen runs a scenario too.

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;
use pvlab::lab;

#[test]
fn the_other_xen_is_one_option_away() {
    // Xen 4.17 and Xen 4.20: the machine's own is what every other test runs on.
    let other = match lab::machine_release().as_deref() {
        Some("trixie") => "bookworm",
        _ => "trixie",
    };
    let out = tempfile::tempdir().unwrap();
    let mut command = Command::cargo_bin("pvlab").unwrap();
    command.args(["run", "solo-pv", "--release", other, "--policy", "kick-at-unlock"]);
    command.args(["--set", "acquisitions=20", "--deadline", crate::PATIENCE_SECONDS]);
    command.arg("--out").arg(out.path());
    let told = contains("1 of 1").and(contains("Found: every counter exact"));
    command.assert().success().stdout(told);
    let versions = std::fs::read_to_string(out.path().join("versions.json")).unwrap();
    let xen = if other == "trixie" { "4.20." } else { "4.17." };
    assert!(versions.contains(&format!("\"xen_version\": \"{xen}")), "{versions}");
}
