//! The folder a run writes into.
//!
//! Owns what may be overwritten: the files of an earlier run, and nothing else, and those only when the new
//! run is whole. Until then it writes beside them, into the folder [`UNFINISHED`].

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use experiment::Lock;
use rustix::fs::{Access, access, statvfs};
use serde_json::Value;

use crate::report::{RUN_FILE, RunRecord};

/// Where a run writes while an earlier one is in its folder.
const UNFINISHED: &str = "unfinished";

/// Room that a run must find, in MiB. A trace of the shipped scenarios is 10 MiB.
const ROOM_MIB: u64 = 64;

/// What an earlier run has left beside its policies' folders.
const FILES: [&str; 6] = [
    "results.json",
    "versions.json",
    "report.html",
    "xen-guest.elf",
    "console-host.log",
    "qemu-command.txt",
];

/// A run's folder.
pub(super) struct Folder {
    out: PathBuf,
    /// Where this run writes: `out`, or [`UNFINISHED`] in it.
    place: PathBuf,
    /// The run that `out` holds.
    earlier: Option<RunRecord>,
    record: Option<RunRecord>,
}

impl Folder {
    /// Looks whether a run may write into `out`, and creates nothing.
    pub(super) fn examine(out: &Path) -> Result<Folder> {
        let earlier = earlier_run(out)?;
        // The folder itself, or the one it will be made in.
        let there = out.ancestors().find(|folder| folder.exists()).filter(|path| **path != *"");
        let there = there.unwrap_or(Path::new("."));
        if !there.is_dir() {
            bail!("{} is not a folder; give --out another one", there.display());
        }
        if access(there, Access::WRITE_OK | Access::EXEC_OK).is_err() {
            bail!("{} cannot be written to; give --out another folder", there.display());
        }
        let disk = statvfs(there)
            .with_context(|| format!("cannot look at the disk of {}", there.display()))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize) >> 20;
        if free < ROOM_MIB {
            bail!(
                "{}: {free} MiB free, a run needs {ROOM_MIB} MiB; free some space, or give --out a folder \
                 on a larger disk",
                there.display()
            );
        }
        let place = if earlier.is_some() { out.join(UNFINISHED) } else { out.to_owned() };
        // A person's own folder of that name is not for us to empty.
        earlier_run(&place)?;
        Ok(Folder { out: out.to_owned(), place, earlier, record: None })
    }

    /// Where the run writes.
    pub(super) fn place(&self) -> &Path {
        &self.place
    }

    /// Makes the place and says in it what is about to run.
    pub(super) fn begin(&mut self, record: &RunRecord) -> Result<()> {
        if self.earlier.is_some() {
            gone(fs::remove_dir_all(&self.place), &self.out)?;
        }
        fs::create_dir_all(&self.place)
            .with_context(|| format!("cannot create the folder {}", self.place.display()))?;
        self.record = Some(record.clone());
        write(&self.place.join(RUN_FILE), &serde_json::to_value(record)?)
    }

    /// Adds the lab's packages to the versions the host wrote.
    pub(super) fn add_lab_versions(&self, packages: &BTreeMap<String, String>) -> Result<()> {
        let file = self.place.join("versions.json");
        // Without a host that got that far, the packages are all there is to say.
        let mut versions = match fs::read_to_string(&file) {
            Ok(text) => serde_json::from_str(&text)
                .with_context(|| format!("{} is damaged", file.display()))?,
            Err(_) => Value::Object(serde_json::Map::new()),
        };
        versions["packages"] = serde_json::to_value(packages)?;
        write(&file, &versions)
    }

    /// Puts the whole run in the earlier one's place.
    pub(super) fn finish(self) -> Result<()> {
        let (Some(earlier), Some(mut record)) = (self.earlier, self.record) else { return Ok(()) };
        let (out, place) = (&self.out, &self.place);
        for policy in earlier.plan.policies.iter().chain(&record.plan.policies) {
            // The name comes from a file: it must not lead out of the folder.
            if policy.parse::<Lock>().is_ok() {
                gone(fs::remove_dir_all(out.join(policy)), out)?;
            }
        }
        for file in FILES {
            gone(fs::remove_file(out.join(file)), out)?;
        }
        let moved = "cannot put the new run in its place";
        for entry in fs::read_dir(place).context(moved)? {
            let entry = entry.context(moved)?;
            fs::rename(entry.path(), out.join(entry.file_name())).context(moved)?;
        }
        fs::remove_dir(place).context(moved)?;
        // On a Xen host the image has moved with the rest.
        let Ok(name) = record.plan.image.strip_prefix(std::path::absolute(place)?) else {
            return Ok(());
        };
        let (before, after) = (record.plan.image.clone(), std::path::absolute(out)?.join(name));
        for policy in &record.plan.policies {
            for domain in &record.plan.domains {
                let file = out.join(policy).join(format!("{}.cfg", domain.name));
                let Ok(text) = fs::read_to_string(&file) else { continue };
                let text = text.replace(&*before.to_string_lossy(), &after.to_string_lossy());
                fs::write(&file, text).context(moved)?;
            }
        }
        record.plan.image = after;
        write(&out.join(RUN_FILE), &serde_json::to_value(&record)?)
    }

    /// What a person must know of the folder after a run that was cut short.
    pub(super) fn left(&self) -> String {
        let place = self.place.display();
        let collected = format!("what was collected is in {place}");
        match self.earlier {
            None => collected,
            Some(_) => {
                format!("{collected}; the earlier run in {} is as it was", self.out.display())
            }
        }
    }
}

/// The run that `out` holds; `None` if it is empty or not there.
fn earlier_run(out: &Path) -> Result<Option<RunRecord>> {
    let mut entries = match fs::read_dir(out) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        entries => entries.with_context(|| {
            format!("cannot read the folder {}; give --out another one", out.display())
        })?,
    };
    if entries.next().is_none() {
        return Ok(None);
    }
    let Ok(text) = fs::read_to_string(out.join(RUN_FILE)) else {
        bail!(
            "{} is not empty and holds no earlier run; give --out a new or empty folder",
            out.display()
        );
    };
    let earlier = serde_json::from_str(&text).with_context(|| {
        format!("{RUN_FILE} in {} is damaged; give --out another folder", out.display())
    })?;
    Ok(Some(earlier))
}

fn gone(removed: std::io::Result<()>, out: &Path) -> Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error)
            .with_context(|| format!("cannot take the earlier run out of {}", out.display())),
        _ => Ok(()),
    }
}

fn write(file: &Path, value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(policies: &[&str], image: &Path) -> RunRecord {
        let plan = serde_json::json!({
            "scenario": "s", "policies": policies, "domains": [
                { "name": "a", "file": "a.cfg", "config": "" }
            ],
            "image": image, "settings": [],
            "markers": false, "trace": true, "deadline": { "secs": 1, "nanos": 0 },
        });
        serde_json::from_value(serde_json::json!({ "mode": "host", "plan": plan })).unwrap()
    }

    /// Leaves what a run leaves, `text` in its trace.
    fn run(folder: &mut Folder, policy: &str, text: &str) {
        let image = std::path::absolute(folder.place().join("xen-guest.elf")).unwrap();
        folder.begin(&record(&[policy, "../up"], &image)).unwrap();
        let of = folder.place().join(policy);
        fs::create_dir(&of).unwrap();
        fs::write(of.join("trace.bin"), text).unwrap();
        fs::write(of.join("a.cfg"), format!("kernel = \"{}\"\n", image.display())).unwrap();
        for file in FILES {
            fs::write(folder.place().join(file), text).unwrap();
        }
    }

    #[test]
    fn a_foreign_folder_is_left_alone() {
        let out = tempfile::tempdir().unwrap();
        fs::write(out.path().join("thesis.tex"), "years of work").unwrap();
        let error = Folder::examine(out.path()).err().unwrap().to_string();
        assert!(error.contains("not empty"), "{error}");
        assert!(out.path().join("thesis.tex").exists());
    }

    #[test]
    fn an_earlier_run_stays_until_the_new_one_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new/out");
        let mut first = Folder::examine(&out).unwrap();
        assert!(!out.exists(), "looking creates nothing");
        run(&mut first, "spin", "first");
        assert!(!first.left().contains("earlier"));
        first.finish().unwrap();
        fs::write(out.join("notes.txt"), "mine").unwrap();
        let trace = |policy: &str| fs::read_to_string(out.join(policy).join("trace.bin")).ok();

        // Cut short: twice, so that the rest of an unfinished run is in the way.
        for _ in 0..2 {
            let mut second = Folder::examine(&out).unwrap();
            run(&mut second, "native", "second");
            assert!(second.left().contains("as it was"), "{}", second.left());
        }
        assert_eq!(trace("spin").as_deref(), Some("first"));
        assert_eq!(trace("native"), None);

        let mut third = Folder::examine(&out).unwrap();
        run(&mut third, "native", "third");
        third.finish().unwrap();
        assert_eq!((trace("spin"), trace("native").as_deref()), (None, Some("third")));
        assert!(out.join("notes.txt").exists() && !out.join(UNFINISHED).exists());
        // The files in the folder name its own image.
        let image = out.join("xen-guest.elf");
        let cfg = fs::read_to_string(out.join("native/a.cfg")).unwrap();
        assert_eq!(cfg, format!("kernel = \"{}\"\n", image.display()));
        let kept = fs::read_to_string(out.join(RUN_FILE)).unwrap();
        let kept: RunRecord = serde_json::from_str(&kept).unwrap();
        assert_eq!(kept.plan.image, image);
    }

    #[test]
    fn a_folder_in_a_file_or_without_the_right_to_write_is_refused_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        for out in [folder.path().join("file"), folder.path().join("file/out"), "/proc/out".into()]
        {
            let error = Folder::examine(&out).err().unwrap().to_string();
            assert!(error.contains("--out"), "{error}");
        }
    }
}
