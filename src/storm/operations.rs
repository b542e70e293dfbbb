//! What is done to a domain, and in which order.
//!
//! Owns the operations, their names, and the deck they are dealt from: every kind comes once before
//! any comes again. How one is carried out is the script's business.

use std::fmt;

use experiment::DomainType;
use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::{PCPUS, VCPUS};

/// Something a toolstack does to a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `xl pause`, so many tenths of a second, `xl unpause`.
    Pause(u32),
    /// `xl vcpu-pin`: this vCPU to this pCPU.
    Pin(u32, u32),
    /// `xl sched-credit2 -w`.
    Weight(u32),
    /// `xl sched-credit2 -c`, in percent of a pCPU; 0 = no cap.
    Cap(u32),
    /// `xl vcpu-set`: so many vCPUs.
    Vcpus(u32),
    /// `xl trigger nmi` to this vCPU.
    Nmi(u32),
    /// `xl save` and `xl restore`.
    SaveAndRestore,
    /// `xl save -c`: the domain goes on afterwards.
    SaveAndContinue,
    /// `xl migrate` to this very host. Debian's Xen does it with PVH only.
    Migrate,
    /// `xl reboot`, until the new domain runs.
    Reboot,
    /// `xl dump-core`, into `/out/NAME.core`, while the domain runs.
    DumpCore,
    /// Nothing, for so many tenths of a second.
    Wait(u32),
    /// Nothing, until this vCPU has so many ports of its own (IPIs, by `lsevtchn`): a vCPU that
    /// goes down gives its ports back, and has new ones when it is up again.
    Ports(u32, u32),
    /// Asks the domain how many acquisitions it has made, until there are some more: the operations
    /// before it have been survived. It is no kind of its own.
    Count,
}

impl Operation {
    /// The name of its kind.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Pause(..) => "pause",
            Operation::Pin(..) => "pin",
            Operation::Weight(..) => "weight",
            Operation::Cap(..) => "cap",
            Operation::Vcpus(..) => "vcpus",
            Operation::Nmi(..) => "nmi",
            Operation::SaveAndRestore => "save-and-restore",
            Operation::SaveAndContinue => "save-and-continue",
            Operation::Migrate => "migrate",
            Operation::Reboot => "reboot",
            Operation::DumpCore => "dump-core",
            Operation::Wait(..) => "wait",
            Operation::Ports(..) => "ports",
            Operation::Count => "count",
        }
    }
}

/// The line of the script's list.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Operation::Pause(tenths) | Operation::Wait(tenths) => {
                write!(f, " {}.{}", tenths / 10, tenths % 10)
            }
            Operation::Pin(vcpu, to) | Operation::Ports(vcpu, to) => write!(f, " {vcpu} {to}"),
            Operation::Weight(n) | Operation::Cap(n) | Operation::Vcpus(n) | Operation::Nmi(n) => {
                write!(f, " {n}")
            }
            Operation::SaveAndRestore
            | Operation::SaveAndContinue
            | Operation::Migrate
            | Operation::Reboot
            | Operation::DumpCore
            | Operation::Count => Ok(()),
        }
    }
}

/// At least so many operations, in the random order of `seed`; the same again for the same seed.
///
/// They come in rounds. In a round every kind that a domain of this type can stand comes once.
/// Between two operations of a round a [count](Operation::Count) is as likely as not, so that some
/// follow one another at once; each round ends with one.
///
/// ```
/// use pvlab::storm::operations;
/// use experiment::DomainType;
///
/// let storm = operations(7, 100, DomainType::Pv);
/// assert_eq!(storm, operations(7, 100, DomainType::Pv));
/// assert_ne!(storm, operations(8, 100, DomainType::Pv));
/// ```
pub fn operations(seed: u64, least: usize, domain: DomainType) -> Vec<Operation> {
    let mut dealer =
        Dealer { rng: SplitMix64::seed_from_u64(seed), domain, never_down: VCPUS, kinds: 9 };
    if domain == DomainType::Pvh {
        dealer.kinds += 1;
    }
    let mut dealt = Vec::new();
    while dealt.len() < least {
        dealer.round(&mut dealt);
    }
    dealt
}

/// The kinds of operations that a domain of this type can stand, by name.
pub fn kinds(domain: DomainType) -> Vec<&'static str> {
    let round = operations(0, 1, domain);
    let mut names: Vec<_> = ordinary(&round).map(Operation::name).collect();
    names.sort_unstable();
    names
}

/// `operations` without the counts among them.
pub(super) fn ordinary(operations: &[Operation]) -> impl Iterator<Item = Operation> + '_ {
    operations.iter().copied().filter(|operation| *operation != Operation::Count)
}

/// Where in `operations` those after the first `done` begin, counts not counted.
pub(super) fn after(operations: &[Operation], done: usize) -> usize {
    let mut left = done;
    let goes_on = |operation: &Operation| {
        if *operation != Operation::Count {
            if left == 0 {
                return true;
            }
            left -= 1;
        }
        false
    };
    operations.iter().position(goes_on).unwrap_or(operations.len())
}

struct Dealer {
    rng: SplitMix64,
    domain: DomainType,
    kinds: u32,
    /// vCPUs that were up all the time. On PVH only those get NMIs: a vCPU that was down while the
    /// domain was restored starts without descriptor tables, for which VCPUOP_initialise has no
    /// field, and an NMI that waits for it, or comes before it has loaded them, is a triple fault.
    never_down: u32,
}

impl Dealer {
    /// Modulo: a storm need not be uniform to the last bit.
    fn below(&mut self, n: u32) -> u32 {
        (self.rng.next_u64() % u64::from(n)) as u32
    }

    fn round(&mut self, dealt: &mut Vec<Operation>) {
        let mut deck: Vec<u32> = (0..self.kinds).collect();
        while !deck.is_empty() {
            let at = self.below(deck.len() as u32) as usize;
            let card = deck.swap_remove(at);
            dealt.push(self.operation(card));
            if deck.is_empty() || self.below(2) == 0 {
                dealt.push(Operation::Count);
            }
        }
    }

    fn operation(&mut self, card: u32) -> Operation {
        match card {
            0 => Operation::Pause(1 + self.below(15)),
            1 => Operation::Pin(self.below(VCPUS), PCPUS.start() + self.below(2)),
            2 => Operation::Weight(64 << self.below(5)),
            3 => Operation::Cap([0, 0, 50, 150][self.below(4) as usize]),
            4 => {
                let vcpus = 1 + self.below(VCPUS);
                self.never_down = self.never_down.min(vcpus);
                Operation::Vcpus(vcpus)
            }
            5 if self.domain == DomainType::Pvh => {
                Operation::Nmi(self.below(VCPUS) % self.never_down)
            }
            5 => Operation::Nmi(self.below(VCPUS)),
            6 => Operation::SaveAndContinue,
            7 => Operation::SaveAndRestore,
            8 => Operation::Wait(1 + self.below(20)),
            _ => Operation::Migrate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_before_any_comes_again() {
        for (domain, count) in [(DomainType::Pv, 9), (DomainType::Pvh, 10)] {
            let names = kinds(domain);
            assert_eq!(names.len(), count, "{names:?}");
            assert_eq!(names.contains(&"migrate"), domain == DomainType::Pvh);
            let storm: Vec<_> = ordinary(&operations(3, 500, domain)).collect();
            for round in storm.chunks(count) {
                let mut round: Vec<_> = round.iter().map(|operation| operation.name()).collect();
                round.sort_unstable();
                assert_eq!(round, names);
            }
        }
    }

    #[test]
    fn a_round_ends_with_a_count_and_some_operations_follow_at_once() {
        let storm = operations(3, 500, DomainType::Pv);
        assert_eq!(storm.last(), Some(&Operation::Count));
        let pairs = storm.windows(2);
        let at_once = pairs.filter(|pair| ordinary(pair).count() == 2).count();
        assert!((100..200).contains(&at_once), "{at_once}");
        assert!(!storm.windows(2).any(|pair| ordinary(pair).count() == 0));
    }

    #[test]
    fn a_storm_goes_on_behind_what_was_done() {
        use Operation::{Count, Migrate, Reboot, Wait};
        let storm = [Wait(1), Count, Migrate, Reboot, Count];
        assert_eq!([0, 1, 2, 3, 9].map(|done| after(&storm, done)), [0, 2, 3, 5, 5]);
    }

    #[test]
    fn numbers_stay_within_the_domain_and_the_host() {
        for operation in operations(5, 2000, DomainType::Pvh) {
            match operation {
                Operation::Pin(vcpu, pcpu) => assert!(vcpu < VCPUS && PCPUS.contains(&pcpu)),
                Operation::Vcpus(n) => assert!((1..=VCPUS).contains(&n)),
                Operation::Nmi(vcpu) => assert!(vcpu < VCPUS),
                _ => {}
            }
        }
    }

    /// A storm of 49 operations ended in a triple fault: an NMI met a vCPU that was just coming
    /// back.
    #[test]
    fn an_nmi_goes_to_no_pvh_vcpu_that_may_be_coming_back() {
        let mut down = VCPUS;
        let mut others = 0;
        for operation in operations(1795692453, 600, DomainType::Pvh) {
            match operation {
                Operation::Vcpus(n) => down = down.min(n),
                Operation::Nmi(vcpu) => assert!(vcpu < down, "{operation:?} with {down} up"),
                _ => others += 1,
            }
        }
        assert!(others > 0 && down == 1);
    }
}
