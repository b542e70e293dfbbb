//! A storm: everything a toolstack can do to a domain, in random order, while its vCPUs are at the locks.
//!
//! Owns the operations, their order from a seed, the script that carries them out in dom0, and the verdict
//! over what the domain reports in the end. What the guest does about each is the guest's business.

mod session;

use std::fmt::{self, Write};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use experiment::record::framing::Decoder;
use experiment::record::{DomainReport, Outcome};
use experiment::{DomainType, EventAbi, Events};
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use crate::lab::{Boot, Overlay};

pub use session::{Session, tally};

/// vCPUs of the domain: vCPU 0 looks after it, the others contend.
const VCPUS: u32 = 5;
/// pCPUs the domain runs on; dom0 has the one before for itself.
const PCPUS: std::ops::RangeInclusive<u32> = 1..=2;

/// Something a toolstack does to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `xl pause`, so many tenths of a second, `xl unpause`.
    Pause(u32),
    /// `xl vcpu-pin`: this vCPU to this pCPU.
    Pin(u32, u32),
    /// `xl sched-credit2 -w`.
    Weight(u32),
    /// `xl sched-credit2 -c`, in percent of a pCPU; 0 = no cap.
    Cap(u32),
    /// `xl vcpu-set`: so many vCPUs.
    Vcpus(u32),
    /// `xl trigger nmi` to this vCPU.
    Nmi(u32),
    /// `xl save` and `xl restore`.
    SaveAndRestore,
    /// `xl save -c`: the domain goes on afterwards.
    SaveAndContinue,
    /// `xl migrate` to this very host. Debian's Xen does it with PVH only.
    Migrate,
    /// `xl reboot`, until the new domain runs.
    Reboot,
    /// Nothing, for so many tenths of a second.
    Wait(u32),
    /// Nothing, until this vCPU has so many ports of its own (IPIs, by `lsevtchn`): a vCPU that goes down
    /// gives its ports back, and has new ones when it is up again.
    Ports(u32, u32),
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Pause(tenths) => write!(f, "pause {}.{}", tenths / 10, tenths % 10),
            Operation::Pin(vcpu, pcpu) => write!(f, "pin {vcpu} {pcpu}"),
            Operation::Weight(weight) => write!(f, "weight {weight}"),
            Operation::Cap(percent) => write!(f, "cap {percent}"),
            Operation::Vcpus(n) => write!(f, "vcpus {n}"),
            Operation::Nmi(vcpu) => write!(f, "nmi {vcpu}"),
            Operation::SaveAndRestore => f.write_str("save-and-restore"),
            Operation::SaveAndContinue => f.write_str("save-and-continue"),
            Operation::Migrate => f.write_str("migrate"),
            Operation::Reboot => f.write_str("reboot"),
            Operation::Ports(vcpu, n) => write!(f, "ports {vcpu} {n}"),
            Operation::Wait(tenths) => write!(f, "wait {}.{}", tenths / 10, tenths % 10),
        }
    }
}

/// So many operations in the random order of `seed`; the same again for the same seed.
///
/// ```
/// use pvlab::storm::operations;
/// use experiment::DomainType;
///
/// let storm = operations(7, 100, DomainType::Pv);
/// assert_eq!(storm, operations(7, 100, DomainType::Pv));
/// assert_ne!(storm, operations(8, 100, DomainType::Pv));
/// ```
pub fn operations(seed: u64, count: usize, kind: DomainType) -> Vec<Operation> {
    let mut rng = SplitMix64::seed_from_u64(seed);
    // Modulo: a storm need not be uniform to the last bit.
    let mut below = |n: u32| (rng.next_u64() % u64::from(n)) as u32;
    // vCPUs that were up all the time. On PVH only those get NMIs: a vCPU that was down while the domain was
    // restored starts without descriptor tables, for which VCPUOP_initialise has no field, and an NMI that
    // waits for it, or comes before it has loaded them, is a triple fault.
    let mut never_down = VCPUS;
    let one = |_| match below(16) {
        0 | 1 => Operation::Pause(1 + below(15)),
        2 | 3 => Operation::Pin(below(VCPUS), PCPUS.start() + below(2)),
        4 => Operation::Weight(64 << below(5)),
        5 => Operation::Cap([0, 0, 50, 150][below(4) as usize]),
        6..=8 => {
            let vcpus = 1 + below(VCPUS);
            never_down = never_down.min(vcpus);
            Operation::Vcpus(vcpus)
        }
        9..=11 if kind == DomainType::Pvh => Operation::Nmi(below(VCPUS) % never_down),
        9..=11 => Operation::Nmi(below(VCPUS)),
        12 => Operation::SaveAndContinue,
        13 if kind == DomainType::Pvh => Operation::Migrate,
        13 | 14 => Operation::SaveAndRestore,
        _ => Operation::Wait(1 + below(20)),
    };
    (0..count).map(one).collect()
}

/// One domain and what is done to it.
#[derive(Clone, Debug)]
pub struct Storm {
    /// The domain's name, and that of its files.
    pub name: String,
    /// How it boots.
    pub kind: DomainType,
    /// The lock under test.
    pub policy: String,
    /// The event channel ABI; `None` leaves the choice to the guest.
    pub events: Option<EventAbi>,
    /// Seed of the workload's random numbers.
    pub seed: u64,
    /// What is done, in order.
    pub operations: Vec<Operation>,
    /// When to stop, even if operations are left.
    pub limit: Option<Duration>,
}

/// Carries the operations out. An operation that fails ends the storm.
const SCRIPT: &str = r#"
now() { cut -d. -f1 /proc/uptime; }
# Waits until domain $1 says that it runs, as another domain than $2. A PV domain that was just restored cannot be
# saved before: it has not told yet where its list of frames is.
running() {
    i=0
    while [ $i -lt 600 ]; do
        id=$(xl domid $1 2>/dev/null) && [ "$id" != "$2" ] &&
            [ "$(xenstore-read /local/domain/$id/data/pvlab/state 2>/dev/null)" = running ] && return 0
        i=$((i+1)); sleep 0.2
    done
    echo "the domain does not say that it runs"
    return 1
}
ports() {
    i=0
    while [ $i -lt 100 ]; do
        lsevtchn $(xl domid $1) > /tmp/ports
        [ "$(grep -c "VCPU $2: IPI" /tmp/ports)" = $3 ] && return 0
        i=$((i+1)); sleep 0.2
    done
    cat /tmp/ports
    return 1
}
perform() {
    old=$(xl domid $1)
    case $2 in
        pause) xl pause $1 && sleep $3 && xl unpause $1;;
        pin) xl vcpu-pin $1 $3 $4;;
        weight) xl sched-credit2 -d $1 -w $3;;
        cap) xl sched-credit2 -d $1 -c $3;;
        vcpus) xl vcpu-set --ignore-host $1 $3;;
        nmi) xl trigger $1 nmi $3;;
        wait) sleep $3;;
        ports) ports $1 $3 $4;;
        save-and-restore) xl save $1 /tmp/image && xl restore /tmp/image && running $1 $old;;
        save-and-continue) xl save -c $1 /tmp/image;;
        migrate) xl migrate -s '' $1 'xl migrate-receive' && running $1 $old;;
        reboot) xl reboot $1 && running $1 $old;;
    esac
}
storm() {
    xl create -q /guest/$1.cfg && running $1 || { echo "the domain did not start" > /out/$1.failed; }
    end=$(($(now) + $2)); n=0
    while [ ! -e /out/$1.failed ] && read -r line && [ $(now) -lt $end ]; do
        n=$((n+1)); echo "@storm $1 $n: $line"
        perform $1 $line < /dev/null > /tmp/said 2>&1 ||
            { echo "operation $n ($line) failed:"; cat /tmp/said; } > /out/$1.failed
        rm -f /tmp/image
    done < /guest/$1.operations
    echo $n > /out/$1.performed
    [ -e /out/$1.failed ] || xl shutdown -w $1 > /tmp/said 2>&1 || cp /tmp/said /out/$1.failed
    sleep 1
    xl vcpu-list > /out/$1.vcpus 2>&1
    xl destroy $1 2>/dev/null
    cat /var/log/xen/guest-$1--incoming.log /var/log/xen/guest-$1.log > /out/$1.log 2>/dev/null
}
"#;

/// Puts the storms, one after another, into a boot with this guest image.
pub fn prepare(boot: &mut Boot, storms: &[Storm], image: Vec<u8>) {
    /// An hour: longer than any list of operations should take.
    const UNLIMITED: u64 = 3600;
    boot.pcpus = PCPUS.end() + 1;
    // An image of a saved domain is a file in dom0's memory.
    boot.dom0_mib = 640;
    boot.script.push_str(SCRIPT);
    boot.files.push(Overlay::bytes("/guest/xen-guest.elf", 0o644, image));
    for storm in storms {
        let name = &storm.name;
        let lines: String = storm.operations.iter().map(|op| format!("{op}\n")).collect();
        boot.files.push(Overlay::bytes(format!("/guest/{name}.operations"), 0o644, lines));
        boot.files.push(Overlay::bytes(format!("/guest/{name}.cfg"), 0o644, storm.config()));
        let seconds = storm.limit.map_or(UNLIMITED, |limit| limit.as_secs());
        // Writing to a String does not fail.
        let _ = writeln!(boot.script, "storm {name} {seconds}");
    }
}

impl Storm {
    fn config(&self) -> String {
        let Storm { name, policy, seed, .. } = self;
        let kind = self.kind;
        let events = self.events.map_or(Events::Auto.name(), EventAbi::name);
        let (first, last) = (PCPUS.start(), PCPUS.end());
        format!(
            "name = \"{name}\"\ntype = \"{kind}\"\nkernel = \"/guest/xen-guest.elf\"\nmemory = 32\n\
             vcpus = {VCPUS}\ncpus = \"{first}-{last}\"\ntsc_mode = \"native\"\n\
             on_poweroff = \"destroy\"\non_crash = \"preserve\"\n\
             extra = \"workload=torture control=watch timer=2ms critical=50us outside=20us spin=20us \
             duration=3600s deadline=120s policy={policy} seed={seed} events={events}\"\n"
        )
    }

    /// What the domain reported in the end, and how many operations it saw, from the folder that the
    /// boot left.
    ///
    /// # Errors
    ///
    /// If an operation failed, or the domain did not end well and exactly, or a kick was lost.
    pub fn verdict(&self, out: &Path) -> Result<(DomainReport, usize)> {
        let read = |what: &str| fs::read_to_string(out.join(format!("{}.{what}", self.name)));
        let console = read("log").unwrap_or_default();
        let told = || {
            let last: Vec<_> =
                console.lines().filter(|line| !line.starts_with("pvlab-result")).collect();
            last[last.len().saturating_sub(60)..].join("\n")
        };
        if let Ok(failed) = read("failed") {
            bail!("{}: {}\nthe domain's console:\n{}", self.name, failed.trim(), told());
        }
        let performed = read("performed").with_context(|| format!("{}: no storm", self.name))?;
        let reports = reports(&console)?;
        for report in &reports {
            self.check(report).with_context(told)?;
        }
        let last = reports.last().cloned();
        let last =
            last.ok_or_else(|| anyhow!("{}: no report; its console:\n{}", self.name, told()))?;
        Ok((last, performed.trim().parse().context("the number of operations")?))
    }

    fn check(&self, report: &DomainReport) -> Result<()> {
        let name = &self.name;
        if report.outcome != Outcome::Success {
            bail!("{name}: {:?}", report.outcome);
        }
        if report.counter != report.acquisitions || report.acquisitions == 0 {
            let DomainReport { counter, acquisitions, .. } = report;
            bail!("{name}: {acquisitions} acquisitions raised the counter to {counter}");
        }
        if self.events.is_some_and(|events| events != report.events) {
            bail!("{name}: it used the {:?} event channels", report.events);
        }
        match report.counters.get("pv_poll_timeout") {
            Some(0) => Ok(()),
            lost => bail!("{name}: lost wake-ups (pv_poll_timeout): {lost:?}"),
        }
    }
}

/// All reports on a console.
fn reports(console: &str) -> Result<Vec<DomainReport>> {
    let mut decoder = Decoder::default();
    let mut reports = Vec::new();
    for line in console.lines() {
        if let Some(document) = decoder.line(line.trim_end()).context("the domain's console")? {
            reports.push(serde_json::from_str(&document).context("the domain's report")?);
        }
    }
    Ok(reports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_storm_has_every_operation_a_type_of_domain_can_stand() {
        let names = |kind| -> std::collections::BTreeSet<String> {
            let words = operations(3, 1000, kind).into_iter().map(|op| op.to_string());
            words.map(|line| line.split(' ').next().unwrap().to_owned()).collect()
        };
        let (pv, pvh) = (names(DomainType::Pv), names(DomainType::Pvh));
        assert_eq!(pv.len(), 9, "{pv:?}");
        assert!(pvh.contains("migrate") && pvh.is_superset(&pv));
    }

    #[test]
    fn numbers_stay_within_the_domain_and_the_host() {
        for operation in operations(5, 2000, DomainType::Pvh) {
            match operation {
                Operation::Pin(vcpu, pcpu) => assert!(vcpu < VCPUS && PCPUS.contains(&pcpu)),
                Operation::Vcpus(n) => assert!((1..=VCPUS).contains(&n)),
                Operation::Nmi(vcpu) => assert!(vcpu < VCPUS),
                _ => {}
            }
        }
    }

    /// A storm of 49 operations ended in a triple fault: an NMI met a vCPU that was just coming back.
    #[test]
    fn an_nmi_goes_to_no_pvh_vcpu_that_may_be_coming_back() {
        let mut down = VCPUS;
        let mut others = 0;
        for operation in operations(1795692453, 600, DomainType::Pvh) {
            match operation {
                Operation::Vcpus(n) => down = down.min(n),
                Operation::Nmi(vcpu) => assert!(vcpu < down, "{operation:?} with {down} up"),
                _ => others += 1,
            }
        }
        assert!(others > 0 && down == 1);
    }

    fn storm() -> Storm {
        Storm {
            name: "d".into(),
            kind: DomainType::Pv,
            policy: "adaptive".into(),
            events: None,
            seed: 1,
            operations: vec![Operation::Wait(1)],
            limit: None,
        }
    }

    #[test]
    fn a_failed_operation_a_missing_report_and_a_lost_kick_are_told() {
        let out = tempfile::tempdir().unwrap();
        let write = |what: &str, text: &str| fs::write(out.path().join(what), text).unwrap();
        let told = || format!("{:#}", storm().verdict(out.path()).unwrap_err());
        write("d.performed", "1\n");
        write("d.log", "some words\n");
        assert!(told().contains("no report") && told().contains("some words"));
        let mut report = DomainReport { acquisitions: 3, counter: 3, ..DomainReport::default() };
        report.outcome = Outcome::Success;
        report.counters.insert("pv_poll_timeout".into(), 1);
        let console = |report: &DomainReport| {
            let mut log = String::new();
            let document = serde_json::to_string(report).unwrap();
            experiment::record::framing::console_lines(&document, |line| {
                let _ = writeln!(log, "{line}");
            });
            write("d.log", &log);
        };
        console(&report);
        assert!(told().contains("lost wake-ups"), "{}", told());
        report.counters.insert("pv_poll_timeout".into(), 0);
        console(&report);
        assert_eq!(storm().verdict(out.path()).unwrap().1, 1);
        let fifo = Storm { events: Some(EventAbi::Fifo), ..storm() }.verdict(out.path());
        assert!(format!("{:#}", fifo.unwrap_err()).contains("TwoLevel event channels"));
        report.counter = 2;
        console(&report);
        assert!(told().contains("raised the counter to 2"));
        write("d.failed", "operation 1 (pause) failed");
        assert!(told().contains("operation 1"));
    }
}
