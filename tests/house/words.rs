//! Each word of an experiment, and each default, is written down once.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::source::{is_code, literals, tracked};

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
