//! The lab's own Linux domain: the release's cloud kernel, its headers, and the module built against them.
//!
//! Owns which packages these are and the folder in the cache they end up in. Names are resolved through
//! metapackages, so the version is the release's. Nothing is installed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::apt::{self, Apt};
use super::{Error, Lab, deb, qemu};
use crate::linux::{Files, INIT, Ingredients, SOURCES, build};
use crate::progress::Progress;

/// Goes up by one whenever files made by an older pvlab would no longer do, sources aside.
const RECIPE: u32 = 1;

/// Resolve to the packages of one version.
const IMAGE: &str = "linux-image-cloud-amd64";
const HEADERS: &str = "linux-headers-cloud-amd64";

const KERNEL: &str = "vmlinux";
const INITRD: &str = "initrd.cpio";
/// Written last: a folder with it is finished. Package versions by name.
const STAMP: &str = "linux.json";

impl Lab {
    /// Checks that Linux boots as PVH here.
    ///
    /// # Errors
    ///
    /// If the emulator is one that misreads CR2.
    pub fn check_pvh_linux(&self) -> Result<(), Error> {
        match qemu::misreads_cr2(&self.parts.qemu) {
            true => Err(Error::PvhLinux { qemu: self.parts.qemu.clone() }),
            false => Ok(()),
        }
    }

    /// The files of Linux domains, made once: download 40 MB, compile one module.
    ///
    /// # Errors
    ///
    /// As [`Lab::prepare`]; and without gcc and make.
    pub fn linux(&self, progress: &Progress) -> Result<Files, Error> {
        let folder = self.cache.folder().join(name());
        if let Some(found) = load(&folder)? {
            return Ok(found);
        }
        let _lock = self.cache.lock(progress)?;
        // Another process may have made them while this one waited.
        if let Some(found) = load(&folder)? {
            return Ok(found);
        }
        self.make_linux(&folder, progress)
    }

    fn make_linux(&self, folder: &Path, progress: &Progress) -> Result<Files, Error> {
        let building = tempfile::tempdir_in(self.cache.folder())
            .map_err(Error::file("create the folder", self.cache.folder()))?;
        let step = progress.step("asking apt for a Linux kernel and its headers");
        let mut apt = Apt::open(&self.cache.apt(None))?;
        apt.update()?;
        let image = apt.first_dependency(IMAGE)?;
        let headers = apt.first_dependency(HEADERS)?;
        let mut packages = apt.dependencies(&headers)?;
        // Not the compiler: the machine's own will do.
        packages.retain(|name| {
            ["linux-headers-", "linux-kbuild-"].iter().any(|is| name.starts_with(is))
        });
        packages.extend([image.clone(), headers.clone()]);
        drop(step);
        let archives = apt.fetch(&packages, progress)?;

        let step = progress.step("building the module for Linux");
        let root = building.path().join("root");
        let files: Vec<PathBuf> =
            archives.iter().map(|archive| apt.archives().join(&archive.file)).collect();
        fs::create_dir_all(&root).map_err(Error::file("create the folder", &root))?;
        deb::unpack_all(&files, &root, &step)?;
        let tree = root.join("usr/src").join(&headers);
        // It names the common headers by the place they would be installed in.
        let makefile = tree.join("Makefile");
        let text = fs::read_to_string(&makefile).map_err(Error::file("read", &makefile))?;
        let here = format!("{}/usr/src/", root.display());
        fs::write(&makefile, text.replace("/usr/src/", &here))
            .map_err(Error::file("write", &makefile))?;
        let version = image.trim_start_matches("linux-image-");
        let mut files = build(
            &Ingredients {
                kernel: &root.join(format!("boot/vmlinuz-{version}")),
                tree: &tree,
                busybox: &self.root().join("usr/bin/busybox"),
                libraries: Some(&self.libelf(building.path())?),
            },
            &building.path().join("module"),
        )
        .map_err(|error| Error::Setting(format!("{error:#}")))?;

        files.packages = apt::versions(&archives);
        let write = |name: &str, bytes: &[u8]| {
            let path = building.path().join(name);
            fs::write(&path, bytes).map_err(Error::file("write", &path))
        };
        write(KERNEL, &files.kernel)?;
        write(INITRD, &files.initrd)?;
        let stamp = serde_json::to_vec_pretty(&files.packages)
            .map_err(|error| Error::file("write", STAMP)(error.into()))?;
        write(STAMP, &stamp)?;
        for done in ["root", "module", "libraries"] {
            let path = building.path().join(done);
            fs::remove_dir_all(&path).map_err(Error::file("remove", &path))?;
        }
        let building = building.keep();
        fs::rename(&building, folder).map_err(Error::file("put in place", folder))?;
        step.done(format!("built the module for Linux {version}"));
        Ok(files)
    }

    /// A folder with the one library that the headers' programs need and a machine may lack.
    fn libelf(&self, building: &Path) -> Result<PathBuf, Error> {
        let folder = building.join("libraries");
        fs::create_dir_all(&folder).map_err(Error::file("create the folder", &folder))?;
        if let Some(library) = super::elf::find("libelf.so.1", &[&self.root()]) {
            let link = folder.join("libelf.so.1");
            symlink(library, &link).map_err(Error::file("create the link", &link))?;
        }
        Ok(folder)
    }
}

/// The folder's name says what it was made by.
fn name() -> String {
    let mut sum = flate2::Crc::new();
    for (name, text) in SOURCES.iter().chain(&[("init", INIT)]) {
        sum.update(name.as_bytes());
        sum.update(text.as_bytes());
    }
    format!("linux-{RECIPE}-{:08x}", sum.sum())
}

fn load(folder: &Path) -> Result<Option<Files>, Error> {
    let stamp = folder.join(STAMP);
    let Ok(text) = fs::read(&stamp) else { return Ok(None) };
    let packages = serde_json::from_slice(&text)
        .map_err(|error| Error::Damaged { path: stamp, what: error.to_string() })?;
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read(&path).map_err(Error::file("read", &path))
    };
    let (kernel, initrd) = (read(KERNEL)?, read(INITRD)?);
    let places = crate::linux::budget::find(&kernel).map_err(|error| format!("{error:#}"));
    Ok(Some(Files { kernel, initrd, places, pause: true, packages }))
}
