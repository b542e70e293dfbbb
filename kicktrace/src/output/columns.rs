//! Rows of text in columns as wide as what stands in them.
//!
//! Owns the widths: no cell is cut, and no two cells touch.

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// Whether its cells stand at its right, as numbers do.
    right: bool,
    /// Spaces before it.
    gap: usize,
    /// Its width at least.
    least: usize,
}

/// A column of words behind `gap` spaces, `least` wide at least.
#[must_use]
pub const fn left(gap: usize, least: usize) -> Column {
    Column { right: false, gap, least }
}

/// A column of numbers behind `gap` spaces, `least` wide at least.
#[must_use]
pub const fn right(gap: usize, least: usize) -> Column {
    Column { right: true, gap, least }
}

/// A line for each row, without spaces at its end.
#[must_use]
pub fn aligned<R: AsRef<[String]>>(rows: &[R], columns: &[Column]) -> Vec<String> {
    let cells = |at: usize| rows.iter().filter_map(move |row| row.as_ref().get(at));
    let longest = |at: usize| cells(at).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<_> =
        columns.iter().enumerate().map(|(at, column)| column.least.max(longest(at))).collect();
    let line = |row: &R| {
        let mut line = String::new();
        for ((cell, column), width) in row.as_ref().iter().zip(columns).zip(&widths) {
            line.extend(std::iter::repeat_n(' ', column.gap));
            line += &match column.right {
                false => format!("{cell:<width$}"),
                true => format!("{cell:>width$}"),
            };
        }
        line.truncate(line.trim_end().len());
        line
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::{aligned, left, right};

    #[test]
    fn no_cell_is_cut_and_no_two_touch() {
        let row = |cells: [&str; 3]| cells.map(String::from);
        let rows = [row(["name", "count", ""]), row(["longer", "~123456789", "0.001"])];
        let lines = aligned(&rows, &[left(0, 5), right(1, 5), right(1, 3)]);
        assert_eq!(lines, ["name        count", "longer ~123456789 0.001"]);
    }
}
