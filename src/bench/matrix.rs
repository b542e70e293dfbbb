//! Which cells there are.
//!
//! Owns the topologies by name (each is a scenario `bench-NAME`), the sections, the selection that a person
//! makes, and the name of a cell, by which its file and its command are known.

use std::fmt;
use std::str::FromStr;

use experiment::{Linux, Lock, Policy};
use serde::{Deserialize, Serialize};

/// What the scenarios of topologies are called before their own name.
pub const SCENARIO: &str = "bench-";

/// The topologies in the order of a report: the fewest runnable vCPUs a pCPU first.
pub const TOPOLOGIES: [(&str, f64); 9] = [
    ("2-on-2", 1.0),
    ("4-on-2", 2.0),
    ("4-on-2-idle", 2.0),
    ("4-on-2-hog", 3.0),
    ("4-on-1", 4.0),
    ("2x4-on-2", 4.0),
    ("4-on-1-hog", 5.0),
    ("3x4-on-2", 6.0),
    ("8-on-1", 8.0),
];

/// Between the vCPUs and the pCPUs in the name of a topology.
const ON: &str = "-on-";

/// Behind the number of locks, where there is more than one.
const LOCKS: &str = "-locks";

/// The suffix of a topology's PVH twin.
const PVH: &str = "-pvh";

/// One cell of the experiment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cell {
    /// The topology's name.
    pub topology: String,
    /// The section.
    pub section: Section,
    /// The lock.
    pub lock: Lock,
    /// Seed of the guests' random numbers.
    pub seed: u64,
}

/// A file's name and a person's handle: `4-on-1_2-4_adaptive_s1`.
impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cell { topology, section, lock, seed } = self;
        write!(f, "{topology}_{}_{lock}_s{seed}", section.file_name())
    }
}

/// Runnable vCPUs for each pCPU that the domains of a topology share; `None` for one of a person's own whose name does
/// not tell, as `512-on-64` does.
pub fn load(topology: &str) -> Option<f64> {
    let name = topology.trim_end_matches(PVH);
    let known = TOPOLOGIES.iter().find(|(known, _)| *known == name).map(|(_, load)| *load);
    known.or_else(|| {
        let (vcpus, pcpus) = size(topology)?;
        Some(f64::from(vcpus) / f64::from(pcpus))
    })
}

/// How many pCPUs the name of a topology tells, if it is one of vCPUs at locks on pCPUs and nothing else: those are
/// compared for their load.
pub fn pcpus(topology: &str) -> Option<u32> {
    Some(size(topology)?.1)
}

/// The name of a machine by its size, which [`load`] and [`pcpus`] read.
pub(super) fn named(vcpus: usize, pcpus: usize, locks: usize) -> String {
    let locks = if locks == 1 { String::new() } else { format!("-{locks}{LOCKS}") };
    format!("{vcpus}{ON}{pcpus}{locks}")
}

/// vCPUs and pCPUs.
fn size(topology: &str) -> Option<(u32, u32)> {
    let (vcpus, rest) = topology.split_once(ON)?;
    let vcpus = match vcpus.split_once('x') {
        Some((domains, each)) => domains.parse::<u32>().ok()?.checked_mul(each.parse().ok()?)?,
        None => vcpus.parse().ok()?,
    };
    let pcpus = match rest.strip_suffix(LOCKS) {
        Some(rest) => rest.split_once('-')?.0,
        None => rest,
    };
    Some((vcpus, pcpus.parse().ok().filter(|pcpus| *pcpus > 0)?))
}

/// Work inside and outside the lock, in tenths of a microsecond, so that it compares exactly.
///
/// ```
/// use pvlab::bench::Section;
///
/// let section: Section = "0.2/0.4".parse().unwrap();
/// assert_eq!(section.to_string(), "0.2/0.4");
/// // A turn of 16 ns, as in a repeatable lab.
/// assert_eq!(section.turns(62.5), (13, 25));
/// assert!("2".parse::<Section>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Section {
    critical: u32,
    outside: u32,
}

impl Section {
    /// The four of the book.
    pub const ALL: [Section; 4] = [
        Section::new(2, 4),
        Section::new(20, 40),
        Section::new(200, 400),
        Section::new(5000, 1000),
    ];

    const fn new(critical: u32, outside: u32) -> Section {
        Section { critical, outside }
    }

    /// From means in nanoseconds.
    pub fn of_ns(critical: f64, outside: f64) -> Section {
        let tenths = |ns: f64| (ns / 100.0).round() as u32;
        Section::new(tenths(critical), tenths(outside))
    }

    /// As part of a file's name: `0.2-0.4`.
    pub fn file_name(self) -> String {
        self.to_string().replace('/', "-")
    }

    /// Turns of work inside and outside, on a machine that makes so many in a microsecond.
    pub fn turns(self, turns_per_us: f64) -> (u64, u64) {
        let turns = |tenths: u32| (f64::from(tenths) / 10.0 * turns_per_us).round() as u64;
        (turns(self.critical), turns(self.outside))
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let us = |tenths: u32| match tenths % 10 {
            0 => (tenths / 10).to_string(),
            rest => format!("{}.{rest}", tenths / 10),
        };
        write!(f, "{}/{}", us(self.critical), us(self.outside))
    }
}

impl FromStr for Section {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let tenths = |text: &str| -> Option<u32> {
            let (whole, rest) = text.split_once('.').unwrap_or((text, "0"));
            let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
            if rest.len() != 1 || !digits(whole) || !digits(rest) {
                return None;
            }
            whole.parse::<u32>().ok()?.checked_mul(10)?.checked_add(rest.parse().ok()?)
        };
        let read = || {
            let (critical, outside) = text.split_once('/')?;
            // Ten seconds is what the guest takes at most.
            let fits = |tenths: &u32| *tenths <= 100_000_000;
            Some(Section::new(tenths(critical).filter(fits)?, tenths(outside).filter(fits)?))
        };
        read().ok_or_else(|| {
            format!("`{text}` is no section; write the microseconds inside and outside the lock, such as 0.2/0.4")
        })
    }
}

impl Serialize for Section {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Section {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
    }
}

/// What a person wants of the matrix; an empty list means all.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Topologies.
    pub topologies: Vec<String>,
    /// Locks.
    pub locks: Vec<Lock>,
    /// Sections.
    pub sections: Vec<Section>,
    /// Seeds.
    pub seeds: Vec<u64>,
    /// One seed, one- and two-pCPU topologies.
    pub quick: bool,
}

/// The cells, in the order they run: those of one topology after each other, and of them those that are compared.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// All of them.
    pub cells: Vec<Cell>,
}

impl Matrix {
    /// The cells of a selection.
    pub fn new(selection: &Selection) -> Matrix {
        let or = |given: &[String], all: Vec<String>| {
            if given.is_empty() { all } else { given.to_vec() }
        };
        let all = if selection.quick {
            ["4-on-1", "4-on-2"].map(String::from).to_vec()
        } else {
            let names = TOPOLOGIES.iter().map(|(name, _)| (*name).to_owned());
            names.chain(["4-on-1-pvh".to_owned()]).collect()
        };
        let topologies = or(&selection.topologies, all);
        let locks = if selection.locks.is_empty() { all_locks() } else { selection.locks.clone() };
        let sections = if selection.sections.is_empty() {
            Section::ALL.to_vec()
        } else {
            selection.sections.clone()
        };
        let seeds = match (&selection.seeds[..], selection.quick) {
            ([], true) => vec![1],
            ([], false) => vec![1, 2, 3],
            (given, _) => given.to_vec(),
        };
        let mut cells = Vec::new();
        for topology in &topologies {
            for &section in &sections {
                for &seed in &seeds {
                    for &lock in &locks {
                        cells.push(Cell { topology: topology.clone(), section, lock, seed });
                    }
                }
            }
        }
        // A cell that was asked for twice is still one.
        let mut seen = std::collections::BTreeSet::new();
        cells.retain(|cell| seen.insert(cell.clone()));
        Matrix { cells }
    }
}

/// The guest's locks, and Linux as it ships, without its PV side, and with a spin budget of 50 us.
pub fn all_locks() -> Vec<Lock> {
    let linux = ["linux", "linux-nopvspin", "linux-50us"]
        .map(|name| Lock::Linux(name.parse::<Linux>().expect("a name of this program's own")));
    Policy::LOCKS.iter().copied().map(Lock::Guest).chain(linux).collect()
}

/// What each mechanism of `adaptive` is worth: it, all its variants, and the strict lock that it
/// grew from.
pub fn ablation() -> Vec<Lock> {
    let known = [Policy::Adaptive, Policy::KickAtUnlock];
    known.iter().chain(Policy::VARIANTS).copied().map(Lock::Guest).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Library, XlConfig};

    #[test]
    fn every_topology_has_a_scenario_and_a_pvh_twin() {
        for (name, load) in TOPOLOGIES {
            for suffix in ["", PVH] {
                let scenario =
                    Library::Embedded.load(&format!("{SCENARIO}{name}{suffix}")).unwrap();
                let idle = |config: &XlConfig| {
                    config.text_of("extra").unwrap().contains("workload=sleeper")
                };
                let vcpus: u64 = scenario
                    .domains
                    .iter()
                    .filter(|domain| !idle(&domain.config))
                    .map(|domain| domain.config.integer_of("vcpus").unwrap())
                    .sum();
                assert_eq!(vcpus as f64 / f64::from(scenario.pcpus), load, "{name}");
            }
        }
    }

    #[test]
    fn the_name_of_a_machine_tells_its_load() {
        assert_eq!(named(512, 64, 8), "512-on-64-8-locks");
        for (name, expected) in [
            ("512-on-64-8-locks", Some((512, 64))),
            ("512-on-64", Some((512, 64))),
            ("2x4-on-2", Some((8, 2))),
            ("4-on-2-hog", None),
            ("4-on-2-idle", None),
            ("4-on-1-hog", None),
            ("4-on-1-pvh", None),
            ("4-on-0", None),
            ("mine", None),
        ] {
            assert_eq!(size(name), expected, "{name}");
        }
    }

    #[test]
    fn a_cells_name_is_its_own() {
        let matrix = Matrix::new(&Selection::default());
        let names: std::collections::BTreeSet<_> =
            matrix.cells.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), matrix.cells.len());
        assert_eq!(matrix.cells.len(), (TOPOLOGIES.len() + 1) * 4 * 3 * 10);
        assert!(names.contains("4-on-1_0.2-0.4_linux-50us_s3"));
    }

    #[test]
    fn quick_is_one_seed_on_one_and_two_pcpus_with_all_locks() {
        let quick = Matrix::new(&Selection { quick: true, ..Selection::default() });
        assert_eq!(quick.cells.len(), 2 * 4 * 10);
        let chosen = Selection {
            quick: true,
            sections: vec!["2/4".parse().unwrap(); 2],
            seeds: vec![7],
            ..Selection::default()
        };
        assert_eq!(Matrix::new(&chosen).cells.len(), 2 * 10, "twice the same is once");
    }

    #[test]
    fn variants_are_compared_when_they_are_asked_for_and_else_not() {
        let locks = |matrix: Matrix| -> std::collections::BTreeSet<String> {
            matrix.cells.iter().map(|cell| cell.lock.to_string()).collect()
        };
        let all = locks(Matrix::new(&Selection::default()));
        let variants = ablation();
        let some =
            locks(Matrix::new(&Selection { locks: variants.clone(), ..Selection::default() }));
        assert_eq!(some.len(), variants.len(), "one twice");
        let both: Vec<&String> = all.intersection(&some).collect();
        assert_eq!(both, ["adaptive", "kick-at-unlock"]);
        assert!(some.contains("adaptive-no-thief-bound"));
    }

    #[test]
    fn sections_that_cannot_be_meant_are_refused() {
        for bad in
            ["", "2", "2/", "/4", "2/4/6", "-2/4", "2.55/4", "2us/4us", "999999999/1", "1e3/2"]
        {
            assert!(bad.parse::<Section>().is_err(), "{bad}");
        }
        assert_eq!("500/100".parse::<Section>().unwrap(), Section::ALL[3]);
    }
}
