//! docs/real-host.md, followed word for word in an empty dom0.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use assert_cmd::cargo::CommandCargoExt;

/// The commands of the chapter, in order: what stands behind `# ` in its blocks.
fn commands() -> Vec<String> {
    let chapter = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/real-host.md");
    let chapter = fs::read_to_string(chapter).unwrap();
    let blocks = chapter.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next());
    let lines = blocks.flat_map(str::lines).filter_map(|line| line.strip_prefix("# "));
    lines.map(str::to_owned).collect()
}

#[test]
#[ignore = "takes minutes, for a chapter that seldom changes: .ci/long runs it"]
fn the_chapter_on_a_real_host_can_be_followed_word_for_word() {
    let commands = commands();
    assert!(commands.len() > 12, "the commands are not found: {commands:?}");
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("chapter.sh");
    // As a person's shell: with jobs, and each command whether the one before succeeded or not.
    let mut text = "set -m\ncd /root\n".to_owned();
    for (index, command) in commands.iter().enumerate() {
        writeln!(text, "{command}\necho \"@chapter {index} $?\"").unwrap();
    }
    fs::write(&script, text).unwrap();
    let program = assert_cmd::cargo::cargo_bin("pvlab");
    let mut pvlab = Command::cargo_bin("pvlab").unwrap();
    pvlab.args(["lab", "boot", "--quiet", "--deadline", "1800", "--script"]).arg(&script);
    pvlab.arg("--file").arg(format!("{}=/bin/pvlab", program.display()));
    pvlab.args(["--file", "xl-configs/solo-pv/solo.cfg=/root/solo.cfg"]);
    let output = pvlab.arg("--out").arg(folder.path().join("out")).output().unwrap();
    let console = String::from_utf8_lossy(&output.stdout);
    for (index, command) in commands.iter().enumerate() {
        assert!(console.contains(&format!("@chapter {index} 0")), "{command}: {console}");
    }
    for words in [
        // `pvlab doctor`, and the table of `pvlab run`.
        "pvlab can run here",
        "│ waking kicks per blocked acquisition",
        // The line for people on the guest's console.
        "acquisitions by 2 vCPUs",
    ] {
        assert!(console.contains(words), "`{words}` is not in {console}");
    }
}
