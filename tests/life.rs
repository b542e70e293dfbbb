//! A domain's life on real Xen: all that a toolstack does to it while its vCPUs torture their locks, as PV
//! and as PVH, with timers and NMIs that take locks too.
//!
//! Needs Xen and makes it itself: the first run downloads about 130 MB into pvlab's cache.

#![cfg(not(no_guest_image))]

use pvlab::image;
use pvlab::lab::{Boot, Lab};
use pvlab::progress::Progress;
use pvlab::storm::{self, Operation, Storm};
use results::DomainType;

/// Each operation once, those that hang together in an order that can go wrong: a restore while two vCPUs
/// are down, and their return afterwards; `save -c` last, since `xl` no longer restarts the domain then.
fn each_once(kind: DomainType) -> Vec<Operation> {
    let mut operations = vec![
        Operation::Pause(5),
        Operation::Pin(1, 2),
        Operation::Weight(64),
        Operation::Cap(50),
        Operation::Wait(3),
        Operation::Cap(0),
        Operation::Nmi(0),
        Operation::Nmi(1),
        Operation::Nmi(2),
        Operation::Vcpus(3),
        Operation::Wait(5),
        Operation::SaveAndRestore,
        Operation::Vcpus(5),
        Operation::Wait(5),
    ];
    match kind {
        DomainType::Pv => {
            operations.insert(0, Operation::Reboot);
            operations.extend([Operation::SaveAndRestore, Operation::SaveAndContinue]);
        }
        // Saving takes half a minute here, and migration is a save and a restore.
        DomainType::Pvh => operations.push(Operation::Migrate),
    }
    operations
}

fn storm(name: &str, kind: DomainType, policy: &str, operations: Vec<Operation>) -> Storm {
    let policy = policy.to_owned();
    Storm { name: name.to_owned(), kind, policy, seed: 1, operations, limit: None }
}

#[test]
fn a_domain_survives_what_a_toolstack_does_to_it_and_loses_no_wake_up() {
    let storms = [
        storm("pv", DomainType::Pv, "kick-at-unlock", each_once(DomainType::Pv)),
        storm("pvh", DomainType::Pvh, "kick-twice", each_once(DomainType::Pvh)),
        storm("random", DomainType::Pv, "adaptive", storm::operations(1, 12, DomainType::Pv)),
    ];
    let out = tempfile::tempdir().unwrap();
    let mut boot = Boot::script("", out.path());
    boot.deadline = std::time::Duration::from_secs(1800);
    storm::prepare(&mut boot, &storms, image::load(None).unwrap());
    let lab = Lab::prepare(&Progress::hidden()).expect("the lab can be made");
    lab.run(&boot, &mut |_| {}).expect("the host ran to its end");
    for storm in &storms {
        let (report, performed) = storm.verdict(out.path()).unwrap_or_else(|e| panic!("{e:#}"));
        assert_eq!(performed, storm.operations.len());
        if storm.name == "random" {
            continue;
        }
        let count = |name: &str| report.counters[name];
        assert!(count("restores") >= 2, "{:?}", report.counters);
        assert!(count("vcpus_taken_down") >= 2, "{:?}", report.counters);
        assert!(count("nmi_acquisitions") + count("nmi_refusals") >= 3, "{:?}", report.counters);
        assert!(count("interrupt_acquisitions") > 0, "{:?}", report.counters);
        let cancelled = u64::from(storm.kind == DomainType::Pv);
        assert_eq!(count("cancelled_suspends"), cancelled, "{:?}", report.counters);
    }
}
