//! What parts of the project repeat because none may import the other, compared here. Needs no Xen.

use kicktrace::markers as read;
use lab_guest::markers as written;
use lab_guest::params::Params;
use pvlab::scenario::{Library, POLICIES, WorkloadLine};

#[test]
fn the_guest_writes_the_markers_kicktrace_reads() {
    let written =
        [written::WAIT_BEGIN, written::WAIT_END, written::KICK, written::ACQUIRED_AFTER_BLOCK];
    let read = [read::WAIT_BEGIN, read::WAIT_END, read::KICK, read::ACQUIRED_AFTER_BLOCK];
    assert_eq!(written.map(u32::from), read);
}

#[test]
fn the_guest_knows_every_policy_pvlab_offers_and_no_other() {
    for policy in POLICIES {
        Params::parse(&format!("policy={policy}"), 4).unwrap();
    }
    let error = Params::parse("policy=?", 4).unwrap_err().to_string();
    let accepted = error.split("accepted values are ").nth(1).unwrap();
    let mut guest: Vec<_> =
        accepted.split([',', ' ']).filter(|word| !matches!(*word, "" | "and" | "or")).collect();
    let mut ours = POLICIES.to_vec();
    guest.sort_unstable();
    ours.sort_unstable();
    assert_eq!(guest, ours);
}

#[test]
fn the_guest_accepts_the_workload_of_every_scenario() {
    for name in Library::Embedded.names().unwrap() {
        for domain in Library::Embedded.load(&name).unwrap().domains {
            let vcpus = u32::try_from(domain.config.integer_of("vcpus").unwrap()).unwrap();
            let params = Params::parse(&domain.workload.to_string(), vcpus);
            params.unwrap_or_else(|error| panic!("{}: {error}", domain.config.file()));
        }
    }
}

#[test]
fn pvlab_and_the_guest_know_the_same_parameters() {
    let error = Params::parse("colour=red", 4).unwrap_err().to_string();
    let accepted = error.split("accepted are ").nth(1).unwrap();
    for key in accepted.split([',', ' ']).filter(|word| !word.is_empty() && *word != "and") {
        WorkloadLine::default().set(key, "1").unwrap_or_else(|error| panic!("{key}: {error}"));
    }
    let refused = WorkloadLine::default().set("colour", "red").unwrap_err().to_string();
    let ours = refused.split("choose one of: ").nth(1).unwrap();
    for key in ours.split(", ") {
        assert!(accepted.contains(key), "the guest does not know {key}: {error}");
    }
}
