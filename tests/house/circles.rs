//! Modules of a crate import in one direction.
//!
//! Owns the search for circles. Reads sources, compiles nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, Item, UseTree};

use crate::source::{is_test, list, metadata, text};

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
