//! The same lock on KVM: the kernel in `example-kernel-kvm` on real KVM, with every lock, four vCPUs on two
//! pCPUs. What the lock counted is compared with what KVM's own tracepoints saw.
//!
//! Needs a KVM host and makes it itself: the lab's Linux without Xen.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ::experiment::Policy;
use ::experiment::record::framing::Decoder;
use ::experiment::record::{DomainReport, Outcome};
use pvlab::lab::{Boot, Hypervisor, Lab, Overlay};
use pvlab::progress::Progress;

const VCPUS: u32 = 4;
const ACQUISITIONS: u64 = 200;

/// `machine NAME WORDS` runs one machine of four vCPUs on pCPUs 1 and 2; its console and its end stay in `/out`.
/// `traced NAME WORDS` also records every hypercall, and every vCPU that is woken.
const SCRIPT: &str = r#"
machine() {
    name=$1; shift
    taskset 6 timeout -s KILL 600 qemu-system-x86_64 -M microvm,pic=off,pit=off,rtc=off,accel=kvm -cpu $cpu -smp 4 -m 64M \
        -name $name,debug-threads=on -nodefaults -no-user-config -display none -no-reboot -serial stdio \
        -device isa-debug-exit,iobase=0xf4,iosize=1 -kernel /kernel -append "$*" \
        > /out/$name.console 2> /out/$name.stderr < ${input:-/dev/null}
    echo $? > /out/$name.end
}
T=/sys/kernel/tracing
traced() {
    echo > $T/trace
    echo 1 > $T/events/kvm/kvm_hypercall/enable
    echo 1 > $T/events/sched/sched_waking/enable
    machine "$@"
    echo 0 > $T/events/enable
    cat $T/trace > /out/$1.trace
}
echo 16384 > $T/buffer_size_kb
echo 'comm ~ "CPU *"' > $T/events/sched/sched_waking/filter

cpu=host
for policy in POLICIES; do
    traced $policy policy=$policy critical=500us outside=100us spin=20us acquisitions=ACQUISITIONS
done
[ -n "REST" ] || exit 0
# Two machines on the same two pCPUs, from one start line.
mkfifo /a /b
for name in a b; do
    input=/$name machine domain-$name policy=kick-at-unlock start=wait critical=200us outside=100us spin=20us acquisitions=ACQUISITIONS &
done
exec 3> /a 4> /b
for name in a b; do
    until grep -q ready /out/domain-$name.console || [ -e /out/domain-$name.end ]; do usleep 50000; done
done
echo >&3; echo >&4
exec 3>&- 4>&-
wait
# A machine on which nothing could end a HLT, and one that was promised pCPUs of its own.
cpu=host,kvm-pv-unhalt=off
machine no-kick policy=kick-at-unlock acquisitions=10
machine no-kick-spin policy=spin acquisitions=10
cpu=host,kvm-hint-dedicated=on
machine dedicated policy=spin acquisitions=10
"#;

/// What came home of one machine.
struct Machine {
    console: String,
    /// The kernel's own exit code; QEMU's `isa-debug-exit` shows twice as much and one.
    code: Option<i32>,
}

impl Machine {
    fn read(out: &Path, name: &str) -> Machine {
        let read =
            |kind: &str| fs::read_to_string(out.join(format!("{name}.{kind}"))).unwrap_or_default();
        let end = read("end").trim().parse::<i32>().ok();
        Machine { console: read("console") + &read("stderr"), code: end.map(|end| end / 2) }
    }

    fn report(&self) -> DomainReport {
        let mut decoder = Decoder::default();
        let document =
            self.console.lines().find_map(|line| decoder.line(line).expect("a whole frame"));
        let document = document.unwrap_or_else(|| panic!("no report: {}", self.console));
        serde_json::from_str(&document).expect("a report")
    }
}

/// What KVM's tracepoints say.
#[derive(Debug, Default, PartialEq)]
struct Kicks {
    /// Hypercalls `KVM_HC_KICK_CPU`.
    sent: u64,
    /// Those whose target slept and was woken by it.
    woke: u64,
}

/// Reads tracefs' `trace`. A kick wakes if the next event of its sender's thread wakes the vCPU it names.
fn kicks(trace: &str) -> Kicks {
    let mut kicks = Kicks::default();
    // By thread: the vCPU that its last event, a kick, named.
    let mut kicked: BTreeMap<&str, &str> = BTreeMap::new();
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        let Some((thread, rest)) = line.split_once(" [") else { continue };
        let thread = thread.trim_end().rsplit('-').next().expect("a thread's number");
        let last = kicked.remove(thread);
        if let Some((_, words)) = rest.split_once("kvm_hypercall: nr 0x5 a0 0x0 a1 0x") {
            kicks.sent += 1;
            kicked.insert(thread, words.split(' ').next().expect("an APIC id"));
        } else if let (Some((_, words)), Some(apic_id)) =
            (rest.split_once("sched_waking: comm=CPU "), last)
        {
            kicks.woke += u64::from(words.starts_with(&format!("{apic_id}/KVM ")));
        }
    }
    kicks
}

#[test]
fn kicks_are_told_from_the_trace() {
    let trace = "# tracer: nop
       CPU 1/KVM-122     [001] .....    11.9: kvm_hypercall: nr 0x5 a0 0x0 a1 0x2 a2 0x0 a3 0x0
       CPU 0/KVM-121     [002] .....    11.9: kvm_hypercall: nr 0x5 a0 0x0 a1 0x3 a2 0x0 a3 0x0
       CPU 1/KVM-122     [001] d..2.    11.9: sched_waking: comm=CPU 2/KVM pid=123 prio=120 target_cpu=002
       CPU 0/KVM-121     [002] d..2.    11.9: sched_waking: comm=CPU 2/KVM pid=123 prio=120 target_cpu=002
       CPU 0/KVM-121     [002] d..2.    11.9: sched_waking: comm=CPU 3/KVM pid=124 prio=120 target_cpu=002
          <idle>-0       [002] d..2.    11.9: sched_waking: comm=CPU 3/KVM pid=124 prio=120 target_cpu=002
";
    assert_eq!(kicks(trace), Kicks { sent: 2, woke: 1 });
}

#[test]
fn the_lock_sleeps_and_is_kicked_on_kvm_as_it_says() {
    let policies: Vec<Policy> = Policy::LOCKS
        .iter()
        .copied()
        .filter(|policy| crate::domains::wanted(policy.name()))
        .collect();
    let names = policies.iter().map(|policy| policy.name()).collect::<Vec<_>>().join(" ");
    let script =
        SCRIPT.replace("POLICIES", &names).replace("ACQUISITIONS", &ACQUISITIONS.to_string());
    let rest = if crate::domains::wanted("the-rest") { "yes" } else { "" };
    let script = script.replace("REST", rest);
    let out = tempfile::tempdir().unwrap();
    let mut boot = Boot::script(script, out.path());
    boot.hypervisor = Hypervisor::Kvm;
    boot.deadline = crate::PATIENCE;
    boot.files.push(Overlay::bytes("/kernel", 0o644, crate::kernel::build("example-kernel-kvm")));
    let lab = Lab::prepare(&Progress::hidden()).expect("the lab can be made");
    lab.run(&boot, &mut |_| {}).expect("the host ran to its end");

    for policy in policies {
        let machine = Machine::read(out.path(), policy.name());
        let told = format!("{policy}: {}", machine.console);
        assert_eq!(machine.code, Some(0), "{told}");
        let report = machine.report();
        assert_eq!(report.outcome, Outcome::Success, "{told}");
        assert_eq!(
            (report.parameters.policy, report.acquisitions),
            (policy.into(), 4 * ACQUISITIONS)
        );
        assert_eq!(report.counter, report.acquisitions, "{told}");
        let trace = fs::read_to_string(out.path().join(format!("{policy}.trace"))).unwrap();
        let seen = kicks(&trace);
        let counted = |name: &str| report.counters[name];
        let sent = counted("pv_kick_unlock") + counted("pv_kick_wake");
        let waits: u64 = report.vcpus.iter().map(|vcpu| vcpu.waits).sum();
        let kicked: u64 = report.vcpus.iter().map(|vcpu| vcpu.kicked_waits).sum();
        let blocked: u64 = report.vcpus.iter().map(|vcpu| vcpu.blocked_acquisitions).sum();
        println!(
            "{policy}: {blocked} blocked, {waits} waits, {kicked} kicked, {sent} sent, {seen:?}"
        );
        // One more wakes vCPU 0 at the end, unless it was the last itself.
        let last = seen.sent - sent;
        assert!(last <= 1, "the lock sent {sent} kicks, KVM saw {seen:?}");
        assert_eq!(counted("pv_poll_timeout"), 0, "a kick was lost: {told}");
        let sleeps = !matches!(
            policy,
            Policy::Native | Policy::TestAndSet | Policy::Spin | Policy::SpinTicket
        );
        if sleeps {
            // With four vCPUs on two pCPUs each of them sleeps some time: hundreds of turns came true here.
            assert!(waits >= u64::from(VCPUS) && kicked >= u64::from(VCPUS), "{told}");
            assert!(seen.woke > 0, "no kick woke anybody: {seen:?}");
            assert!(kicked <= sent && seen.woke <= seen.sent, "{seen:?}, {told}");
        } else {
            assert_eq!((waits, sent), (0, 0), "{told}");
        }
    }
    if !crate::domains::wanted("the-rest") {
        return;
    }
    let twice = |name: &str| Machine::read(out.path(), name).report().counters["pv_kick_wake"];
    assert!(twice("kick-twice") > 0);
    assert_eq!(twice("kick-at-unlock"), 0);

    for name in ["domain-a", "domain-b"] {
        let machine = Machine::read(out.path(), name);
        assert_eq!(machine.code, Some(0), "{name}: {}", machine.console);
        assert_eq!(machine.report().counter, 4 * ACQUISITIONS);
    }

    let refused = Machine::read(out.path(), "no-kick");
    assert_eq!(refused.code, Some(2), "{}", refused.console);
    assert!(refused.console.contains("TestAndSet"), "{}", refused.console);
    for (name, mode) in [("no-kick-spin", "lock: TestAndSet"), ("dedicated", "lock: Native")] {
        let machine = Machine::read(out.path(), name);
        assert_eq!(machine.code, Some(0), "{name}: {}", machine.console);
        assert!(machine.console.contains(mode), "{name}: {}", machine.console);
    }
}
