//! Whether the mask had what a count of kicks needs.
//!
//! Owns the classes that are judged, and which of them a trace without their events lacks for
//! certain.

use super::evidence::{has_hidden_wakes, unseen};
use super::judge::Judge;
use crate::analysis::Analyser;
use crate::event;
use crate::summary::{Classes, DomainKind, Summary, Verdict};

/// The classes that are judged.
const RUNSTATES: &str = "runstate changes";
const WAKES: &str = "wake or block records";
const HYPERCALLS: &str = "hypercalls";
const HVM_HYPERCALLS: &str = "hypercalls of HVM or PVH guests";

/// Whether a whole trace shows that the class of this topic was captured.
pub(super) fn is_captured(topic: &str, whole: &Classes) -> bool {
    match topic {
        RUNSTATES => whole.runstates,
        WAKES => whole.knows_wakes(),
        HYPERCALLS => whole.knows_hypercalls(),
        HVM_HYPERCALLS => whole.hvm_hypercalls || whole.hvm_handlers,
        _ => false,
    }
}

/// Whether the mask had what a kick count needs.
pub(super) fn findings<O>(judge: &mut Judge, summary: &Summary, analyser: &Analyser<O>) {
    let classes = &summary.classes;
    let unseen = unseen(analyser, &summary.reading);
    judge.class(
        RUNSTATES,
        classes.runstates,
        false,
        event::SCHED_MIN,
        "add 0x00021000 to the mask (xentrace -e), or trace while a vCPU runs",
    );
    judge.class(
        WAKES,
        classes.wakes,
        classes.knows_wakes() && !has_hidden_wakes(analyser, &summary.reading),
        event::SCHED_VERBOSE,
        "add 0x00028000 to the mask",
    );
    for (topic, what) in unseen {
        judge.say(
            Verdict::Doubtful,
            topic,
            format!("{what}, which Xen always writes"),
            "some records of the trace were taken out of it, or its mask was changed while it was \
             taken (by another xentrace)",
        );
    }
    let hvm_only = classes.hvm_exits && !classes.pv_entries;
    judge.class(
        HYPERCALLS,
        classes.pv_hypercalls || classes.hvm_hypercalls,
        classes.knows_hypercalls(),
        if hvm_only { event::HVM_HANDLER } else { event::PV_ENTRY },
        "PV guests: add 0x00201000 to the mask; PVH guests: 0x00083000 (with its subclass 2)",
    );
    let hvm = summary.domains.iter().any(|domain| domain.kind == DomainKind::Hvm);
    if hvm && !hvm_only {
        judge.class(
            HVM_HYPERCALLS,
            classes.hvm_hypercalls,
            classes.hvm_handlers,
            event::HVM_HANDLER,
            "add 0x00082000 to the mask",
        );
    }
    // What happened without a class shows that the rest of a trace does not help: somebody blocked
    // twice without leaving, was woken, or blocked again and again (once it may have been in a call
    // from before the trace).
    let woken = has_hidden_wakes(analyser, &summary.reading);
    let blocked = analyser.vcpus.iter().any(|vcpu| vcpu.raw.blocks_unknown > 1);
    for finding in &mut judge.0 {
        finding.unproved &= match finding.topic {
            RUNSTATES => analyser.unseen.changes == 0,
            WAKES => !woken,
            HYPERCALLS | HVM_HYPERCALLS => !blocked,
            _ => true,
        };
    }
}
