//! Linux as a lock among others: what `--policy linux` runs.
//!
//! Owns the names of its variants, the two files such a domain boots from, and what is appended to a
//! scenario's configuration for it. The module inside is `linux-peer/`; where kernel and headers come
//! from is the caller's business (in the lab: [`Lab::linux`](crate::lab::Lab::linux)). It reads no
//! kernel source, and what it changes in a kernel is one number, and only after it has recognised it.

pub mod budget;
mod domain;

use std::path::PathBuf;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use self::budget::Place;
pub use self::domain::{Files, Ingredients, build};
pub(crate) use self::domain::{INIT, SOURCES};
pub use experiment::{Budget, Linux as Variant};

/// Memory of a Linux domain in MiB, where its configuration has less: kernel, module and init.
pub const MEMORY_MIB: u64 = 192;

/// The files of Linux domains, as the Xen host sees them: part of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// The kernel, uncompressed. Its budget is written into it before each policy.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// Where the kernel's spin budget stands; empty if it was not recognised.
    pub places: Vec<Place>,
    /// Whether its spin loops PAUSE.
    #[serde(default = "pauses")]
    pub pause: bool,
}

/// They do, in whatever was written before there was a choice.
pub(crate) fn pauses() -> bool {
    true
}

/// Gives the kernel of a plan the spin budget that `policy` names, and answers it in turns of the head's loop;
/// `None` for other policies, and for the variant without a budget.
///
/// # Errors
///
/// If the budget cannot be measured or written.
pub fn settle(domain: Option<&Domain>, policy: &str) -> Result<Option<u32>> {
    let (Some(domain), Some(variant)) = (domain, Variant::of(policy)) else { return Ok(None) };
    let budget = match variant {
        Variant::NoPv => return Ok(None),
        Variant::Stock => None,
        Variant::Budget(budget) => Some(budget),
    };
    let turns = budget::write(&domain.kernel, &domain.places, budget, domain.pause)?;
    // The head's turn is the shorter one, so there are more of them.
    Ok(turns.into_iter().max())
}

impl Domain {
    /// The lines of a domain's configuration, behind the person's own: kernel, memory and command line for
    /// `workload`.
    pub fn lines(&self, variant: Variant, memory_mib: u64, workload: &str) -> String {
        let (kernel, initrd) = (self.kernel.display(), self.initrd.display());
        let off = if variant == Variant::NoPv { " nopvspin" } else { "" };
        let memory = memory_mib.max(MEMORY_MIB);
        format!(
            "kernel = \"{kernel}\"\nramdisk = \"{initrd}\"\nmemory = {memory}\n\
             extra = \"console=hvc0 quiet loglevel=4 panic=-1{off} -- {workload}\"\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nopvspin_stands_before_the_words_for_init() {
        let domain =
            Domain { kernel: "/k".into(), initrd: "/i".into(), places: Vec::new(), pause: true };
        let lines = domain.lines(Variant::NoPv, 64, "workload=handoff");
        assert!(lines.contains(" nopvspin -- workload=handoff\""), "{lines}");
        assert!(lines.contains("memory = 192\n"), "{lines}");
        assert!(!domain.lines(Variant::Stock, 64, "x").contains("nopvspin"));
        assert!(domain.lines(Variant::Stock, 512, "x").contains("memory = 512\n"));
    }
}
