//! What to run: scenarios, read from `xl-configs/`.
//!
//! A scenario is a folder: one `NAME.cfg` a domain, each a plain file a person can give to
//! `xl create`, and one `scenario.toml` with what xl has no word for. Owns the reading and checking of
//! both; what a guest may be asked for is [`experiment`]'s. It starts nothing and knows no Xen host.

mod xl_config;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use experiment::{Line, MAX_VCPUS, ParamError, Params};
use include_dir::{Dir, include_dir};
use serde::Deserialize;

pub use xl_config::{ConfigError, Value, XlConfig};

/// Settings of xl by which something else would run than the table says.
const REFUSED: [(&str, &str); 11] = [
    ("cmdline", "xl then ignores `extra`: write the words into `extra`"),
    ("root", "write what the guest is to do into `extra`"),
    ("ramdisk", "the guest image needs none: leave it out"),
    ("bootloader", "pvlab starts its own image: leave it out, and use --image for another"),
    ("bootloader_args", "pvlab starts its own image: leave it out"),
    ("firmware", "pvlab starts its own image: leave it out"),
    ("firmware_override", "pvlab starts its own image: leave it out"),
    ("builder", "use `type`"),
    ("pvshim", "write `type = \"pv\"` or `type = \"pvh\"` alone"),
    ("pvshim_path", "leave it out"),
    ("device_model_override", "the guest needs no device model: leave it out"),
];

/// Bytes of a domain's name: it becomes part of file names.
const LONGEST_NAME: usize = 64;
/// MiB of a domain's memory.
const MOST_MEMORY_MIB: u64 = 16_384;
/// pCPUs of the lab, without dom0's.
const MOST_PCPUS: u32 = 63;
/// Eleven days: longer than any run, and nowhere near what a clock can hold.
const LONGEST_DEADLINE: u64 = 1_000_000;

static EMBEDDED: Dir<'static> = include_dir!("$CARGO_MANIFEST_DIR/xl-configs");

/// A set of domains that run together.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The folder's name.
    pub name: String,
    /// What it is for, in a sentence.
    pub description: String,
    /// How many pCPUs the domains share; dom0 has one more for itself.
    pub pcpus: u32,
    /// How long one policy may take, from the first `xl create` to the last result.
    pub deadline: Duration,
    /// The domains, in the order of their files' names.
    pub domains: Vec<Domain>,
}

/// One domain of a scenario.
#[derive(Clone, Debug)]
pub struct Domain {
    /// `name` in its configuration.
    pub name: String,
    /// Its configuration file.
    pub config: XlConfig,
    /// Its `extra`: what the guest is asked to do.
    pub workload: Line,
}

/// A place where scenarios are kept.
#[derive(Clone, Debug)]
pub enum Library {
    /// The scenarios that are part of this program.
    Embedded,
    /// A folder like `xl-configs/`.
    Folder(PathBuf),
}

/// The file that makes a folder a scenario.
const ABOUT: &str = "scenario.toml";

/// What is in [`ABOUT`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    description: String,
    pcpus: u64,
    deadline_seconds: u64,
}

impl Library {
    /// The names of all scenarios here, sorted; at least one.
    ///
    /// ```
    /// let names = pvlab::scenario::Library::Embedded.names().unwrap();
    /// assert!(names.contains(&"overcommit-2x".to_owned()));
    /// ```
    ///
    /// # Errors
    ///
    /// If the folder cannot be read, or has no scenario in it.
    pub fn names(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = match self {
            Library::Embedded => EMBEDDED.dirs().filter_map(|dir| file_name(dir.path())).collect(),
            Library::Folder(folder) => files(folder)?
                .into_iter()
                .filter(|path| path.join(ABOUT).is_file())
                .filter_map(|path| file_name(&path))
                .collect(),
        };
        if names.is_empty() {
            bail!(
                "there is no scenario{}; a scenario is a folder in it, with {ABOUT} and a NAME.cfg for each domain",
                self.place()
            );
        }
        names.sort();
        Ok(names)
    }

    /// Reads and checks one scenario.
    ///
    /// # Errors
    ///
    /// If there is none of that name (the error lists those there are), or if one of its files is
    /// broken (the error names file, line and remedy).
    pub fn load(&self, name: &str) -> Result<Scenario> {
        let names = self.names()?;
        if !names.iter().any(|known| known == name) {
            let place = self.place();
            bail!("there is no scenario `{name}`{place}; choose one of: {}", names.join(", "));
        }
        let mut about = None;
        let mut domains: Vec<Domain> = Vec::new();
        for (file, text) in self.texts(name)? {
            if Path::new(&file).ends_with(ABOUT) {
                about = Some(about_of(&file, &text)?);
            } else if file.ends_with(".cfg") {
                let domain = Domain::parse(&file, &text)?;
                if let Some(twin) = domains.iter().find(|other| other.name == domain.name) {
                    let Domain { name, config, .. } = &domain;
                    return Err(config
                        .error(
                            "name",
                            format!("{} has the same domain name `{name}`", twin.config.file()),
                            "give each domain a name of its own",
                        )
                        .into());
                }
                domains.push(domain);
            }
        }
        let about = about.with_context(|| format!("scenario `{name}` has no {ABOUT}"))?;
        if domains.is_empty() {
            bail!("scenario `{name}` has no domain; add a NAME.cfg to its folder");
        }
        Ok(Scenario {
            name: name.to_owned(),
            description: about.description,
            // It was found to be small.
            pcpus: about.pcpus as u32,
            deadline: Duration::from_secs(about.deadline_seconds),
            domains,
        })
    }

    /// ` in FOLDER`, for messages; nothing for what is inside this program.
    pub(crate) fn place(&self) -> String {
        match self {
            Library::Embedded => String::new(),
            Library::Folder(folder) => format!(" in {}", folder.display()),
        }
    }

    /// The files of a scenario in the order of their names: path as a person would write it, text.
    /// Others may lie beside them, such as a kernel.
    fn texts(&self, name: &str) -> Result<Vec<(String, String)>> {
        let mut texts = Vec::new();
        match self {
            Library::Embedded => {
                for file in EMBEDDED.get_dir(name).into_iter().flat_map(Dir::files) {
                    let path = format!("xl-configs/{}", file.path().display());
                    let text =
                        file.contents_utf8().with_context(|| format!("{path} is not UTF-8"))?;
                    texts.push((path, text.to_owned()));
                }
            }
            Library::Folder(folder) => {
                let read = |path: &PathBuf| {
                    path.is_file()
                        && (path.ends_with(ABOUT) || path.extension().is_some_and(|e| e == "cfg"))
                };
                for path in files(&folder.join(name))?.into_iter().filter(read) {
                    let bytes = fs::read(&path)
                        .with_context(|| format!("cannot read {}", path.display()))?;
                    texts.push((path.display().to_string(), text_of(&path, bytes)?));
                }
            }
        }
        texts.sort();
        Ok(texts)
    }
}

impl Scenario {
    /// Whether every domain's `cpus` names pCPUs that a lab of this scenario has: dom0's, which is
    /// 0, and [`pcpus`](Scenario::pcpus) more. A real host may have others.
    ///
    /// # Errors
    ///
    /// The first that does not, at the line of the configuration's `cpus`.
    pub fn fits_the_lab(&self) -> Result<(), ConfigError> {
        for Domain { config, .. } in &self.domains {
            let largest = config.get("cpus").and_then(largest_pcpu);
            if let Some(cpu) = largest.filter(|cpu| *cpu > self.pcpus.into()) {
                return Err(config.error(
                    "cpus",
                    format!(
                        "pCPU {cpu} is not there: the lab has 0, which is dom0's, to {}",
                        self.pcpus
                    ),
                    format!("name others, or write a larger number for `pcpus` in {ABOUT}"),
                ));
            }
        }
        Ok(())
    }
}

/// The largest pCPU that a `cpus` names. Words such as `all` and `nodes:0-1` are left to xl.
fn largest_pcpu(cpus: &Value) -> Option<u64> {
    match cpus {
        Value::Integer(number) => Some(*number),
        Value::List(items) => items.iter().filter_map(largest_pcpu).max(),
        Value::Text(text) => {
            let is_word = |part: &&str| part.contains(|c: char| c.is_alphabetic());
            let parts = text.split(',').filter(|part| !is_word(part));
            let numbers = parts.flat_map(|part| part.split(['-', '^']));
            numbers.filter_map(|number| number.trim().parse().ok()).max()
        }
    }
}

impl Domain {
    /// Reads a domain's configuration; `file` is the name used in errors.
    ///
    /// # Errors
    ///
    /// If the text is broken, or lacks what every domain of a scenario needs.
    pub fn parse(file: &str, text: &str) -> Result<Domain, ConfigError> {
        let config = XlConfig::parse(file, text)?;
        for (key, remedy) in REFUSED {
            if config.get(key).is_some() {
                return Err(config.error(
                    key,
                    format!("`{key}` would change what pvlab starts"),
                    remedy,
                ));
            }
        }
        let name = config.text_of("name")?.to_owned();
        let letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        // `xl` takes a name of digits for a domain's number.
        let number = name.chars().all(|c| c.is_ascii_digit());
        // And a file of a name that begins with a dot is not listed.
        let hidden = name.starts_with('.');
        if number || hidden || name.len() > LONGEST_NAME || !name.chars().all(letter) {
            return Err(config.error(
                "name",
                format!("`{name}` cannot name a domain"),
                format!("use up to {LONGEST_NAME} letters, digits, -, _ and ., not digits alone and without a . in front"),
            ));
        }
        config.text_of("kernel")?;
        if config.get("type").is_some() && !matches!(config.text_of("type")?, "pv" | "pvh") {
            return Err(config.error(
                "type",
                format!("the guest image boots as PV or PVH, not as {}", config.text_of("type")?),
                "write `type = \"pv\"` or `type = \"pvh\"`",
            ));
        }
        for (key, most) in [("memory", MOST_MEMORY_MIB), ("vcpus", MAX_VCPUS.into())] {
            let number = config.integer_of(key)?;
            if !(1..=most).contains(&number) {
                let remedy = format!("write a number from 1 to {most}");
                return Err(config.error(key, format!("`{key}` is {number}"), remedy));
            }
        }
        let extra = config.text_of("extra")?.to_owned();
        let mut domain = Domain { name, config, workload: Line::default() };
        domain.check(&extra)?;
        domain.workload = extra.parse().map_err(|error| domain.refused(error))?;
        Ok(domain)
    }

    /// Whether the guest will take `line` as its command line, before anything is started.
    ///
    /// # Errors
    ///
    /// What the guest would say, at the line of the configuration's `extra`.
    pub fn check(&self, line: &str) -> Result<Params, ConfigError> {
        // All that it may have, up or not: the guest counts them so.
        let vcpus =
            self.config.integer_of("maxvcpus").or_else(|_| self.config.integer_of("vcpus"))?;
        let vcpus = u32::try_from(vcpus).unwrap_or(u32::MAX);
        Params::parse(line, vcpus).map_err(|error| self.refused(error))
    }

    /// `error` at the line of the configuration's `extra`.
    pub fn refused(&self, error: ParamError) -> ConfigError {
        self.config.error("extra", error.what(), error.remedy())
    }
}

fn about_of(file: &str, text: &str) -> Result<About> {
    // toml's own message shows the line and marks the place.
    let about: About = toml::from_str(text).with_context(|| {
        format!("{file} is broken; it needs description, pcpus and deadline_seconds")
    })?;
    let within = |key: &str, number: u64, most: u64| {
        if (1..=most).contains(&number) {
            return Ok(());
        }
        let line = text.lines().position(|line| line.trim_start().starts_with(key)).unwrap_or(0);
        let line = line + 1;
        bail!("{file}:{line}: `{key}` is {number}; write a number from 1 to {most}")
    };
    within("pcpus", about.pcpus, MOST_PCPUS.into())?;
    within("deadline_seconds", about.deadline_seconds, LONGEST_DEADLINE)?;
    Ok(about)
}

/// The text that `bytes` are, which are those of the file `path`.
fn text_of(path: &Path, bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let line = 1 + error.as_bytes()[..good].iter().filter(|byte| **byte == b'\n').count();
        anyhow!(
            "{}:{line}: byte {good} of the file is not UTF-8; save it as UTF-8 text",
            path.display()
        )
    })
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| {
        format!(
            "cannot read the folder {}; --configs takes a folder of scenarios",
            folder.display()
        )
    })?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.with_context(|| format!("cannot read {}", folder.display()))?.path());
    }
    Ok(paths)
}

fn file_name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "name=\"a\"\nkernel=\"xen-guest.elf\"\nmemory=32\nvcpus=4\nextra=\"workload=handoff\"\n";

    #[test]
    fn every_embedded_scenario_is_sound() {
        for name in Library::Embedded.names().unwrap() {
            let scenario = Library::Embedded.load(&name).unwrap();
            assert!(!scenario.description.is_empty());
        }
    }

    #[test]
    fn every_embedded_scenario_exists_as_pv_and_as_pvh_and_differs_in_nothing_else() {
        let names = Library::Embedded.names().unwrap();
        let (pvh, pv): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.ends_with("-pvh"));
        assert_eq!(pv.len(), pvh.len());
        for name in pv {
            let twin = format!("{}-pvh", name.trim_end_matches("-pv"));
            let [one, other] = [name, &twin].map(|name| Library::Embedded.load(name).unwrap());
            assert_eq!((one.pcpus, one.domains.len()), (other.pcpus, other.domains.len()));
            for (pv, pvh) in one.domains.iter().zip(&other.domains) {
                assert!(!matches!(pv.config.text_of("type"), Ok(kind) if kind != "pv"), "{name}");
                assert_eq!(pvh.config.text_of("type"), Ok("pvh"), "{twin}");
                let same = |of: fn(&Domain) -> String| assert_eq!(of(pv), of(pvh), "{twin}");
                same(|domain| domain.workload.to_string());
                same(|domain| domain.config.integer_of("vcpus").unwrap().to_string());
                same(|domain| domain.config.integer_of("memory").unwrap().to_string());
            }
        }
    }

    #[test]
    fn an_unknown_scenario_lists_those_that_exist() {
        let error = Library::Embedded.load("overcommit-3x").unwrap_err().to_string();
        assert!(error.contains("no scenario `overcommit-3x`"), "{error}");
        for name in Library::Embedded.names().unwrap() {
            assert!(error.contains(&name), "{error}");
        }
    }

    #[test]
    fn a_folder_is_read_and_its_errors_name_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let scenario = folder.path().join("mine");
        fs::create_dir(&scenario).unwrap();
        let about = "description = \"d\"\npcpus = 2\ndeadline_seconds = 9\n";
        fs::write(scenario.join("scenario.toml"), about).unwrap();
        fs::write(scenario.join("a.cfg"), GOOD).unwrap();
        let library = Library::Folder(folder.path().to_owned());
        assert_eq!(library.load("mine").unwrap().domains[0].name, "a");

        fs::write(scenario.join("b.cfg"), GOOD).unwrap();
        let error = library.load("mine").unwrap_err().to_string();
        assert!(error.contains("b.cfg:1: ") && error.contains("a.cfg"), "{error}");

        fs::write(scenario.join("b.cfg"), "name=\"b\"\nkernel=xen\n").unwrap();
        let error = library.load("mine").unwrap_err().to_string();
        assert!(error.contains("b.cfg:2: "), "{error}");
    }

    #[test]
    fn what_a_guest_would_refuse_is_found_before_anything_is_started() {
        let long = format!("workload=handoff seed={:0>1001}", 1);
        for (extra, what) in [
            (
                "workload=handoff critcal=20us",
                "`critcal`: no such parameter; accepted are workload",
            ),
            ("workload=hand-off", "`workload=hand-off`; accepted values are handoff, "),
            ("critical=soon", "`critical=soon`; accepted values are an integer with unit"),
            ("jitter=101", "`jitter=101`; accepted values are integers from 0 to 100"),
            ("vcpus=5", "`vcpus=5` in a domain of 4; accepted values are integers from 1 to 4"),
            ("locks=2", "`locks` does not go with workload=handoff"),
            ("seed=1 seed=2", "`seed` stands there more than once"),
            (&long, "the guest's command line has 1023 bytes"),
        ] {
            let text = GOOD.replace("workload=handoff", extra);
            let error = Domain::parse("a.cfg", &text).map(|_| extra).unwrap_err().to_string();
            assert!(error.contains("a.cfg:5: ") && error.contains(what), "{error}");
        }
    }

    #[test]
    fn settings_by_which_something_else_would_run_are_refused() {
        let names = ["dom-0", "a.b", "42", "", "..", "../up", "a b", &"n".repeat(65)];
        let good: Vec<_> = names
            .iter()
            .map(|name| GOOD.replace("\"a\"", &format!("\"{name}\"")))
            .map(|text| Domain::parse("a.cfg", &text).is_ok())
            .collect();
        assert_eq!(good, [true, true, false, false, false, false, false, false]);
        for (key, _) in REFUSED {
            let text = format!("{GOOD}{key} = \"x\"\n");
            let error = Domain::parse("a.cfg", &text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("a.cfg:6: `{key}`")), "{error}");
        }
        let hvm = format!("{GOOD}type = \"hvm\"\n");
        assert!(Domain::parse("a.cfg", &hvm).unwrap_err().to_string().contains("pvh"));
    }

    #[test]
    fn absurd_numbers_are_refused_with_the_bounds() {
        for (key, number) in [
            ("vcpus=4", "vcpus=4294967298"),
            ("vcpus=4", "vcpus=129"),
            ("memory=32", "memory=18446744073709551615"),
            ("memory=32", "memory=0"),
        ] {
            let error = Domain::parse("a.cfg", &GOOD.replace(key, number)).unwrap_err();
            assert!(error.to_string().contains("from 1 to"), "{error}");
        }
        let about = |pcpus: &str, deadline: &str| {
            let text =
                format!("description=\"d\"\npcpus = {pcpus}\ndeadline_seconds = {deadline}\n");
            about_of("scenario.toml", &text)
        };
        assert!(about("63", "1000000").is_ok());
        for (pcpus, deadline, line) in [
            ("4294967295", "9", ":2: `pcpus`"),
            ("64", "9", ":2: `pcpus`"),
            ("0", "9", ":2: `pcpus`"),
            ("2", "9223372036854775807", ":3: `deadline_seconds`"),
            ("2", "0", ":3: `deadline_seconds`"),
            ("-2", "9", "is broken"),
            ("2", "1e300", "is broken"),
        ] {
            let error = about(pcpus, deadline).err().unwrap().to_string();
            assert!(error.contains(line), "{error}");
        }
    }

    #[test]
    fn a_lab_has_the_pcpus_of_its_scenario_and_no_others() {
        let with = |cpus: &str| {
            let config = format!("{GOOD}\ncpus = {cpus}\n");
            let folder = folder(&[("scenario.toml", SOUND), ("a.cfg", config.as_bytes())]);
            Library::Folder(folder.path().to_owned()).load("mine").unwrap().fits_the_lab()
        };
        for cpus in ["\"1-2\"", "\"0-2,^1\"", "\"all\"", "\"nodes:0-7\"", "[\"1\", \"2\"]", "2"] {
            assert_eq!(with(cpus), Ok(()), "{cpus}");
        }
        for cpus in ["\"7\"", "7", "\"1-3\"", "\"1, 3\"", "[\"1\", \"3\"]"] {
            let error = with(cpus).unwrap_err().to_string();
            assert!(
                error.contains("a.cfg:") && error.contains("has 0, which is dom0's, to 2"),
                "{error}"
            );
        }
        for name in Library::Embedded.names().unwrap() {
            assert_eq!(Library::Embedded.load(&name).unwrap().fits_the_lab(), Ok(()), "{name}");
        }
    }

    /// A folder of scenarios with these files in its scenario `mine`.
    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("mine")).unwrap();
        for (name, bytes) in files {
            fs::write(folder.path().join("mine").join(name), bytes).unwrap();
        }
        folder
    }

    const SOUND: &[u8] = b"description = \"d\"\npcpus = 2\ndeadline_seconds = 9\n";

    /// A kernel beside the configurations was read as text, and the scenario refused.
    #[test]
    fn other_files_beside_a_scenarios_own_are_not_read() {
        let elf = b"\x7fELF\xff\xfe";
        let files = [(ABOUT, SOUND), ("a.cfg", GOOD.as_bytes()), ("xen-guest.elf", elf)];
        let folder = folder(&files);
        let scenario = Library::Folder(folder.path().to_owned()).load("mine").unwrap();
        assert_eq!(scenario.domains.len(), 1);
    }

    #[test]
    fn a_file_that_is_no_text_is_named_with_line_and_byte() {
        for (name, bytes, place) in [
            ("a.cfg", &b"name=\"a\"\n# \xff\n"[..], "a.cfg:2: byte 11 of the file"),
            (ABOUT, b"\xff\xfe", "scenario.toml:1: byte 0 of the file"),
        ] {
            let folder = folder(&[(ABOUT, SOUND), ("a.cfg", GOOD.as_bytes()), (name, bytes)]);
            let error = Library::Folder(folder.path().to_owned()).load("mine").unwrap_err();
            assert!(error.to_string().contains(place), "{error}");
        }
    }

    /// It said "choose one of: there is none", and the list of them was empty with exit code 0.
    #[test]
    fn a_folder_without_a_scenario_says_what_one_is() {
        let folder = folder(&[("a.cfg", GOOD.as_bytes())]);
        let library = Library::Folder(folder.path().to_owned());
        for error in [library.names().unwrap_err(), library.load("mine").unwrap_err()] {
            assert!(error.to_string().contains("a scenario is a folder in it, with scenario.toml"));
        }
    }
}
