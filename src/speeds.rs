//! How fast the domains of a run found their host, and whether they agree.
//!
//! Owns the bound within which they must: a time of work became turns of a loop by this speed, so
//! two domains that do not agree did not do the same work. Each domain measures for itself, before
//! its other vCPUs are up and while no other domain comes up or runs; here nothing is measured.

use experiment::record::Calibration;

/// How far the slowest may be from the fastest, in percent.
const PERCENT: u64 = 1;

/// Turns of work in a millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Speeds {
    /// As the slowest domain measured it.
    pub(crate) slowest: u64,
    /// As the fastest did.
    pub(crate) fastest: u64,
}

impl Speeds {
    /// `None` without a domain.
    pub(crate) fn of<'a>(
        calibrations: impl IntoIterator<Item = &'a Calibration>,
    ) -> Option<Speeds> {
        let speeds = calibrations.into_iter().map(|calibration| calibration.work_turns_per_ms);
        let of_one = |speed| Speeds { slowest: speed, fastest: speed };
        speeds.map(of_one).reduce(|a, b| Speeds {
            slowest: a.slowest.min(b.slowest),
            fastest: a.fastest.max(b.fastest),
        })
    }

    /// Whether they agree.
    ///
    /// # Errors
    ///
    /// A sentence without a full stop, if they do not.
    pub(crate) fn agree(self) -> Result<(), String> {
        let Speeds { slowest, fastest } = self;
        if fastest - slowest > fastest / 100 * PERCENT {
            return Err(format!(
                "the domains do not agree how fast this host is: {slowest} to {fastest} turns of work in a \
                 millisecond"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn speeds(turns: &[u64]) -> Option<Speeds> {
        let calibration = |&turns| Calibration { work_turns_per_ms: turns, ..Default::default() };
        let calibrations: Vec<Calibration> = turns.iter().map(calibration).collect();
        Speeds::of(&calibrations)
    }

    #[test]
    fn domains_agree_within_a_percent() {
        assert_eq!(speeds(&[]), None);
        let speeds = |turns: &[u64]| speeds(turns).unwrap();
        assert_eq!(speeds(&[62_500, 62_250]), Speeds { slowest: 62_250, fastest: 62_500 });
        assert_eq!(speeds(&[62_500, 62_250, 62_400]).agree(), Ok(()));
        assert_eq!(speeds(&[0]).agree(), Ok(()));
        let told = speeds(&[407_249, 302_160]).agree().unwrap_err();
        assert!(told.ends_with("302160 to 407249 turns of work in a millisecond"), "{told}");
        assert!(speeds(&[u64::MAX, 1]).agree().is_err());
    }
}
