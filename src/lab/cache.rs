//! The cache folder: where it is, who may write to it, and how a finished lab appears in it.
//!
//! Layout:
//!
//! ```text
//! lock             held while a lab is built
//! apt/             apt's own state: lists and downloaded packages
//! lab-RECIPE/      a finished lab; appears by one rename
//! apt-RELEASE/, lab-RECIPE-RELEASE/
//!                  the same of a release that is not the machine's
//! building/        a lab in the making; whatever is there belongs to the lock's holder
//! run/PID-N/       files of a running host; removed when it ends
//! ```

use std::env;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::{Error, Release};
use crate::interrupt;
use crate::progress::Progress;

/// The cache folder.
#[derive(Debug, Clone)]
pub(super) struct Cache {
    folder: PathBuf,
}

/// The file that is locked.
const LOCK: &str = "lock";

/// The right to build in the cache. Ends when dropped, or with the process.
pub(super) struct Lock {
    _file: File,
}

impl Cache {
    /// `$PVLAB_CACHE`, else `$XDG_CACHE_HOME/pvlab`, else `~/.cache/pvlab`.
    pub(super) fn locate() -> Result<Self, Error> {
        choose(|name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from))
            .map(Self::at)
            .ok_or(Error::NoCache)
    }

    pub(super) fn at(folder: PathBuf) -> Self {
        // Absolute, because the emulator runs in a folder of its own.
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        Cache { folder }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn apt(&self, release: Option<&Release>) -> PathBuf {
        self.folder.join(of("apt".to_owned(), release))
    }

    pub(super) fn lab_folder(&self, recipe: u32, release: Option<&Release>) -> PathBuf {
        self.folder.join(of(format!("lab-{recipe}"), release))
    }

    pub(super) fn building(&self) -> PathBuf {
        self.folder.join("building")
    }

    /// An empty folder for one run. Removes what runs left that were killed outright.
    pub(super) fn run_folder(&self) -> Result<tempfile::TempDir, Error> {
        let runs = self.folder.join("run");
        fs::create_dir_all(&runs).map_err(Error::file("create the folder", &runs))?;
        for entry in fs::read_dir(&runs).into_iter().flatten().flatten() {
            let name = entry.file_name();
            // Anything else is not ours: the cache may be put into a folder that has a `run`
            // already.
            let owner = name.to_str().and_then(|name| name.split_once('-')?.0.parse::<u32>().ok());
            if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
                // Another process may be doing the same.
                drop(fs::remove_dir_all(entry.path()));
            }
        }
        tempfile::Builder::new()
            .prefix(&format!("{}-", std::process::id()))
            .tempdir_in(&runs)
            .map_err(Error::file("create the folder", &runs))
    }

    /// Whether a lab was ever made there.
    pub(super) fn is_ours(&self) -> bool {
        self.folder.join(LOCK).is_file()
    }

    /// Removes what the lab has put there, and nothing else. The caller holds the lock.
    pub(super) fn remove_contents(&self) -> Result<(), Error> {
        for entry in
            fs::read_dir(&self.folder).map_err(Error::file("list", &self.folder))?.flatten()
        {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if ["lab-", "apt-", "linux-"].iter().any(|ours| name.starts_with(ours))
                || ["apt", "building", "run"].contains(&&*name)
            {
                fs::remove_dir_all(entry.path()).map_err(Error::file("remove", entry.path()))?;
            }
        }
        Ok(())
    }

    /// Takes the lock, waiting for whoever has it.
    pub(super) fn lock(&self, progress: &Progress) -> Result<Lock, Error> {
        fs::create_dir_all(&self.folder).map_err(Error::file("create the folder", &self.folder))?;
        let path = self.folder.join(LOCK);
        let file = File::create(&path).map_err(Error::file("create", &path))?;
        let mut waiting = None;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _file: file }),
                Err(TryLockError::WouldBlock) => {
                    interrupt::check()?;
                    waiting.get_or_insert_with(|| {
                        progress.step("waiting for another pvlab that prepares the lab")
                    });
                    // The lock cannot be waited for together with a signal.
                    thread::sleep(Duration::from_millis(200));
                }
                Err(TryLockError::Error(source)) => return Err(Error::file("lock", &path)(source)),
            }
        }
    }
}

fn of(name: String, release: Option<&Release>) -> String {
    release.map_or_else(|| name.clone(), |release| format!("{name}-{release}"))
}

fn choose(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    variable("PVLAB_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|home| home.join("pvlab")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/pvlab")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_variable_that_is_set_decides() {
        let all = [("PVLAB_CACHE", "/a"), ("XDG_CACHE_HOME", "/b"), ("HOME", "/c")];
        let wanted = ["/a", "/b/pvlab", "/c/.cache/pvlab"];
        for (first, wanted) in wanted.iter().enumerate() {
            let set = &all[first..];
            let found = choose(|name| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
            });
            assert_eq!(found.as_deref(), Some(Path::new(wanted)));
        }
        assert_eq!(choose(|_| None), None);
    }

    #[test]
    fn a_second_builder_waits_for_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("new"));
        let held = cache.lock(&Progress::hidden()).unwrap();
        let file = File::open(cache.folder().join("lock")).unwrap();
        assert!(matches!(file.try_lock(), Err(TryLockError::WouldBlock)));
        drop(held);
        assert!(file.try_lock().is_ok());
    }

    #[test]
    fn a_run_that_was_killed_leaves_nothing_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().into());
        // No process has the highest number a kernel can be configured for.
        let stale = folder.path().join("run/4194305-abc");
        fs::create_dir_all(&stale).unwrap();
        // As in /var/run, if somebody puts the cache into /var.
        let foreign =
            ["systemd", "user-session", "4194305"].map(|name| folder.path().join("run").join(name));
        foreign.iter().for_each(|path| fs::create_dir_all(path).unwrap());
        let mine = cache.run_folder().unwrap();
        let other = cache.run_folder().unwrap();
        assert!(!stale.exists());
        assert!(foreign.iter().all(|path| path.exists()));
        assert!(mine.path().exists() && other.path().exists());
    }
}
