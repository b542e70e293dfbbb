//! ArceOS, a kernel of other people, as a domain on real Xen with `pvlock` under every lock: built as its
//! reader would build it, and booted by `xl create`. The first build downloads ArceOS from crates.io.

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use pvlab::lab::{Mode, Repeatable};

use crate::domains;
use crate::kernel::{self, Crates};

/// Boots three domains with the folder's own configuration: one that at its end holds a lock for longer than a
/// poll lasts, one of as many vCPUs as the integration promises, which is asked for its name, and a published
/// application. Not pinned: they share all pCPUs with dom0.
const SCRIPT: &str = r#"
boot() { # NAME SECONDS SETTINGS...: creates a domain and waits for its end
    name=$1; turns=$(($2 * 5)); shift 2
    xl create -q -e /guest/domain.cfg "name=\"$name\"" 'kernel="/guest/kernel"' 'on_poweroff="preserve"' "$@"
    [ "$name" = many ] && answer
    i=0
    while [ $i -lt $turns ]; do
        case "$(xl list $name | tail -n 1 | grep -o '[-rbpscd]\{6\}')" in
            ????c?) echo crash > /out/$name.end; break;;
            ???s??) echo poweroff > /out/$name.end; break;;
        esac
        i=$((i+1)); sleep 0.2
    done
    told
    cp /var/log/xen/guest-$name.log /out/$name.console
    xl destroy $name
}
answer() { # types a line when it is asked for
    i=0
    while [ $i -lt 3000 ] && ! grep -q 'who are you' /var/log/xen/guest-many.log; do i=$((i+1)); sleep 0.2; done
    echo tester > "$(xenstore-read /local/domain/$(xl domid many)/console/tty)"
}
date +%s > /out/clock
boot arceos 60 'extra="stall=1"'
boot many 120 vcpus=32 memory=160 'extra="ask=1 tasks=32 rounds=2 critical=500 outside=250 drill=0"'
boot published 60 'kernel="/guest/published"'
"#;

/// What the domains left behind.
struct Run {
    few: Domain,
    many: Domain,
    published: Domain,
    /// dom0's clock before, in seconds since 1970.
    clock: u64,
}

/// What one of them left behind.
struct Domain {
    console: String,
    end: String,
}

impl Domain {
    fn read(out: &Path, name: &str) -> Domain {
        let read =
            |what: &str| fs::read_to_string(out.join(format!("{name}.{what}"))).unwrap_or_default();
        Domain { console: read("console"), end: read("end").trim().to_owned() }
    }

    /// What stands behind `words` in the line that begins with them.
    fn after(&self, words: &str) -> &str {
        let found = self.console.lines().find_map(|line| line.trim_end().strip_prefix(words));
        found.unwrap_or_else(|| panic!("no line `{words}...`:\n{}", self.console))
    }

    /// The verdict: what the counter is, what it should be, who slept, how many kicks were lost.
    fn verdict(&self) -> (u64, u64, &str, &str) {
        let told = self.after("arceos: counter ");
        let parts: Vec<&str> = told.split("; ").collect();
        let [counts, slept, lost] = parts[..] else { panic!("{told}") };
        let (counter, taken) = counts.split_once(" of ").expect(told);
        (counter.parse().expect(told), taken.parse().expect(told), slept, lost)
    }
}

static RUN: LazyLock<Run> = LazyLock::new(|| {
    let build = |package| kernel::build_in("integrations/arceos", package, Crates::Fetched);
    let kernels = [("kernel", build("arceos-on-xen")), ("published", build("arceos-published"))];
    let config = include_bytes!("../../integrations/arceos/domain.cfg");
    // pCPUs on threads of their own lose a guest's registers in this emulator now and then, on some
    // machines each time: a vCPU of the 32 went on at an address of Xen's.
    let mode = Mode::Repeatable(Repeatable::default());
    let out = kernel::boot_all(kernels, config, &format!("{}{SCRIPT}", domains::RUN), mode);
    let clock = fs::read_to_string(out.path().join("clock")).expect("dom0 has a clock");
    Run {
        few: Domain::read(out.path(), "arceos"),
        many: Domain::read(out.path(), "many"),
        published: Domain::read(out.path(), "published"),
        clock: clock.trim().parse().expect("a number of seconds"),
    }
});

#[test]
fn arceos_runs_on_xen_with_our_lock_under_every_lock() {
    crate::check_all![
        arceos_says_hello_runs_tasks_on_every_vcpu_and_powers_off,
        arceos_counts_exactly_under_our_lock_and_its_vcpus_sleep_and_are_kicked,
        a_lock_that_arceos_holds_for_longer_than_a_poll_times_every_waiter_out_and_loses_no_kick,
        arceos_takes_thirty_two_vcpus,
        arceos_reads_what_is_typed_and_knows_what_time_it_is,
        a_published_application_of_arceos_runs_as_it_is,
    ];
}

fn arceos_says_hello_runs_tasks_on_every_vcpu_and_powers_off() {
    let few = &RUN.few;
    assert_eq!(few.after("Hello, ArceOS on Xen! "), "4 vCPUs");
    assert_eq!(few.after("arceos: tasks ran on "), "4 of 4 vCPUs");
    assert_eq!(few.end, "poweroff", "{}", few.console);
}

fn arceos_counts_exactly_under_our_lock_and_its_vcpus_sleep_and_are_kicked() {
    let few = &RUN.few;
    let (counter, taken, slept, lost) = few.verdict();
    assert_eq!((counter, taken), (8 * 50, 8 * 50));
    assert_eq!(slept, "4 of 4 vCPUs slept and were kicked awake");
    assert_eq!(lost, "0 lost");
}

/// Polls reach their deadline because somebody holds a lock for more than a second; vCPU 0 does, here.
fn a_lock_that_arceos_holds_for_longer_than_a_poll_times_every_waiter_out_and_loses_no_kick() {
    let few = &RUN.few;
    for vcpu in 1..4 {
        let told = few.after(&format!("vCPU {vcpu}: "));
        let timeouts = told.strip_suffix(" timeouts").and_then(|told| told.rsplit(' ').next());
        assert!(timeouts.expect(told).parse::<u32>().expect(told) >= 1, "{told}");
    }
    assert_eq!(few.verdict().3, "0 lost");
}

fn arceos_takes_thirty_two_vcpus() {
    let many = &RUN.many;
    assert_eq!(many.after("Hello, ArceOS on Xen! "), "32 vCPUs");
    assert_eq!(many.after("arceos: IPIs reached "), "32 of 32 vCPUs");
    let (counter, taken, _, lost) = many.verdict();
    assert_eq!((counter, taken, lost), (64, 64, "0 lost"));
    assert_eq!(many.end, "poweroff", "{}", many.console);
}

fn arceos_reads_what_is_typed_and_knows_what_time_it_is() {
    assert_eq!(RUN.many.after("arceos: hello, "), "tester");
    let told = RUN.few.after("arceos: ");
    let seconds: u64 = told.strip_suffix(" s since 1970").expect(told).parse().expect(told);
    let late = seconds.checked_sub(RUN.clock).expect("not earlier than dom0's clock before");
    assert!(late < 600, "{late} s later than dom0's clock before");
}

/// Two tasks, one of which sends the other 257 messages through a queue under a `SpinNoIrq`.
fn a_published_application_of_arceos_runs_as_it_is() {
    let published = &RUN.published;
    let received =
        |line: &str| line.trim_end().strip_prefix("worker2 [")?.strip_suffix(']')?.parse().ok();
    let received: Vec<u32> = published.console.lines().filter_map(received).collect();
    assert_eq!(received, (0..=256).collect::<Vec<_>>(), "{}", published.console);
    published.after("Multi-task(Preemptible) ok!");
    assert_eq!(published.end, "poweroff", "{}", published.console);
}
