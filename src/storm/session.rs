//! A storm in several parts: what was asked for, and how far it came.
//!
//! Owns `storm.json` in the storm's folder, which is written once, and which files there belong to
//! which part. How far a part came is in the part's own files, so nothing has to be written where a
//! storm is cut short. Each part has a new domain. What the domain of a part that was cut short
//! counted under its locks is not known: it never reported.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use experiment::{DomainType, EventAbi, Policy};
use serde::{Deserialize, Serialize};

use super::operations::{self, kinds, operations};
use super::{Account, Storm};

/// In the storm's folder.
const FILE: &str = "storm.json";

/// Files of a part, by what is behind its name.
const OF_A_PART: [&str; 4] = ["done", "failed", "log", "vcpus"];

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// Of the order and of the workload.
    pub seed: u64,
    /// How long all parts together last.
    pub seconds: u64,
    /// How often each kind of operation comes at least, even if that takes longer.
    pub rounds: u64,
    /// How the domain boots.
    pub kind: DomainType,
    /// The lock under test.
    pub policy: Policy,
    /// The event channel ABI; `None` leaves the choice to the guest.
    pub events: Option<EventAbi>,
}

impl Session {
    /// The one that was cut short in `folder`, its parts so far, and what these survived.
    ///
    /// # Errors
    ///
    /// If there is none, or it has run to its end, or one of its parts failed.
    pub fn resume(folder: &Path) -> Result<(Session, u32, Account)> {
        let file = folder.join(FILE);
        let text = fs::read_to_string(&file).with_context(|| {
            format!("cannot read {}; --resume takes the --out of a storm", file.display())
        })?;
        let session: Session = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged; begin a new storm", file.display()))?;
        let (parts, account) = session.so_far(folder)?;
        if session.is_complete(&account) {
            bail!("the storm in {} has run to its end; begin a new one", folder.display());
        }
        Ok((session, parts, account))
    }

    fn so_far(&self, folder: &Path) -> Result<(u32, Account)> {
        let mut sum = Account::default();
        for part in 1.. {
            let name = self.name(part);
            if folder.join(format!("{name}.failed")).exists() {
                bail!(
                    "the storm in {} has failed; look there, and begin a new one",
                    folder.display()
                );
            }
            if !folder.join(format!("{name}.done")).exists() {
                return Ok((part - 1, sum));
            }
            sum.add(&Account::read(folder, &name)?);
        }
        Ok((0, sum))
    }

    /// Whether nothing is left to do.
    pub fn is_complete(&self, account: &Account) -> bool {
        account.seconds() >= self.seconds && self.lacks(account).is_empty()
    }

    /// The kinds of operations that did not come often enough.
    pub fn lacks(&self, account: &Account) -> Vec<&'static str> {
        let mut kinds = kinds(self.kind);
        kinds.retain(|kind| account.of(kind).times < self.rounds);
        kinds
    }

    /// Looks whether a new storm may write into `folder`, and creates nothing.
    ///
    /// # Errors
    ///
    /// If something is in it that is no storm.
    pub fn examine(folder: &Path) -> Result<()> {
        let mut entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries.with_context(|| format!("cannot read {}", folder.display()))?,
        };
        if entries.next().is_some() && !folder.join(FILE).is_file() {
            bail!(
                "{} is not empty and holds no storm; give --out another folder",
                folder.display()
            );
        }
        Ok(())
    }

    /// Begins a new storm in `folder`: an earlier one's parts are deleted, and what was asked for
    /// is written down.
    ///
    /// # Errors
    ///
    /// If that cannot be done.
    pub fn begin(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("cannot write storm.json")? + "\n";
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        for kind in DomainType::ALL {
            let earlier = Session { kind: *kind, ..self.clone() };
            for part in 1.. {
                let files = OF_A_PART.map(|what| format!("{}.{what}", earlier.name(part)));
                let deleted = files.map(|file| fs::remove_file(folder.join(file)).is_ok());
                if !deleted.contains(&true) {
                    break;
                }
            }
        }
        let file = folder.join(FILE);
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
    }

    /// Part `part` of it, from 1, after what `account` has.
    pub fn storm(&self, part: u32, account: &Account) -> Storm {
        let done = account.operations();
        // More than one a second cannot be done; and each kind as often as it must.
        let rounds = usize::try_from(self.rounds).unwrap_or(usize::MAX);
        let obliged = rounds.saturating_mul(kinds(self.kind).len());
        let possible = usize::try_from(self.seconds).unwrap_or(usize::MAX).max(obliged);
        // Every other of them may be a count.
        let mut all = operations(self.seed, possible.saturating_mul(2), self.kind);
        let end_of_rounds = operations::after(&all, obliged);
        let begin = operations::after(&all, done);
        Storm {
            name: self.name(part),
            kind: self.kind,
            policy: self.policy.to_string(),
            events: self.events,
            seed: self.seed,
            operations: all.split_off(begin),
            limit: Some(Duration::from_secs(self.seconds.saturating_sub(account.seconds()))),
            least: end_of_rounds.saturating_sub(begin),
        }
    }

    fn name(&self, part: u32) -> String {
        format!("{}-{part}", self.kind)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Operation;
    use super::*;

    fn session() -> Session {
        Session {
            seed: 7,
            seconds: 1200,
            rounds: 2,
            kind: DomainType::Pvh,
            policy: Policy::Adaptive,
            events: Some(EventAbi::Fifo),
        }
    }

    /// What dom0 writes down for these operations, one a second, a count behind each.
    fn done(operations: &[Operation], first_second: u64) -> String {
        let lines = operations::ordinary(operations).zip(first_second..);
        lines.map(|(op, t)| format!("{t} {op}\n{t} count {}\n", 100 * (t + 1))).collect()
    }

    #[test]
    fn a_storm_that_was_cut_short_goes_on_where_it_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let session = session();
        session.begin(folder.path()).unwrap();
        assert_eq!(Session::resume(folder.path()).unwrap().1, 0);
        let first = session.storm(1, &Account::default());
        assert_eq!((first.name.as_str(), first.limit), ("pvh-1", Some(Duration::from_secs(1200))));
        let all: Vec<_> = operations::ordinary(&first.operations).collect();
        // Cut short behind an operation that nobody has counted.
        let text = done(&all[..5], 0) + "5 pause 0.1\n";
        fs::write(folder.path().join("pvh-1.done"), text).unwrap();
        let (resumed, parts, account) = Session::resume(folder.path()).unwrap();
        assert_eq!((&resumed, parts, account.operations()), (&session, 1, 5));
        let second = resumed.storm(2, &account);
        assert_eq!(
            (second.name.as_str(), second.limit),
            ("pvh-2", Some(Duration::from_secs(1196)))
        );
        let left: Vec<_> = operations::ordinary(&second.operations).collect();
        assert_eq!(left, all[5..]);
        // Two rounds of ten, five of which are done.
        assert_eq!(operations::ordinary(&second.operations[..second.least]).count(), 15);
    }

    #[test]
    fn a_storm_is_over_when_its_time_is_and_every_kind_came_often_enough() {
        let folder = tempfile::tempdir().unwrap();
        let session = session();
        session.begin(folder.path()).unwrap();
        let all: Vec<_> =
            operations::ordinary(&session.storm(1, &Account::default()).operations).collect();
        let of = |text: String| {
            fs::write(folder.path().join("pvh-1.done"), text).unwrap();
            Session::resume(folder.path())
        };
        // Time is over, and the second round is not.
        let (_, _, account) = of(done(&all[..19], 5000)).unwrap();
        assert_eq!(session.lacks(&account), [all[19].name()]);
        assert_eq!(session.storm(2, &account).limit, Some(Duration::ZERO));
        // All rounds are over, and time is not.
        assert!(session.lacks(&of(done(&all[..20], 0)).unwrap().2).is_empty());
        let told = of(done(&all[..20], 5000)).unwrap_err().to_string();
        assert!(told.contains("to its end"), "{told}");
        fs::write(folder.path().join("pvh-2.failed"), "operation 3").unwrap();
        let told = Session::resume(folder.path()).unwrap_err().to_string();
        assert!(told.contains("has failed"), "{told}");
    }

    #[test]
    fn a_new_storm_deletes_the_parts_of_an_earlier_one_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let names = || {
            let all = fs::read_dir(folder.path()).unwrap().flatten();
            let mut names: Vec<_> = all.map(|e| e.file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        Session::examine(folder.path()).unwrap();
        fs::write(folder.path().join("notes"), "").unwrap();
        let told = Session::examine(folder.path()).unwrap_err().to_string();
        assert!(told.contains("is not empty"), "{told}");
        session().begin(folder.path()).unwrap();
        for file in ["pv-1.done", "pv-1.log", "pv-2.failed", "pvh-1.done"] {
            fs::write(folder.path().join(file), "").unwrap();
        }
        Session::examine(folder.path()).unwrap();
        session().begin(folder.path()).unwrap();
        assert_eq!(names(), ["notes", "storm.json"]);
    }
}
