//! A scenario made ready for a Xen host.
//!
//! Owns the document that crosses into dom0 and the configurations made from it, one for each domain
//! and policy. Everything a Xen host needs to know is in it; it starts nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use experiment::{Key, Setting, Start, Trace};
use serde::{Deserialize, Serialize};

use crate::scenario::{ConfigError, Domain, Scenario};

/// What xentrace must record for kicks of PV guests: SCHED_MIN, SCHED_VERBOSE and the PV hypercalls
/// (Xen public/trace.h).
pub const TRACE_MASK_PV: u32 = 0x0022_9000;
/// The same for PVH guests, whose hypercalls are found among their VM exits.
pub const TRACE_MASK_PVH: u32 = 0x000a_b000;
/// The guests' own markers (TRC_GUEST).
pub const TRACE_MASK_MARKERS: u32 = 0x0800_0000;

/// What to run on a Xen host, complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The scenario's name.
    pub scenario: String,
    /// What runs one after the other.
    pub policies: Vec<String>,
    /// What runs together.
    pub domains: Vec<PlannedDomain>,
    /// The guest image, as the Xen host sees it.
    pub image: PathBuf,
    /// Changes to every domain's workload.
    pub settings: Vec<Setting>,
    /// Whether the guests mark waits and kicks in the trace.
    pub markers: bool,
    /// Whether the hypervisor's trace is recorded; without it nothing is known of kicks but what
    /// the guests say.
    pub trace: bool,
    /// How long one policy may take.
    pub deadline: Duration,
}

/// How a [`Plan`] departs from its scenario.
#[derive(Clone, Debug)]
pub struct Choices {
    /// What runs one after the other.
    pub policies: Vec<String>,
    /// Changes to every domain's workload.
    pub settings: Vec<Setting>,
    /// Whether the guests mark waits and kicks in the trace.
    pub markers: bool,
    /// Whether the hypervisor's trace is recorded.
    pub trace: bool,
}

/// One domain of a [`Plan`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedDomain {
    /// The domain's name.
    pub name: String,
    /// The file its configuration comes from, for messages.
    pub file: String,
    /// Its configuration as the person wrote it.
    pub config: String,
}

impl Plan {
    /// Plans `scenario` with the guest image at `image`.
    ///
    /// # Errors
    ///
    /// If a guest would refuse what it is asked for.
    pub fn new(scenario: &Scenario, choices: &Choices, image: &Path) -> Result<Plan, ConfigError> {
        let domains = scenario.domains.iter().map(|domain| PlannedDomain {
            name: domain.name.clone(),
            file: domain.config.file().to_owned(),
            config: domain.config.text().to_owned(),
        });
        let domains = domains.collect();
        let plan = Plan {
            scenario: scenario.name.clone(),
            policies: choices.policies.clone(),
            domains,
            image: image.to_owned(),
            settings: choices.settings.clone(),
            // Nobody would see a marker without a trace.
            markers: choices.markers && choices.trace,
            trace: choices.trace,
            deadline: scenario.deadline,
        };
        for (domain, policy) in
            plan.domains.iter().flat_map(|d| plan.policies.iter().map(move |p| (d, p)))
        {
            plan.configuration(domain, policy)?;
        }
        Ok(plan)
    }

    /// The event classes xentrace has to record (its `-e`).
    pub fn trace_mask(&self) -> u32 {
        let pvh = self.domains.iter().any(|domain| {
            let parsed = Domain::parse(&domain.file, &domain.config);
            parsed.is_ok_and(|domain| domain.config.text_of("type") == Ok("pvh"))
        });
        let pvh = if pvh { TRACE_MASK_PVH } else { 0 };
        let markers = if self.markers { TRACE_MASK_MARKERS } else { 0 };
        TRACE_MASK_PV | pvh | markers
    }

    /// The configuration of `planned` for a run of `policy`: the person's text and lines after it.
    /// xl takes the last of two settings of one key.
    ///
    /// # Errors
    ///
    /// If the configuration is broken, or the guest would refuse what it is asked for.
    pub fn configuration(
        &self,
        planned: &PlannedDomain,
        policy: &str,
    ) -> Result<String, ConfigError> {
        let domain = Domain::parse(&planned.file, &planned.config)?;
        let mut workload = domain.workload.clone();
        let trace = if self.markers { Trace::Markers } else { Trace::Off };
        let fixed =
            [(Key::policy, policy), (Key::start, Start::Wait.name()), (Key::trace, trace.name())];
        fixed
            .iter()
            .try_for_each(|(key, value)| workload.set(*key, value))
            .and_then(|()| workload.apply(&self.settings))
            .map_err(|error| domain.refused(error))?;
        domain.check(&workload.to_string())?;
        let image = self.image.display();
        let text = planned.config.trim_end();
        Ok(format!(
            "{text}\n\n# Appended by pvlab for this run; xl takes the last of two settings.\n\
             kernel = \"{image}\"\nextra = \"{workload}\"\non_poweroff = \"preserve\"\n\
             on_crash = \"preserve\"\n"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Library, XlConfig};

    fn plan() -> Plan {
        let scenario = Library::Embedded.load("overcommit-2x").unwrap();
        let choices = Choices {
            policies: vec!["kick-twice".to_owned()],
            settings: vec!["acquisitions=7".parse().unwrap()],
            markers: true,
            trace: true,
        };
        Plan::new(&scenario, &choices, Path::new("/pvlab/image.elf")).unwrap()
    }

    #[test]
    fn a_configuration_is_the_persons_text_and_lines_after_it() {
        let plan = plan();
        let text = plan.configuration(&plan.domains[0], "kick-twice").unwrap();
        assert!(text.starts_with(plan.domains[0].config.trim_end()));
        let config = XlConfig::parse("made.cfg", &text).unwrap();
        assert_eq!(config.text_of("kernel"), Ok("/pvlab/image.elf"));
        let extra = config.text_of("extra").unwrap();
        for word in [
            "policy=kick-twice",
            "start=wait",
            "trace=markers",
            "acquisitions=7",
            "workload=handoff",
        ] {
            assert!(extra.split(' ').any(|have| have == word), "{word} is not in {extra}");
        }
    }

    #[test]
    fn a_change_that_a_guest_would_refuse_is_refused_before_anything_is_started() {
        let scenario = Library::Embedded.load("overcommit-2x").unwrap();
        for (settings, what) in [
            (["vcpus=5", "seed=1"], "`vcpus=5` in a domain of 4; accepted values"),
            (["locks=2", "seed=1"], "`locks` does not go with workload=handoff"),
            (["control=watch", "vcpus=1"], "`control` does not go with one vCPU"),
        ] {
            let choices = Choices {
                policies: vec!["spin".to_owned()],
                settings: settings.map(|setting| setting.parse().unwrap()).into(),
                markers: true,
                trace: true,
            };
            let error = Plan::new(&scenario, &choices, Path::new("/image")).unwrap_err();
            let error = error.to_string();
            assert!(error.contains("guest1.cfg:") && error.contains(what), "{error}");
        }
    }

    #[test]
    fn the_trace_mask_follows_domain_type_and_markers() {
        let mut plan = plan();
        assert_eq!(plan.trace_mask(), 0x0822_9000);
        plan.markers = false;
        plan.domains[0].config.push_str("type = \"pvh\"\n");
        assert_eq!(plan.trace_mask(), 0x002a_b000);
    }

    #[test]
    fn a_plan_survives_its_way_into_dom0() {
        let plan = plan();
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }
}
