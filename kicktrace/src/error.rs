//! What can go wrong while reading a trace, each with the byte it was seen at and what to do.
//!
//! Owns [`Error`]. Must never lose the byte offset on the way up.

use std::fmt;

/// Why a trace could not be read. One pointer wide, so that the hot loop returns it in a register.
#[derive(Debug)]
pub struct Error(Box<ErrorKind>);

/// The kinds of [`Error`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The input holds no byte at all.
    #[error(
        "the trace is empty: xentrace wrote nothing (was it stopped with INT, does its mask name a class \
         and a subclass, and is tracing compiled into this Xen?)"
    )]
    Empty,
    /// The input does not start as an xentrace file does.
    #[error(
        "byte 0: not an xentrace file: it starts with {found:#010x}, a trace of a little-endian \
         host starts with 0x2001f003{}",
        hint(*found)
    )]
    NotATrace {
        /// The first four bytes, little endian (fewer when the input is shorter).
        found: u32,
    },
    /// A window does not start where the one before says it ends.
    #[error(
        "byte {offset}: a window of records should start here (0x2001f003) but {found:#010x} \
         stands here: the file is damaged; cut it with `head -c {offset}` to read what is before"
    )]
    LostSync {
        /// Where the window should start, in bytes from the start of the input.
        offset: u64,
        /// The word found there.
        found: u32,
    },
    /// A window names a pCPU that no Xen has, or a size that is not a whole number of words.
    #[error(
        "byte {offset}: absurd window: pCPU {cpu}, {size} bytes (a pCPU is below {max}, a size is \
         a multiple of 4); cut the file with `head -c {offset}` to read what is before",
        max = crate::event::MAX_PCPUS
    )]
    AbsurdWindow {
        /// Where the window's header stands.
        offset: u64,
        /// The pCPU it names.
        cpu: u32,
        /// The number of bytes it announces.
        size: u32,
    },
    /// A record does not fit into its window.
    #[error(
        "byte {offset}: a record of {size} bytes (header {header:#010x}) runs past its window, \
         which ends at byte {window_end}: the file is damaged; cut it with `head -c {offset}` to read what is \
         before"
    )]
    RecordPastWindow {
        /// Where the record starts.
        offset: u64,
        /// Its first word.
        header: u32,
        /// Its size in bytes.
        size: u32,
        /// The end of the window.
        window_end: u64,
    },
    /// A window's header stands among the records of another window.
    #[error(
        "byte {offset}: the header of a window stands inside another window: the file is damaged; \
         cut it with `head -c {offset}` to read what is before"
    )]
    NestedWindow {
        /// Where it stands.
        offset: u64,
    },
    /// A record has fewer words than its event needs.
    #[error(
        "byte {offset}: event {event:#010x} has {found} words, this Xen's have {needed}: the file \
         is damaged, or from a Xen older than 4.17; cut it with `head -c {offset}` to read what is \
         before"
    )]
    ShortRecord {
        /// Where the record starts.
        offset: u64,
        /// Its event.
        event: u32,
        /// The words it has.
        found: u32,
        /// The words it needs.
        needed: u32,
    },
    /// A record names a domain or a vCPU beyond what Xen can have.
    #[error(
        "byte {offset}: absurd vCPU d{domain}v{vcpu}: domains and vCPUs have 16-bit numbers; the \
         file is damaged; cut it with `head -c {offset}` to read what is before"
    )]
    AbsurdVcpu {
        /// Where the record starts.
        offset: u64,
        /// The domain it names.
        domain: u32,
        /// The vCPU it names.
        vcpu: u32,
    },
    /// A trace has more phases than anybody reads.
    #[error(
        "byte {offset}: this record is beyond the {limit}th phase: choose longer phases (--every), or a \
         part of the trace (--from, --to)"
    )]
    TooManyPhases {
        /// Where the record starts.
        offset: u64,
        /// The limit.
        limit: u64,
    },
    /// The input ends inside a window, which
    /// `ReadOptions::strict` forbids.
    #[error(
        "byte {offset}: the trace is cut here, {missing} bytes before the end of its last window; \
         without --strict it is read up to this byte"
    )]
    Truncated {
        /// The length of the input.
        offset: u64,
        /// How many bytes are known to be missing.
        missing: u64,
    },
    /// The input could not be read.
    #[error("byte {offset}: reading failed: {source}")]
    Io {
        /// How far reading came.
        offset: u64,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A consumer of the records could not write its output.
    #[error("writing failed: {0}")]
    Output(std::io::Error),
}

/// What a file may be that starts with these bytes, and what to do with it.
fn hint(found: u32) -> &'static str {
    match found.to_le_bytes() {
        [0x1f, 0x8b, ..] => ": it is compressed; `gzip -dc FILE | kicktrace COMMAND -` reads it",
        [0xfd, b'7', b'z', b'X'] => {
            ": it is compressed; `xz -dc FILE | kicktrace COMMAND -` reads it"
        }
        [0x28, 0xb5, 0x2f, 0xfd] => {
            ": it is compressed; `zstd -dc FILE | kicktrace COMMAND -` reads it"
        }
        [b'B', b'Z', b'h', _] => {
            ": it is compressed; `bzip2 -dc FILE | kicktrace COMMAND -` reads it"
        }
        [0x20, 0x01, 0xf0, 0x03] => ": it is of a big-endian host, which is not supported",
        bytes if bytes.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~')) => {
            ": it is text; name the file that xentrace wrote"
        }
        _ => ": name the file that xentrace wrote",
    }
}

impl Error {
    /// What happened.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.0
    }

    /// The byte of the input the error was seen at, if it has one.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        use ErrorKind as K;
        match *self.0 {
            K::NotATrace { .. } => Some(0),
            K::LostSync { offset, .. }
            | K::AbsurdWindow { offset, .. }
            | K::RecordPastWindow { offset, .. }
            | K::NestedWindow { offset }
            | K::ShortRecord { offset, .. }
            | K::AbsurdVcpu { offset, .. }
            | K::TooManyPhases { offset, .. }
            | K::Truncated { offset, .. }
            | K::Io { offset, .. } => Some(offset),
            K::Empty | K::Output(_) => None,
        }
    }

    /// True when the reader of the output went away (a closed pipe), which ends a command quietly.
    #[must_use]
    pub fn is_broken_pipe(&self) -> bool {
        matches!(&*self.0, ErrorKind::Output(e) if e.kind() == std::io::ErrorKind::BrokenPipe)
    }
}

impl From<ErrorKind> for Error {
    #[cold]
    fn from(kind: ErrorKind) -> Self {
        Self(Box::new(kind))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&*self.0)
    }
}
