//! Requests and their replies.
//!
//! Owns the messages: header, request numbers, watch events that arrive in between. One request is
//! under way at a time. It never waits without a deadline: a xenstored that does not answer costs
//! the caller [`Error::Timeout`], not the domain.

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::ring::{BadIndex, Ring};

/// How the client rings the other side and waits for it.
pub trait Link {
    /// Tells xenstored that the ring has moved: `EVTCHNOP_send` on the store's event channel.
    fn notify(&self);

    /// Waits until xenstored rings or `deadline_ns` has come, whichever is first. May return early.
    fn wait(&self, deadline_ns: u64);

    /// The clock of the deadlines, in nanoseconds.
    fn now(&self) -> u64;
}

/// A connection to xenstored through the shared page.
///
/// ```no_run
/// # fn f(ring: &xen_guest::daemons::xenstore::Ring, link: impl xen_guest::daemons::xenstore::Link)
/// # -> Result<(), xen_guest::daemons::xenstore::Error> {
/// let mut store = xen_guest::daemons::xenstore::Client::new(ring, link);
/// store.write("data/colour", b"green")?; // below the domain's own home
/// assert_eq!(store.read("data/colour")?, b"green");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Client<'a, L> {
    ring: &'a Ring,
    link: L,
    last_request: u32,
    events: VecDeque<WatchEvent>,
    /// A message the other side has begun and not finished. It outlives a timeout, so that the next
    /// request finds the beginning of a message and not its middle.
    partial: Vec<u8>,
    broken: bool,
}

/// Something below a watched path has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// What changed: the path given to [`Client::watch`], or one below it.
    pub path: String,
    /// The token given to [`Client::watch`].
    pub token: String,
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// xenstored refused, with the name of an error: `ENOENT`, `EACCES`, `ENOSPC`, ...
    Refused(String),
    /// No answer within [`Client::TIMEOUT_NS`].
    Timeout,
    /// Path and value together are longer than `XENSTORE_PAYLOAD_MAX`, 4096 bytes.
    TooLong(usize),
    /// A path or token contains a NUL byte.
    Nul,
    /// The other side broke the protocol; the connection cannot be used any more.
    Protocol(&'static str),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Refused(name) => write!(f, "xenstored refused: {name}"),
            Error::Timeout => f.write_str("xenstored did not answer in time"),
            Error::TooLong(n) => write!(f, "xenstore request of {n} bytes: at most {PAYLOAD_MAX}"),
            Error::Nul => f.write_str("a xenstore path cannot contain a NUL byte"),
            Error::Protocol(what) => write!(f, "xenstored broke the protocol: {what}"),
        }
    }
}

impl core::error::Error for Error {}

impl From<BadIndex> for Error {
    fn from(BadIndex: BadIndex) -> Self {
        Error::Protocol("a ring index is out of range")
    }
}

/// `XENSTORE_PAYLOAD_MAX`.
const PAYLOAD_MAX: usize = 4096;
/// Events nobody has asked for yet; xenstored's own quota of watches is 128 a domain.
const EVENTS_MAX: usize = 128;

/// Message types: `enum xsd_sockmsg_type`, those this client uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Type {
    Directory = 1,
    Read = 2,
    Watch = 4,
    Unwatch = 5,
    Write = 11,
    Mkdir = 12,
    Rm = 13,
    WatchEvent = 15,
    Error = 16,
}

/// `struct xsd_sockmsg`: four little-endian words before each payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    kind: u32,
    req_id: u32,
    tx_id: u32,
    len: u32,
}

impl Header {
    const SIZE: usize = 16;

    fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let words = [self.kind, self.req_id, self.tx_id, self.len];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8; Self::SIZE]) -> Self {
        let (words, _) = bytes.as_chunks::<4>();
        let [kind, req_id, tx_id, len] = [0, 1, 2, 3].map(|i| u32::from_le_bytes(words[i]));
        Header { kind, req_id, tx_id, len }
    }
}

impl<'a, L: Link> Client<'a, L> {
    /// How long a request may take, in nanoseconds of the link's clock. Long, because a busy host
    /// can starve dom0 for seconds; finite, because the console can carry the results as well.
    pub const TIMEOUT_NS: u64 = 30_000_000_000;

    /// A client on a ring page that nobody else in this domain uses.
    pub fn new(ring: &'a Ring, link: L) -> Self {
        let (events, partial) = (VecDeque::new(), Vec::new());
        Client { ring, link, last_request: 0, events, partial, broken: false }
    }

    /// The value at `path`; relative paths are below the domain's home (`/local/domain/N`).
    ///
    /// # Errors
    ///
    /// [`Error::Refused`]`("ENOENT")` where nothing is there, or any other [`Error`].
    #[doc(alias = "XS_READ")]
    pub fn read(&mut self, path: &str) -> Result<Vec<u8>, Error> {
        self.request(Type::Read, &[nul_free(path)?, b"\0"])
    }

    /// Sets the value at `path`, making it and its parents where they are not there.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with `EACCES` outside what a domain may write (`data/`, `attr/`, ...) and
    /// `ENOSPC` for values over about 2000 bytes, or any other [`Error`].
    #[doc(alias = "XS_WRITE")]
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), Error> {
        self.request(Type::Write, &[nul_free(path)?, b"\0", value]).map(drop)
    }

    /// Makes an empty node.
    ///
    /// # Errors
    ///
    /// As [`Client::write`].
    #[doc(alias = "XS_MKDIR")]
    pub fn mkdir(&mut self, path: &str) -> Result<(), Error> {
        self.request(Type::Mkdir, &[nul_free(path)?, b"\0"]).map(drop)
    }

    /// Removes a node and everything below it.
    ///
    /// # Errors
    ///
    /// As [`Client::write`].
    #[doc(alias = "XS_RM")]
    pub fn remove(&mut self, path: &str) -> Result<(), Error> {
        self.request(Type::Rm, &[nul_free(path)?, b"\0"]).map(drop)
    }

    /// The names directly below `path`.
    ///
    /// # Errors
    ///
    /// As [`Client::read`].
    #[doc(alias = "XS_DIRECTORY")]
    pub fn directory(&mut self, path: &str) -> Result<Vec<String>, Error> {
        let names = self.request(Type::Directory, &[nul_free(path)?, b"\0"])?;
        Ok(strings(&names))
    }

    /// Asks for a [`WatchEvent`] at each change at or below `path`; one comes at once.
    ///
    /// # Errors
    ///
    /// Any [`Error`].
    #[doc(alias = "XS_WATCH")]
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        self.request(Type::Watch, &[nul_free(path)?, b"\0", nul_free(token)?, b"\0"]).map(drop)
    }

    /// Ends a watch.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`]`("ENOENT")` where there is no such watch, or any other [`Error`].
    #[doc(alias = "XS_UNWATCH")]
    pub fn unwatch(&mut self, path: &str, token: &str) -> Result<(), Error> {
        self.request(Type::Unwatch, &[nul_free(path)?, b"\0", nul_free(token)?, b"\0"]).map(drop)
    }

    /// The next watch event, or `None` where `deadline_ns` came first.
    ///
    /// # Errors
    ///
    /// [`Error::Protocol`].
    pub fn next_event(&mut self, deadline_ns: u64) -> Result<Option<WatchEvent>, Error> {
        self.check()?;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            match self.receive(deadline_ns) {
                // An event, or the late answer to a request that had timed out.
                Ok(_) => {}
                Err(Error::Timeout) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Starts over after the domain was restored, when another xenstored, or one that has forgotten
    /// us, is at the other end: what was under way is gone, and so are all watches.
    pub fn reset(&mut self) {
        self.events.clear();
        self.partial.clear();
        self.ring.replies().discard();
    }

    fn check(&self) -> Result<(), Error> {
        if self.broken {
            return Err(Error::Protocol("the connection was given up earlier"));
        }
        Ok(())
    }

    fn request(&mut self, kind: Type, parts: &[&[u8]]) -> Result<Vec<u8>, Error> {
        self.check()?;
        let len = parts.iter().map(|part| part.len()).sum();
        if len > PAYLOAD_MAX {
            return Err(Error::TooLong(len));
        }
        self.last_request = self.last_request.wrapping_add(1);
        let req_id = self.last_request;
        let header = Header { kind: kind as u32, req_id, tx_id: 0, len: len as u32 };
        let deadline = self.link.now().saturating_add(Self::TIMEOUT_NS);
        self.send(&header.to_bytes(), deadline)?;
        for part in parts {
            self.send(part, deadline)?;
        }
        self.link.notify();
        loop {
            let Some((reply, payload)) = self.receive(deadline)? else { continue };
            if reply.req_id != req_id {
                continue; // the late answer to a request that had timed out
            }
            if reply.kind == Type::Error as u32 {
                return Err(Error::Refused(
                    strings(&payload).into_iter().next().unwrap_or_default(),
                ));
            }
            if reply.kind != kind as u32 {
                return self.give_up("an answer of another type than its request");
            }
            return Ok(payload);
        }
    }

    fn send(&mut self, mut data: &[u8], deadline: u64) -> Result<(), Error> {
        while !data.is_empty() {
            let pushed = self.ring.requests().push(data);
            let n = self.or_give_up(pushed)?;
            data = &data[n..];
            if !data.is_empty() {
                self.link.notify();
                if self.link.now() >= deadline {
                    // Half a request is in the ring: nothing after it would be understood.
                    self.broken = true;
                    return Err(Error::Timeout);
                }
                if n == 0 {
                    self.link.wait(deadline);
                }
            }
        }
        Ok(())
    }

    /// One whole message from the ring. A watch event is queued, and `None` returned.
    fn receive(&mut self, deadline: u64) -> Result<Option<(Header, Vec<u8>)>, Error> {
        let header = Header::from_bytes(&self.fill(Header::SIZE, deadline)?);
        if header.len as usize > PAYLOAD_MAX {
            return self.give_up("a payload over 4096 bytes");
        }
        self.fill(Header::SIZE + header.len as usize, deadline)?;
        let payload = self.partial.split_off(Header::SIZE);
        self.partial.clear();
        if header.kind != Type::WatchEvent as u32 {
            return Ok(Some((header, payload)));
        }
        let Ok([path, token]) = <[String; 2]>::try_from(strings(&payload)) else {
            return self.give_up("a watch event that is not path and token");
        };
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(WatchEvent { path, token });
        }
        Ok(None)
    }

    /// Waits until `n` bytes of a message are there; returns the first of them, the header.
    fn fill(&mut self, n: usize, deadline: u64) -> Result<[u8; Header::SIZE], Error> {
        while self.partial.len() < n {
            let mut buffer = [0; 256];
            let want = buffer.len().min(n - self.partial.len());
            let popped = self.ring.replies().pop(&mut buffer[..want]);
            let got = self.or_give_up(popped)?;
            self.partial.extend_from_slice(&buffer[..got]);
            if got > 0 {
                self.link.notify(); // there is room in the ring again
            } else if self.link.now() >= deadline {
                return Err(Error::Timeout);
            } else {
                self.link.wait(deadline);
            }
        }
        let mut header = [0; Header::SIZE];
        header.copy_from_slice(&self.partial[..Header::SIZE]);
        Ok(header)
    }

    fn or_give_up<T>(&mut self, result: Result<T, BadIndex>) -> Result<T, Error> {
        result.map_err(|bad| {
            self.broken = true;
            Error::from(bad)
        })
    }

    fn give_up<T>(&mut self, why: &'static str) -> Result<T, Error> {
        self.broken = true;
        Err(Error::Protocol(why))
    }
}

fn nul_free(text: &str) -> Result<&[u8], Error> {
    if text.contains('\0') { Err(Error::Nul) } else { Ok(text.as_bytes()) }
}

/// The NUL-terminated strings a payload is made of.
fn strings(payload: &[u8]) -> Vec<String> {
    let payload = payload.strip_suffix(b"\0").unwrap_or(payload);
    if payload.is_empty() {
        return Vec::new();
    }
    payload.split(|byte| *byte == 0).map(|s| String::from_utf8_lossy(s).into_owned()).collect()
}

#[cfg(test)]
mod tests;
