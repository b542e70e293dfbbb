//! What the figures rest on.
//!
//! Owns what is said of core scheduling, domains, limits, and the guests' marks.

use std::cmp::Reverse;

use super::evidence::is_joined;
use super::judge::{Judge, some};
use crate::analysis::{Analyser, MAX_VCPUS};
use crate::summary::{DomainKind, Summary, Verdict};

/// One in so many: marks are mistaken if more of them name another target than interrupts explain,
/// which wake vCPUs inside an operation too.
const MISTAKEN: u64 = 20;

/// What the figures rest on.
pub(super) fn findings<O>(judge: &mut Judge, summary: &Summary, analyser: &Analyser<O>) {
    let classes = &summary.classes;
    // Where two sessions meet, who is where changes without a record.
    let joined = is_joined(&summary.reading);
    if analyser.shared_cores > 0 && !joined {
        judge.say(
            Verdict::Doubtful,
            "cores",
            "vCPUs are scheduled by cores or sockets (sched-gran): which pCPU a vCPU is on is not \
             always known, so kicks and polls may be missed"
                .into(),
            "boot Xen with sched-gran=cpu to count kicks",
        );
    }
    for domain in &analyser.options.domains {
        if !analyser.vcpus.iter().any(|vcpu| vcpu.domain == *domain) {
            judge.say(
                Verdict::Missing,
                "domains",
                format!("domain {domain} was asked for (--dom), and no record names it"),
                "see xl list for its number while the trace was taken",
            );
        }
    }
    let silent = summary.domains.iter().filter(|domain| {
        domain.kind == DomainKind::Unknown && domain.counts.blocks_unknown.value > 1
    });
    let mut silent: Vec<_> = silent.map(|domain| u32::from(domain.id)).collect();
    silent.dedup();
    if !silent.is_empty() {
        judge.say(
            Verdict::Note,
            "calls",
            format!(
                "no hypercall and no exit of domain {} was captured: what its vCPUs do in Xen is in no \
                 count",
                some(&silent)
            ),
            "PV guests: add 0x00201000 to the mask; PVH guests: 0x00083000 (with its subclass 2)",
        );
    }
    if analyser.beyond_limit > 0 {
        judge.say(
            Verdict::Doubtful,
            "limit",
            format!(
                "more than {} vCPUs, which is kicktrace's limit and no damage: {} records of further \
                 ones are left out",
                MAX_VCPUS,
                analyser.beyond_limit
            ),
            "choose domains with --dom, or a part of the trace",
        );
    }
    let marked: u64 = analyser.vcpus.iter().map(|vcpu| vcpu.raw.marked_kicks).sum();
    if analyser.mistaken_marks * MISTAKEN > marked {
        judge.say(
            Verdict::Doubtful,
            "mistaken marks",
            format!(
                "{} operations marked as a kick of one vCPU woke another vCPU of the domain, of {marked} \
                 marked kicks",
                analyser.mistaken_marks
            ),
            "the guest marks another target than it sends to",
        );
    }
    // Without changes of runstates nobody knows who wrote a mark.
    if analyser.bad_markers > 0 && classes.runstates && !joined {
        judge.say(
            Verdict::Doubtful,
            "malformed marks",
            format!("{} of the guest's marks are malformed and were ignored", analyser.bad_markers),
            "",
        );
    }
    let waits: u64 = summary.domains.iter().map(|domain| domain.counts.waits.value).sum();
    let remedy = match judge.0.iter().any(|finding| finding.verdict == Verdict::Missing) {
        true => "what is missing says why: waits cannot be seen without it",
        false => "no vCPU slept for a lock: more contention, or PV spinlocks are off in the guest",
    };
    let what = format!("waits (polls that blocked and ended): {waits}");
    judge.find("waits", waits > 0, Verdict::Note, what, remedy);
    if classes.markers {
        judge.say(Verdict::Good, "marks", "the guest's marks: seen".into(), "");
        let mut unmarked: Vec<_> = analyser
            .vcpus
            .iter()
            .filter(|vcpu| vcpu.raw.unmarked_waking > 0 || vcpu.raw.marks_in_part())
            .map(|vcpu| (vcpu.raw.unmarked_waking + vcpu.raw.unmarked_late, vcpu.name()))
            .collect();
        unmarked.sort_by_key(|&(kicks, name)| (Reverse(kicks), name));
        if let Some((_, name)) = unmarked.first() {
            let marks =
                |domain| analyser.vcpus.iter().any(|of| of.domain == domain && of.marks_kicks);
            if marks(name.domain) {
                let what = format!(
                    "{} vCPUs kick without marks ({name} most) beside kicks that are marked: what they \
                     did is inferred (~)",
                    unmarked.len()
                );
                judge.say(Verdict::Note, "partial marks", what, "");
            }
        }
    } else {
        let (what, remedy) = match classes.mark_calls {
            false => (
                "the guest's marks: none",
                "without marks kicks and acquisitions are inferred; let the guest mark and add \
                 0x08000000 to the mask",
            ),
            true => (
                "the guest's marks: none, though a guest calls hvm_op as it does to mark",
                "without marks kicks and acquisitions are inferred; if the guest marks (hvm_op serves \
                 more than that), add 0x08000000 to the mask",
            ),
        };
        judge.say(Verdict::Note, "marks", what.into(), remedy);
    }
}
