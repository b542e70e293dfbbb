//! Two experiments beside each other, for a person and for CI.
//!
//! Owns the condition of `--fail-if` and the comparison row by row. It judges only what it is told to judge.

use std::fmt::Write;
use std::str::FromStr;

use super::report::{FIGURES, Report};

/// When a difference is a failure: a figure, a direction, and a number of percent.
///
/// ```
/// use pvlab::bench::compare::Condition;
///
/// let slower: Condition = "rate<-5%".parse().unwrap();
/// assert!(slower.holds(100.0, 94.0) && !slower.holds(100.0, 96.0));
/// assert!("rate<5".parse::<Condition>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    figure: &'static str,
    more: bool,
    percent: f64,
}

impl FromStr for Condition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let at = text.find(['<', '>'])?;
            let (name, rest) = text.split_at(at);
            let figure = FIGURES.iter().map(|(name, _)| *name).find(|known| *known == name)?;
            let percent: f64 = rest[1..].strip_suffix('%')?.parse().ok()?;
            percent.is_finite().then_some(Condition {
                figure,
                more: rest.starts_with('>'),
                percent,
            })
        };
        read().ok_or_else(|| {
            let names: Vec<&str> = FIGURES.iter().map(|(name, _)| *name).collect();
            format!(
                "`{text}` is no condition; write a figure, < or >, and a change in percent, such as rate<-5% or \
                 p999_ns>10%; figures: {}",
                names.join(", ")
            )
        })
    }
}

impl Condition {
    /// Whether the change from `old` to `new` is as the condition says.
    pub fn holds(&self, old: f64, new: f64) -> bool {
        let percent = change(old, new);
        if self.more { percent > self.percent } else { percent < self.percent }
    }
}

fn change(old: f64, new: f64) -> f64 {
    if old == new { 0.0 } else { (new / old - 1.0) * 100.0 }
}

/// The comparison of every row that both have, as text, and how many of them meet one of `conditions`. A row that is
/// gone, or has failed, meets them all.
pub fn compare(old: &Report, new: &Report, conditions: &[Condition]) -> (String, usize) {
    let (mut text, mut met) = (String::new(), 0);
    for row in &old.rows {
        let name = format!("{} {} us {}", row.topology, row.section, row.lock);
        let Some(there) = row.figures.get("rate") else { continue };
        let other = new.row(&row.topology, row.section, row.lock);
        let Some((other, rate)) = other.and_then(|other| Some((other, other.figures.get("rate")?)))
        else {
            met += usize::from(!conditions.is_empty());
            let _ = writeln!(text, "{name}: has no figures any more");
            continue;
        };
        let meets = |condition: &&Condition| {
            let pair = row.figures.get(condition.figure).zip(other.figures.get(condition.figure));
            pair.is_some_and(|(old, new)| condition.holds(old.median, new.median))
        };
        let failed: Vec<&Condition> = conditions.iter().filter(meets).collect();
        met += usize::from(!failed.is_empty());
        let _ = write!(
            text,
            "{name}: {:.0} -> {:.0} /s ({:+.1} %)",
            there.median,
            rate.median,
            change(there.median, rate.median)
        );
        for condition in failed {
            let of = |report: &super::report::Row| report.figures[condition.figure].median;
            let _ = write!(text, "; FAILS: {} {} -> {}", condition.figure, of(row), of(other));
        }
        text.push('\n');
    }
    (text, met)
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn a_slower_lock_fails_and_a_faster_one_does_not() {
        let old = report(&[("linux", 1000.0), ("adaptive", 2000.0)]);
        let new = report(&[("linux", 900.0), ("adaptive", 2100.0)]);
        let conditions = ["rate<-5%".parse().unwrap()];
        let (text, met) = compare(&old, &new, &conditions);
        assert_eq!(met, 1, "{text}");
        assert!(text.contains("linux: 1002 -> 902 /s (-10.0 %); FAILS"), "{text}");
        assert_eq!(compare(&old, &new, &[]).1, 0);
        assert_eq!(compare(&old, &old, &conditions).1, 0);
    }

    #[test]
    fn a_row_that_is_gone_is_no_success() {
        let old = report(&[("linux", 1000.0), ("adaptive", 2000.0)]);
        let new = report(&[("linux", 1000.0)]);
        let (text, met) = compare(&old, &new, &["rate<-5%".parse().unwrap()]);
        assert_eq!(met, 1);
        assert!(text.contains("no figures any more"), "{text}");
    }

    #[test]
    fn a_condition_that_cannot_be_meant_lists_the_figures() {
        for bad in ["rate", "rate<", "speed<-5%", "rate<-5", "rate=5%", "rate<x%", "rate<NaN%"] {
            assert!(bad.parse::<Condition>().unwrap_err().contains("longest_ns"), "{bad}");
        }
    }
}
