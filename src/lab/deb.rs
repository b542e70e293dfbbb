//! Unpacks Debian packages into a folder, without dpkg and without root.
//!
//! Only what a host needs is written; documentation, translations and interpreters are left out.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use super::Error;
use super::kernel::unzstd;
use crate::interrupt;
use crate::progress::Step;

/// Top folders that current releases keep below `usr/`; older packages still name them at the top.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

const WANTED: [&str; 14] = [
    "bin/busybox",
    "boot/",
    "etc/xen/",
    "lib/",
    "lib64/",
    "sbin/",
    "usr/bin/busybox",
    "usr/bin/qemu-system-x86_64",
    "usr/bin/xen",
    "usr/lib/",
    "usr/lib64/",
    "usr/sbin/",
    "usr/share/",
    "usr/src/",
];

const UNWANTED: [&str; 14] = [
    "lib/firmware/",
    "lib/systemd/",
    "lib/udev/",
    "usr/lib/debug/",
    "usr/lib/firmware/",
    "usr/lib/python",
    "usr/lib/systemd/",
    "usr/lib/udev/",
    "usr/share/doc/",
    "usr/share/iso-codes/",
    "usr/share/locale/",
    "usr/share/man/",
    "usr/share/python",
    "usr/share/zoneinfo/",
];

/// Unpacks `packages` into `root`, which must be empty or new, on two threads.
pub(super) fn unpack_all(packages: &[PathBuf], root: &Path, step: &Step) -> Result<(), Error> {
    for folder in MERGED {
        let folder = Path::new(folder);
        let target = Path::new("usr").join(folder);
        fs::create_dir_all(root.join(&target))
            .map_err(Error::file("create the folder", root.join(&target)))?;
        symlink(&target, root.join(folder))
            .map_err(Error::file("create the link", root.join(folder)))?;
    }
    // The largest first, so that the last one does not run alone.
    let mut queue: Vec<&PathBuf> = packages.iter().collect();
    queue.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).map_or(0, |data| data.len())));
    let queue = Mutex::new(VecDeque::from(queue));
    let next = || queue.lock().ok().and_then(|mut queue| queue.pop_front());
    let work = || -> Result<(), Error> {
        while let Some(package) = next() {
            interrupt::check()?;
            unpack(package, root).map_err(|error| failed(package, root, &error))?;
            step.advance(1);
        }
        Ok(())
    };
    thread::scope(|scope| {
        let other = scope.spawn(work);
        let mine = work();
        let other = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        mine.and(other)
    })
}

/// A full disk is the folder's trouble, anything else the package's.
fn failed(package: &Path, root: &Path, error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::StorageFull {
        return Error::file("unpack packages into", root)(io::ErrorKind::StorageFull.into());
    }
    let mut what = format!("cannot be unpacked: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        what = format!("{what}: {error}");
        cause = error.source();
    }
    Error::Damaged { path: package.into(), what }
}

/// A .deb is an ar archive; its member `data.tar.*` holds the files (deb(5)).
fn unpack(package: &Path, root: &Path) -> io::Result<()> {
    let mut members = ar::Archive::new(BufReader::new(File::open(package)?));
    while let Some(member) = members.next_entry() {
        let member = member?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        let Some(packing) = name.strip_prefix("data.tar") else { continue };
        return match packing {
            "" => unpack_tar(member, root),
            ".gz" => unpack_tar(flate2::read::GzDecoder::new(member), root),
            ".xz" => unpack_tar(liblzma::read::XzDecoder::new(member), root),
            ".zst" => unpack_tar(unzstd(member)?, root),
            other => Err(io::Error::other(format!(
                "its data is packed as {other}, which the lab does not know"
            ))),
        };
    }
    Err(io::Error::other("it holds no data.tar"))
}

fn unpack_tar(data: impl Read, root: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(data);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let path = path.strip_prefix(".").unwrap_or(&path);
        let Some(name) = path.to_str() else { continue };
        // Folders come with the files in them; a link to a merged folder is there already.
        if entry.header().entry_type().is_dir() || MERGED.contains(&name) || !is_wanted(name) {
            continue;
        }
        if !entry.unpack_in(root)? {
            return Err(io::Error::other(format!("{name} would leave the folder")));
        }
    }
    Ok(())
}

fn is_wanted(name: &str) -> bool {
    let starts = |list: &[&str]| list.iter().any(|prefix| name.starts_with(prefix));
    starts(&WANTED) && !starts(&UNWANTED)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;
    use crate::progress::Progress;

    fn package(folder: &Path, name: &str, member: &str, data: &[u8]) -> PathBuf {
        let path = folder.join(name);
        let mut archive = ar::Builder::new(File::create(&path).unwrap());
        let mut add = |name: &str, data: &[u8]| {
            archive.append(&ar::Header::new(name.into(), data.len() as u64), data).unwrap();
        };
        add("debian-binary", b"2.0\n");
        add("control.tar.xz", b"");
        add(member, data);
        path
    }

    fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, data) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o755);
            // Not through append_data: a hostile name must get as far as the reader.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, *data).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn wanted_files_arrive_where_merged_systems_keep_them() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        let data = tar_of(&[
            ("./lib/modules/a.ko", b"a"),
            ("./usr/share/doc/x", b"x"),
            ("./usr/bin/python3", b"p"),
        ]);
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(&data).unwrap();
        let one = package(folder.path(), "one.deb", "data.tar.xz", &xz.finish().unwrap());
        let two =
            compress_to_vec(&tar_of(&[("./bin/busybox", b"b")])[..], CompressionLevel::Fastest);
        let two = package(folder.path(), "two.deb", "data.tar.zst", &two);
        let step = Progress::hidden().step("");
        unpack_all(&[one, two], &root, &step).unwrap();
        assert_eq!(fs::read(root.join("usr/lib/modules/a.ko")).unwrap(), b"a");
        assert_eq!(fs::read(root.join("usr/bin/busybox")).unwrap(), b"b");
        assert!(!root.join("usr/share").exists() && !root.join("usr/bin/python3").exists());
    }

    #[test]
    fn a_package_that_is_cut_off_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let whole =
            package(folder.path(), "cut.deb", "data.tar", &tar_of(&[("./lib/a", &[7; 4000])]));
        let bytes = fs::read(&whole).unwrap();
        for cut in [4, 100, 700, 3000] {
            fs::write(&whole, &bytes[..cut]).unwrap();
            let root = folder.path().join(format!("root-{cut}"));
            let step = Progress::hidden().step("");
            let error =
                unpack_all(std::slice::from_ref(&whole), &root, &step).unwrap_err().to_string();
            assert!(error.contains("cut.deb") && error.contains("lab clean"), "{error}");
        }
    }

    #[test]
    fn a_name_that_leaves_the_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let evil = package(
            folder.path(),
            "evil.deb",
            "data.tar",
            &tar_of(&[("lib/../../../escaped", b"!")]),
        );
        let step = Progress::hidden().step("");
        let result = unpack_all(&[evil], &folder.path().join("a/b/root"), &step);
        assert!(result.is_err());
        assert!(
            !folder.path().join("a/escaped").exists() && !folder.path().join("escaped").exists()
        );
    }
}
