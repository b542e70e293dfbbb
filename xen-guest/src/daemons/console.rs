//! The domain's console, and `log` on top of it.
//!
//! This file owns the rings shared with the console daemon (Xen public/io/console.h) and, for the
//! initial domain, Xen's own console, of which it reads no input.

use core::fmt::{self, Write};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use spin::Mutex;

use crate::events::{Xen, events, toolstack};
use crate::vcpu::{clock, identity};
use crate::xen::abi::ConsoleRing;
use crate::xen::hypercall;

/// How long a full ring may stay full before the rest is dropped: nobody reads it then.
const PATIENCE_NS: u64 = 2_000_000_000;

/// Where text goes.
#[derive(Clone, Copy, Debug)]
pub enum Sink {
    /// Nowhere yet.
    None,
    /// Xen's console: the initial domain, whose text Xen prints.
    Xen,
    /// The domain's ring, read by the console daemon.
    Ring(&'static ConsoleRing),
}

/// Held while a line is written, so that lines of several vCPUs do not mix.
static SINK: Mutex<Sink> = Mutex::new(Sink::None);

/// Turns of waiting for another vCPU's line before a crash report is written over it.
const CRASH_TURNS: u32 = 1_000_000;

/// Makes text go to `sink` from now on. Of a ring, the port beside it is [`toolstack::console`].
pub fn init(sink: Sink) {
    *SINK.lock() = sink;
}

/// Writes all of `bytes`, waiting while the ring is full. Takes a lock of its own, which is no
/// `pvlock`: safe under any other lock, but not in an upcall or NMI that may have interrupted a
/// writer.
pub fn write(bytes: &[u8]) {
    SINK.lock().write(bytes);
}

/// Moves what has been typed into `bytes`, as far as it fits, and says how much that is: 0 where
/// nothing is there. It does not wait; the daemon sends an event to [`toolstack::console`] when more
/// comes. The lock is that of [`write()`].
pub fn read(bytes: &mut [u8]) -> usize {
    let sink = SINK.lock();
    let Sink::Ring(ring) = *sink else { return 0 };
    let taken = pull(ring, bytes);
    if taken > 0 {
        // The daemon may have waited for the room. An error would say that the port is gone.
        let _ = toolstack::console().map(|port| evtchn::send(&Xen, port));
    }
    taken
}

/// Writes even if another vCPU, perhaps a dead one, holds the console: for crash reports.
pub fn write_crash(bytes: &[u8]) {
    for _ in 0..CRASH_TURNS {
        if let Some(sink) = SINK.try_lock() {
            return sink.write(bytes);
        }
        core::hint::spin_loop();
    }
    // SAFETY: the holder is stopped, or it writes a line at the same time: bytes may mix, but the
    // ring's indices are atomics and are reduced modulo its size at each access.
    unsafe { SINK.force_unlock() };
}

/// Waits until the daemon has read everything, or reads no more.
pub fn flush() {
    if let Sink::Ring(ring) = *SINK.lock() {
        wait_for(ring, |used| used == 0);
    }
}

/// Waits until the number of unread bytes satisfies `enough`; false where the daemon stopped
/// reading.
fn wait_for(ring: &ConsoleRing, enough: impl Fn(u32) -> bool) -> bool {
    let mut seen = ring.out_cons.load(Relaxed);
    let mut limit = clock::now() + PATIENCE_NS;
    loop {
        // Acquire: pairs with the daemon's store after it copied the bytes out.
        let read = ring.out_cons.load(Acquire);
        if enough(ring.out_prod.load(Relaxed).wrapping_sub(read)) {
            return true;
        }
        let now = clock::now();
        if read != seen {
            (seen, limit) = (read, now + PATIENCE_NS);
        } else if now >= limit {
            return false;
        }
        // The daemon notifies us when it has read. A pending bit left from before ends the poll
        // at once; the deadline bounds it should the event be lost.
        // Read anew each time: it changes when the domain is restored.
        let Some(port) = toolstack::console() else { return false };
        evtchn::take_own(&Xen, &events(), port, || toolstack::console() == Some(port));
        if ring.out_cons.load(Acquire) == read {
            let _ = evtchn::poll(&Xen, port, now + 10_000_000);
        }
    }
}

impl Sink {
    fn write(self, bytes: &[u8]) {
        match self {
            Sink::None => {}
            Sink::Xen => hypercall::console_io_write(bytes),
            Sink::Ring(ring) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let taken = push(ring, rest);
                    rest = &rest[taken..];
                    // An error would say that the port is gone: then nobody reads.
                    let _ = toolstack::console().map(|port| evtchn::send(&Xen, port));
                    if taken == 0 && !wait_for(ring, |used| used < ring.out.len() as u32) {
                        return;
                    }
                }
            }
        }
    }
}

/// Copies as much of `bytes` into the ring as fits; returns how much.
fn push(ring: &ConsoleRing, bytes: &[u8]) -> usize {
    let size = ring.out.len() as u32;
    let prod = ring.out_prod.load(Relaxed);
    // Acquire: pairs with the daemon's store; the bytes it freed are read before we overwrite them.
    let used = prod.wrapping_sub(ring.out_cons.load(Acquire));
    let free = size.saturating_sub(used) as usize;
    let count = free.min(bytes.len());
    for (index, byte) in bytes[..count].iter().enumerate() {
        let at = prod.wrapping_add(index as u32) % size;
        ring.out[at as usize].store(*byte, Relaxed);
    }
    // Release: the daemon that sees the new index sees the bytes.
    ring.out_prod.store(prod.wrapping_add(count as u32), Release);
    count
}

/// Moves as much input into `bytes` as is there and fits; returns how much.
fn pull(ring: &ConsoleRing, bytes: &mut [u8]) -> usize {
    let size = ring.input.len() as u32;
    let cons = ring.in_cons.load(Relaxed);
    // Acquire: pairs with the daemon's store; the bytes it wrote are there. No more than a ring full,
    // whatever a broken daemon says.
    let there = ring.in_prod.load(Acquire).wrapping_sub(cons).min(size) as usize;
    let count = there.min(bytes.len());
    for (index, byte) in bytes[..count].iter_mut().enumerate() {
        let at = cons.wrapping_add(index as u32) % size;
        *byte = ring.input[at as usize].load(Relaxed);
    }
    // Release: the daemon that sees the new index may write over what has been read.
    ring.in_cons.store(cons.wrapping_add(count as u32), Release);
    count
}

/// One line, gathered on the stack so that it reaches the console in one piece.
struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Line {
    fn new() -> Line {
        Line { bytes: [0; 256], len: 0 }
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // A longer line is cut: one slot stays for the newline.
        let room = self.bytes.len() - 1 - self.len;
        let text = &text.as_bytes()[..text.len().min(room)];
        self.bytes[self.len..self.len + text.len()].copy_from_slice(text);
        self.len += text.len();
        Ok(())
    }
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut line = Line::new();
        let ms = clock::now() / 1_000_000;
        let vcpu = identity::current();
        let level = record.level();
        // Writing to a `Line` does not fail.
        let _ = write!(
            line,
            "[{:4}.{:03}] vcpu{vcpu} {level}: {}",
            ms / 1000,
            ms % 1000,
            record.args()
        );
        line.bytes[line.len] = b'\n';
        write(&line.bytes[..line.len + 1]);
    }

    fn flush(&self) {
        flush();
    }
}

/// Makes the console the end of all `log` macros.
pub fn init_log(level: log::LevelFilter) {
    // An error would say that there is a logger already: then it stays.
    let _ = log::set_logger(&Logger);
    log::set_max_level(level);
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::sync::atomic::{AtomicU8, AtomicU32};

    fn ring() -> ConsoleRing {
        ConsoleRing {
            input: [const { AtomicU8::new(0) }; 1024],
            out: [const { AtomicU8::new(0) }; 2048],
            in_cons: AtomicU32::new(0),
            in_prod: AtomicU32::new(0),
            out_cons: AtomicU32::new(u32::MAX - 10),
            out_prod: AtomicU32::new(u32::MAX - 10),
        }
    }

    #[test]
    fn a_ring_takes_what_fits_and_its_indices_wrap() {
        let ring = ring();
        assert_eq!(push(&ring, &[7; 2000]), 2000);
        assert_eq!(ring.out_prod.load(Relaxed), 1989);
        assert_eq!(push(&ring, &[8; 100]), 48);
        assert_eq!(push(&ring, b"x"), 0);
        // The daemon reads ten bytes: ten fit again, where the oldest ten were.
        ring.out_cons.fetch_add(10, Relaxed);
        assert_eq!(push(&ring, &[9; 100]), 10);
        let first = (u32::MAX - 10) as usize % 2048;
        assert_eq!(ring.out[first].load(Relaxed), 9);
        assert_eq!(ring.out[(first + 10) % 2048].load(Relaxed), 7);
    }

    #[test]
    fn input_comes_out_as_it_was_typed_across_the_end_of_the_ring() {
        let ring = ring();
        let start = u32::MAX - 2;
        ring.in_cons.store(start, Relaxed);
        for (index, byte) in (0..).zip(*b"typed") {
            let at = start.wrapping_add(index) as usize % ring.input.len();
            ring.input[at].store(byte, Relaxed);
        }
        ring.in_prod.store(start.wrapping_add(5), Relaxed);
        let mut bytes = [0; 3];
        assert_eq!((pull(&ring, &mut bytes), &bytes), (3, b"typ"));
        assert_eq!((pull(&ring, &mut bytes), &bytes[..2]), (2, &b"ed"[..]));
        assert_eq!(pull(&ring, &mut bytes), 0);
    }

    #[test]
    fn a_writer_with_an_impossible_index_gives_no_more_than_a_ring() {
        let ring = ring();
        ring.in_prod.store(5000, Relaxed);
        assert_eq!(pull(&ring, &mut [0; 4096]), ring.input.len());
    }

    #[test]
    fn a_reader_with_an_impossible_index_does_not_make_room() {
        let ring = ring();
        ring.out_cons.store(ring.out_prod.load(Relaxed).wrapping_sub(5000), Relaxed);
        assert_eq!(push(&ring, b"text"), 0);
    }

    #[test]
    fn a_long_log_line_is_cut() {
        let mut line = Line::new();
        for _ in 0..100 {
            write!(line, "0123456789").unwrap();
        }
        assert_eq!(line.len, 255);
    }
}
