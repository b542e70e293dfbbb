//! A scenario made ready for a Xen host.
//!
//! Owns the document that crosses into dom0 and the configurations made from it, one for each domain
//! and policy. Everything a Xen host needs to know is in it; it starts nothing.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use experiment::record::{DomainReport, Parameters};
use experiment::{
    DomainType, Events, Key, Line, ParamError, Policy, Setting, Start, Trace, Workload,
};
use serde::{Deserialize, Serialize};

use crate::linux;
use crate::scenario::{ConfigError, Domain, Scenario};

/// The words of a guest's command line that are pvlab's, and how a person has a say in them. A column of the
/// table bears a policy's name: nothing else may choose what runs in it.
pub const OWN_WORDS: [(Key, &str); 3] = [
    (Key::policy, "use --policy"),
    (Key::start, "leave it out: the guests start when all of them are ready"),
    (Key::trace, "use --no-markers or --no-trace"),
];

/// What the number (UUID) of every domain of pvlab's begins with: "pvlab" in ASCII.
pub const UUID_PREFIX: &str = "70766c61-62";

/// The number that Xen keeps with the domain `name`, from the moment it exists. The same in every run.
pub fn uuid(name: &str) -> String {
    // FNV-1a. Names of one host are few; that they differ is what counts.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{UUID_PREFIX}00-4000-8000-{:012x}", hash & 0xffff_ffff_ffff)
}

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
    /// What a Linux domain boots from, where one of the policies is Linux'.
    #[serde(default)]
    pub linux: Option<linux::Domain>,
    /// Whether the guests mark waits and kicks in the trace.
    pub markers: bool,
    /// Whether the hypervisor's trace is recorded; without it nothing is known of kicks but what
    /// the guests say.
    pub trace: bool,
    /// How long one policy may take.
    pub deadline: Duration,
    /// How long after a domain was asked for the time its start line is, at least.
    #[serde(default = "start_after")]
    pub start_after: Duration,
}

/// The time in which dom0 tells the domains of their start and comes to rest, generously: in a repeatable lab it
/// is at work for 60 ms.
pub fn start_after() -> Duration {
    Duration::from_secs(1)
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
    /// How long after a domain was asked for the time its start line is; [`start_after`] is a good choice.
    pub start_after: Duration,
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

/// A `--set`, read.
///
/// # Errors
///
/// If it is no `KEY=VALUE`, or the guests do not know the key or do not take the value. The keys it
/// lists are those that a choice may set.
pub fn setting(text: &str) -> Result<Setting, String> {
    let why = match text.split_once('=') {
        Some((key, _)) if Key::NAMES.contains(&key) => {
            return text.parse().map_err(|error: ParamError| error.to_string());
        }
        Some((key, _)) => format!("there is no parameter `{}`", key.escape_debug()),
        None => "there is no `=` in it".to_owned(),
    };
    let own = |name: &str| OWN_WORDS.iter().any(|(key, _)| key.to_string() == name);
    let keys: Vec<_> = Key::NAMES.iter().copied().filter(|name| !own(name)).collect();
    Err(format!("{why}; write KEY=VALUE, with a KEY of {}", keys.join(", ")))
}

impl Plan {
    /// How long after its answer the start line is, when a domain took `answered` to say what time
    /// it is, `domains` are to be told, and `left` of the deadline remains: a busy dom0 gets the
    /// time that it needs, for otherwise the line has passed when it comes. But one slow answer may
    /// not take the time in which the domains are to run, so it gets a quarter of it at most, and
    /// nobody waits for more than 15 s: a line that comes too late is drawn anew.
    pub fn start_line_after(&self, answered: Duration, domains: u32, left: Duration) -> Duration {
        let wanted = answered.saturating_mul(4).saturating_mul(domains);
        wanted.min(left / 4).min(Duration::from_secs(15)).max(self.start_after)
    }

    /// Plans `scenario` with the guest image at `image`.
    ///
    /// # Errors
    ///
    /// If a policy or a setting is named twice, a setting is one of [`OWN_WORDS`], or a guest would
    /// refuse what it is asked for.
    pub fn new(scenario: &Scenario, choices: &Choices, image: &Path) -> Result<Plan> {
        for (index, policy) in choices.policies.iter().enumerate() {
            if choices.policies[..index].contains(policy) {
                bail!(
                    "--policy {policy} is given twice, and its column and its folder bear its name; \
                     give it once, and run twice into two folders (--out) to compare two runs of it"
                );
            }
        }
        let path = image.to_string_lossy();
        if path.contains(|c: char| c.is_control() || matches!(c, '"' | '\\')) {
            bail!(
                "xl cannot read the path {path:?}; give --out a folder without quotes in its path"
            );
        }
        for (index, setting) in choices.settings.iter().enumerate() {
            let limits = [Key::acquisitions, Key::duration];
            let same = |other: &&Setting| {
                other.key == setting.key
                    || limits.contains(&other.key) && limits.contains(&setting.key)
            };
            if let Some(other) = choices.settings[..index].iter().find(same) {
                bail!(
                    "--set {other} and --set {setting}: only one of them can hold; leave out the other"
                );
            }
            if let Some((key, remedy)) = OWN_WORDS.iter().find(|(key, _)| *key == setting.key) {
                bail!("--set {setting}: `{key}` is pvlab's own to set; {remedy}");
            }
        }
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
            linux: None,
            // Nobody would see a marker without a trace.
            markers: choices.markers && choices.trace,
            trace: choices.trace,
            deadline: scenario.deadline,
            start_after: choices.start_after,
        };
        for (domain, policy) in
            plan.domains.iter().flat_map(|d| plan.policies.iter().map(move |p| (d, p)))
        {
            plan.configuration(domain, policy, None)?;
        }
        Ok(plan)
    }

    /// Adds what Linux domains boot from, to lie in `folder` on the Xen host.
    ///
    /// # Errors
    ///
    /// If a policy asks for a spin budget and the kernel's was not recognised.
    pub fn set_linux(&mut self, files: &linux::Files, folder: &Path) -> Result<(), String> {
        let budgets =
            |policy: &String| matches!(linux::Variant::of(policy), Some(linux::Variant::Budget(_)));
        let places = match &files.places {
            Ok(places) => places.clone(),
            Err(why) if self.policies.iter().any(budgets) => return Err(why.clone()),
            Err(_) => Vec::new(),
        };
        let (kernel, initrd) = (folder.join("linux-vmlinux"), folder.join("linux-initrd.cpio"));
        let pause = files.pause;
        self.linux = Some(linux::Domain { kernel, initrd, places, pause });
        Ok(())
    }

    /// Whether one of its domains is PVH.
    pub(crate) fn has_pvh(&self) -> bool {
        self.domains.iter().any(|domain| {
            let parsed = Domain::parse(&domain.file, &domain.config);
            parsed.is_ok_and(|domain| domain.config.text_of("type") == Ok("pvh"))
        })
    }

    /// The event classes xentrace has to record (its `-e`).
    pub fn trace_mask(&self) -> u32 {
        let pvh = if self.has_pvh() { TRACE_MASK_PVH } else { 0 };
        let markers = if self.markers { TRACE_MASK_MARKERS } else { 0 };
        TRACE_MASK_PV | pvh | markers
    }

    /// The configuration of `planned` for a run of `policy`: the person's text and lines after it.
    /// xl takes the last of two settings of one key.
    ///
    /// `linux_spin` is the spin budget in turns that a Linux kernel was given.
    ///
    /// # Errors
    ///
    /// If the configuration is broken, or the guest would refuse what it is asked for.
    pub fn configuration(
        &self,
        planned: &PlannedDomain,
        policy: &str,
        linux_spin: Option<u32>,
    ) -> Result<String, ConfigError> {
        let domain = Domain::parse(&planned.file, &planned.config)?;
        let mut workload = self.workload(&domain, policy)?;
        domain.check(&workload.to_string())?;
        // A neighbour without a lock is the same beside every lock.
        let locks = !workload_of(&workload).is_some_and(Workload::has_no_lock);
        let lines = match (linux::Variant::of(policy).filter(|_| locks), &self.linux) {
            (Some(variant), Some(linux)) => {
                // The guest's own names stop here.
                workload.remove(Key::policy);
                workload.remove(Key::spin);
                let spin = linux_spin.map_or(String::new(), |turns| format!(" spin={turns}turns"));
                let line = format!("{workload} policy={policy}{spin}");
                linux.lines(variant, domain.config.integer_of("memory")?, &line)
            }
            // Before the plan has them, the check above is what there is to do.
            (Some(_), None) => String::new(),
            (None, _) => format!("kernel = \"{}\"\nextra = \"{workload}\"\n", self.image.display()),
        };
        let uuid = uuid(&planned.name);
        let text = planned.config.trim_end();
        Ok(format!(
            "{text}\n\n# Appended by pvlab for this run; xl takes the last of two settings.\n\
             {lines}on_poweroff = \"preserve\"\non_crash = \"preserve\"\nuuid = \"{uuid}\"\n"
        ))
    }

    /// What `domain` is asked in a run of `policy`. The last word is pvlab's.
    fn workload(&self, domain: &Domain, policy: &str) -> Result<Line, ConfigError> {
        let trace = if self.markers { Trace::Markers } else { Trace::Off };
        // For a lock of Linux another stands in, so that the rest is checked.
        let policy =
            if linux::Variant::of(policy).is_some() { Policy::Native.name() } else { policy };
        let own = OWN_WORDS.iter().zip([policy, Start::Wait.name(), trace.name()]);
        let mut workload = domain.workload.clone();
        workload
            .apply(&self.settings)
            .and_then(|()| {
                own.into_iter().try_for_each(|((key, _), value)| workload.set(*key, value))
            })
            .map_err(|error| domain.refused(error))?;
        Ok(workload)
    }

    /// The same without the domains at a lock: what its neighbours do when nobody is beside them. `None` where
    /// there are no neighbours, or nobody else.
    pub fn neighbours_alone(&self) -> Option<Plan> {
        let policy = self.policies.first()?;
        let computes = |planned: &&PlannedDomain| {
            let domain = Domain::parse(&planned.file, &planned.config).ok()?;
            Some(computes(&self.workload(&domain, policy).ok()?))
        };
        let domains: Vec<PlannedDomain> = self
            .domains
            .iter()
            .filter(|planned| computes(planned) == Some(true))
            .cloned()
            .collect();
        let some = !domains.is_empty() && domains.len() < self.domains.len();
        some.then(|| Plan { domains, trace: false, ..self.clone() })
    }

    /// Where `report` says that something else ran than `domain` was asked for in a run of `policy`: each
    /// difference as `key: asked for A, ran B`. Empty if there is none.
    pub fn mismatch(&self, domain: &str, policy: &str, report: &DomainReport) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |key: &str, asked: &dyn Display, ran: &dyn Display| {
            let (asked, ran) = (asked.to_string(), ran.to_string());
            if asked != ran {
                found.push(format!("{key}: asked for {asked}, ran {ran}"));
            }
        };
        let planned = self.domains.iter().find(|planned| planned.name == domain);
        let asked = planned.and_then(|planned| {
            let domain = Domain::parse(&planned.file, &planned.config).ok()?;
            let line = self.workload(&domain, policy).ok()?;
            let params = domain.check(&line.to_string()).ok()?;
            Some((domain, params))
        });
        // What was not planned, or could not be read, was not asked for.
        let Some((domain, asked)) = asked else {
            compare("domain", &"none of this name", &domain);
            return found;
        };
        let kind = domain.config.text_of("type").unwrap_or(DomainType::Pv.name());
        compare("type", &kind, &report.domain_type);
        if asked.events != Events::Auto {
            compare("events", &asked.events, &report.events);
        }
        // Every field of the record, whatever there is.
        let fields = |record: &Parameters| serde_json::to_value(record).unwrap_or_default();
        let mut asked = Parameters::from(&asked);
        if let Some(linux) = linux::Variant::of(policy).filter(|_| !asked.workload.has_no_lock()) {
            // Linux has a spin budget of its own, and marks nothing.
            asked = Parameters { policy: linux.into(), spin_ns: 0, markers: false, ..asked };
        }
        let (asked, ran) = (fields(&asked), fields(&report.parameters));
        for (key, asked) in asked.as_object().into_iter().flatten() {
            compare(key, asked, &ran[key]);
        }
        found
    }
}

/// Whether a domain takes no lock, and only computes.
fn computes(workload: &Line) -> bool {
    workload_of(workload) == Some(Workload::Hog)
}

fn workload_of(line: &Line) -> Option<Workload> {
    line.get(Key::workload)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use experiment::{EventAbi, Policy};

    use super::*;
    use crate::scenario::{Library, XlConfig};

    fn plan() -> Plan {
        let scenario = Library::Embedded.load("overcommit-2x").unwrap();
        let choices = Choices {
            policies: vec!["kick-twice".to_owned()],
            settings: vec!["acquisitions=7".parse().unwrap()],
            markers: true,
            trace: true,
            start_after: start_after(),
        };
        Plan::new(&scenario, &choices, Path::new("/pvlab/image.elf")).unwrap()
    }

    /// On a loaded machine a domain was told of its start 0.3 ms after it.
    #[test]
    fn a_slow_host_gets_a_later_start_line() {
        let (plan, ms) = (plan(), Duration::from_millis);
        assert_eq!(plan.start_line_after(ms(20), 3, ms(80_000)), start_after());
        assert_eq!(plan.start_line_after(ms(600), 2, ms(80_000)), ms(4_800));
    }

    /// One answer took three seconds: the start line of seven domains lay beyond the deadline, and
    /// all of them "hung".
    #[test]
    fn a_start_line_leaves_most_of_the_deadline_to_the_domains() {
        let (plan, ms) = (plan(), Duration::from_millis);
        assert_eq!(plan.start_line_after(ms(3_000), 7, ms(40_000)), ms(10_000));
        assert_eq!(plan.start_line_after(Duration::MAX, 7, Duration::MAX), ms(15_000));
        // The least it is, however late it is.
        assert_eq!(plan.start_line_after(ms(3_000), 7, Duration::ZERO), start_after());
    }

    #[test]
    fn a_configuration_is_the_persons_text_and_lines_after_it() {
        let plan = plan();
        let text = plan.configuration(&plan.domains[0], "kick-twice", None).unwrap();
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

    /// The guest's words in the configuration that is made of `config` (with `--set` `settings`).
    fn made_of(config: &str, settings: &[&str]) -> XlConfig {
        let mut plan = plan();
        plan.settings = settings.iter().map(|set| set.parse().unwrap()).collect();
        plan.domains[0].config.push_str(config);
        let text = plan.configuration(&plan.domains[0], "kick-twice", None).unwrap();
        XlConfig::parse("made.cfg", &text).unwrap()
    }

    #[test]
    fn what_pvlab_sets_cannot_be_set_in_a_configuration() {
        let words = "extra = \"policy=spin start=now trace=off acquisitions=5\"\n";
        let config = made_of(words, &["seed=3"]);
        let extra = "policy=kick-twice start=wait trace=markers acquisitions=5 seed=3";
        assert_eq!(config.text_of("extra"), Ok(extra));
        let own = ["kernel", "on_poweroff", "on_crash", "uuid"];
        let theirs: String = own.iter().map(|key| format!("{key} = \"theirs\"\n")).collect();
        let config = made_of(&theirs, &[]);
        for key in own {
            assert_ne!(config.text_of(key), Ok("theirs"), "{key}");
        }
    }

    #[test]
    fn what_pvlab_sets_cannot_be_set_by_a_choice() {
        let scenario = Library::Embedded.load("solo-pv").unwrap();
        let choices = |policies: &[&str], settings: &[&str]| Choices {
            policies: policies.iter().map(|&policy| policy.to_owned()).collect(),
            settings: settings.iter().map(|set| set.parse().unwrap()).collect(),
            markers: true,
            trace: true,
            start_after: start_after(),
        };
        let refused = |choices: Choices| {
            Plan::new(&scenario, &choices, Path::new("/image")).unwrap_err().to_string()
        };
        for (key, value) in [("policy", "spin"), ("start", "now"), ("trace", "off")] {
            let error = refused(choices(&["spin"], &[&format!("{key}={value}")]));
            assert!(error.contains(&format!("`{key}` is pvlab's own")), "{error}");
        }
        assert!(refused(choices(&["spin", "native", "spin"], &[])).contains("given twice"));
        // The last one held, and the results named both.
        for pair in [["spin=1us", "spin=2us"], ["duration=1s", "acquisitions=3"]] {
            let error = refused(choices(&["spin"], &pair));
            assert!(error.contains(&format!("--set {} and --set {}", pair[0], pair[1])), "{error}");
        }
        let error = refused(choices(&["spin"], &[&format!("seed={}1", "0".repeat(1000))]));
        assert!(error.contains("solo.cfg:") && error.contains("bytes"), "{error}");
        let spin = choices(&["spin"], &[]);
        assert!(Plan::new(&scenario, &spin, Path::new("/a\"b")).is_err());
    }

    #[test]
    fn a_domain_that_ran_something_else_is_found_out() {
        let mut plan = plan();
        plan.settings = vec!["events=fifo".parse().unwrap()];
        let domain = Domain::parse("guest1.cfg", &plan.domains[0].config).unwrap();
        let line = plan.workload(&domain, "kick-twice").unwrap().to_string();
        let report = DomainReport {
            events: EventAbi::Fifo,
            parameters: Parameters::from(&domain.check(&line).unwrap()),
            ..DomainReport::default()
        };
        let found = |report: &DomainReport| plan.mismatch("guest1", "kick-twice", report);
        assert_eq!(found(&report), [""; 0]);
        type Change = fn(&mut DomainReport);
        let changes: [(&str, Change); 6] = [
            (r#"policy: asked for "kick-twice", ran "spin""#, |r| {
                r.parameters.policy = Policy::Spin.into()
            }),
            ("markers: asked for true, ran false", |r| r.parameters.markers = false),
            ("acquisitions: asked for 300, ran 30", |r| r.parameters.acquisitions = 30),
            ("vcpus: asked for 4, ran 3", |r| r.parameters.vcpus = 3),
            ("type: asked for pv, ran pvh", |r| r.domain_type = DomainType::Pvh),
            ("events: asked for fifo, ran 2-level", |r| r.events = EventAbi::TwoLevel),
        ];
        for (words, change) in changes {
            let mut other = report.clone();
            change(&mut other);
            assert_eq!(found(&other), [words]);
        }
        assert_eq!(plan.mismatch("guest9", "kick-twice", &report).len(), 1);
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
                start_after: start_after(),
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
    fn a_neighbour_alone_is_the_domains_that_only_compute() {
        assert_eq!(plan().neighbours_alone(), None);
        let scenario = Library::Embedded.load("bench-4-on-2-hog").unwrap();
        let choices = Choices {
            policies: vec!["linux".to_owned()],
            settings: Vec::new(),
            markers: false,
            trace: true,
            start_after: start_after(),
        };
        let alone = Plan::new(&scenario, &choices, Path::new("/pvlab/image.elf"))
            .unwrap()
            .neighbours_alone()
            .unwrap();
        assert_eq!(alone.domains.iter().map(|d| &d.name[..]).collect::<Vec<_>>(), ["hog"]);
        assert!(!alone.trace, "nobody is there to be kicked");
    }

    #[test]
    fn a_plan_survives_its_way_into_dom0() {
        let plan = plan();
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }
}
