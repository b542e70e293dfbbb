//! What the tests of the house read: the crates, the files under version control, and what is code in
//! them.

use std::process::Command;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use serde_json::Value;
use syn::Item;

pub(crate) fn metadata() -> Value {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .output()
        .expect("cargo starts");
    serde_json::from_slice(&cargo.stdout).expect("cargo metadata tells JSON")
}

pub(crate) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().expect(key)
}

pub(crate) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().expect(key)
}

/// Files under version control; none where this is no clone.
pub(crate) fn tracked() -> Option<Vec<String>> {
    let git = Command::new("git").args(["ls-files", "-z"]).output().ok()?;
    let names = String::from_utf8(git.stdout).ok().filter(|_| git.status.success())?;
    Some(names.split_terminator('\0').map(str::to_owned).collect())
}

/// Whether a file is code that runs for people: not a test, an example, a benchmark or a build script.
pub(crate) fn is_code(file: &str) -> bool {
    let apart = ["tests", "examples", "benches", "models", "tests.rs", "build.rs"];
    file.ends_with(".rs") && !file.split('/').any(|part| apart.contains(&part))
}

/// The texts in the code of `items`, tests and documentation aside.
pub(crate) fn literals(items: &[Item]) -> Vec<String> {
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

/// Whether an item is in test builds only.
pub(crate) fn is_test(item: &Item) -> bool {
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
