//! Drives apt with a state of its own, so that it needs no root and touches nothing of the machine.
//!
//! Owns the `apt/` folder of the cache. apt believes that nothing is installed, so what it plans is
//! the full closure down to libc. Of the machine it uses the package sources, keys and the `Acquire`
//! settings (proxies); no hook and no pin of the machine is run or obeyed.

mod words;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use words::{complaints, parse_archive, parse_candidate, parse_dependencies, parse_source, remedy};

pub(super) use words::{Archive, Source, upstream};

use super::process::follow;
use super::{Error, Release};
use crate::leash::Leashed;
use crate::progress::Progress;

/// apt, ready to be asked.
pub(super) struct Apt {
    folder: PathBuf,
    /// What the last update complained about; the cause when a package is not found.
    complaints: String,
}

impl Apt {
    /// Sets up `folder` with the machine's package sources.
    pub(super) fn open(folder: &Path) -> Result<Self, Error> {
        let apt = Apt { folder: folder.into(), complaints: String::new() };
        let sources = apt.sources_folder();
        // Made anew each time: the machine's sources may have changed.
        drop(fs::remove_dir_all(&sources));
        for made in ["state/lists/partial", "cache/archives/partial", "sources"] {
            let made = folder.join(made);
            fs::create_dir_all(&made).map_err(Error::file("create the folder", &made))?;
        }
        let machine = MachineSettings::read()?;
        for (number, source) in machine.source_files.iter().enumerate() {
            let Some(extension) = source.extension().and_then(|text| text.to_str()) else {
                continue;
            };
            let link = sources.join(format!("machine-{number}.{extension}"));
            symlink(source, &link).map_err(Error::file("create the link", &link))?;
        }
        let config = configuration(folder, &machine.acquire);
        fs::write(apt.configuration_file(), config)
            .map_err(Error::file("write", apt.configuration_file()))?;
        let pins = apt.folder.join("preferences");
        fs::write(&pins, "").map_err(Error::file("write", &pins))?;
        Ok(apt)
    }

    /// Fetches the package lists. Lists that cannot be fetched are not an error yet: old ones serve.
    pub(super) fn update(&mut self) -> Result<(), Error> {
        let answer = self.run("apt-get", &["update"], &mut || {})?;
        self.complaints = complaints(&answer.err);
        Ok(())
    }

    /// The suites the machine takes packages from.
    pub(super) fn sources(&self) -> Result<Vec<Source>, Error> {
        const FORMAT: &str =
            "$(IDENTIFIER)|$(ARCHITECTURE)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)";
        let answer = self.run("apt-get", &["indextargets", "--format", FORMAT], &mut || {})?;
        Ok(answer.out.lines().filter_map(parse_source).collect())
    }

    /// The version of `package` that would be installed, if there is one.
    pub(super) fn candidate(&self, package: &str) -> Result<Option<String>, Error> {
        let answer = self.run("apt-cache", &["policy", package], &mut || {})?;
        Ok(parse_candidate(&answer.out))
    }

    /// Takes all packages from another release of the distribution, of the mirror the machine uses.
    pub(super) fn use_release(&mut self, release: &Release) -> Result<(), Error> {
        let sources = self.sources()?;
        let Some(machine) = own_release(&sources) else {
            return Err(Error::NoRelease { release: release.to_string() });
        };
        if machine.suite == release.as_str() {
            return Ok(());
        }
        let text = source_of(&machine.uri, &format!("{release} {release}-updates"));
        let folder = self.sources_folder();
        fs::remove_dir_all(&folder)
            .and_then(|()| fs::create_dir_all(&folder))
            .map_err(Error::file("empty", &folder))?;
        let path = folder.join("release.sources");
        fs::write(&path, text).map_err(Error::file("write", &path))?;
        self.update()
    }

    /// Adds the backports of the distribution's release and prefers them for `packages` alone.
    pub(super) fn add_backports(&mut self, packages: &str) -> Result<(), Error> {
        let sources = self.sources()?;
        if let Some(text) = backports(&sources) {
            let path = self.sources_folder().join("backports.sources");
            fs::write(&path, text).map_err(Error::file("write", &path))?;
            self.update()?;
        }
        let Some(suite) = self
            .sources()?
            .into_iter()
            .map(|source| source.suite)
            .find(|suite| suite.ends_with("-backports"))
        else {
            return Ok(());
        };
        let path = self.folder.join("preferences");
        let pins = format!(
            "Package: {packages}\nPin: release a={suite}\nPin-Priority: 990\n\nPackage: {packages}\nPin: release n={suite}\nPin-Priority: 990\n"
        );
        fs::write(&path, pins).map_err(Error::file("write", &path))
    }

    /// Everything that must be downloaded to have `packages` on an empty machine.
    pub(super) fn plan(&self, packages: &[&str]) -> Result<Vec<Archive>, Error> {
        // apt leaves out what its archives folder holds already, so it is shown an empty one.
        let empty = self.folder.join("empty");
        fs::create_dir_all(empty.join("partial"))
            .map_err(Error::file("create the folder", &empty))?;
        let empty = format!("Dir::Cache::archives={}/", empty.display());
        let arguments = [&["-y", "--print-uris", "-o", &empty, "install"], packages].concat();
        let answer = self.run("apt-get", &arguments, &mut || {})?;
        if !answer.good {
            return Err(
                self.failed(format!("planning the packages ({})", packages.join(" ")), &answer.err)
            );
        }
        let plan: Vec<Archive> = answer.out.lines().filter_map(parse_archive).collect();
        Ok(plan)
    }

    /// Downloads what is not there yet. An interrupted download goes on where it stopped.
    pub(super) fn download(
        &self,
        packages: &[&str],
        plan: &[Archive],
        progress: &Progress,
    ) -> Result<(), Error> {
        let total = plan.iter().map(|archive| archive.size).sum();
        let megabytes = total / 1_000_000;
        let step =
            progress.bytes(format!("downloading {} packages, {megabytes} MB", plan.len()), total);
        let archives = self.archives();
        let arguments = [&["-y", "--download-only", "install"], packages].concat();
        let answer = self.run("apt-get", &arguments, &mut || {
            step.position(plan.iter().map(|archive| present(&archives, archive)).sum());
        })?;
        let lacking = plan.iter().find(|archive| !complete(&archives, archive));
        if !answer.good || lacking.is_some() {
            let name = lacking.map_or("packages", |archive| &archive.package);
            return Err(self.failed(format!("downloading {name}"), &answer.err));
        }
        step.done(format!("downloaded {} packages, {megabytes} MB", plan.len()));
        Ok(())
    }

    /// The first package that `package` depends on.
    pub(super) fn first_dependency(&self, package: &str) -> Result<String, Error> {
        let found = self.dependencies(package)?;
        found.into_iter().next().ok_or_else(|| Error::Missing {
            what: format!("package {package}"),
            packages: "of the machine's package sources".into(),
        })
    }

    /// The packages that `package` itself depends on, of alternatives the first.
    pub(super) fn dependencies(&self, package: &str) -> Result<Vec<String>, Error> {
        let answer = self.run("apt-cache", &["depends", package], &mut || {})?;
        Ok(parse_dependencies(&answer.out))
    }

    /// Downloads exactly `packages`, in the versions that would be installed.
    pub(super) fn fetch(
        &self,
        packages: &[String],
        progress: &Progress,
    ) -> Result<Vec<Archive>, Error> {
        let names: Vec<&str> = packages.iter().map(String::as_str).collect();
        let asked =
            self.run("apt-get", &[&["--print-uris", "download"], &names[..]].concat(), &mut || {})?;
        let plan: Vec<Archive> = asked.out.lines().filter_map(parse_archive).collect();
        if !asked.good || plan.len() != packages.len() {
            return Err(
                self.failed(format!("planning the packages ({})", names.join(" ")), &asked.err)
            );
        }
        let archives = self.archives();
        if plan.iter().all(|archive| complete(&archives, archive)) {
            return Ok(plan);
        }
        let total = plan.iter().map(|archive| archive.size).sum();
        let what = format!("{} packages, {} MB", plan.len(), total / 1_000_000);
        let step = progress.bytes(format!("downloading {what}"), total);
        let mut command = Command::new("apt-get");
        // `download` writes where it is started.
        command.arg("download").args(&names).current_dir(&archives);
        command.env("APT_CONFIG", self.configuration_file());
        let answer = run("apt-get", &mut command, &mut || {
            step.position(plan.iter().map(|archive| present(&archives, archive)).sum());
        })?;
        let lacking = plan.iter().find(|archive| !complete(&archives, archive));
        if !answer.good || lacking.is_some() {
            let name = lacking.map_or("packages", |archive| &archive.package);
            return Err(self.failed(format!("downloading {name}"), &answer.err));
        }
        step.done(format!("downloaded {what}"));
        Ok(plan)
    }

    /// Where downloaded packages are.
    pub(super) fn archives(&self) -> PathBuf {
        self.folder.join("cache/archives")
    }

    fn sources_folder(&self) -> PathBuf {
        self.folder.join("sources")
    }

    fn configuration_file(&self) -> PathBuf {
        self.folder.join("apt.conf")
    }

    fn failed(&self, what: String, err: &str) -> Error {
        let words = [complaints(err), self.complaints.clone()].join("\n");
        Error::Apt { remedy: remedy(&words), what, words }
    }

    /// Runs one of apt's programs, calling `tick` several times a second.
    fn run(
        &self,
        program: &'static str,
        arguments: &[&str],
        tick: &mut dyn FnMut(),
    ) -> Result<Answer, Error> {
        let mut command = Command::new(program);
        command.args(arguments).env("APT_CONFIG", self.configuration_file());
        run(program, &mut command, tick)
    }
}

/// What a program of apt's said.
struct Answer {
    good: bool,
    out: String,
    err: String,
}

fn run(
    program: &'static str,
    command: &mut Command,
    tick: &mut dyn FnMut(),
) -> Result<Answer, Error> {
    // apt's words are parsed and shown: in one language.
    command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Leashed::spawn(command).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => Error::NoApt { program },
        _ => Error::File { what: "start", path: program.into(), cause },
    })?;
    let out = collect(child.child().stdout.take());
    let err = collect(child.child().stderr.take());
    let status = follow(&mut child, &mut || {
        tick();
        Ok(())
    })?;
    let text = |thread: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&thread.join().unwrap_or_default()).into_owned()
    };
    Ok(Answer { good: status.success(), out: text(out), err: text(err) })
}

/// Reads a pipe to its end in the background, so that the program never waits for this one.
fn collect(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A read error ends the text early; the exit status tells the rest.
            drop(pipe.read_to_end(&mut bytes));
        }
        bytes
    })
}

/// What is taken from the machine's own apt configuration.
struct MachineSettings {
    source_files: Vec<PathBuf>,
    acquire: String,
}

impl MachineSettings {
    fn read() -> Result<Self, Error> {
        let query = ["shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"];
        let answer = run("apt-config", Command::new("apt-config").args(query), &mut || {})?;
        let value = |name: &str| {
            let line =
                answer.out.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.map(|path| PathBuf::from(path.trim_matches('\'')))
        };
        let mut source_files: Vec<PathBuf> =
            value("LIST").into_iter().filter(|path| path.is_file()).collect();
        if let Some(parts) = value("PARTS") {
            let mut files: Vec<PathBuf> = fs::read_dir(&parts)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .collect();
            files.retain(|path| {
                path.extension().is_some_and(|text| text == "list" || text == "sources")
            });
            files.sort();
            source_files.extend(files);
        }
        let dump =
            run("apt-config", Command::new("apt-config").args(["dump", "Acquire"]), &mut || {})?;
        Ok(MachineSettings { source_files, acquire: acquire_settings(&dump.out) })
    }
}

/// The lines of `apt-config dump Acquire` that hold for any use of the network.
fn acquire_settings(dump: &str) -> String {
    let lines = dump
        .lines()
        .filter(|line| !line.starts_with("Acquire::IndexTargets") && !line.ends_with(" \"\";"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The whole configuration; nothing else is read.
fn configuration(folder: &Path, acquire: &str) -> String {
    let folder = folder.display();
    format!(
        r#"Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{folder}/sources";
Dir::Etc::preferences "{folder}/preferences";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{folder}/state";
Dir::State::status "/dev/null";
Dir::Cache "{folder}/cache";
Debug::NoLocking "1";
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Install-Recommends "0";
APT::Sandbox::User "";
Acquire::Languages "none";
{acquire}"#
    )
}

/// A source of the backports that belong to the machine's release, unless it has them already.
fn backports(sources: &[Source]) -> Option<String> {
    if sources.iter().any(|source| source.suite.ends_with("-backports")) {
        return None;
    }
    let release = own_release(sources)?;
    Some(source_of(&release.uri, &format!("{}-backports", release.suite)))
}

/// The machine's release itself: the suite without a suffix, of the distribution's own archive.
fn own_release(sources: &[Source]) -> Option<&Source> {
    sources.iter().find(|source| {
        source.origin == "Debian"
            && !source.suite.contains(['-', '/'])
            && source.component == "main"
    })
}

/// A package source in apt's own form.
fn source_of(uri: &str, suites: &str) -> String {
    let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let signed =
        if Path::new(keys).exists() { format!("Signed-By: {keys}\n") } else { String::new() };
    format!("Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\n{signed}")
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |data| data.len())
}

fn complete(archives: &Path, archive: &Archive) -> bool {
    size(&archives.join(&archive.file)) == archive.size
}

/// Bytes of an archive that are here, be it a part.
fn present(archives: &Path, archive: &Archive) -> u64 {
    size(&archives.join(&archive.file))
        .max(size(&archives.join("partial").join(&archive.file)))
        .min(archive.size)
}

/// Package names and versions of a plan.
pub(super) fn versions(plan: &[Archive]) -> BTreeMap<String, String> {
    plan.iter().map(|archive| (archive.package.clone(), archive.version.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::words::tests::source;
    use super::*;

    #[test]
    fn backports_come_from_the_machines_own_mirror() {
        let third_party = source("https://other.invalid/apt/", "bookworm", "Other");
        let updates = source("http://mirror.invalid/debian/", "bookworm-updates", "Debian");
        let release = source("http://mirror.invalid/debian/", "bookworm", "Debian");
        let text = backports(&[third_party.clone(), updates.clone(), release.clone()]).unwrap();
        assert!(
            text.contains("URIs: http://mirror.invalid/debian/\nSuites: bookworm-backports\n"),
            "{text}"
        );
        let there =
            source("http://mirror.invalid/debian/", "bookworm-backports", "Debian Backports");
        assert_eq!(backports(&[release, there]), None);
        assert_eq!(backports(&[third_party, updates]), None);
    }

    #[test]
    fn proxies_are_kept_and_index_settings_are_not() {
        let dump = "Acquire \"\";\nAcquire::http::Proxy \"http://proxy.invalid:3128\";\n\
            Acquire::IndexTargets::deb::DEP-11::MetaKey \"x\";\n";
        assert_eq!(acquire_settings(dump), "Acquire::http::Proxy \"http://proxy.invalid:3128\";\n");
    }
}
