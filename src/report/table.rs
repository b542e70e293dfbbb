//! The table on the terminal: a line a figure, a column a policy.
//!
//! Owns how it fits: where the terminal is too narrow for all policies, there are several tables, one below
//! another; and where it is too narrow for one, names of figures take two lines.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};

use super::Results;
use super::figures::{Column, ROWS, notes, sentence};

/// The whole table with its notes, for a terminal of so many `columns` of characters; `None` for a file.
pub fn table(results: &Results, columns: Option<usize>) -> String {
    let policies: Vec<Column> = results.policies.iter().map(Column::new).collect();
    let wide = |text: &str| text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    let mut rest = policies.as_slice();
    loop {
        // As many as fit; one in any case.
        let fits = |part: &str| columns.is_none_or(|columns| wide(part) <= columns);
        let (mut many, mut part) = (rest.len(), of(results, rest, None));
        while many > 1 && !fits(&part) {
            many -= 1;
            part = of(results, &rest[..many], None);
        }
        if !fits(&part) {
            part = of(results, &rest[..many], columns);
        }
        text += &part;
        text.push('\n');
        rest = &rest[many..];
        if rest.is_empty() {
            break;
        }
    }
    let mut notes = notes(results, &policies);
    notes.push(sentence(results, &policies));
    format!("{text}{}\n", notes.join("\n"))
}

/// One table, as wide as it needs or as `width` allows.
fn of(results: &Results, policies: &[Column], width: Option<usize>) -> String {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic);
        table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
    }
    let mut head = vec![results.scenario.clone(), "source".to_owned()];
    head.extend(policies.iter().map(|column| column.result.policy.clone()));
    table.set_header(head);
    for (name, source, figure) in ROWS {
        let mut row = vec![(*name).to_owned(), (*source).to_owned()];
        row.extend(policies.iter().map(|column| figure(column).unwrap_or_else(|| "-".to_owned())));
        table.add_row(row);
    }
    for index in 2..2 + policies.len() {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}
