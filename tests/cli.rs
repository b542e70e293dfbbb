//! The command line without Xen: everything that is refused before a host is needed.

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use predicates::prelude::*;
use predicates::str::contains;

fn pvlab() -> Command {
    Command::cargo_bin("pvlab").unwrap()
}

/// A folder of scenarios with one scenario `mine` of one domain.
fn configs(config: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let scenario = folder.path().join("mine");
    fs::create_dir(&scenario).unwrap();
    let about = "description = \"one domain\"\npcpus = 2\ndeadline_seconds = 60\n";
    fs::write(scenario.join("scenario.toml"), about).unwrap();
    fs::write(scenario.join("a.cfg"), config).unwrap();
    folder
}

const GOOD: &str = "name = \"a\"\nkernel = \"xen-guest.elf\"\nmemory = 32\nvcpus = 2\nextra = \"workload=handoff\"\n";

fn run_in(folder: &Path) -> Command {
    let mut command = pvlab();
    command.args(["run", "mine", "--configs"]).arg(folder).arg("--out").arg(folder.join("out"));
    command
}

#[test]
fn scenarios_are_listed_with_what_they_are_for() {
    let all = contains("solo-pv")
        .and(contains("overcommit-1x"))
        .and(contains("overcommit-2x"))
        .and(contains("overcommit-4x"));
    pvlab().arg("scenarios").assert().success().stdout(all);
}

#[test]
fn an_unknown_scenario_lists_those_that_exist() {
    let list = contains("no scenario `overcommit-3x`")
        .and(contains("overcommit-2x"))
        .and(contains("solo-pv"));
    pvlab().args(["run", "overcommit-3x"]).assert().code(2).stderr(list).stdout("");
}

#[test]
fn a_broken_configuration_names_file_line_and_remedy() {
    let folder = configs(&GOOD.replace("vcpus = 2", "vcpus = two"));
    let error = contains("a.cfg:4: ").and(contains("quotes"));
    run_in(folder.path()).assert().code(2).stderr(error);
}

#[test]
fn an_unknown_policy_lists_those_that_exist() {
    let list = contains("kick-thrice").and(contains("kick-at-unlock")).and(contains("spin-ticket"));
    pvlab().args(["run", "solo-pv", "--policy", "kick-thrice"]).assert().code(2).stderr(list);
}

#[test]
fn an_unknown_parameter_is_refused_before_anything_starts() {
    let error = contains("critcal").and(contains("critical"));
    pvlab().args(["run", "solo-pv", "--set", "critcal=1us"]).assert().code(2).stderr(error);
}

#[test]
fn a_foreign_folder_is_not_written_to() {
    let folder = configs(GOOD);
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("thesis.tex"), "years of work").unwrap();
    run_in(folder.path()).assert().code(2).stderr(contains("not empty"));
    assert_eq!(fs::read_dir(&out).unwrap().count(), 1);
}

#[test]
fn an_image_that_is_none_is_refused() {
    let folder = configs(GOOD);
    let image = folder.path().join("mine/a.cfg");
    run_in(folder.path())
        .arg("--image")
        .arg(&image)
        .assert()
        .code(2)
        .stderr(contains("is not an ELF file"));
    let missing = folder.path().join("nowhere.elf");
    run_in(folder.path())
        .arg("--image")
        .arg(&missing)
        .assert()
        .code(2)
        .stderr(contains("nowhere.elf"));
}

#[test]
fn without_apt_no_host_can_be_made_and_the_message_says_what_to_do() {
    let folder = configs(GOOD);
    let cache = tempfile::tempdir().unwrap();
    let mut command = run_in(folder.path());
    // An empty cache and a PATH on which there is no apt: every package is missing.
    command.env("PVLAB_CACHE", cache.path()).env("PATH", cache.path());
    command.assert().code(2).stderr(contains("apt").and(contains("Xen host")));
}

#[test]
fn the_image_is_written_out_as_it_is_embedded() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("xen-guest.elf");
    pvlab().args(["image", "-o"]).arg(&file).assert().success();
    assert_eq!(fs::read(&file).unwrap(), pvlab::image::load(None).unwrap());
    let nowhere = folder.path().join("no/such/folder.elf");
    pvlab().args(["image", "-o"]).arg(nowhere).assert().code(2).stderr(contains("cannot write"));
}

#[test]
fn a_folder_without_a_run_has_no_report() {
    let folder = tempfile::tempdir().unwrap();
    pvlab()
        .arg("report")
        .arg(folder.path())
        .assert()
        .code(2)
        .stderr(contains("not a run's folder"));
}

#[test]
fn a_plan_is_carried_out_on_a_xen_host_only() {
    if pvlab::host::is_xen_host() {
        return;
    }
    let folder = configs(GOOD);
    let plan = folder.path().join("plan.json");
    fs::write(&plan, "{}").unwrap();
    let mut host = pvlab();
    host.arg("host").arg("--plan").arg(&plan).arg("--out").arg(folder.path());
    host.assert()
        .code(2)
        .stderr(contains("is no plan"))
        .stdout(contains("@pvlab {\"event\":\"error\""));
}

#[test]
fn the_trace_reader_is_part_of_the_tool() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("not-a-trace");
    fs::write(&file, "this is text, not a trace").unwrap();
    pvlab()
        .args(["kicktrace", "summary"])
        .arg(&file)
        .assert()
        .code(2)
        .stderr(contains("not-a-trace"));
}
