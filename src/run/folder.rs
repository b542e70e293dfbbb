//! The folder a run writes into.
//!
//! Owns what may be overwritten: the files of an earlier run, and nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, bail};
use experiment::Policy;
use serde_json::Value;

use crate::report::{RUN_FILE, RunRecord};

/// Makes `out`, and takes away what an earlier run left there.
pub(super) fn prepare(out: &Path) -> Result<()> {
    fs::create_dir_all(out)
        .with_context(|| format!("cannot create the folder {}", out.display()))?;
    let mut entries =
        fs::read_dir(out).with_context(|| format!("cannot read the folder {}", out.display()))?;
    if entries.next().is_none() {
        return Ok(());
    }
    let Ok(text) = fs::read_to_string(out.join(RUN_FILE)) else {
        bail!(
            "{} is not empty and holds no earlier run; give --out a new or empty folder",
            out.display()
        );
    };
    let earlier: RunRecord = serde_json::from_str(&text).with_context(|| {
        format!("{RUN_FILE} in {} is damaged; give --out another folder", out.display())
    })?;
    for policy in &earlier.plan.policies {
        // The name comes from a file: it must not lead out of the folder.
        if policy.parse::<Policy>().is_ok() {
            gone(fs::remove_dir_all(out.join(policy)), out)?;
        }
    }
    for file in ["results.json", "versions.json", "report.html"] {
        gone(fs::remove_file(out.join(file)), out)?;
    }
    Ok(())
}

fn gone(removed: std::io::Result<()>, out: &Path) -> Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error)
            .with_context(|| format!("cannot take the earlier run out of {}", out.display())),
        _ => Ok(()),
    }
}

/// Says what is about to run.
pub(super) fn record(out: &Path, record: &RunRecord) -> Result<()> {
    write(&out.join(RUN_FILE), &serde_json::to_value(record)?)
}

/// Adds the lab's packages to the versions the host wrote.
pub(super) fn add_lab_versions(out: &Path, packages: &BTreeMap<String, String>) -> Result<()> {
    let file = out.join("versions.json");
    // Without a host that got that far, the packages are all there is to say.
    let mut versions = match fs::read_to_string(&file) {
        Ok(text) => {
            serde_json::from_str(&text).with_context(|| format!("{} is damaged", file.display()))?
        }
        Err(_) => Value::Object(serde_json::Map::new()),
    };
    versions["packages"] = serde_json::to_value(packages)?;
    write(&file, &versions)
}

fn write(file: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_foreign_folder_is_left_alone() {
        let out = tempfile::tempdir().unwrap();
        fs::write(out.path().join("thesis.tex"), "years of work").unwrap();
        let error = prepare(out.path()).unwrap_err().to_string();
        assert!(error.contains("not empty"), "{error}");
        assert!(out.path().join("thesis.tex").exists());
    }

    #[test]
    fn an_earlier_run_is_taken_away_and_what_stands_beside_it_stays() {
        let out = tempfile::tempdir().unwrap();
        let plan = serde_json::json!({
            "scenario": "s", "policies": ["spin", "../up"], "domains": [], "image": "i", "settings": [],
            "markers": false, "trace": true, "deadline": { "secs": 1, "nanos": 0 },
        });
        write(&out.path().join(RUN_FILE), &serde_json::json!({ "mode": "parallel", "plan": plan }))
            .unwrap();
        fs::create_dir(out.path().join("spin")).unwrap();
        fs::write(out.path().join("spin/trace.bin"), "").unwrap();
        fs::write(out.path().join("notes.txt"), "mine").unwrap();
        prepare(out.path()).unwrap();
        assert!(!out.path().join("spin").exists());
        assert!(out.path().join("notes.txt").exists());
    }
}
