//! docs/troubleshooting.md against the sources: every message that pvlab can end with is explained there, and
//! every message explained there exists.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// What a message follows: macros, methods, attributes, and the variant that gives one back.
const BEFORE: [&str; 7] = ["bail", "ensure", "anyhow", "context", "with_context", "error", "Err"];

/// Functions that make nothing but messages: what the table of a run calls PROBLEM.
const TELLERS: [&str; 6] =
    ["problems", "trace_doubt", "compared", "result_of", "describe", "start_missed"];

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

/// The strings in `tokens`, at any depth, that are messages, as the chapter writes them.
fn strings(tokens: TokenStream) -> Vec<String> {
    let of = |token| match token {
        TokenTree::Literal(literal) => {
            let text = syn::parse_str::<syn::LitStr>(&literal.to_string()).ok();
            text.map(|text| shown(&text.value()))
                .filter(|text| is_message(text))
                .into_iter()
                .collect()
        }
        TokenTree::Group(group) => strings(group.stream()),
        _ => Vec::new(),
    };
    tokens.into_iter().flat_map(of).collect()
}

/// Whether `tokens` are a string or one that is made here, and not another's error.
fn is_text(tokens: TokenStream) -> bool {
    match tokens.into_iter().next() {
        Some(TokenTree::Literal(_)) => true,
        Some(TokenTree::Ident(name)) => name == "format",
        _ => false,
    }
}

/// The first string that is made into a message in `tokens`, which are those of a closure.
fn formatted(tokens: TokenStream) -> Option<String> {
    let mut before = String::new();
    for token in tokens {
        match token {
            TokenTree::Group(group) if before == "format" => {
                return strings(group.stream()).into_iter().next();
            }
            // Not into another error's fields, nor into the arguments of a call.
            TokenTree::Group(group) if before.is_empty() => {
                if let Some(found) = formatted(group.stream()) {
                    return Some(found);
                }
            }
            TokenTree::Ident(name) => before = name.to_string(),
            // `format!(...)`
            TokenTree::Punct(mark) if mark.as_char() == '!' => {}
            _ => before.clear(),
        }
    }
    None
}

/// The messages of a source file, its tests left out.
fn messages(tokens: TokenStream, found: &mut BTreeSet<String>) {
    let mut before = String::new();
    let mut tests = false;
    let mut teller = false;
    for token in tokens {
        match token {
            TokenTree::Group(group) if !std::mem::take(&mut tests) => {
                if BEFORE.contains(&before.as_str()) && (before != "Err" || is_text(group.stream()))
                {
                    found.extend(strings(group.stream()).into_iter().next());
                }
                match before.as_str() {
                    "ok_or" if is_text(group.stream()) => {
                        found.extend(strings(group.stream()).into_iter().next());
                    }
                    "ok_or_else" => found.extend(formatted(group.stream())),
                    _ => {}
                }
                if teller && group.delimiter() == Delimiter::Brace {
                    found.extend(strings(group.stream()));
                    teller = false;
                }
                messages(group.stream(), found);
                before.clear();
            }
            TokenTree::Ident(name) => {
                let name = name.to_string();
                tests = name == "tests" && before == "mod";
                teller |= before == "fn" && TELLERS.contains(&name.as_str());
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
        if path.is_dir() {
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
