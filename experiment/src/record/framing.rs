//! How a document travels through channels that take only short pieces of text.
//!
//! Owns both directions, so that writer and reader cannot drift apart: lines on a console, framed and
//! guarded by a CRC-32, and pieces for xenstore values. It never opens a console or a xenstore: it
//! turns text into lines and lines into text.
//!
//! On the console a document of 420 bytes looks like this; other lines may stand in between, and
//! anything may stand before the marker words (`xenconsoled` can put a time stamp there):
//!
//! ```text
//! pvlab-result-begin 420 cbf43926
//! pvlab-result {"schema":1,"domid":3, ...
//! pvlab-result ... }
//! pvlab-result-end
//! ```

use alloc::format;
use alloc::string::String;
use core::fmt;

/// Longest line [`console_lines`] makes, in bytes, without its line end.
pub const MAX_LINE: usize = 200;

/// Longest piece [`pieces`] makes, in bytes. Debian's xenstored takes a value of 2000 bytes and
/// answers `ENOSPC` to one of 3000.
pub const MAX_PIECE: usize = 1500;

/// The longest document a [`Decoder`] believes in; a longer one is a damaged header.
pub const MAX_DOCUMENT: usize = 16 << 20;

const BEGIN: &str = "pvlab-result-begin ";
const DATA: &str = "pvlab-result ";
const END: &str = "pvlab-result-end";

/// Calls `emit` with each console line that carries `document`, without line ends.
///
/// ```
/// use experiment::record::framing::{Decoder, console_lines};
///
/// let mut decoder = Decoder::default();
/// let mut got = None;
/// console_lines("{\"schema\":1}", |line| got = decoder.line(line).unwrap());
/// assert_eq!(got.as_deref(), Some("{\"schema\":1}"));
/// ```
///
/// # Panics
///
/// If `document` contains a line break: the frame is made of lines. JSON in compact form has none.
pub fn console_lines(document: &str, mut emit: impl FnMut(&str)) {
    assert!(!document.contains(['\n', '\r']), "a framed document has no line breaks");
    emit(&format!("{BEGIN}{} {:08x}", document.len(), crc32fast::hash(document.as_bytes())));
    for piece in chunks(document, MAX_LINE - DATA.len()) {
        emit(&format!("{DATA}{piece}"));
    }
    emit(END);
}

/// `document` cut into pieces of at most [`MAX_PIECE`] bytes, never inside a character.
pub fn pieces(document: &str) -> impl Iterator<Item = &str> {
    chunks(document, MAX_PIECE)
}

fn chunks(mut text: &str, longest: usize) -> impl Iterator<Item = &str> {
    core::iter::from_fn(move || {
        if text.is_empty() {
            return None;
        }
        let (head, rest) = text.split_at(text.floor_char_boundary(longest));
        text = rest;
        Some(head)
    })
}

/// Puts a document together again from the lines of a console.
///
/// Feed it every line, in order; it ignores those that are not its own.
#[derive(Debug, Default)]
pub struct Decoder {
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    bytes: usize,
    crc: u32,
    text: String,
}

impl Decoder {
    /// Takes one line; answers the document once its last line was seen.
    ///
    /// # Errors
    ///
    /// A [`FramingError`] where a frame is damaged. The decoder has forgotten that frame then and
    /// waits for the next one.
    pub fn line(&mut self, line: &str) -> Result<Option<String>, FramingError> {
        let line = line.trim_end_matches(['\r', '\n']);
        if let Some(header) = after(line, BEGIN) {
            let unfinished = self.open.replace(parse_header(header)?);
            return match unfinished {
                Some(open) => {
                    Err(FramingError::Unfinished { got: open.text.len(), want: open.bytes })
                }
                None => Ok(None),
            };
        }
        if let Some(data) = after(line, DATA) {
            let Some(open) = &mut self.open else { return Ok(None) };
            open.text.push_str(data);
            if open.text.len() <= open.bytes {
                return Ok(None);
            }
        } else if !line.ends_with(END) {
            return Ok(None);
        }
        let Some(open) = self.open.take() else { return Ok(None) };
        if open.text.len() != open.bytes {
            return Err(FramingError::Length { got: open.text.len(), want: open.bytes });
        }
        let crc = crc32fast::hash(open.text.as_bytes());
        if crc != open.crc {
            return Err(FramingError::Crc { got: crc, want: open.crc });
        }
        Ok(Some(open.text))
    }

    /// How many bytes of how many have arrived, while a frame is open.
    pub fn progress(&self) -> Option<(usize, usize)> {
        self.open.as_ref().map(|open| (open.text.len(), open.bytes))
    }
}

fn after<'a>(line: &'a str, marker: &str) -> Option<&'a str> {
    line.find(marker).map(|at| &line[at + marker.len()..])
}

fn parse_header(header: &str) -> Result<Open, FramingError> {
    let parse = || {
        let (bytes, crc) = header.trim_end().split_once(' ')?;
        let bytes = bytes.parse().ok().filter(|bytes| *bytes <= MAX_DOCUMENT)?;
        Some(Open { bytes, crc: u32::from_str_radix(crc, 16).ok()?, text: String::new() })
    };
    parse().ok_or(FramingError::Header)
}

/// What was wrong with a frame on the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FramingError {
    /// The line that begins a frame does not say its length and CRC.
    Header,
    /// A new frame began before the last one had ended.
    Unfinished {
        /// Bytes that arrived.
        got: usize,
        /// Bytes announced.
        want: usize,
    },
    /// The frame ended with another length than announced: lines were lost or cut.
    Length {
        /// Bytes that arrived.
        got: usize,
        /// Bytes announced.
        want: usize,
    },
    /// The length is right and the content is not.
    Crc {
        /// CRC-32 of what arrived.
        got: u32,
        /// CRC-32 announced.
        want: u32,
    },
}

impl fmt::Display for FramingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FramingError::Header => {
                write!(f, "a result on the console begins without a valid length and CRC")
            }
            FramingError::Unfinished { got, want } => {
                write!(f, "a result on the console was cut off after {got} of {want} bytes")
            }
            FramingError::Length { got, want } => write!(
                f,
                "a result on the console has {got} bytes where {want} were announced: lines were lost"
            ),
            FramingError::Crc { got, want } => write!(
                f,
                "a result on the console is damaged: CRC-32 {got:08x} where {want:08x} was announced"
            ),
        }
    }
}

impl core::error::Error for FramingError {}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use alloc::string::ToString;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    fn lines(document: &str) -> Vec<String> {
        let mut lines = Vec::new();
        console_lines(document, |line| lines.push(line.to_string()));
        lines
    }

    fn decode(lines: &[String]) -> Result<Option<String>, FramingError> {
        let mut decoder = Decoder::default();
        for line in lines {
            if let Some(document) = decoder.line(line)? {
                return Ok(Some(document));
            }
        }
        Ok(None)
    }

    proptest! {
        #[test]
        fn a_document_survives_the_console(document in "[^\n\r]{0,2000}") {
            let lines = lines(&document);
            prop_assert!(lines.iter().all(|line| line.len() <= MAX_LINE));
            prop_assert_eq!(decode(&lines), Ok(Some(document)));
        }

        #[test]
        fn a_document_survives_xenstore(document in "\\PC{0,4000}") {
            prop_assert!(pieces(&document).all(|p| !p.is_empty() && p.len() <= MAX_PIECE));
            prop_assert_eq!(pieces(&document).collect::<String>(), document);
        }

        #[test]
        fn one_changed_byte_is_never_accepted_as_something_else(
            document in "[a-z]{1,600}", line in 0usize..5, at in 0usize..200, to in b'a'..=b'z'
        ) {
            let mut lines = lines(&document);
            let line = line % lines.len();
            let at = at % lines[line].len();
            lines[line].replace_range(at..=at, (to as char).encode_utf8(&mut [0; 4]));
            if let Ok(Some(got)) = decode(&lines) {
                prop_assert_eq!(got, document);
            }
        }

        #[test]
        fn no_input_makes_the_decoder_panic(lines in prop::collection::vec("(pvlab-result(-begin|-end)? ?)?\\PC{0,40}", 0..20)) {
            let mut decoder = Decoder::default();
            for line in lines {
                let _ = decoder.line(&line);
            }
        }
    }

    #[test]
    fn foreign_lines_time_stamps_and_carriage_returns_do_not_matter() {
        let mut noisy = Vec::new();
        for line in lines(&"x".repeat(500)) {
            noisy.push("Booting ...".to_string());
            noisy.push(format!("[2024-01-01 00:00:00] {line}\r\n"));
        }
        assert_eq!(decode(&noisy), Ok(Some("x".repeat(500))));
    }

    #[test]
    fn a_lost_line_is_an_error_that_says_how_much_is_missing() {
        let mut lines = lines(&"x".repeat(500));
        lines.remove(2);
        let error = decode(&lines).unwrap_err();
        assert_eq!(error, FramingError::Length { got: 313, want: 500 });
        assert!(error.to_string().contains("313 bytes where 500"));
    }

    #[test]
    fn after_a_cut_frame_the_next_one_is_read() {
        let mut decoder = Decoder::default();
        decoder.line("pvlab-result-begin 3 00000000").unwrap();
        let again = lines("{}");
        assert_eq!(decoder.line(&again[0]), Err(FramingError::Unfinished { got: 0, want: 3 }));
        assert_eq!(decoder.line(&again[1]), Ok(None));
        assert_eq!(decoder.progress(), Some((2, 2)));
        assert_eq!(decoder.line(&again[2]), Ok(Some("{}".to_string())));
    }

    #[test]
    fn an_absurd_length_is_refused_before_anything_is_kept() {
        assert_eq!(
            Decoder::default().line("pvlab-result-begin 99999999999999999 0"),
            Err(FramingError::Header)
        );
    }
}
