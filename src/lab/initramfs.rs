//! Builds dom0's image: busybox, the Xen toolstack, the libraries they need, and a few modules.

use std::fs;
use std::path::{Path, PathBuf};

use super::Error;
use super::cpio::Archive;
use super::elf;
use super::modules::{self, Tree};

/// Where libraries are in dom0.
pub(super) const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

const INIT: &str = include_str!("dom0-init.sh");

/// The emulator in a KVM host: the lab's own, from the unpacked packages, which the host sees
/// read-only.
const NESTED_QEMU: &str = include_str!("nested-qemu.sh");

/// Modules that init loads at start.
const AT_START: [&str; 5] = ["xen-privcmd", "xenfs", "xen-evtchn", "xen-gntdev", "xen-gntalloc"];

/// Modules that init loads to bring results home.
const WAY_OUT: [&str; 3] = ["virtio_pci", "9pnet_virtio", "9p"];

/// Modules for those who work in dom0 by hand.
const AT_HAND: [&str; 6] =
    ["xen-blkback", "xen-netback", "xen-blkfront", "xen-netfront", "virtio_blk", "loop"];

/// The module that makes a KVM host.
const KVM: [&str; 1] = ["kvm-amd"];

/// Programs without which there is no host.
const TOOLS: [&str; 6] =
    ["xl", "xenstored", "xenconsoled", "xenconsole", "xentrace", "xen-init-dom0"];

/// Programs that help to look into one, where the release has them.
const EXTRAS: [&str; 11] = [
    "libxl-save-helper",
    "lsevtchn",
    "xen-cpuid",
    "xen-diag",
    "xen-hptool",
    "xenctx",
    "xenperf",
    "xenpm",
    "xenstore-control",
    "xentop",
    "xentrace_setsize",
];

/// `xenstore`'s other names.
const XENSTORE: [&str; 8] = ["ls", "read", "write", "list", "exists", "rm", "watch", "chmod"];

/// What the image was made of.
pub(super) struct Image {
    pub(super) archive: Archive,
    /// Sonames of the libraries in it.
    pub(super) libraries: Vec<String>,
}

/// Assembles the image from the unpacked packages in `root`, for the kernel `release`.
pub(super) fn assemble(root: &Path, release: &str) -> Result<Image, Error> {
    let mut archive = Archive::default();
    skeleton(&mut archive);
    let mut programs = Vec::new();

    let xen_bin = xen_programs(root)?;
    let inside = format!("/{}", xen_bin.strip_prefix(root).unwrap_or(&xen_bin).display());
    for tool in TOOLS.iter().chain(&EXTRAS) {
        let path = xen_bin.join(tool);
        if !path.is_file() {
            if TOOLS.contains(tool) {
                return Err(Error::Missing {
                    what: format!("program {tool}"),
                    packages: "xen-utils".into(),
                });
            }
            continue;
        }
        archive.file(&format!("{inside}/{tool}"), 0o755, &path);
        archive.symlink(&format!("/usr/sbin/{tool}"), &format!("{inside}/{tool}"));
        programs.push(path);
    }
    let xenstore = required(root, &["usr/bin/xenstore"], "xenstore-utils")?;
    archive.file("/usr/bin/xenstore", 0o755, &xenstore);
    for verb in XENSTORE {
        archive.symlink(&format!("/usr/bin/xenstore-{verb}"), "xenstore");
    }
    programs.push(xenstore);
    let busybox = required(root, &["usr/bin/busybox"], "busybox-static")?;
    archive.file("/usr/bin/busybox", 0o755, busybox);
    archive.symlink("/usr/bin/sh", "busybox");
    archive.file(
        "/etc/xen/xl.conf",
        0o644,
        required(root, &["etc/xen/xl.conf"], "xen-utils-common")?,
    );

    let mut libraries = elf::libraries(&programs, &[root], &|_| false)?;
    // Loaded by name when a thread is cancelled, so no program lists it: without it xl aborts.
    let late = "libgcc_s.so.1";
    let path = elf::find(late, &[root]).ok_or_else(|| Error::Missing {
        what: format!("library {late}"),
        packages: "libgcc-s1".into(),
    })?;
    libraries.insert(late.into(), path);
    for (name, path) in &libraries {
        archive.file(&library_place(name), 0o755, path);
    }

    let tree = Tree::scan(&root.join("usr/lib/modules").join(release))?;
    let modules = tree.closure(&[&AT_START[..], &WAY_OUT, &AT_HAND, &KVM].concat())?;
    let folder = format!("/usr/lib/modules/{release}");
    archive.bytes(&format!("{folder}/modules.dep"), 0o644, modules::dependencies(&modules));
    for module in modules {
        archive.bytes(&format!("{folder}/{}", module.path), 0o644, module.bytes);
    }
    let load = |names: &[&str]| match tree.separate(names) {
        // All of them are part of the kernel.
        names if names.is_empty() => ":".into(),
        names => format!("modprobe -a {}", names.join(" ")),
    };
    let init = [
        ("XEN_BIN", inside),
        ("LOAD_AT_START", load(&AT_START)),
        ("LOAD_WAY_OUT", load(&WAY_OUT)),
        ("LOAD_KVM", load(&KVM)),
    ];
    let init = init.iter().fold(INIT.to_owned(), |text, (name, value)| text.replace(name, value));
    archive.bytes("/init", 0o755, init);
    archive.bytes("/usr/bin/qemu-system-x86_64", 0o755, NESTED_QEMU);
    Ok(Image { archive, libraries: libraries.into_keys().collect() })
}

/// Where a library goes in dom0. The dynamic linker has its own place, written into every program.
pub(super) fn library_place(name: &str) -> String {
    if name.starts_with("ld-linux") {
        format!("/usr/lib64/{name}")
    } else {
        format!("{LIBRARIES}/{name}")
    }
}

/// Folders of dom0 that are links, and where they lead from the root.
const LINKS: [(&str, &str); 6] = [
    ("bin", "usr/bin"),
    ("sbin", "usr/sbin"),
    ("lib", "usr/lib"),
    ("lib64", "usr/lib64"),
    ("var/run", "run"),
    ("var/lock", "run/lock"),
];

/// Where a file that is to be `path` in dom0 goes in an archive behind dom0's own: a folder there
/// would take the place of a link of this name, and dom0 would not find its own programs any more.
pub(super) fn resolved(path: &str) -> String {
    let path = path.trim_start_matches('/');
    let behind = |(link, target): &(&str, &str)| {
        let rest = path.strip_prefix(link)?.strip_prefix('/')?;
        Some(format!("/{target}/{rest}"))
    };
    LINKS.iter().find_map(behind).unwrap_or_else(|| format!("/{path}"))
}

fn skeleton(archive: &mut Archive) {
    for (link, target) in LINKS {
        if target.starts_with("usr/") {
            archive.directory(&format!("/{target}"));
        }
        let up = "../".repeat(link.matches('/').count());
        archive.symlink(&format!("/{link}"), &format!("{up}{target}"));
    }
    for folder in [
        "/dev",
        "/mnt",
        "/out",
        "/proc",
        "/root",
        "/run",
        "/sys",
        "/tmp",
        "/var/lib/xen",
        "/var/lib/xenstored",
        "/var/log/xen",
    ] {
        archive.directory(folder);
    }
    archive.bytes("/etc/passwd", 0o644, "root:x:0:0::/root:/bin/sh\n");
    archive.bytes("/etc/group", 0o644, "root:x:0:\n");
}

/// `usr/lib/xen-VERSION/bin`.
fn xen_programs(root: &Path) -> Result<PathBuf, Error> {
    let mut found: Vec<PathBuf> = fs::read_dir(root.join("usr/lib"))
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("xen-"))
        .map(|entry| entry.path().join("bin"))
        .filter(|path| path.join("xl").is_file())
        .collect();
    found.sort();
    found
        .pop()
        .ok_or_else(|| Error::Missing { what: "program xl".into(), packages: "xen-utils".into() })
}

/// The first of `names` that is a file below `root`.
fn required(root: &Path, names: &[&str], package: &str) -> Result<PathBuf, Error> {
    names
        .iter()
        .map(|name| root.join(name))
        .find(|path| path.is_file())
        .ok_or_else(|| Error::Missing { what: names.join(" or "), packages: package.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program placed in /bin took the place of the link to /usr/bin, and dom0 had no shell.
    #[test]
    fn a_file_behind_a_link_does_not_replace_the_link() {
        for (path, place) in [
            ("/bin/pvlab", "/usr/bin/pvlab"),
            ("/lib64/x/y.so", "/usr/lib64/x/y.so"),
            ("/var/run/a", "/run/a"),
            ("/binary", "/binary"),
            ("/root/bin/a", "/root/bin/a"),
            ("/bin", "/bin"),
        ] {
            assert_eq!(resolved(path), place);
        }
    }

    #[test]
    fn init_opens_the_way_out_only_after_the_script() {
        let script = INIT.find("sh /pvlab/run").unwrap();
        // Before it there is only what a host without Xen does, or one whose boot is asked to be
        // live.
        let (begin, end) = (INIT.find("up_kvm()").unwrap(), INIT.find("live=no").unwrap());
        for words in ["mount $SHARE", "LOAD_WAY_OUT"] {
            let places: Vec<_> = INIT.match_indices(words).map(|(at, _)| at).collect();
            assert!(places.iter().any(|at| *at > script));
            assert!(places.iter().all(|at| *at > script || (begin..end).contains(at)), "{words}");
        }
    }

    #[test]
    fn an_empty_folder_names_the_first_package_it_lacks() {
        let empty = tempfile::tempdir().unwrap();
        let error = assemble(empty.path(), "6.1").err().unwrap().to_string();
        assert!(error.contains("program xl") && error.contains("xen-utils"), "{error}");
    }

    #[test]
    fn the_dynamic_linker_is_where_programs_look_for_it() {
        assert_eq!(library_place("ld-linux-x86-64.so.2"), "/usr/lib64/ld-linux-x86-64.so.2");
        assert_eq!(library_place("libc.so.6"), "/usr/lib/x86_64-linux-gnu/libc.so.6");
    }
}
