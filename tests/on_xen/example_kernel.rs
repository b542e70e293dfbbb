//! The kernel outside the workspace that puts `pvlock` on `evtchn` by itself: built as its reader would
//! build it, and booted on real Xen.

use std::fs;

/// Boots it with its own configuration, whose path of the kernel alone is another. Not pinned, as in `guest.rs`: its
/// first vCPU waits while the others go down.
const SCRIPT: &str = r#"
xl create -q -e /guest/domain.cfg 'kernel="/guest/kernel"' 'on_poweroff="preserve"'
i=0
while [ $i -lt 300 ]; do
    case "$(xl list example | tail -n 1 | grep -o '[-rbpscd]\{6\}')" in
        ????c?) echo crash > /out/end; break;;
        ???s??) echo poweroff > /out/end; break;;
    esac
    i=$((i+1)); sleep 0.2
done
sleep 0.2
cp /var/log/xen/guest-example.log /out/console
xl destroy example
"#;

#[test]
fn a_kernel_with_boot_code_of_its_own_counts_exactly_and_its_vcpus_sleep_and_are_kicked() {
    let kernel = crate::kernel::build("example-kernel");
    let config = include_bytes!("../../example-kernel/domain.cfg");
    let out = crate::kernel::boot(kernel, config, SCRIPT);
    let read = |name: &str| fs::read_to_string(out.path().join(name)).unwrap_or_default();
    let console = read("console");
    assert_eq!(read("end").trim(), "poweroff", "{console}");
    let verdict =
        console.lines().find_map(|line| line.trim_end().strip_prefix("example: counter "));
    let (counts, slept) = verdict.and_then(|told| told.split_once("; ")).expect(&console);
    let (counter, taken) = counts.split_once(" of ").expect(&console);
    assert_eq!(counter, taken, "{console}");
    assert!(taken.parse::<u32>().expect(&console) >= 4 * 200, "{console}");
    assert_eq!(slept, "4 of 4 vCPUs slept and were kicked awake", "{console}");
}
