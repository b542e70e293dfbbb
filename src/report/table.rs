//! The table on the terminal: a line a figure, a column a policy.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use super::Results;
use super::figures::{Column, ROWS, notes};

/// The whole table with its notes.
pub fn table(results: &Results) -> String {
    let columns: Vec<Column> = results.policies.iter().map(Column::new).collect();
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    let mut head = vec![results.scenario.clone(), "source".to_owned()];
    head.extend(columns.iter().map(|column| column.result.policy.clone()));
    table.set_header(head);
    for (name, source, figure) in ROWS {
        let mut row = vec![(*name).to_owned(), (*source).to_owned()];
        row.extend(columns.iter().map(|column| figure(column).unwrap_or_else(|| "-".to_owned())));
        table.add_row(row);
    }
    for index in 2..2 + columns.len() {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let notes = notes(results, &columns);
    format!("{table}\n{}\n", notes.join("\n"))
}
