//! What apt says, as values.
//!
//! Owns the forms of its output: sources, plans, candidates, dependencies, and which of its
//! complaints calls for which remedy. It starts nothing.

/// A package source of the machine: one suite of one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Source {
    pub(super) uri: String,
    pub(super) suite: String,
    pub(super) component: String,
    pub(super) origin: String,
}

/// A package to be downloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Archive {
    pub(in super::super) package: String,
    pub(in super::super) version: String,
    /// Name in the archives folder.
    pub(in super::super) file: String,
    /// Bytes.
    pub(in super::super) size: u64,
}

/// A line of `apt-get indextargets` in the format of [`Apt::sources`](super::Apt::sources).
pub(super) fn parse_source(line: &str) -> Option<Source> {
    let mut fields = line.split('|');
    let mut next = || fields.next();
    let (identifier, architecture) = (next()?, next()?);
    let (uri, suite, component, origin) = (next()?, next()?, next()?, next()?);
    (identifier == "Packages" && architecture == "amd64").then(|| Source {
        uri: uri.into(),
        suite: suite.into(),
        component: component.into(),
        origin: origin.into(),
    })
}

/// `  Candidate: 1:7.2+dfsg-7`; `(none)` for a package that is known but not to be had.
pub(super) fn parse_candidate(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.into())
}

/// Lines `  Depends: NAME`; a `|` before it says that the next line is an alternative.
pub(super) fn parse_dependencies(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut alternative = false;
    for line in text.lines().map(str::trim) {
        let (first, rest) = match line.strip_prefix('|') {
            Some(rest) => (true, rest),
            None => (false, line),
        };
        let Some(name) = rest.strip_prefix("Depends: ") else { continue };
        if !alternative {
            names.push(name.to_owned());
        }
        alternative = first;
    }
    names
}

/// `'URI' FILE SIZE HASH`, FILE being `NAME_VERSION_ARCHITECTURE.deb`.
pub(super) fn parse_archive(line: &str) -> Option<Archive> {
    let rest = line.strip_prefix('\'')?.split_once("' ")?.1;
    let mut words = rest.split_whitespace();
    let (file, size) = (words.next()?, words.next()?.parse().ok()?);
    let mut parts = file.strip_suffix(".deb")?.split('_');
    let (package, version) = (parts.next()?, parts.next()?);
    Some(Archive {
        package: package.into(),
        version: version.replace("%3a", ":"),
        file: file.into(),
        size,
    })
}

/// The lines apt marks as errors or warnings.
pub(super) fn complaints(err: &str) -> String {
    let marked = err.lines().filter(|line| line.starts_with("E:") || line.starts_with("W:"));
    let lines: Vec<&str> = marked.collect();
    if lines.is_empty() { err.trim().into() } else { lines.join("\n") }
}

/// What to do about a failure that apt told in these `words`.
pub(super) fn remedy(words: &str) -> &'static str {
    let any = |signs: &[&str]| signs.iter().any(|sign| words.contains(sign));
    if any(&["No space left", "enough free space", "Write error"]) {
        "free some space, or set PVLAB_CACHE to a folder on a larger disk"
    } else if any(&[
        "Could not resolve",
        "Temporary failure",
        "Could not connect",
        "Unable to connect",
        "Connection failed",
        "Connection timed out",
        "Network is unreachable",
        "Cannot initiate the connection",
    ]) {
        "check the network and the proxy settings of apt, then try again: what is downloaded is kept"
    } else if any(&[
        "Unable to locate package",
        "has no installation candidate",
        "unmet dependencies",
        "held broken packages",
    ]) {
        "see that the machine's package sources hold this release's main archive (on Ubuntu, universe too) and offer the package"
    } else if any(&["NO_PUBKEY", "is not signed", "EXPKEYSIG"]) {
        "install or renew the archive's keyring (debian-archive-keyring), then try again"
    } else {
        "see that `apt-get update` works on this machine, then try again: what is downloaded is kept"
    }
}

/// The leading two numbers of a version's upstream part: `1:10.0.2+ds-2` is 10 and 0.
pub(in super::super) fn upstream(version: &str) -> Option<(u32, u32)> {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    let mut numbers = upstream.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next().and_then(Result::ok).unwrap_or(0)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn source(uri: &str, suite: &str, origin: &str) -> Source {
        Source {
            uri: uri.into(),
            suite: suite.into(),
            component: "main".into(),
            origin: origin.into(),
        }
    }

    #[test]
    fn reads_a_plan() {
        let text = "Reading package lists...\n\
            The following NEW packages will be installed:\n  busybox-static\n\
            'http://mirror.invalid/pool/b/busybox-static_1.35.0-4%2bdeb12u1%2bb1_amd64.deb' \
            busybox-static_1%3a1.35.0-4+deb12u1+b1_amd64.deb 928188 MD5Sum:04c4\n\
            'http://mirror.invalid/pool/q/seabios_1.16.3-2_all.deb' seabios_1.16.3-2_all.deb 164452 \n";
        let plan: Vec<Archive> = text.lines().filter_map(parse_archive).collect();
        let expected = [
            (
                "busybox-static",
                "1:1.35.0-4+deb12u1+b1",
                "busybox-static_1%3a1.35.0-4+deb12u1+b1_amd64.deb",
                928_188,
            ),
            ("seabios", "1.16.3-2", "seabios_1.16.3-2_all.deb", 164_452),
        ];
        let expected = expected.map(|(package, version, file, size)| Archive {
            package: package.into(),
            version: version.into(),
            file: file.into(),
            size,
        });
        assert_eq!(plan, expected);
    }

    #[test]
    fn reads_the_candidate() {
        let policy =
            "qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7\n  Version table:\n";
        assert_eq!(parse_candidate(policy).as_deref(), Some("1:7.2+dfsg-7"));
        assert_eq!(parse_candidate("x:\n  Installed: (none)\n  Candidate: (none)\n"), None);
        assert_eq!(parse_candidate(""), None);
    }

    #[test]
    fn reads_dependencies_and_of_alternatives_the_first() {
        let text = "linux-headers-6.1.0-9-amd64\n  Depends: linux-headers-6.1.0-9-common\n |Depends: gcc-14\n  \
                    Depends: gcc-13\n  Recommends: x\n  Depends: linux-kbuild-6.1\n";
        assert_eq!(
            parse_dependencies(text),
            ["linux-headers-6.1.0-9-common", "gcc-14", "linux-kbuild-6.1"]
        );
    }

    #[test]
    fn compares_upstream_versions_by_number() {
        assert_eq!(upstream("1:7.2+dfsg-7+deb12u18+b3"), Some((7, 2)));
        assert_eq!(upstream("1:10.0.2+ds-2+deb13u1~bpo12+1"), Some((10, 0)));
        assert_eq!(upstream("9"), Some((9, 0)));
        assert_eq!(upstream("unknown"), None);
        assert!(upstream("1:10.0.2") > upstream("1:8.1.0"));
    }

    #[test]
    fn reads_the_machines_sources() {
        let line = "Packages|amd64|http://mirror.invalid/debian/|bookworm|main|Debian";
        assert_eq!(
            parse_source(line),
            Some(source("http://mirror.invalid/debian/", "bookworm", "Debian"))
        );
        assert_eq!(
            parse_source("Translations|amd64|http://mirror.invalid/|bookworm|main|Debian"),
            None
        );
        assert_eq!(parse_source("Packages|amd64"), None);
    }

    #[test]
    fn each_failure_has_its_remedy() {
        let remedies = [
            ("W: Failed to fetch http://x  Could not resolve 'x'", "network"),
            ("E: Unable to locate package xen-system-amd64", "package sources"),
            ("E: You don't have enough free space in /x/.", "PVLAB_CACHE"),
            ("W: GPG error: http://x InRelease: NO_PUBKEY 0E98", "keyring"),
            ("E: something else", "apt-get update"),
        ];
        for (words, part) in remedies {
            assert!(remedy(words).contains(part), "{words}: {}", remedy(words));
        }
    }

    #[test]
    fn only_marked_lines_are_shown() {
        let err = "Reading...\nW: one\nnoise\nE: two\n";
        assert_eq!(complaints(err), "W: one\nE: two");
        assert_eq!(complaints("dpkg was not found\n"), "dpkg was not found");
    }
}
