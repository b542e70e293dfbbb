//! Each default is written down once.
//!
//! Owns the search for defaults in the sources. A default is the value of an option, a key or a field
//! that nobody gave one. It stands
//!
//! - in an option of a command: `#[arg(default_value_t = 3)] shift: u8`,
//! - in the table of keys: `spin: Amount = Amount::Time(Time::us(50)), ...`,
//! - in `impl Default`: `Repeatable { shift: 3, .. }`, or `DomainType::Pv` as a whole,
//! - in a record: `#[serde(default = "start_after")]`.
//!
//! Whoever wants it elsewhere takes it from there, by a constant or by `default()`. A value in a
//! scenario of `xl-configs` is no default: it is a choice, and stays when a default changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, Expr, Fields, ImplItem, Item, Stmt};

use crate::source::{is_code, is_test, list, metadata, text, tracked};

/// The room of the words.
const VOCABULARY: &str = "experiment";

/// One default, where it is written down.
#[derive(Clone, Debug)]
struct Given {
    file: String,
    place: Place,
    /// Of the option, the key or the field; of the type, where it is the default of a whole.
    name: String,
    value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Option,
    Key,
    Default,
    Record,
}

impl Given {
    /// The first folder of its file; the root's package is in `src`.
    fn room(&self) -> &str {
        self.file.split('/').next().unwrap_or_default()
    }

    /// Whether it is a name such as `Policy::Spin`, which says the same whoever has it as a default.
    fn is_name(&self) -> bool {
        self.value.contains(" :: ") && !self.value.contains('(')
    }

    /// Whether both say the same of one thing: in one room, or one of them in the vocabulary that
    /// all rooms of `knowing` know.
    fn repeats(&self, other: &Given, knowing: &BTreeSet<String>) -> bool {
        let rooms = [self.room(), other.room()];
        let one_room = rooms[0] == rooms[1];
        let shared = rooms.iter().all(|room| *room == VOCABULARY || knowing.contains(*room));
        let same_name = self.name == other.name;
        let same_value = self.value == other.value;
        // Units may differ, a name and a number are two things.
        let two_places = one_room && self.place != other.place && self.is_name() == other.is_name();
        let same_word = same_value && self.is_name() && self.file != other.file;
        (one_room || shared) && (same_name && (same_value || two_places) || same_word)
    }
}

/// Whether `value` takes the default from where it is written down: by a constant, by `default()`, or
/// by a function that is named as the option is.
fn refers(name: &str, value: &TokenStream) -> bool {
    value.clone().into_iter().any(|token| match token {
        TokenTree::Group(group) => refers(name, &group.stream()),
        TokenTree::Ident(ident) => {
            let word = ident.to_string();
            let constant = word.len() > 1 && !word.contains(char::is_lowercase);
            constant || word == "default" || word == name
        }
        _ => false,
    })
}

/// `tokens`, at each `separator`.
fn split(tokens: TokenStream, separator: char) -> Vec<TokenStream> {
    let mut parts = vec![TokenStream::new()];
    for token in tokens {
        match &token {
            TokenTree::Punct(punct) if punct.as_char() == separator => {
                parts.push(TokenStream::new());
            }
            _ => parts.last_mut().expect("at least one").extend([token]),
        }
    }
    parts
}

/// `name = value`.
fn assignment(tokens: &TokenStream) -> Option<(String, TokenStream)> {
    let mut tokens = tokens.clone().into_iter();
    let TokenTree::Ident(name) = tokens.next()? else { return None };
    let TokenTree::Punct(equals) = tokens.next()? else { return None };
    (equals.as_char() == '=').then(|| (name.to_string(), tokens.collect()))
}

struct Search {
    file: String,
    found: Vec<Given>,
}

impl Search {
    /// Notes `value`, unless it refers to where that is written down.
    fn note(&mut self, place: Place, name: &str, value: &TokenStream) {
        if !refers(name, value) {
            self.found_at(place, name, value);
        }
    }

    fn found_at(&mut self, place: Place, name: &str, value: &TokenStream) {
        let (name, value) = (name.to_owned(), value.to_string());
        self.found.push(Given { file: self.file.clone(), place, name, value });
    }

    fn items(&mut self, items: &[Item]) {
        for item in items.iter().filter(|item| !is_test(item)) {
            match item {
                Item::Mod(inner) => {
                    self.items(inner.content.as_ref().map_or(&[], |(_, items)| items));
                }
                Item::Struct(item) => self.fields(&item.fields),
                Item::Enum(item) => {
                    item.variants.iter().for_each(|variant| self.fields(&variant.fields));
                }
                Item::Impl(item) => self.implementation(item),
                Item::Macro(item) if item.mac.path.is_ident("keys") => {
                    self.keys(item.mac.tokens.clone());
                }
                _ => {}
            }
        }
    }

    fn fields(&mut self, fields: &Fields) {
        for field in fields {
            let Some(name) = field.ident.as_ref().map(ToString::to_string) else { continue };
            field.attrs.iter().for_each(|attribute| self.attribute(&name, attribute));
        }
    }

    fn attribute(&mut self, name: &str, attribute: &Attribute) {
        let Ok(list) = attribute.meta.require_list() else { return };
        for (key, value) in split(list.tokens.clone(), ',').iter().filter_map(assignment) {
            if list.path.is_ident("arg") && key.starts_with("default_value") {
                self.note(Place::Option, name, &value);
            } else if list.path.is_ident("serde") && key == "default" {
                // It names a function, and that is the place.
                self.found_at(Place::Record, name, &value);
            }
        }
    }

    fn implementation(&mut self, item: &syn::ItemImpl) {
        let of = item.trait_.as_ref().and_then(|(_, path, _)| path.segments.last());
        if of.is_none_or(|name| name.ident != "Default") {
            return;
        }
        for function in &item.items {
            let ImplItem::Fn(function) = function else { continue };
            match function.block.stmts.last() {
                Some(Stmt::Expr(Expr::Struct(made), None)) => {
                    for field in &made.fields {
                        let name = field.member.to_token_stream().to_string();
                        self.note(Place::Default, &name, &field.expr.to_token_stream());
                    }
                }
                Some(Stmt::Expr(whole @ Expr::Path(_), None)) => {
                    let name = item.self_ty.to_token_stream().to_string();
                    self.found_at(Place::Default, &name, &whole.to_token_stream());
                }
                _ => {}
            }
        }
    }

    /// Lines of the table: `/// About.  key: Type = default, what it accepts;`
    fn keys(&mut self, tokens: TokenStream) {
        for line in split(tokens, ';') {
            // What comes before the last `#[doc = ...]` is the table's head, and more of the text.
            let tokens: Vec<TokenTree> = line.into_iter().collect();
            let doc = tokens.iter().rposition(
                |token| matches!(token, TokenTree::Punct(punct) if punct.as_char() == '#'),
            );
            let Some(doc) = doc else { continue };
            let entry: TokenStream = tokens[doc + 2..].iter().cloned().collect();
            let before = split(entry, ',').swap_remove(0);
            let [key, value] = &split(before, '=')[..] else { continue };
            let key = key.clone().into_iter().next().map(|key| key.to_string());
            self.note(Place::Key, &key.unwrap_or_default(), value);
        }
    }
}

/// The defaults in one file.
fn defaults(file: &str, text: &str) -> Vec<Given> {
    let parsed = syn::parse_file(text).unwrap_or_else(|error| panic!("{file}: {error}"));
    let mut search = Search { file: file.to_owned(), found: Vec::new() };
    search.items(&parsed.items);
    search.found
}

/// Pairs of which one has to take the default from the other.
fn repeated<'a>(all: &'a [Given], knowing: &BTreeSet<String>) -> Vec<(&'a Given, &'a Given)> {
    let mut pairs = Vec::new();
    for (number, one) in all.iter().enumerate() {
        let others = all[number + 1..].iter().filter(|other| one.repeats(other, knowing));
        pairs.extend(others.map(|other| (one, other)));
    }
    pairs
}

/// The rooms of the crates that depend on the vocabulary.
fn knowing() -> BTreeSet<String> {
    let metadata = metadata();
    let knows = |package: &&serde_json::Value| {
        list(package, "dependencies").iter().any(|other| other["rename"] == VOCABULARY)
    };
    let packages = list(&metadata, "packages").iter().filter(knows);
    let folders = packages.map(|package| Path::new(text(package, "manifest_path")).parent());
    let inside = folders.flatten().filter_map(|f| f.strip_prefix(env!("CARGO_MANIFEST_DIR")).ok());
    // The root's package is in `src`.
    inside.map(|f| f.to_str().filter(|f| !f.is_empty()).unwrap_or("src").to_owned()).collect()
}

#[test]
fn each_default_stands_once() {
    let Some(files) = tracked() else { return };
    let all: Vec<Given> = files
        .iter()
        .filter(|file| is_code(file))
        .flat_map(|file| defaults(file, &fs::read_to_string(file).unwrap()))
        .collect();
    let mut places: BTreeMap<_, usize> = BTreeMap::new();
    all.iter().for_each(|given| *places.entry(format!("{:?}", given.place)).or_default() += 1);
    assert!(places.len() == 4 && all.len() > 40, "the search has missed a kind: {places:?}");
    let knowing = knowing();
    assert!(["src", "sim", "lab-guest"].iter().all(|room| knowing.contains(*room)), "{knowing:?}");
    let repeated = repeated(&all, &knowing);
    assert!(repeated.is_empty(), "written down once more: {repeated:#?}");
}

#[test]
fn the_search_for_defaults_sees_one_that_is_repeated() {
    let table =
        "keys! { |given, domain| /// About.\n /// More.\n policy: Policy = Policy::Spin, OneOf(A);
        /// About.\n seed: u64 = 1, Integer(0, 5); /// About.\n locks: u32 = 4, Integer(1, 5); }";
    let knowing = BTreeSet::from(["src".to_owned()]);
    let pairs = |here: &str| {
        let mut all = defaults("experiment/src/keys.rs", table);
        assert_eq!(all.len(), 3, "{all:?}");
        all.extend(defaults("src/main.rs", here));
        repeated(&all, &knowing)
            .into_iter()
            .map(|(_, other)| other.name.clone())
            .collect::<Vec<_>>()
    };
    let option = |attribute: &str| format!("struct A {{ #[arg(long, {attribute})] x: u8 }}");
    for fine in [
        option("default_value_t = 5"),
        option("default_value_t = Policy::Other"),
        option("default_value_t = Params::default().policy"),
        "struct A { #[arg(default_value_t = 8)] locks: u8 }".to_owned(),
        "struct A { #[arg(default_value_t = SEED)] seed: u8 }".to_owned(),
        "struct A { #[arg(default_value_t = D::Off)] a: D, #[arg(default_value_t = D::Off)] b: D }"
            .to_owned(),
        "#[cfg(test)] mod tests { struct A { #[arg(default_value_t = 1)] seed: u8 } }".to_owned(),
    ] {
        assert_eq!(pairs(&fine), [""; 0], "{fine}");
    }
    for (wrong, name) in [
        (option("default_value_t = Policy::Spin"), "x"),
        ("struct A { #[arg(default_value_t = 1)] seed: u8 }".to_owned(), "seed"),
        ("mod a { impl Default for B { fn default() -> B { B { seed: 1 } } } }".to_owned(), "seed"),
        ("impl Default for P { fn default() -> P { Policy::Spin } }".to_owned(), "P"),
        // One thing in two places of a room, though the units differ.
        (
            "struct A { #[arg(default_value_t = 100)] slice: u64 }
             impl Default for B { fn default() -> B { B { slice: Duration::from_micros(100) } } }"
                .to_owned(),
            "slice",
        ),
        (
            "enum A { B { #[arg(default_value_t = 1000)] after: u64 } }
             struct C { #[serde(default = \"after\")] after: Duration }"
                .to_owned(),
            "after",
        ),
    ] {
        assert_eq!(pairs(&wrong), [name], "{wrong}");
    }
}

/// The book's table of keys says of each what the table in the code says.
#[test]
fn the_books_defaults_are_those_of_the_code() {
    use experiment::{Accepts, Key, Params};
    let book = fs::read_to_string("docs/guest.md").unwrap();
    let (_, table) = book.split_once("| key | values | default |\n").expect("the table of keys");
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    let rows: Vec<_> = table.lines().skip(1).take_while(|line| line.starts_with('|')).collect();
    let mut told = Vec::new();
    let defaults = Params::parse("", 4).unwrap().to_string();
    let defaults: BTreeMap<_, _> = defaults.split(' ').filter_map(|w| w.split_once('=')).collect();
    for row in rows {
        let [key, values, default] = &cells(row)[..] else { panic!("{row}") };
        let key: Key = key.trim_matches('`').parse().unwrap_or_else(|error| panic!("{error}"));
        let expected = match key {
            Key::vcpus => "all of the domain",
            Key::locks => "half the vCPUs",
            _ => defaults.get(key.name()).copied().unwrap_or_default(),
        };
        assert_eq!(default.trim_matches('`'), expected, "docs/guest.md, `{key}`");
        if let Accepts::OneOf(names) = key.accepts() {
            for name in names {
                assert!(values.contains(&format!("`{name}`")), "docs/guest.md, `{key}`: {name}");
            }
        }
        told.push(key.name());
    }
    told.sort_unstable();
    let mut keys = Key::NAMES.to_vec();
    keys.sort_unstable();
    assert_eq!(told, keys, "left: docs/guest.md");
}
