//! Boots a real Xen host from nothing but Debian packages.

use std::fs;
use std::process::Command;

use assert_cmd::cargo::CommandCargoExt;

/// Runs `script` in dom0 and gives back the exit code, standard output and standard error.
fn boot(script: &str, out: &std::path::Path, more: &[&str]) -> (Option<i32>, String, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("script.sh");
    fs::write(&file, script).unwrap();
    let mut pvlab = Command::cargo_bin("pvlab").unwrap();
    pvlab.args(["lab", "boot", "--deadline", crate::PATIENCE_SECONDS, "--script"]).arg(&file);
    pvlab.arg("--out").arg(out).args(more);
    let output = pvlab.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn xl_talks_to_a_real_hypervisor_and_files_come_home() {
    let out = tempfile::tempdir().unwrap();
    // The file has every byte and no line end, so a way home that changes anything shows.
    let script = "xl info && xl list > list.txt && mkdir -p deep/er && head -c 300000 /dev/urandom > deep/er/bytes \
                  && sha256sum deep/er/bytes";
    let (code, console, error) = boot(script, out.path(), &[]);
    assert_eq!(code, Some(0), "{error}\n{console}");
    for part in ["xen_major", "nr_cpus                : 3", "dom0_vcpus_pin"] {
        assert!(console.contains(part), "{part} in:\n{console}");
    }
    let list = fs::read_to_string(out.path().join("list.txt")).unwrap();
    assert!(list.contains("Domain-0"), "{list}");
    let bytes = out.path().join("deep/er/bytes");
    let sum = Command::new("sha256sum").arg(&bytes).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    assert!(console.contains(sum.split(' ').next().unwrap()), "the file changed on its way: {sum}");
    let kept = fs::read_to_string(out.path().join("console-host.log")).unwrap();
    assert!(kept.contains("xen_major"));
}

#[test]
fn a_script_that_fails_gives_its_status_and_brings_its_files_home() {
    let out = tempfile::tempdir().unwrap();
    let (code, console, error) = boot("echo partial > kept.txt; exit 7", out.path(), &[]);
    assert_eq!(code, Some(7), "{error}\n{console}");
    assert_eq!(fs::read_to_string(out.path().join("kept.txt")).unwrap(), "partial\n");
}

#[test]
fn repeatable_mode_repeats_to_the_last_byte() {
    let script = "xl info > info.txt; xl list > list.txt; cat /proc/uptime > uptime.txt; dd if=/dev/urandom bs=8 count=1 2>/dev/null > random";
    let runs = [(); 2].map(|()| {
        let out = tempfile::tempdir().unwrap();
        let (code, console, error) = boot(script, out.path(), &["--repeatable"]);
        assert_eq!(code, Some(0), "{error}\n{console}");
        let read = |name: &str| fs::read(out.path().join(name)).unwrap();
        ["console-host.log", "info.txt", "list.txt", "uptime.txt", "random"].map(read)
    });
    let [first, second] = &runs;
    for (first, second) in first.iter().zip(second) {
        assert_eq!(String::from_utf8_lossy(first), String::from_utf8_lossy(second));
    }
}

/// Ctrl-C reaches the whole foreground group of a terminal, `xl create` too, at any moment of its work. The
/// option for Xen is there to be seen to act.
#[test]
fn ctrl_c_during_xl_create_leaves_no_domain() {
    let out = tempfile::tempdir().unwrap();
    let pvlab = Command::cargo_bin("pvlab").unwrap();
    let file = format!("{}=/root/pvlab", pvlab.get_program().to_str().unwrap());
    let script = "for tenths in 1 5 9; do
        setsid /root/pvlab run overcommit-2x-pvh --out /tmp/run > /tmp/run.txt 2>&1 &
        until ps | grep -q '[x]l create'; do usleep 20000; done
        usleep $((tenths * 100000))
        kill -INT -$(pidof pvlab | awk '{print $1}'); wait
        xl list > list-$tenths.txt
    done; xl dmesg > dmesg.txt";
    let more = ["--file", &file, "--xen", "sched=credit"];
    let (code, console, error) = boot(script, out.path(), &more);
    assert_eq!(code, Some(0), "{error}\n{console}");
    for tenths in [1, 5, 9] {
        let list = fs::read_to_string(out.path().join(format!("list-{tenths}.txt"))).unwrap();
        assert!(list.lines().count() == 2 && list.contains("Domain-0"), "{tenths}: {list}");
    }
    let log = fs::read_to_string(out.path().join("dmesg.txt")).unwrap();
    assert!(log.contains("SMP Credit Scheduler (credit)"), "{log}");
}
