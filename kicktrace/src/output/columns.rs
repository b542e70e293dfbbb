//! Rows of text in columns as wide as what stands in them.
//!
//! Owns the widths: no cell is cut, and no two cells touch.

/// Where a cell stands in its column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// At its left, for words.
    Left,
    /// At its right, for numbers.
    Right,
}

/// A line for each row, without spaces at its end. Columns are parted by two spaces, or by one before a
/// column that follows a number at its right and continues it (an error, a unit).
#[must_use]
pub fn aligned<const N: usize>(rows: &[[String; N]], sides: &[Side; N]) -> Vec<String> {
    let width = |at: usize| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            if at > 0 {
                let continues = sides[at - 1] == Side::Right && sides[at] == Side::Left;
                line += if continues && at + 1 < N { " " } else { "  " };
            }
            let width = widths[at];
            line += &match sides[at] {
                Side::Left => format!("{cell:<width$}"),
                Side::Right => format!("{cell:>width$}"),
            };
        }
        line.truncate(line.trim_end().len());
        line
    };
    rows.iter().map(line).collect()
}
