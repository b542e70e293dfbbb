use super::*;
use proptest::prelude::*;
use std::format;

fn message(cmdline: &str) -> String {
    Params::parse(cmdline, 4).expect_err(cmdline).to_string()
}

#[test]
fn an_empty_command_line_is_a_run_with_defaults() {
    let params = Params::parse("", 4).unwrap();
    assert_eq!((params.vcpus, params.locks), (4, 1));
    assert_eq!(params.policy, Policy::KickAtUnlock);
    assert_eq!(params.limit, Limit::Acquisitions(100_000));
    assert!(!params.markers && !params.wait_for_go);
    assert_eq!(params.events, Wanted::TwoLevel);
}

#[test]
fn every_name_parses_to_the_variant_that_prints_it() {
    for policy in ALL_POLICIES {
        let params = Params::parse(&format!("policy={}", policy.name()), 1).unwrap();
        assert_eq!(params.policy, policy);
    }
    for workload in ALL_WORKLOADS {
        let params = Params::parse(&format!("workload={}", workload.name()), 1).unwrap();
        assert_eq!(params.workload, workload);
    }
    for fault in ALL_FAULTS {
        let params = Params::parse(&format!("fault={}", fault.name()), 1).unwrap();
        assert_eq!(params.fault, fault);
    }
    for events in ALL_EVENTS {
        let params = Params::parse(&format!("events={}", events_name(events)), 1).unwrap();
        assert_eq!(params.events, events);
    }
    assert_eq!((POLICIES.len(), WORKLOADS.len()), (ALL_POLICIES.len(), ALL_WORKLOADS.len()));
}

#[test]
fn the_table_of_keys_is_in_the_order_of_the_enum() {
    assert_eq!(KEYS[Key::Policy as usize].0, "policy");
    assert_eq!(KEYS[Key::Spin as usize].0, "spin");
    assert_eq!(KEYS[Key::Control as usize].0, "control");
    assert_eq!(KEYS[Key::Events as usize].0, "events");
}

#[test]
fn each_error_names_the_key_and_what_it_accepts() {
    assert_eq!(
        message("polcy=kick-twice"),
        "polcy: no such parameter; accepted are workload, policy, vcpus, locks, critical, outside, \
         jitter, spin, acquisitions, duration, deadline, seed, trace, start, fault, timer, control, \
         events"
    );
    assert_eq!(
        message("policy=fast"),
        "policy=fast: accepted values are kick-twice, kick-at-unlock, hybrid, adaptive, native, \
         test-and-set, spin, spin-ticket"
    );
    assert_eq!(
        message("critical=20"),
        "critical=20: accepted values are an integer with unit ns, us, ms or s, from 0s to 10s"
    );
    assert_eq!(
        message("acquisitions=-3"),
        "acquisitions=-3: accepted values are integers from 1 to 1000000000000"
    );
    assert_eq!(message("trace"), "trace=: accepted values are off, markers");
    assert_eq!(
        message("vcpus=8"),
        "vcpus=8: accepted values are integers from 1 to 4, the vCPUs of this domain (vcpus= in its \
         configuration)"
    );
    assert!(message("seed=1 seed=1").starts_with("seed: given more than once; accepted values"));
    assert!(message("acquisitions=1 duration=1s").contains("duration: not together with"));
    assert!(message("locks=2").contains("accepted: workload=spread"));
}

#[test]
fn a_time_out_of_bounds_or_beyond_64_bits_is_refused() {
    for bad in
        ["11s", "18446744073709551615s", "99999999999999999999ns", "ns", "1 ms", "1.5us", "+1us"]
    {
        assert!(Params::parse(&format!("critical={bad}"), 4).is_err(), "{bad}");
    }
    assert_eq!(Params::parse("critical=10s", 4).unwrap().critical_ns, 10 * SECOND);
}

#[test]
fn foreign_text_cannot_garble_the_console() {
    let text = message(&format!("policy=\u{1b}[2J{}", "x".repeat(500)));
    assert!(text.is_ascii() && !text.contains('\u{1b}') && text.len() < 300, "{text}");
}

#[test]
fn half_the_vcpus_share_a_lock_by_default() {
    assert_eq!(Params::parse("workload=spread", 7).unwrap().locks, 3);
    assert_eq!(Params::parse("workload=spread", 1).unwrap().locks, 1);
    assert_eq!(Params::parse("workload=spread locks=9 vcpus=2", 4).unwrap().locks, 9);
}

prop_compose! {
    fn word()(key in 0..KEYS.len(), value in prop_oneof![
        Just(String::new()), "\\PC{0,12}", "[0-9]{1,22}(ns|us|ms|s)?",
        prop::sample::select(POLICIES).prop_map(String::from),
        prop::sample::select(WORKLOADS).prop_map(String::from),
        prop::sample::select(EVENTS).prop_map(String::from),
        prop::sample::select(&["off", "markers", "now", "wait", "watch"][..]).prop_map(String::from),
    ]) -> String {
        format!("{}={value}", KEYS[key].0)
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "\\PC*", vcpus in any::<u32>()) {
        if let Err(error) = Params::parse(&text, vcpus) {
            let message = error.to_string();
            prop_assert!(message.contains("accepted"), "{}", message);
            prop_assert!(!message.contains('\n'));
        }
    }

    #[test]
    fn what_is_accepted_means_the_same_spelled_out(
        words in prop::collection::vec(word(), 0..6), vcpus in 0u32..200
    ) {
        match Params::parse(&words.join(" "), vcpus) {
            Ok(params) => {
                prop_assert!(params.vcpus >= 1 && params.locks >= 1);
                prop_assert!(params.vcpus <= vcpus.max(1));
                prop_assert_eq!(Params::parse(&params.to_string(), vcpus), Ok(params));
            }
            Err(error) => {
                let message = error.to_string();
                prop_assert!(message.contains("accepted"), "{}", message);
                let named = message.split([':', '=']).next().unwrap();
                prop_assert!(words.iter().any(|w| w.starts_with(named)), "{}", message);
            }
        }
    }
}
