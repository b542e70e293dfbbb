//! The house: what stands in the root, which crate may know which, that modules import in one
//! direction, and that each word of an experiment and each default is written down once. Needs no Xen.

mod circles;
mod defaults;
mod source;
mod words;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::source::{list, metadata, text, tracked};

/// What may stand in the root beside the rooms of docs/architecture.md.
const ROOT: &[&str] = &[
    ".cargo",
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-GPL",
    "LICENSE-MIT",
    "README.md",
    "book.toml",
    "build",
    "docs",
    "rustfmt.toml",
];

fn architecture() -> String {
    fs::read_to_string("docs/architecture.md").unwrap()
}

/// The places in the table of rooms, without the `/` of a folder.
fn rooms(book: &str) -> BTreeSet<String> {
    let table = book.split("\n## ").find(|part| part.starts_with("Rooms")).expect("the rooms");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap().trim_end_matches('/').to_owned()).collect()
}

#[test]
fn the_root_holds_what_belongs_there() {
    let Some(files) = tracked() else { return };
    let rooms = rooms(&architecture());
    for file in files {
        let top = file.split('/').next().unwrap();
        let known = ROOT.contains(&top) || rooms.contains(top);
        assert!(
            known,
            "{top} does not belong into the root: ROOT in tests/house/main.rs, and the rooms"
        );
    }
}

#[test]
fn every_room_is_a_place_and_every_crate_has_a_room() {
    let rooms = rooms(&architecture());
    for room in &rooms {
        assert!(
            Path::new(room).exists(),
            "docs/architecture.md has a room `{room}`, which is not there"
        );
    }
    for package in list(&metadata(), "packages") {
        let folder = Path::new(text(package, "manifest_path")).parent().unwrap();
        let folder = folder.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap();
        // The root's package lives in src/.
        let top = folder.components().next().map(|top| top.as_os_str().to_str().unwrap());
        let room = top.unwrap_or("src");
        assert!(rooms.contains(room), "docs/architecture.md has no room for {room}");
    }
}

/// The doors of the book are the dependencies that the crates declare, tests aside.
#[test]
fn every_door_is_a_dependency_and_the_other_way_round() {
    let book = architecture();
    let doors = book.split("\n## ").find(|part| part.starts_with("Doors")).expect("the doors");
    let mut drawn = BTreeSet::new();
    for line in doors.lines().filter_map(|line| line.strip_prefix("| ")) {
        let cells: Vec<&str> = line.trim_end_matches('|').split('|').map(str::trim).collect();
        let names = |cell: &str| -> Vec<String> {
            cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        for from in names(cells[0]) {
            drawn.extend(names(cells[1]).into_iter().map(|to| (from.clone(), to)));
        }
    }
    let metadata = metadata();
    let packages = list(&metadata, "packages");
    // A room's name: its folder, or `pvlab` for the root.
    let room = |package: &Value| {
        let folder = Path::new(text(package, "manifest_path")).parent().unwrap();
        let inside = folder.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().to_str().unwrap();
        if inside.is_empty() { "pvlab".to_owned() } else { inside.to_owned() }
    };
    let mut declared = BTreeSet::new();
    for package in packages {
        for dependency in list(package, "dependencies").iter().filter(|d| d["kind"].is_null()) {
            let to = packages.iter().find(|other| other["name"] == dependency["name"]);
            let ours = to.filter(|_| dependency["path"].is_string());
            declared.extend(ours.map(|to| (room(package), room(to))));
        }
    }
    assert_eq!(drawn, declared, "left: docs/architecture.md; right: the crates' Cargo.toml");
}

/// Without the crates of the experiment the library and the example kernel still build: nothing that
/// they need, however far away, is one of them. `.ci/packages` builds each library alone.
#[test]
fn the_library_and_the_example_kernel_need_nothing_of_the_experiment() {
    /// The folders of ours that a manifest names, and those that they name.
    fn needed(folder: &Path, all: &mut BTreeSet<String>) {
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        let manifest: toml::Table = manifest.parse().unwrap();
        let workspace = fs::read_to_string("Cargo.toml").unwrap();
        let workspace: toml::Table = workspace.parse().unwrap();
        let shared = &workspace["workspace"]["dependencies"];
        let declared = ["dependencies", "build-dependencies"].map(|kind| manifest.get(kind));
        for (name, said) in declared.into_iter().flatten().flat_map(|d| d.as_table().unwrap()) {
            let inherited = said.get("workspace").is_some();
            let at = if inherited { shared.get(name) } else { Some(said) };
            let Some(path) = at.and_then(|at| at.get("path")) else { continue };
            let path = Path::new(path.as_str().unwrap());
            let path = if inherited { path.to_owned() } else { folder.join(path) };
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if all.insert(name) {
                needed(&path, all);
            }
        }
    }

    for (room, knows) in [("xen-guest", true), ("example-kernel", true), ("lab-guest", false)] {
        let mut all = BTreeSet::new();
        needed(Path::new(room), &mut all);
        let experiment = ["lab-guest", "experiment", "kicktrace"].map(|name| all.contains(name));
        assert_eq!(experiment == [false; 3], knows, "{room} needs {all:?}");
        assert!(all.contains("pvlock") && all.contains("evtchn"), "{room} needs {all:?}");
    }
}

/// Each library brings what a registry and its readers want: texts, words to find it by, licences, and
/// which features its documentation shows. No `repository`: this project has no address.
#[test]
fn every_library_is_ready_to_be_packaged() {
    let metadata = metadata();
    let mut libraries = 0;
    for package in list(&metadata, "packages") {
        let name = text(package, "name");
        let ours_alone = package["publish"].is_array();
        let is_library = list(package, "targets").iter().any(|target| target["kind"][0] == "lib");
        if ours_alone || !is_library || name == "pvlab" {
            continue;
        }
        libraries += 1;
        let folder = Path::new(text(package, "manifest_path")).parent().unwrap();
        assert!(package["description"].is_string(), "{name} has no description");
        assert_eq!(package["license"], "MIT OR Apache-2.0", "{name}");
        assert_eq!(package["readme"], "README.md", "{name}");
        for file in ["README.md", "LICENSE-MIT", "LICENSE-APACHE"] {
            assert!(folder.join(file).exists(), "{name} has no {file}");
        }
        for words in ["keywords", "categories"] {
            assert!((1..=5).contains(&list(package, words).len()), "{name}: {words}");
        }
        let shown = &package["metadata"]["docs"]["rs"]["features"];
        assert!(
            shown.is_array(),
            "{name} does not say what docs.rs shows: package.metadata.docs.rs"
        );
        for feature in shown.as_array().unwrap() {
            let known = &package["features"][feature.as_str().unwrap()];
            assert!(known.is_array(), "{name} has no feature {feature}, which docs.rs is to show");
        }
        let face = fs::read_to_string(folder.join("src/lib.rs")).unwrap();
        let mut front: String = face.lines().take_while(|line| line.starts_with("//!")).collect();
        if face.starts_with("#![doc = include_str!(\"../README.md\")]") {
            front = fs::read_to_string(folder.join("README.md")).unwrap();
        }
        assert!(front.contains("```"), "the front page of {name} has no example");
    }
    assert_eq!(libraries, 7, "of how many crates others may take");
}

/// The lock is read beside the book and in narrow windows.
#[test]
fn the_lock_has_lines_of_100_columns_at_most() {
    let Some(files) = tracked() else { return };
    let mut lines = 0;
    for file in files.iter().filter(|f| f.starts_with("pvlock/src/") && f.ends_with(".rs")) {
        for (number, line) in fs::read_to_string(file).unwrap().lines().enumerate() {
            let columns = line.chars().count();
            assert!(columns <= 100, "{file}:{}: {columns} columns", number + 1);
            lines += 1;
        }
    }
    assert!(lines > 2_000, "only {lines} lines were found");
}

/// `tests/broken.sh` takes an hour, so it is run seldom: its patches must not go stale meanwhile.
#[test]
fn every_break_of_a_feature_fits_the_sources() {
    let mut hunks = 0;
    for entry in fs::read_dir("tests/broken").unwrap() {
        let path = entry.unwrap().path();
        let patch = fs::read_to_string(&path).unwrap();
        for part in patch.split("\n--- a/").skip(1) {
            let file = part.lines().next().unwrap();
            let source = fs::read_to_string(file).unwrap();
            for hunk in part.split("\n@@ ").skip(1) {
                let old = hunk.lines().skip(1).filter(|line| line.starts_with([' ', '-']));
                let old: String = old.map(|line| format!("{}\n", &line[1..])).collect();
                assert!(source.contains(&old), "{}: {file} has no longer:\n{old}", path.display());
                hunks += 1;
            }
        }
    }
    assert!(hunks >= 30, "only {hunks} changes were understood");
}
