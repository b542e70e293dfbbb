//! Collects findings.
//!
//! Owns how a finding is put together, and how numbers and times are written in its sentence. Knows
//! no evidence.

use crate::summary::{Finding, Summary, Verdict};

/// Collects findings.
pub(super) struct Judge(pub(super) Vec<Finding>);

impl Judge {
    pub(super) fn say(
        &mut self,
        verdict: Verdict,
        topic: &'static str,
        what: String,
        remedy: &str,
    ) {
        let remedy = remedy.into();
        self.0.push(Finding { verdict, topic, what, remedy, mask: None, unproved: false });
    }

    /// Good, or `otherwise` with its remedy.
    pub(super) fn find(
        &mut self,
        topic: &'static str,
        good: bool,
        otherwise: Verdict,
        what: String,
        remedy: &str,
    ) {
        match good {
            true => self.say(Verdict::Good, topic, what, ""),
            false => self.say(otherwise, topic, what, remedy),
        }
    }

    /// A class of events: seen, captured though nothing of it happened, or not captured.
    pub(super) fn class(
        &mut self,
        topic: &'static str,
        seen: bool,
        captured: bool,
        mask: u32,
        remedy: &str,
    ) {
        if seen {
            self.say(Verdict::Good, topic, format!("{topic}: seen"), "");
        } else if captured {
            self.0.push(none_happened(topic));
        } else {
            self.say(Verdict::Missing, topic, format!("{topic}: not captured"), remedy);
            if let Some(finding) = self.0.last_mut() {
                (finding.mask, finding.unproved) = (Some(mask), true);
            }
        }
    }
}

/// A class was captured, and nothing of it happened.
pub(super) fn none_happened(topic: &'static str) -> Finding {
    let what = format!("{topic}: none happened (their class was captured)");
    let (verdict, remedy) = (Verdict::Note, String::new());
    Finding { verdict, topic, what, remedy, mask: None, unproved: false }
}

/// A few numbers as people write them, and how many more there are.
pub(super) fn some(numbers: &[u32]) -> String {
    let told: Vec<_> = numbers.iter().take(8).map(ToString::to_string).collect();
    match numbers.len().saturating_sub(told.len()) {
        0 => told.join(", "),
        more => format!("{} and {more} more", told.join(", ")),
    }
}

pub(super) fn time(summary: &Summary, ticks: u64) -> String {
    summary.clock.ns(ticks).map_or_else(
        || format!("{ticks} ticks"),
        |ns| if ns < 1e6 { format!("{:.1} us", ns / 1e3) } else { format!("{:.3} s", ns / 1e9) },
    )
}
