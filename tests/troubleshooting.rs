//! docs/troubleshooting.md against the sources: every message that pvlab can end with is explained there, and
//! every message explained there exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};

/// What a message follows: macros, methods and attributes.
const BEFORE: [&str; 6] = ["bail", "ensure", "anyhow", "context", "with_context", "error"];

/// A message as the chapter writes it: what differs each time is `…`, and the first line says which it is.
fn shown(literal: &str) -> String {
    let mut text = String::new();
    let mut depth = 0;
    for c in literal.lines().next().unwrap_or_default().chars() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth -= 1;
                text.push('…');
            }
            c if depth == 0 => text.push(if c == '`' { '\'' } else { c }),
            _ => {}
        }
    }
    text
}

/// Not the name of a key, nor a frame around another message.
fn is_message(text: &str) -> bool {
    text.contains(' ') && text.chars().any(char::is_alphabetic)
}

/// The first string in `tokens`, at any depth.
fn first_string(tokens: TokenStream) -> Option<String> {
    tokens.into_iter().find_map(|token| match token {
        TokenTree::Literal(literal) => {
            syn::parse_str::<syn::LitStr>(&literal.to_string()).ok().map(|text| text.value())
        }
        TokenTree::Group(group) => first_string(group.stream()),
        _ => None,
    })
}

/// The messages of a source file, its tests left out.
fn messages(tokens: TokenStream, found: &mut BTreeSet<String>) {
    let mut before = String::new();
    let mut tests = false;
    for token in tokens {
        match token {
            TokenTree::Group(group) if !std::mem::take(&mut tests) => {
                if BEFORE.contains(&before.as_str()) {
                    let text = first_string(group.stream()).map(|text| shown(&text));
                    found.extend(text.filter(|text| is_message(text)));
                }
                messages(group.stream(), found);
                before.clear();
            }
            TokenTree::Ident(name) => {
                let name = name.to_string();
                tests = name == "tests" && before == "mod";
                before = name;
            }
            // `bail!(...)`
            TokenTree::Punct(mark) if mark.as_char() == '!' => {}
            _ => before.clear(),
        }
    }
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        // The benches have a chapter of their own.
        if path.is_dir() && name != "bench" {
            sources(&path, files);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            files.push(path);
        }
    }
}

#[test]
fn every_message_is_explained_and_every_explained_message_exists() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&here.join("src"), &mut files);
    let mut said = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let tokens = text.parse().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        messages(tokens, &mut said);
    }
    assert!(said.len() > 50, "the messages are not found: {said:?}");
    let chapter = fs::read_to_string(here.join("docs/troubleshooting.md")).unwrap();
    // `| `message` | cause | cure |`
    let rows = chapter.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
    let explained: BTreeSet<String> = rows.map(|(message, _)| message.to_owned()).collect();
    let missing: Vec<_> = said.difference(&explained).collect();
    assert!(missing.is_empty(), "not explained: {missing:#?}");
    let gone: Vec<_> = explained.difference(&said).collect();
    assert!(gone.is_empty(), "no longer in the sources: {gone:#?}");
}
