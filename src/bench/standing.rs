//! A Xen host whose Linux domains stay from one cell to the next.
//!
//! A Linux kernel boots as long as ten cells run. So a domain of one that has run well is kept, and the next cell that
//! wants the same kernel gets it by a new workload instead of a boot. Owns when that is possible, and how such a domain
//! looks to [`host::run`](crate::host::run): created anew, and shut down when its run is over. All other domains are
//! created and destroyed as ever.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use experiment::Key;

use crate::host::{Change, Life, XenHost};
use crate::interrupt;

/// What divides the kernel's words from the workload's on a command line.
const WORKLOAD: &str = " -- ";
/// Words of a workload that a kernel was made for: these stay.
const OF_THE_KERNEL: [Key; 2] = [Key::policy, Key::spin];
/// How long a domain may take to begin with its next workload.
const PATIENCE: Duration = Duration::from_secs(60);

/// A host, and the domains that stay on it.
pub(super) struct Standing<H> {
    host: H,
    /// By name.
    domains: BTreeMap<String, Domain>,
}

struct Domain {
    domid: u32,
    /// The configuration without the workload.
    kernel: String,
    /// Whether its end has been told since its run began.
    told: bool,
}

/// What a configuration of a Linux domain says.
struct Wanted<'a> {
    /// All but the workload.
    kernel: String,
    workload: &'a str,
}

impl<H: XenHost> Standing<H> {
    pub(super) fn new(host: H) -> Self {
        Standing { host, domains: BTreeMap::new() }
    }

    /// Ends the domains that stay.
    pub(super) fn clear(&mut self) -> Result<()> {
        while let Some((_, domain)) = self.domains.pop_first() {
            self.host.destroy(domain.domid)?;
        }
        Ok(())
    }

    fn state(&mut self, domid: u32) -> Result<String> {
        Ok(self.host.read(&node(domid, "state"))?.unwrap_or_default())
    }

    /// Has a domain begin with `workload`; returns when it has.
    fn hand_over(&mut self, domid: u32, workload: &str) -> Result<()> {
        let state = node(domid, "state");
        self.host.watch(std::slice::from_ref(&state))?;
        self.host.write(&node(domid, "next"), &staying(workload))?;
        let deadline = Instant::now() + PATIENCE;
        while self.state(domid)? == "done" {
            interrupt::check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("domain {domid} does not take its next workload");
            }
            self.host.wait(left)?;
        }
        Ok(())
    }

    fn standing(&mut self, domid: u32) -> Option<&mut Domain> {
        self.domains.values_mut().find(|domain| domain.domid == domid)
    }
}

fn node(domid: u32, name: &str) -> String {
    format!("/local/domain/{domid}/data/pvlab/{name}")
}

fn staying(workload: &str) -> String {
    format!("{workload} stay=1")
}

/// What `config` asks for, if it is a Linux domain's.
fn wanted(config: &str) -> Option<Wanted<'_>> {
    config.lines().find(|line| line.starts_with("ramdisk = "))?;
    let extra = config.lines().rfind(|line| line.starts_with("extra = "))?;
    let (words, workload) = extra.trim_end_matches('"').split_once(WORKLOAD)?;
    let own = |word: &&str| {
        word.split_once('=').is_some_and(|(key, _)| OF_THE_KERNEL.iter().any(|k| k.name() == key))
    };
    let own: Vec<&str> = workload.split(' ').filter(own).collect();
    let rest: Vec<&str> = config.lines().filter(|line| !line.starts_with("extra = ")).collect();
    Some(Wanted { kernel: [&rest[..], &[words], &own[..]].concat().join("\n"), workload })
}

impl<H: XenHost> XenHost for Standing<H> {
    type Trace = H::Trace;

    fn create(&mut self, name: &str, config: &Path) -> Result<u32> {
        let text = fs::read_to_string(config)
            .with_context(|| format!("cannot read {}", config.display()))?;
        let wanted = wanted(&text);
        if let Some(there) = self.domains.remove(name) {
            let fits = wanted.as_ref().filter(|wanted| wanted.kernel == there.kernel);
            if let Some(wanted) = fits {
                match self.hand_over(there.domid, wanted.workload) {
                    Ok(()) => {
                        let domid = there.domid;
                        self.domains.insert(name.to_owned(), Domain { told: false, ..there });
                        return Ok(domid);
                    }
                    Err(error) => {
                        self.host.destroy(there.domid)?;
                        return Err(error);
                    }
                }
            }
            self.host.destroy(there.domid)?;
        }
        let Some(Wanted { kernel, workload }) = wanted else {
            return self.host.create(name, config);
        };
        let text = text.replace(workload, &staying(workload));
        fs::write(config, text).with_context(|| format!("cannot write {}", config.display()))?;
        let domid = self.host.create(name, config)?;
        self.domains.insert(name.to_owned(), Domain { domid, kernel, told: false });
        Ok(domid)
    }

    fn destroy(&mut self, domid: u32) -> Result<()> {
        if self.standing(domid).is_some() {
            if self.state(domid)? == "done" && self.host.life(domid)? == Life::Running {
                return Ok(());
            }
            self.domains.retain(|_, domain| domain.domid != domid);
        }
        self.host.destroy(domid)
    }

    fn life(&mut self, domid: u32) -> Result<Life> {
        let life = self.host.life(domid)?;
        let over =
            life == Life::Running && self.standing(domid).is_some() && self.state(domid)? == "done";
        Ok(if over { Life::ShutDown } else { life })
    }

    fn wait(&mut self, timeout: Duration) -> Result<Change> {
        // Nobody is told when a domain that stays is over.
        let domids: Vec<u32> =
            self.domains.values().filter(|d| !d.told).map(|domain| domain.domid).collect();
        for domid in domids {
            if self.state(domid)? == "done" {
                self.standing(domid).into_iter().for_each(|domain| domain.told = true);
                return Ok(Change::Domain);
            }
        }
        self.host.wait(timeout)
    }

    fn read(&mut self, path: &str) -> Result<Option<String>> {
        self.host.read(path)
    }

    fn write(&mut self, path: &str, value: &str) -> Result<()> {
        self.host.write(path, value)
    }

    fn watch(&mut self, paths: &[String]) -> Result<()> {
        self.host.watch(paths)
    }

    fn console(&mut self, name: &str) -> Result<String> {
        self.host.console(name)
    }

    fn start_trace(&mut self, mask: u32, file: &Path) -> Result<Self::Trace> {
        self.host.start_trace(mask, file)
    }

    fn stop_trace(&mut self, trace: Self::Trace) -> Result<()> {
        self.host.stop_trace(trace)
    }

    fn log(&mut self) -> Result<String> {
        self.host.log()
    }

    fn registers(&mut self, domid: u32) -> Result<Option<String>> {
        self.host.registers(domid)
    }

    fn memory(
        &mut self,
        domid: u32,
        vcpu: u32,
        address: u64,
        bytes: u64,
    ) -> Result<Option<String>> {
        self.host.memory(domid, vcpu, address, bytes)
    }

    fn versions(&mut self) -> Result<serde_json::Value> {
        self.host.versions()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Domains get numbers from 1 on, and are done as soon as they have begun.
    #[derive(Default)]
    struct Fake {
        log: Vec<String>,
        nodes: BTreeMap<String, String>,
        created: u32,
    }

    impl XenHost for Fake {
        type Trace = ();

        fn create(&mut self, name: &str, config: &Path) -> Result<u32> {
            self.created += 1;
            let stays = fs::read_to_string(config)?.contains("stay=1");
            self.log.push(format!("create {name}{}", if stays { ", to stay" } else { "" }));
            self.nodes.insert(node(self.created, "state"), "done".to_owned());
            Ok(self.created)
        }

        fn destroy(&mut self, domid: u32) -> Result<()> {
            self.log.push(format!("destroy {domid}"));
            Ok(())
        }

        fn life(&mut self, _: u32) -> Result<Life> {
            Ok(Life::Running)
        }

        fn read(&mut self, path: &str) -> Result<Option<String>> {
            Ok(self.nodes.get(path).cloned())
        }

        fn write(&mut self, path: &str, value: &str) -> Result<()> {
            self.log.push(format!("{path} = {value}"));
            let state = path.replace("next", "state");
            self.nodes.insert(state, "booting".to_owned());
            Ok(())
        }

        fn watch(&mut self, _: &[String]) -> Result<()> {
            Ok(())
        }

        fn wait(&mut self, _: Duration) -> Result<Change> {
            Ok(Change::Domain)
        }

        fn console(&mut self, _: &str) -> Result<String> {
            unreachable!()
        }

        fn start_trace(&mut self, _: u32, _: &Path) -> Result<()> {
            unreachable!()
        }

        fn stop_trace(&mut self, (): ()) -> Result<()> {
            unreachable!()
        }

        fn log(&mut self) -> Result<String> {
            unreachable!()
        }

        fn registers(&mut self, _: u32) -> Result<Option<String>> {
            unreachable!()
        }

        fn memory(&mut self, _: u32, _: u32, _: u64, _: u64) -> Result<Option<String>> {
            unreachable!()
        }

        fn versions(&mut self) -> Result<serde_json::Value> {
            unreachable!()
        }
    }

    fn linux(workload: &str) -> String {
        format!(
            "name = \"guest1\"\nextra = \"old\"\nramdisk = \"/i\"\nextra = \"quiet -- {workload}\"\nuuid = \"1\"\n"
        )
    }

    #[test]
    fn a_domain_stays_for_the_same_kernel_and_for_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("guest1.cfg");
        let mut host = Standing::new(Fake::default());
        let create = |host: &mut Standing<Fake>, text: &str| {
            fs::write(&config, text).unwrap();
            host.create("guest1", &config).unwrap()
        };
        let first = create(&mut host, &linux("seed=1 policy=linux spin=9turns"));
        assert_eq!(host.life(first).unwrap(), Life::ShutDown, "its run is over");
        assert_eq!(host.wait(PATIENCE).unwrap(), Change::Domain);
        host.destroy(first).unwrap();
        assert_eq!(create(&mut host, &linux("seed=2 policy=linux spin=9turns")), first);
        assert_eq!(host.life(first).unwrap(), Life::Running);
        // What has not run well goes.
        host.destroy(first).unwrap();
        let second = create(&mut host, &linux("seed=3 policy=linux spin=9turns"));
        host.destroy(second).unwrap();
        let third = create(&mut host, &linux("seed=3 policy=linux spin=7turns"));
        host.destroy(third).unwrap();
        let fourth = create(&mut host, "name = \"guest1\"\nextra = \"policy=spin\"\n");
        host.destroy(fourth).unwrap();
        host.clear().unwrap();
        assert_eq!(
            host.host.log,
            [
                "create guest1, to stay",
                "/local/domain/1/data/pvlab/next = seed=2 policy=linux spin=9turns stay=1",
                "destroy 1",
                "create guest1, to stay",
                "destroy 2",
                "create guest1, to stay",
                "destroy 3",
                "create guest1",
                "destroy 4",
            ]
        );
    }
}
