//! The recipe of a lab: from package names to a finished folder in the cache.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::apt::{self, Apt};
use super::cache::Cache;
use super::{Error, Release};
use super::{deb, initramfs, kernel};
use crate::progress::Progress;

/// Goes up by one whenever a lab built by an older pvlab would no longer do.
pub(super) const RECIPE: u32 = 4;

/// The unpacked packages, in a finished lab.
pub(super) const ROOT: &str = "root";
/// Xen, uncompressed.
pub(super) const XEN: &str = "xen";
/// dom0's kernel, uncompressed.
pub(super) const VMLINUX: &str = "vmlinux";
/// dom0's image.
pub(super) const DOM0: &str = "dom0.cpio";
/// Written last: a folder with it is finished.
const STAMP: &str = "lab.json";

/// Metapackages where the version is part of the real package's name.
const PACKAGES: [&str; 4] = ["xen-system-amd64", "linux-image-amd64", QEMU, "busybox-static"];
const QEMU: &str = "qemu-system-x86";
/// The packages of the emulator that must be of one release.
const QEMU_FAMILY: &str = "qemu-* seabios ipxe-qemu";
/// The first version whose repeatable mode divides time fairly between pCPUs.
const FAIR_QEMU: (u32, u32) = (8, 1);
/// Room for lists, packages and everything unpacked, in MiB; Debian 12 took 751 at the widest point.
const ROOM_MIB: u64 = 1000;

/// What a finished lab is made of; the content of its stamp.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Parts {
    /// Package versions by name.
    pub(super) packages: BTreeMap<String, String>,
    /// Sonames of the libraries in dom0's image.
    pub(super) libraries: Vec<String>,
    /// Version of the emulator.
    pub(super) qemu: String,
    /// Bytes of the files it starts from.
    #[serde(default)]
    pub(super) sizes: BTreeMap<String, u64>,
}

impl Parts {
    /// The parts of the lab in `folder`; `None` if there is no finished one.
    pub(super) fn load(folder: &Path) -> Result<Option<Self>, Error> {
        let path = folder.join(STAMP);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file("read", &path)(error)),
        };
        let damaged = |what: String| Error::Damaged { path: path.clone(), what };
        let parts: Parts =
            serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
        for part in [ROOT, XEN, VMLINUX, DOM0] {
            let path = folder.join(part);
            let Ok(about) = fs::metadata(&path) else {
                return Err(Error::Damaged { path, what: "is gone".into() });
            };
            if let Some(size) = parts.sizes.get(part).filter(|size| **size != about.len()) {
                let what = format!("has {} bytes of {size}", about.len());
                return Err(Error::Damaged { path, what });
            }
        }
        Ok(Some(parts))
    }
}

/// Builds a lab and puts it at `folder`, at once or not at all. The caller holds the cache's lock.
pub(super) fn build(
    cache: &Cache,
    release: Option<&Release>,
    folder: &Path,
    progress: &Progress,
) -> Result<Parts, Error> {
    if ARCH != "x86_64" {
        return Err(Error::Architecture(ARCH));
    }
    let building = cache.building();
    // What a build that was killed has left.
    remove(&building)?;
    room(cache.folder())?;
    let made = make(cache, release, &building, progress).and_then(|parts| {
        remove(folder)?;
        fs::rename(&building, folder).map_err(Error::file("put in place", folder))?;
        Ok(parts)
    });
    if made.is_err() {
        // The error that matters is the first one.
        drop(remove(&building));
    }
    made
}

/// Builds a lab in the folder `building`.
fn make(
    cache: &Cache,
    release: Option<&Release>,
    building: &Path,
    progress: &Progress,
) -> Result<Parts, Error> {
    let step = progress.step("asking apt for Xen, its dom0 and an emulator");
    let mut apt = Apt::open(&cache.apt(release))?;
    apt.update()?;
    if let Some(release) = release {
        step.update(format!("asking apt for Xen, its dom0 and an emulator of {release}"));
        apt.use_release(release)?;
    }
    let fair =
        |version: &Option<String>| version.as_deref().and_then(apt::upstream) >= Some(FAIR_QEMU);
    if !fair(&apt.candidate(QEMU)?) {
        step.update("asking apt for a newer emulator");
        apt.add_backports(QEMU_FAMILY)?;
    }
    let plan = apt.plan(&PACKAGES)?;
    let packages = apt::versions(&plan);
    drop(step);
    apt.download(&PACKAGES, &plan, progress)?;

    let root = building.join(ROOT);
    fs::create_dir_all(&root).map_err(Error::file("create the folder", &root))?;
    let step = progress.bar("unpacking packages", plan.len() as u64);
    let archives: Vec<PathBuf> =
        plan.iter().map(|archive| apt.archives().join(&archive.file)).collect();
    if let Err(error) = deb::unpack_all(&archives, &root, &step) {
        // A damaged package would be taken for good again next time.
        if let Error::Damaged { path, .. } = &error {
            drop(fs::remove_file(path));
        }
        return Err(error);
    }
    step.done(format!("unpacked {} packages", plan.len()));

    let step = progress.step("building dom0's image");
    let libraries = assemble(&root, building)?;
    // Everything that was needed of the modules is in the image now.
    for done in ["usr/lib/modules", "boot"] {
        fs::remove_dir_all(root.join(done)).map_err(Error::file("remove", root.join(done)))?;
    }
    let qemu = packages.get(QEMU).cloned().unwrap_or_default();
    let size = |part: &str| -> Result<(String, u64), Error> {
        let path = building.join(part);
        let about = fs::metadata(&path).map_err(Error::file("look at", &path))?;
        Ok((part.to_owned(), about.len()))
    };
    let sizes = [XEN, VMLINUX, DOM0].into_iter().map(size).collect::<Result<_, _>>()?;
    let parts = Parts { packages, libraries, qemu, sizes };
    let stamp = building.join(STAMP);
    let text = serde_json::to_vec_pretty(&parts)
        .map_err(|error| Error::file("write", &stamp)(error.into()))?;
    write(&stamp, &text)?;
    step.done("built dom0's image");
    Ok(parts)
}

/// Makes kernel, hypervisor and image out of `root`; returns the libraries in the image.
fn assemble(root: &Path, into: &Path) -> Result<Vec<String>, Error> {
    let boot = root.join("boot");
    let xen = newest(&boot, "xen-", ".gz", "xen-hypervisor")?;
    let bytes = fs::read(&xen).map_err(Error::file("read", &xen))?;
    let bytes = kernel::decompress(&bytes).map_err(|what| Error::Damaged { path: xen, what })?;
    write(&into.join(XEN), &bytes)?;
    let vmlinuz = newest(&boot, "vmlinuz-", "", "linux-image")?;
    let bytes = fs::read(&vmlinuz).map_err(Error::file("read", &vmlinuz))?;
    let bytes =
        kernel::vmlinux(&bytes).map_err(|what| Error::Damaged { path: vmlinuz.clone(), what })?;
    write(&into.join(VMLINUX), &bytes)?;
    let release = vmlinuz
        .file_name()
        .and_then(|name| name.to_str()?.strip_prefix("vmlinuz-"))
        .unwrap_or_default();
    let image = initramfs::assemble(root, release)?;
    let path = into.join(DOM0);
    let write = || {
        let mut out = BufWriter::new(File::create(&path)?);
        image.archive.write(&mut out)?;
        out.flush()
    };
    write().map_err(Error::file("write", &path))?;
    Ok(image.libraries)
}

/// The last file, by name, that begins and ends so.
fn newest(folder: &Path, begin: &str, end: &str, package: &str) -> Result<PathBuf, Error> {
    let missing =
        || Error::Missing { what: format!("{begin}*{end} in /boot"), packages: package.into() };
    let files = fs::read_dir(folder).map_err(|_| missing())?.flatten().map(|entry| entry.path());
    let fits = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with(begin) && name.ends_with(end) && path.is_file() && !path.is_symlink()
    };
    files.filter(fits).max().ok_or_else(missing)
}

/// MiB free for the cache in `folder`. Fails early where the disk is too full for a lab.
pub(super) fn room(folder: &Path) -> Result<u64, Error> {
    let there = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let disk = rustix::fs::statvfs(there)
        .map_err(|error| Error::file("look at the disk of", folder)(error.into()))?;
    let free_mib = disk.f_bavail.saturating_mul(disk.f_frsize) >> 20;
    if free_mib < ROOM_MIB {
        return Err(Error::DiskFull { path: folder.into(), free_mib, needed_mib: ROOM_MIB });
    }
    Ok(free_mib)
}

fn remove(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::file("remove", folder)(error))
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(path, bytes).map_err(Error::file("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_a_stamp_is_no_lab() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Parts::load(folder.path()).unwrap().is_none());
        fs::write(folder.path().join(STAMP), "{").unwrap();
        let error = Parts::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("lab.json") && error.contains("lab clean"), "{error}");
    }

    #[test]
    fn a_lab_that_lost_a_file_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let mut parts = Parts {
            packages: BTreeMap::new(),
            libraries: vec![],
            qemu: "10.0".into(),
            sizes: BTreeMap::new(),
        };
        let load = |parts: &Parts| {
            fs::write(folder.path().join(STAMP), serde_json::to_vec(parts).unwrap()).unwrap();
            Parts::load(folder.path()).map_err(|error| error.to_string())
        };
        let error = load(&parts).unwrap_err();
        assert!(error.contains("is gone") && error.contains("lab clean"), "{error}");
        fs::create_dir(folder.path().join(ROOT)).unwrap();
        for part in [XEN, VMLINUX, DOM0] {
            fs::write(folder.path().join(part), "whole").unwrap();
            parts.sizes.insert(part.to_owned(), 5);
        }
        assert!(load(&parts).is_ok());
        for part in [XEN, VMLINUX, DOM0] {
            fs::write(folder.path().join(part), "who").unwrap();
            let error = load(&parts).unwrap_err();
            assert!(error.contains(part) && error.contains("3 bytes of 5"), "{error}");
            fs::write(folder.path().join(part), "whole").unwrap();
        }
    }

    #[test]
    fn the_newest_kernel_is_taken_and_links_are_not() {
        let boot = tempfile::tempdir().unwrap();
        for name in ["xen-4.17-amd64.gz", "xen-4.16-amd64.gz", "xen-4.17-amd64.config"] {
            fs::write(boot.path().join(name), "").unwrap();
        }
        std::os::unix::fs::symlink("xen-4.17-amd64.gz", boot.path().join("xen-z.gz")).unwrap();
        assert_eq!(
            newest(boot.path(), "xen-", ".gz", "x").unwrap(),
            boot.path().join("xen-4.17-amd64.gz")
        );
        assert!(
            newest(boot.path(), "vmlinuz-", "", "linux-image")
                .unwrap_err()
                .to_string()
                .contains("linux-image")
        );
    }
}
