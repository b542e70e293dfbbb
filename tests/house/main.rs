//! The house: what stands in the root, which crate may know which, that modules import in one direction,
//! and that each word of an experiment is written down once. Needs no Xen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::ToTokens;
use serde_json::Value;
use syn::{Attribute, Item, UseTree};

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

fn metadata() -> Value {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .output()
        .expect("cargo starts");
    serde_json::from_slice(&cargo.stdout).expect("cargo metadata tells JSON")
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().expect(key)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect(key)
}

fn architecture() -> String {
    fs::read_to_string("docs/architecture.md").unwrap()
}

/// The places in the table of rooms, without the `/` of a folder.
fn rooms(book: &str) -> BTreeSet<String> {
    let table = book.split("\n## ").find(|part| part.starts_with("Rooms")).expect("the rooms");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.map(|row| row.split('`').next().unwrap().trim_end_matches('/').to_owned()).collect()
}

/// Files under version control; none where this is no clone.
fn tracked() -> Option<Vec<String>> {
    let git = Command::new("git").args(["ls-files", "-z"]).output().ok()?;
    let names = String::from_utf8(git.stdout).ok().filter(|_| git.status.success())?;
    Some(names.split_terminator('\0').map(str::to_owned).collect())
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
            "{top} does not belong into the root: ROOT in tests/house.rs, and the rooms"
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

#[test]
fn modules_of_a_crate_import_in_one_direction() {
    let mut circles = Vec::new();
    for package in list(&metadata(), "packages") {
        for target in list(package, "targets") {
            let kinds = list(target, "kind");
            if kinds.iter().any(|kind| ["lib", "cdylib", "bin"].iter().any(|name| kind == name)) {
                let file = Path::new(text(target, "src_path"));
                circles.extend(Crate::read(file).circles());
            }
        }
    }
    assert!(circles.is_empty(), "modules that import each other:\n{}", circles.join("\n"));
}

#[test]
fn the_search_for_circles_sees_one() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    write("lib.rs", "mod a; mod b; mod c; pub use a::A;");
    write("a.rs", "use crate::b::B; pub struct A;");
    // Through the face, and in the arguments of a macro.
    write("b.rs", "pub struct B; fn f() { println!(\"{}\", crate::c::g()); }");
    write("c.rs", "pub fn g() -> u8 { let _: Option<crate::A> = None; 0 }");
    let circles = Crate::read(&folder.path().join("lib.rs")).circles();
    assert_eq!(circles.len(), 1, "{circles:?}");
    for arrow in ["a.rs -> b.rs: B", "b.rs -> c.rs: g", "c.rs -> a.rs: A"] {
        assert!(circles[0].contains(arrow), "{circles:?}");
    }
    // A face that hands on names of its rooms is no arrow; nor are tests.
    write("c.rs", "pub fn g() -> u8 { 0 } #[cfg(test)] mod tests { use crate::A; }");
    assert!(Crate::read(&folder.path().join("lib.rs")).circles().is_empty());
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

/// Each lock, workload and other choice has its name in one place of the code, and so has each key of the
/// command line with its default: whoever needs one takes it from there.
#[test]
fn each_word_of_an_experiment_stands_once() {
    use experiment::{Key, Policy, Workload};
    let Some(files) = tracked() else { return };
    let names: BTreeSet<&str> = [Policy::NAMES, Workload::NAMES].concat().into_iter().collect();
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in files.iter().filter(|file| is_code(file)) {
        let parsed = syn::parse_file(&fs::read_to_string(file).unwrap()).unwrap();
        for literal in literals(&parsed.items) {
            let key = literal.split_once('=').filter(|(key, _)| Key::NAMES.contains(key));
            let word = match key {
                Some((key, _)) => format!("{key}="),
                None if names.contains(literal.as_str()) => literal,
                None => continue,
            };
            places.entry(word).or_default().push(file.clone());
        }
    }
    let twice = places.iter().filter(|(word, files)| {
        // A key is an identifier of its table, and no text elsewhere.
        files.len() > usize::from(!word.ends_with('='))
    });
    let twice: Vec<_> = twice.collect();
    assert!(twice.is_empty(), "written down once more: {twice:#?}");
    assert_eq!(places.len(), names.len(), "a name that stands nowhere: {names:?}\n{places:?}");
}

/// Whether a file is code that runs for people: not a test, an example, a benchmark or a build script.
fn is_code(file: &str) -> bool {
    let apart = ["tests", "examples", "benches", "models", "tests.rs", "build.rs"];
    file.ends_with(".rs") && !file.split('/').any(|part| apart.contains(&part))
}

/// The texts in the code of `items`, tests and documentation aside.
fn literals(items: &[Item]) -> Vec<String> {
    fn collect(tokens: TokenStream, found: &mut Vec<String>) {
        let mut tokens = tokens.into_iter().peekable();
        while let Some(token) = tokens.next() {
            match (token, tokens.peek()) {
                // An attribute.
                (TokenTree::Punct(punct), Some(TokenTree::Group(_))) if punct.as_char() == '#' => {
                    tokens.next();
                }
                (TokenTree::Group(group), _) => collect(group.stream(), found),
                (TokenTree::Literal(literal), _) => {
                    if let syn::Lit::Str(text) = syn::Lit::new(literal) {
                        found.push(text.value());
                    }
                }
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    for item in items.iter().filter(|item| !is_test(item)) {
        collect(item.to_token_stream(), &mut found);
    }
    found
}

/// The modules of one crate, by their path from its root.
#[derive(Default)]
struct Crate {
    modules: BTreeMap<Vec<String>, Module>,
    folder: PathBuf,
}

#[derive(Default)]
struct Module {
    /// Its place in the crate.
    path: Vec<String>,
    file: PathBuf,
    /// What is defined here.
    items: BTreeSet<String>,
    /// Names that are bound here, and the paths behind them.
    bound: BTreeMap<String, Vec<String>>,
    /// Modules all of whose names are bound here.
    globs: Vec<Vec<String>>,
    /// Paths by which others' names are used here.
    used: BTreeSet<Vec<String>>,
}

impl Crate {
    fn read(file: &Path) -> Self {
        let folder = file.parent().unwrap().to_owned();
        let mut all = Self { folder: folder.clone(), ..Self::default() };
        all.read_file(file, &folder, Vec::new());
        all
    }

    fn read_file(&mut self, file: &Path, folder: &Path, path: Vec<String>) {
        let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let parsed = syn::parse_file(&text).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        self.read_items(&parsed.items, file, folder, path);
    }

    /// `folder` is where files of modules below this one are.
    fn read_items(&mut self, items: &[Item], file: &Path, folder: &Path, path: Vec<String>) {
        let mut module = Module { path: path.clone(), file: file.to_owned(), ..Module::default() };
        for item in items.iter().filter(|item| !is_test(item)) {
            match item {
                Item::Mod(inner) => {
                    let name = inner.ident.to_string();
                    module.items.insert(name.clone());
                    let below = [path.clone(), vec![name.clone()]].concat();
                    if let Some((_, items)) = &inner.content {
                        self.read_items(items, file, &folder.join(&name), below);
                        continue;
                    }
                    let named = path_of(&inner.attrs).map(|path| file.with_file_name(path));
                    let beside = folder.join(format!("{name}.rs"));
                    let inside = folder.join(&name).join("mod.rs");
                    let choices = named.into_iter().chain([beside, inside]);
                    let found = choices.into_iter().find(|file| file.exists());
                    let found = found.unwrap_or_else(|| panic!("no file of module {name}"));
                    self.read_file(&found, &folder.join(&name), below);
                }
                Item::Use(import) => {
                    let handed_on = !matches!(import.vis, syn::Visibility::Inherited);
                    module.import(&import.tree, Vec::new(), handed_on);
                }
                other => {
                    module.items.extend(name_of(other));
                    module.code(other.to_token_stream());
                }
            }
        }
        self.modules.insert(path, module);
    }

    /// The module in which the item at `path`, as written in `from`, is defined, and its name.
    fn resolve(&self, from: &[String], path: &[String], depth: usize) -> Option<(&Module, String)> {
        let (first, mut rest) = path.split_first()?;
        let mut here = match first.as_str() {
            "crate" => Vec::new(),
            "self" => from.to_vec(),
            "super" => from.split_last()?.1.to_vec(),
            _ => {
                rest = path;
                from.to_vec()
            }
        };
        loop {
            let module = self.modules.get(&here)?;
            let Some((name, after)) = rest.split_first() else {
                return Some((module, here.last().cloned().unwrap_or_default()));
            };
            if name == "super" {
                here.pop()?;
            } else if name != "self" {
                let below = [here.clone(), vec![name.clone()]].concat();
                if self.modules.contains_key(&below) {
                    here = below;
                } else if module.items.contains(name) {
                    return Some((module, name.clone()));
                } else {
                    let deeper = depth.checked_sub(1)?;
                    let bound = module.bound.get(name).filter(|bound| *bound != path);
                    let bound = bound.map(|bound| [bound, after].concat());
                    let globs = module.globs.iter().map(|glob| [glob, rest].concat());
                    let mut through = bound.into_iter().chain(globs);
                    let found = through.find_map(|path| self.resolve(&here, &path, deeper));
                    // Unknown in a module that was named: a macro has made it there.
                    return found.or_else(|| (path != rest).then(|| (module, name.clone())));
                }
            }
            rest = after;
        }
    }

    /// Arrows between files, with the names that are used. A module and those inside it are one room: what
    /// passes between them is not drawn.
    fn arrows(&self) -> BTreeMap<&Path, BTreeMap<&Path, BTreeSet<String>>> {
        let mut arrows: BTreeMap<_, BTreeMap<_, BTreeSet<_>>> = BTreeMap::new();
        for (path, module) in &self.modules {
            for used in &module.used {
                let found = self.resolve(path, used, 8);
                let other = |to: &Module| !to.is_inside(module) && !module.is_inside(to);
                if let Some((target, name)) = found.filter(|(to, _)| other(to)) {
                    let from = arrows.entry(module.file.as_path()).or_default();
                    from.entry(target.file.as_path()).or_default().insert(name);
                }
            }
        }
        arrows
    }

    /// One text for each set of files that reach each other.
    fn circles(&self) -> Vec<String> {
        let arrows = self.arrows();
        let reach = |from| {
            let (mut seen, mut next) = (BTreeSet::<&Path>::new(), vec![from]);
            while let Some(file) = next.pop() {
                let targets = arrows.get(file).into_iter().flat_map(BTreeMap::keys);
                next.extend(targets.copied().filter(|file| seen.insert(*file)));
            }
            seen
        };
        let reached: BTreeMap<&Path, _> = arrows.keys().map(|file| (*file, reach(file))).collect();
        let mut told = BTreeSet::new();
        for (file, seen) in reached.iter().filter(|(file, seen)| seen.contains(*file)) {
            let together = |other: &Path| {
                seen.contains(other) && reached.get(other).is_some_and(|back| back.contains(file))
            };
            let mut text = String::new();
            for (from, targets) in arrows.iter().filter(|(from, _)| together(from)) {
                for (to, names) in targets.iter().filter(|(to, _)| together(to)) {
                    let short =
                        |file: &Path| file.strip_prefix(&self.folder).unwrap_or(file).to_owned();
                    let names: Vec<_> = names.iter().map(String::as_str).collect();
                    let (from, to) = (short(from), short(to));
                    text += &format!(
                        "  {} -> {}: {}\n",
                        from.display(),
                        to.display(),
                        names.join(", ")
                    );
                }
            }
            told.insert(format!("{}:\n{text}", self.folder.display()));
        }
        told.into_iter().collect()
    }
}

impl Module {
    /// Whether it is `other`, or a room of it.
    fn is_inside(&self, other: &Module) -> bool {
        self.path.starts_with(&other.path)
    }

    fn import(&mut self, tree: &UseTree, mut path: Vec<String>, handed_on: bool) {
        match tree {
            UseTree::Path(inner) => {
                path.push(inner.ident.to_string());
                self.import(&inner.tree, path, handed_on);
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.import(tree, path.clone(), handed_on));
            }
            UseTree::Glob(_) => {
                self.globs.push(path.clone());
                self.uses(path, handed_on);
            }
            UseTree::Name(name) => {
                let name = name.ident.to_string();
                if name != "self" {
                    path.push(name);
                }
                self.bound.insert(path.last().cloned().unwrap_or_default(), path.clone());
                self.uses(path, handed_on);
            }
            UseTree::Rename(rename) => {
                path.push(rename.ident.to_string());
                self.bound.insert(rename.rename.to_string(), path.clone());
                self.uses(path, handed_on);
            }
        }
    }

    fn uses(&mut self, path: Vec<String>, handed_on: bool) {
        if !handed_on {
            self.used.insert(path);
        }
    }

    /// Every path in `tokens`, those in macros too.
    fn code(&mut self, tokens: TokenStream) {
        self.paths(tokens, &[]);
    }

    /// Paths in `tokens`, each below `prefix`.
    fn paths(&mut self, tokens: TokenStream, prefix: &[String]) {
        let mut path = prefix.to_vec();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Ident(name) => {
                    if colons != 2 {
                        self.end(&mut path, prefix);
                    }
                    path.push(name.to_string());
                    colons = 0;
                }
                TokenTree::Group(group) => {
                    let tree = colons == 2 && group.delimiter() == Delimiter::Brace;
                    let below = if tree { path.clone() } else { Vec::new() };
                    self.end(&mut path, prefix);
                    self.paths(group.stream(), &below);
                    colons = 0;
                }
                _ => {
                    self.end(&mut path, prefix);
                    colons = 0;
                }
            }
        }
        self.end(&mut path, prefix);
    }

    /// Of two segments and more: a name alone was imported, or is defined here.
    fn end(&mut self, path: &mut Vec<String>, prefix: &[String]) {
        if path.len() > 1 && path.len() > prefix.len() {
            self.used.insert(path.clone());
        }
        *path = prefix.to_vec();
    }
}

/// Whether an item is in test builds only.
fn is_test(item: &Item) -> bool {
    let attributes = match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => return false,
    };
    attributes.iter().filter(|attribute| attribute.path().is_ident("cfg")).any(|attribute| {
        let text = attribute.to_token_stream().to_string().replace(' ', "");
        text.contains("(test") || text.contains(",test")
    })
}

/// `#[path = "..."]`.
fn path_of(attributes: &[Attribute]) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.path().is_ident("path"))?;
    let text = attribute.to_token_stream().to_string();
    text.split('"').nth(1).map(str::to_owned)
}

fn name_of(item: &Item) -> Option<String> {
    let name = match item {
        Item::Const(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Static(item) => &item.ident,
        Item::Struct(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Union(item) => &item.ident,
        Item::Macro(item) => item.ident.as_ref()?,
        _ => return None,
    };
    Some(name.to_string())
}
