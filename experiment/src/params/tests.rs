use super::*;
use crate::names::{Events, Fault, Policy, Start, Trace};
use crate::time::Amount;
use proptest::prelude::*;

fn message(cmdline: &str) -> String {
    Params::parse(cmdline, 4).expect_err(cmdline).to_string()
}

#[test]
fn an_empty_command_line_is_a_run_with_defaults() {
    let params = Params::parse("", 4).unwrap();
    assert_eq!((params.vcpus, params.locks), (4, 1));
    assert_eq!(params.policy, Policy::KickAtUnlock);
    assert_eq!(params.limit(), Limit::Acquisitions(100_000));
    assert_eq!((params.trace, params.start), (Trace::Off, Start::Now));
    assert_eq!(params.events, Events::TwoLevel);
    assert_eq!(Params::default(), Params::parse("", 1).unwrap());
}

#[test]
fn every_name_is_a_value_of_its_key() {
    for policy in Policy::ALL {
        assert_eq!(Params::parse(&format!("policy={policy}"), 1).unwrap().policy, *policy);
    }
    for workload in Workload::ALL {
        // Each takes a duration, and one of them nothing else.
        let line = format!("workload={workload} duration=1s");
        assert_eq!(Params::parse(&line, 1).unwrap().workload, *workload);
    }
    for fault in Fault::ALL {
        assert_eq!(Params::parse(&format!("fault={fault}"), 1).unwrap().fault, *fault);
    }
    for events in Events::ALL {
        assert_eq!(Params::parse(&format!("events={events}"), 1).unwrap().events, *events);
    }
}

#[test]
fn each_error_names_the_key_and_what_it_accepts() {
    assert_eq!(
        message("polcy=kick-twice"),
        "polcy: no such parameter; accepted are workload, policy, vcpus, locks, critical, outside, \
         jitter, spin, acquisitions, duration, deadline, seed, trace, start, fault, timer, wakeup, \
         control, events"
    );
    assert_eq!(
        message("policy=fast"),
        "policy=fast: accepted values are kick-twice, kick-at-unlock, adaptive, native, \
         test-and-set, spin, spin-ticket, adaptive-no-budget, adaptive-budget-10us, \
         adaptive-budget-200us, adaptive-stretches-8, adaptive-stretches-2, adaptive-horizon-2ms, \
         adaptive-horizon-4ms, adaptive-horizon-12ms, adaptive-no-horizon, \
         adaptive-no-reservation, adaptive-no-thief-bound"
    );
    assert_eq!(
        message("critical=20"),
        "critical=20: accepted values are an integer with unit ns, us, ms or s, from 0ns to 10s, or with \
         unit turns, up to 1000000000000"
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
    assert_eq!(Params::parse("critical=10s", 4).unwrap().critical, Amount::Time(Time::s(10)));
}

#[test]
fn foreign_text_cannot_garble_the_console() {
    let text = message(&format!("policy=\u{1b}[2J{}", "x".repeat(500)));
    assert!(text.is_ascii() && !text.contains('\u{1b}') && text.len() < 600, "{text}");
}

/// Xen cuts a line of 1,024 bytes and more to 1,023, and says nothing.
#[test]
fn a_line_that_may_have_been_cut_is_refused() {
    let of = |bytes: usize| format!("seed={:0>1$}", 7, bytes - "seed=".len());
    assert_eq!(Params::parse(&of(LONGEST_LINE), 1).unwrap().seed, 7);
    for bytes in [LONGEST_LINE + 1, LONGEST_LINE + 2, 4000] {
        let error = Params::parse(&of(bytes), 1).unwrap_err();
        assert_eq!(error, ParamError::TooLong { bytes });
        assert!(error.to_string().contains(&format!("{bytes} bytes; accepted are 1022")));
    }
}

#[test]
fn half_the_vcpus_share_a_lock_by_default() {
    assert_eq!(Params::parse("workload=spread", 7).unwrap().locks, 3);
    assert_eq!(Params::parse("workload=spread", 1).unwrap().locks, 1);
    assert_eq!(Params::parse("workload=spread locks=9 vcpus=2", 4).unwrap().locks, 9);
}

prop_compose! {
    fn word()(key in prop::sample::select(Key::ALL), value in prop_oneof![
        Just(String::new()), "\\PC{0,12}", "[0-9]{1,22}(ns|us|ms|s)?",
        prop::sample::select(Policy::NAMES).prop_map(String::from),
        prop::sample::select(Workload::NAMES).prop_map(String::from),
        prop::sample::select(Events::NAMES).prop_map(String::from),
        prop::sample::select(&["off", "markers", "now", "wait", "watch"][..]).prop_map(String::from),
    ]) -> String {
        format!("{key}={value}")
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

#[test]
fn work_and_spin_can_be_given_in_turns() {
    let line = "critical=125turns outside=0turns spin=1000000000000turns";
    let params = Params::parse(line, 4).unwrap();
    assert_eq!((params.critical, params.outside), (Amount::Turns(125), Amount::Turns(0)));
    assert_eq!(Params::parse(&params.to_string(), 4).unwrap(), params);
    for bad in ["turns", "-1turns", "+1turns", "1000000000001turns", "1 turns", "11s"] {
        assert!(Params::parse(&format!("critical={bad}"), 4).is_err(), "{bad}");
    }
}

#[test]
fn a_hog_has_a_duration_and_no_locks() {
    assert!(Params::parse("workload=hog duration=1s", 4).is_ok());
    assert!(Params::parse("workload=hog", 4).is_err());
    assert!(Params::parse("workload=sleeper", 4).is_err());
    assert!(Params::parse("workload=sleeper duration=1s", 4).is_ok());
    assert!(Params::parse("workload=hog duration=1s locks=2", 4).is_err());
}
