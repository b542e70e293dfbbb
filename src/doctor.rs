//! What this machine is to pvlab, what it lacks, and how to get it.
//!
//! Owns the questions and their order. It asks no network, changes nothing, and needs no root.

use std::env::consts::ARCH;
use std::fmt;

use crate::host::{self, Toolstack};
use crate::lab::{self, Lab, Release};

/// Answers to all questions.
#[derive(Debug)]
pub struct Diagnosis {
    /// What the machine is.
    pub machine: String,
    /// Each thing a run needs, or is better with.
    pub findings: Vec<Finding>,
}

/// One answer.
#[derive(Debug)]
pub struct Finding {
    /// What was looked for.
    pub what: String,
    /// What was found, or what to do.
    pub state: State,
}

/// How it is with a thing.
#[derive(Debug, PartialEq, Eq)]
pub enum State {
    /// There, as described.
    Good(String),
    /// A run goes without it, less well.
    Lacking(String),
    /// No run without it.
    Missing(String),
}

use State::{Good, Lacking, Missing};

impl Diagnosis {
    /// Whether `pvlab run` can run here.
    pub fn is_good(&self) -> bool {
        !self.findings.iter().any(|finding| matches!(finding.state, Missing(_)))
    }

    fn add(&mut self, what: impl Into<String>, state: State) {
        self.findings.push(Finding { what: what.into(), state });
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.machine)?;
        for Finding { what, state } in &self.findings {
            let (word, text) = match state {
                Good(text) => ("ok", text),
                Lacking(text) => ("note", text),
                Missing(text) => ("MISSING", text),
            };
            writeln!(f, "  {word:8} {what:18} {text}")?;
        }
        let end = if self.is_good() {
            "pvlab can run here: pvlab run solo-pv"
        } else {
            "pvlab cannot run here until what is MISSING is there"
        };
        writeln!(f, "{end}")
    }
}

/// Looks at this machine.
pub fn examine(release: Option<&Release>) -> Diagnosis {
    if host::is_xen_host() {
        xen_host()
    } else if host::is_dom0_without_xenfs() {
        let mut found = Diagnosis { machine: "This is Xen's dom0.".into(), findings: vec![] };
        found.add("/proc/xen", Missing("mount it: `mount -t xenfs xenfs /proc/xen`".into()));
        found
    } else {
        lab_machine(release)
    }
}

fn xen_host() -> Diagnosis {
    let machine = "This is a Xen host's dom0: pvlab runs on this very Xen.".into();
    let mut found = Diagnosis { machine, findings: vec![] };
    let root = rustix::process::geteuid().is_root();
    let state = match root {
        true => Good("this is root".into()),
        false => Missing("only root may create domains: `sudo pvlab ...`".into()),
    };
    found.add("root", state);
    for (name, needed) in host::TOOLS {
        let state = match host::tool(name) {
            Ok(path) => Good(path.display().to_string()),
            Err(error) if needed => Missing(format!("{error:#}")),
            Err(error) => Lacking(format!("{error:#}; pvlab then tells less of a crash")),
        };
        found.add(name, state);
    }
    if !root {
        return found;
    }
    match Toolstack::open() {
        Err(error) => found.add("xenstored", Missing(format!("{error:#}"))),
        Ok(toolstack) => {
            found.add("xenstored", Good("answers".into()));
            match toolstack.leftovers() {
                Err(error) => found.add("domains", Missing(format!("{error:#}"))),
                Ok(left) if left.is_empty() => {
                    found.add("domains", Good("none is left of an earlier run".into()));
                }
                Ok(left) => {
                    let left = left.join(", ");
                    let text =
                        format!("left of an earlier run: {left}; end each with `xl destroy`");
                    found.add("domains", Lacking(text));
                }
            }
        }
    }
    let state = match host::other_xentrace() {
        None => Good("nobody else traces".into()),
        Some(pid) => Missing(format!(
            "process {pid} is another xentrace: end it with `kill -INT {pid}`, or give --no-trace"
        )),
    };
    found.add("trace buffer", state);
    found
}

fn lab_machine(release: Option<&Release>) -> Diagnosis {
    let machine = "This machine is no Xen host: pvlab makes one in the emulator (the lab).".into();
    let mut found = Diagnosis { machine, findings: vec![] };
    let state = match ARCH {
        "x86_64" => Good(ARCH.into()),
        other => {
            Missing(format!("{other}: the lab needs x86-64; run pvlab there, or on a Xen host"))
        }
    };
    found.add("processor", state);
    let own = lab::machine_release();
    let name = release.map(|release| release.to_string()).or_else(|| own.clone());
    let xen = match name.as_deref() {
        Some("bookworm") => "Xen 4.17",
        Some("trixie") => "Xen 4.20",
        _ => "the Xen it offers; Debian's bookworm and trixie are tried",
    };
    let name = name.unwrap_or_else(|| "an unknown release".into());
    found.add("release", Good(format!("{name}: {xen} (another: --release NAME)")));
    let there = match Lab::find(release) {
        Err(error) => {
            found.add("lab", Missing(error.to_string()));
            return found;
        }
        Ok((folder, Some(packages))) => {
            let xen = packages.keys().find(|name| name.starts_with("xen-hypervisor-"));
            let version = xen.map_or("", |name| packages[name].as_str());
            found.add("lab", Good(format!("ready in {}: Xen {version}", folder.display())));
            true
        }
        Ok((folder, None)) => {
            let folder = folder.display();
            found.add(
                "lab",
                Lacking(format!(
                    "not made yet (in {folder}): `pvlab lab prepare` makes it, and so does the first run; \
                     it downloads 130 to 180 MB, so it needs the network"
                )),
            );
            false
        }
    };
    // A lab that is there needs neither packages nor room.
    if !there {
        let apt = ["apt-get", "apt-cache", "apt-config"].into_iter().find(|name| !on_path(name));
        let state = match apt {
            None => Good("apt-get is there".into()),
            Some(name) => Missing(format!(
                "`{name}` is not on this machine: the lab takes its packages from Debian or Ubuntu; run pvlab \
                 on such a machine (a container will do)"
            )),
        };
        found.add("packages", state);
        let state = match lab::room() {
            Ok(mib) => Good(format!("{mib} MiB free for the cache")),
            Err(error) => Missing(error.to_string()),
        };
        found.add("disk", state);
    }
    found
}

fn on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_decides_and_what_is_lacking_does_not() {
        let mut found = Diagnosis { machine: "m".into(), findings: vec![] };
        found.add("a", Good("there".into()));
        found.add("b", Lacking("less".into()));
        assert!(found.is_good());
        found.add("c", Missing("get it".into()));
        assert!(!found.is_good());
        let text = found.to_string();
        assert!(text.contains("  MISSING  c                  get it\n"), "{text}");
        assert!(text.contains("cannot run"), "{text}");
    }
}
