//! A storm on its way: what was asked for, and how far it came.
//!
//! Owns `storm.json` in the storm's folder, so that one that was cut short goes on where it stopped, with a new
//! domain. What the domain of a part that was cut short has made is not known: it never reported.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use experiment::{DomainType, EventAbi, Policy};
use serde::{Deserialize, Serialize};

use super::{Operation, Storm, operations};

/// In the storm's folder.
const FILE: &str = "storm.json";

/// What was asked for, and how far it came.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Of the order and of the workload.
    pub seed: u64,
    /// How long all parts together last.
    pub seconds: u64,
    /// How the domain boots.
    pub kind: DomainType,
    /// The lock under test.
    pub policy: Policy,
    /// The event channel ABI; `None` leaves the choice to the guest.
    pub events: Option<EventAbi>,
    /// Operations that were begun.
    pub begun: usize,
    /// Seconds that the parts so far lasted.
    pub lasted: u64,
}

impl Session {
    /// The one that was cut short in `folder`.
    ///
    /// # Errors
    ///
    /// If there is none, or it has run to its end.
    pub fn resume(folder: &Path) -> Result<Session> {
        let file = folder.join(FILE);
        let text = fs::read_to_string(&file).with_context(|| {
            format!("cannot read {}; --resume takes the --out of a storm", file.display())
        })?;
        let session: Session = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged; begin a new storm", file.display()))?;
        if session.lasted >= session.seconds {
            bail!("the storm in {} has run to its end; begin a new one", folder.display());
        }
        Ok(session)
    }

    /// Writes how far it has come.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let file = folder.join(FILE);
        let text = serde_json::to_string_pretty(self).context("cannot write storm.json")? + "\n";
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&file, text))
            .with_context(|| format!("cannot write {}", file.display()))
    }

    /// All operations, those that were begun included.
    pub fn operations(&self) -> Vec<Operation> {
        // More than one a second cannot be done.
        operations(self.seed, self.seconds as usize, self.kind)
    }

    /// What is left of it.
    pub fn storm(&self) -> Storm {
        Storm {
            name: self.kind.to_string(),
            kind: self.kind,
            policy: self.policy.to_string(),
            events: self.events,
            seed: self.seed,
            operations: self.operations().split_off(self.begun),
            limit: Some(Duration::from_secs(self.seconds.saturating_sub(self.lasted).max(1))),
        }
    }
}

/// How often each kind of operation is among `performed`, of all kinds that a domain of this type can stand.
pub fn tally(performed: &[Operation], kind: DomainType) -> Vec<(String, usize)> {
    let name = |operation: &Operation| -> String {
        operation.to_string().split(' ').next().unwrap_or_default().to_owned()
    };
    // A thousand hold each kind.
    let mut kinds: Vec<_> = operations(0, 1000, kind).iter().map(name).collect();
    kinds.sort();
    kinds.dedup();
    let count = |kind: &String| performed.iter().filter(|one| name(one) == *kind).count();
    kinds.into_iter().map(|kind| (kind.clone(), count(&kind))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session {
            seed: 7,
            seconds: 1200,
            kind: DomainType::Pvh,
            policy: Policy::Adaptive,
            events: Some(EventAbi::Fifo),
            begun: 0,
            lasted: 0,
        }
    }

    #[test]
    fn a_storm_that_was_cut_short_goes_on_where_it_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let mut session = session();
        session.begun = 30;
        session.lasted = 200;
        session.save(folder.path()).unwrap();
        let resumed = Session::resume(folder.path()).unwrap();
        assert_eq!(resumed, session);
        let (all, storm) = (resumed.operations(), resumed.storm());
        assert_eq!(storm.operations, all[30..]);
        assert_eq!(storm.limit, Some(Duration::from_secs(1000)));
        session.lasted = 1200;
        session.save(folder.path()).unwrap();
        assert!(Session::resume(folder.path()).unwrap_err().to_string().contains("to its end"));
    }

    #[test]
    fn kinds_that_did_not_occur_are_counted_as_none() {
        let three = [Operation::Pause(1), Operation::Pause(2), Operation::Nmi(0)];
        let tally = tally(&three, DomainType::Pvh);
        let of = |kind: &str| tally.iter().find(|(name, _)| name == kind).map(|(_, n)| *n);
        assert_eq!(
            (of("pause"), of("nmi"), of("migrate"), of("reboot")),
            (Some(2), Some(1), Some(0), None)
        );
    }
}
