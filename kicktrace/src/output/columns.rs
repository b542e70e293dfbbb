//! Rows of text in columns as wide as what stands in them, and text in lines.
//!
//! Owns the widths: no cell is cut, no two cells touch, and whole columns go where there is no room.

use std::fmt::Write as _;

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

/// [`aligned`], of the columns with these indices alone.
#[must_use]
pub fn selected<R: AsRef<[String]>>(rows: &[R], columns: &[Column], kept: &[usize]) -> Vec<String> {
    let cell = |row: &R, at: usize| row.as_ref().get(at).cloned().unwrap_or_default();
    let row = |row: &R| kept.iter().map(|&at| cell(row, at)).collect::<Vec<_>>();
    let rows: Vec<_> = rows.iter().map(row).collect();
    aligned(&rows, &kept.iter().map(|&at| columns[at]).collect::<Vec<_>>())
}

/// [`aligned`] in at most `most` columns, if that is a limit: columns go until each line fits, in
/// the order in which `spare` has them. Returns the lines, and which columns are gone.
#[must_use]
pub fn fitting<'a, R: AsRef<[String]>>(
    rows: &[R],
    columns: &[Column],
    most: Option<usize>,
    spare: &'a [usize],
) -> (Vec<String>, &'a [usize]) {
    let without = |gone: &[usize]| {
        let kept: Vec<_> = (0..columns.len()).filter(|at| !gone.contains(at)).collect();
        selected(rows, columns, &kept)
    };
    let fits = |line: &String| most.is_none_or(|most| line.chars().count() <= most);
    let mut gone = 0;
    loop {
        let lines = without(&spare[..gone]);
        if gone == spare.len() || lines.iter().all(fits) {
            return (lines, &spare[..gone]);
        }
        gone += 1;
    }
}

/// `text` in lines of at most `columns` columns, as far as its spaces allow; lines after the first
/// one are set in by `indent`.
pub(crate) fn wrap(text: &str, columns: usize, indent: usize) -> String {
    let (mut out, mut room) = (String::new(), columns);
    for word in text.split_inclusive(' ') {
        let long = word.trim_end().chars().count();
        if long > room && !out.is_empty() {
            out.truncate(out.trim_end().len());
            let _ = write!(out, "\n{:indent$}", "");
            room = columns.saturating_sub(indent);
        }
        out += word;
        room = room.saturating_sub(word.chars().count());
    }
    out
}

impl Column {
    /// Columns it takes at least.
    pub(super) const fn width(self) -> usize {
        self.gap + self.least
    }
}

#[cfg(test)]
mod tests {
    use super::{aligned, fitting, left, right};

    #[test]
    fn no_cell_is_cut_and_no_two_touch() {
        let row = |cells: [&str; 3]| cells.map(String::from);
        let rows = [row(["name", "count", ""]), row(["longer", "~123456789", "0.001"])];
        let lines = aligned(&rows, &[left(0, 5), right(1, 5), right(1, 3)]);
        assert_eq!(lines, ["name        count", "longer ~123456789 0.001"]);
    }

    #[test]
    fn columns_go_in_their_order_until_the_lines_fit() {
        let rows = [["name", "12345", "678", "9"].map(String::from)];
        let columns = [left(0, 0), right(1, 0), right(1, 0), right(1, 0)];
        for (most, line, gone) in [
            (None, "name 12345 678 9", &[][..]),
            (Some(16), "name 12345 678 9", &[]),
            (Some(15), "name 12345 9", &[2]),
            (Some(11), "name 9", &[2, 1]),
            (Some(1), "name 9", &[2, 1]),
        ] {
            let fits = fitting(&rows, &columns, most, &[2, 1]);
            assert_eq!(fits, (vec![line.to_owned()], gone), "{most:?}");
        }
    }
}
