//! What a domain survived, from what the script in dom0 wrote down.
//!
//! Owns the file `NAME.done` and the sums over it. An operation counts once the domain was asked
//! for its acquisitions behind it: until then nobody knows whether it was survived.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::Operation;

/// How one kind of operation was survived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survived {
    /// How often it was performed.
    pub times: u64,
    /// Acquisitions from its beginning until the domain was next asked for them, of all times
    /// together.
    pub acquisitions: u64,
    /// The fewest of one time.
    pub fewest: u64,
}

/// What was survived, of one part of a storm or of several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    kinds: BTreeMap<String, Survived>,
    seconds: u64,
    acquisitions: u64,
    last_count: u64,
}

impl Account {
    /// What `folder` tells of the domain `name`.
    ///
    /// # Errors
    ///
    /// If the file is not there, or was not written by a storm.
    pub fn read(folder: &Path, name: &str) -> Result<Account> {
        let file = folder.join(format!("{name}.done"));
        let text = fs::read_to_string(&file).with_context(|| format!("{name}: no storm"))?;
        Account::parse(&text).with_context(|| {
            format!("{} is damaged; begin a new storm in another folder", file.display())
        })
    }

    /// `SECONDS OPERATION` a line, behind `count` the acquisitions since boot. A line without its
    /// end is one that was being written when the host went down.
    fn parse(text: &str) -> Option<Account> {
        let mut account = Account::default();
        let mut pending: Vec<&str> = Vec::new();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let mut words = line.split(' ');
            let seconds = words.next()?.parse().ok()?;
            let name = words.next()?;
            if name == Operation::Reboot.name() {
                // The new domain begins at 0.
                account.last_count = 0;
            }
            if name != Operation::Count.name() {
                pending.push(name);
                continue;
            }
            let count: u64 = words.next()?.parse().ok()?;
            let gained = count.checked_sub(account.last_count)?;
            for name in pending.drain(..) {
                let kind = account.kinds.entry(name.to_owned()).or_default();
                kind.fewest = if kind.times == 0 { gained } else { kind.fewest.min(gained) };
                kind.times += 1;
                kind.acquisitions = kind.acquisitions.saturating_add(gained);
            }
            account.acquisitions = account.acquisitions.saturating_add(gained);
            account.last_count = count;
            account.seconds = seconds;
        }
        Some(account)
    }

    /// Adds what another part survived.
    pub fn add(&mut self, part: &Account) {
        for (name, more) in &part.kinds {
            let kind = self.kinds.entry(name.clone()).or_default();
            kind.fewest = if kind.times == 0 { more.fewest } else { kind.fewest.min(more.fewest) };
            kind.times += more.times;
            kind.acquisitions = kind.acquisitions.saturating_add(more.acquisitions);
        }
        self.seconds = self.seconds.saturating_add(part.seconds);
        self.acquisitions = self.acquisitions.saturating_add(part.acquisitions);
        self.last_count = part.last_count;
    }

    /// How one kind was survived.
    pub fn of(&self, kind: &str) -> Survived {
        self.kinds.get(kind).copied().unwrap_or_default()
    }

    /// Operations, of all kinds together.
    pub fn operations(&self) -> usize {
        self.kinds.values().map(|kind| kind.times as usize).sum()
    }

    /// Acquisitions until the domain was last asked for them.
    pub fn acquisitions(&self) -> u64 {
        self.acquisitions
    }

    /// Seconds until then.
    pub fn seconds(&self) -> u64 {
        self.seconds
    }

    /// What the domain answered then.
    pub(super) fn last_count(&self) -> u64 {
        self.last_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_survives_until_the_next_count() {
        let text = "0 pause 0.3\n1 nmi 2\n2 count 100\n3 pause 1.0\n4 count 130\n9 migrate\n10 cou";
        let account = Account::parse(text).unwrap();
        let pause = Survived { times: 2, acquisitions: 130, fewest: 30 };
        assert_eq!(account.of("pause"), pause);
        assert_eq!(account.of("nmi"), Survived { times: 1, acquisitions: 100, fewest: 100 });
        // Nobody asked behind it.
        assert_eq!(account.of("migrate"), Survived::default());
        assert_eq!((account.operations(), account.acquisitions(), account.seconds()), (3, 130, 4));
    }

    #[test]
    fn a_domain_that_rebooted_begins_at_0() {
        let account = Account::parse("0 count 50\n1 reboot\n2 count 20\n").unwrap();
        assert_eq!(account.of("reboot").acquisitions, 20);
        assert_eq!((account.acquisitions(), account.last_count()), (70, 20));
    }

    #[test]
    fn parts_add_up() {
        let mut sum = Account::default();
        for text in ["5 nmi 1\n6 count 10\n", "1 nmi 1\n2 count 3\n7 nmi 0\n8 count 40\n"] {
            sum.add(&Account::parse(text).unwrap());
        }
        assert_eq!(sum.of("nmi"), Survived { times: 3, acquisitions: 50, fewest: 3 });
        assert_eq!((sum.acquisitions(), sum.seconds()), (50, 14));
    }

    #[test]
    fn what_no_storm_wrote_is_refused() {
        for text in ["x nmi 1\n", "1\n", "1 count\n", "1 count many\n", "1 count 9\n2 count 8\n"] {
            assert_eq!(Account::parse(text), None, "{text}");
        }
    }
}
