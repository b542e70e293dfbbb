//! The model of lock and kicker in `models/`: it holds, and it still names the code it stands for.

use std::path::PathBuf;
use std::process::Command;

fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_owned()
}

/// All configurations of `models/check.sh`; a minute and a half of one core. Its searches bound
/// themselves in time.
#[test]
fn the_model_holds_and_finds_every_defect() {
    let output = Command::new("sh")
        .arg(workspace().join("models/check.sh"))
        .output()
        .expect("sh runs models/check.sh");
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match output.status.code() {
        Some(0) => {}
        Some(2) => eprintln!("NOT CHECKED: {stderr}"),
        code => panic!("models/check.sh ended with {code:?}:\n{stdout}{stderr}"),
    }
}

/// Every row of the book's table "Model and code" names a file and an item that exist.
#[test]
fn the_model_names_code_that_exists() {
    let book = workspace().join("docs/model.md");
    let book = std::fs::read_to_string(&book).expect("docs/model.md");
    let table = book.split("## Model and code").nth(1).expect("the table");
    let mut rows = 0;
    for row in table.lines().filter(|line| line.starts_with("| ") && line.contains(".rs`")) {
        let code = row.split('|').nth(2).expect("a second column");
        let mut names = code.split('`').skip(1).step_by(2);
        let (file, item) = (names.next().expect("a file"), names.next().expect("an item"));
        let source = std::fs::read_to_string(workspace().join(file))
            .unwrap_or_else(|error| panic!("docs/model.md names {file}: {error}"));
        let found = source.match_indices(item).any(|(at, _)| {
            !source[at + item.len()..].starts_with(|c: char| c.is_alphanumeric() || c == '_')
        });
        assert!(found, "docs/model.md names `{item}` in {file}, which has none");
        rows += 1;
    }
    assert!(rows > 20, "only {rows} rows of docs/model.md were understood");
}
