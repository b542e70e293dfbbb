//! How words and foreign text stand in a message. Knows nothing of what they mean.

use core::fmt;

/// Words with commas between them.
pub(crate) struct List<'a>(pub(crate) &'a [&'a str]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, word) in self.0.iter().enumerate() {
            write!(f, "{}{word}", if place == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Foreign text in a message: printable, and cut where it is long.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = self.0.floor_char_boundary(60);
        write!(f, "{}", self.0[..cut].escape_debug())?;
        if cut < self.0.len() { f.write_str("...") } else { Ok(()) }
    }
}
