//! The book in docs/: nothing of it is lost, and its links lead somewhere. Needs no Xen.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const TEXTS: [&str; 3] = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"];

/// What a Markdown text links to inside the repository, without the place in the page.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter_map(|link| link.split('#').next())
        .filter(|link| !link.is_empty() && !link.contains("://"))
}

fn chapters() -> BTreeSet<String> {
    let names = fs::read_dir("docs").unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).filter(|name| name.ends_with(".md")).collect()
}

#[test]
fn the_summary_has_every_chapter() {
    let summary = fs::read_to_string("docs/SUMMARY.md").unwrap();
    let listed: BTreeSet<_> = links(&summary).map(str::to_owned).collect();
    let mut written = chapters();
    written.remove("SUMMARY.md");
    assert_eq!(listed, written);
}

#[test]
fn every_link_leads_somewhere() {
    let texts = TEXTS.map(str::to_owned).into_iter();
    for text in texts.chain(chapters().into_iter().map(|name| format!("docs/{name}"))) {
        let text = Path::new(&text);
        for link in links(&fs::read_to_string(text).unwrap()) {
            let target = text.with_file_name(link);
            assert!(target.exists(), "{}: the link to {link} leads nowhere", text.display());
        }
    }
}
