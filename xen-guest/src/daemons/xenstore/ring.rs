//! The page a domain shares with xenstored.
//!
//! Owns its layout and the rule who writes which index. Knows nothing of messages. Every byte in it
//! belongs to another domain as much as to this one: indices are checked at each use.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering};

/// Bytes in each of the two rings: `XENSTORE_RING_SIZE`.
pub(super) const RING_SIZE: usize = 1024;

/// The shared page: `struct xenstore_domain_interface` of Xen `public/io/xs_wire.h`.
///
/// A zeroed page is a valid one: both rings empty.
#[doc(alias = "xenstore_domain_interface")]
#[repr(C)]
#[derive(Debug)]
pub struct Ring {
    req: [AtomicU8; RING_SIZE],
    rsp: [AtomicU8; RING_SIZE],
    req_cons: AtomicU32,
    req_prod: AtomicU32,
    rsp_cons: AtomicU32,
    rsp_prod: AtomicU32,
    server_features: AtomicU32,
    connection: AtomicU32,
    error: AtomicU32,
}

const _: () = assert!(size_of::<Ring>() == 2 * RING_SIZE + 28);
const _: () = assert!(core::mem::offset_of!(Ring, req_cons) == 2048);
const _: () = assert!(core::mem::offset_of!(Ring, rsp_prod) == 2060);

/// The other side moved an index to where it cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadIndex;

/// One direction of the page, seen from either end.
#[derive(Clone, Copy)]
pub(super) struct Pipe<'a> {
    bytes: &'a [AtomicU8; RING_SIZE],
    cons: &'a AtomicU32,
    prod: &'a AtomicU32,
}

impl Ring {
    /// Two empty rings; for tests, and to say what a fresh page holds.
    pub const fn new() -> Self {
        Ring {
            req: [const { AtomicU8::new(0) }; RING_SIZE],
            rsp: [const { AtomicU8::new(0) }; RING_SIZE],
            req_cons: AtomicU32::new(0),
            req_prod: AtomicU32::new(0),
            rsp_cons: AtomicU32::new(0),
            rsp_prod: AtomicU32::new(0),
            server_features: AtomicU32::new(0),
            connection: AtomicU32::new(0),
            error: AtomicU32::new(0),
        }
    }

    /// From the domain to xenstored.
    pub(super) fn requests(&self) -> Pipe<'_> {
        Pipe { bytes: &self.req, cons: &self.req_cons, prod: &self.req_prod }
    }

    /// From xenstored to the domain.
    pub(super) fn replies(&self) -> Pipe<'_> {
        Pipe { bytes: &self.rsp, cons: &self.rsp_cons, prod: &self.rsp_prod }
    }
}

impl Default for Ring {
    fn default() -> Self {
        Ring::new()
    }
}

impl Pipe<'_> {
    /// Puts in as much of `data` as fits and says how much that was. For the producing end.
    pub(super) fn push(self, data: &[u8]) -> Result<usize, BadIndex> {
        // Only this end moves `prod`: nobody to order with.
        let prod = self.prod.load(Ordering::Relaxed);
        // Acquire: pairs with the Release of `cons` in `pop`; what was read there may be
        // overwritten.
        let used = prod.wrapping_sub(self.cons.load(Ordering::Acquire)) as usize;
        let room = RING_SIZE.checked_sub(used).ok_or(BadIndex)?;
        let n = room.min(data.len());
        for (i, byte) in data[..n].iter().enumerate() {
            // Relaxed: published by `prod` below.
            self.bytes[(prod as usize).wrapping_add(i) % RING_SIZE].store(*byte, Ordering::Relaxed);
        }
        // Release: the bytes are there before the index says so; pairs with the Acquire in `pop`.
        self.prod.store(prod.wrapping_add(n as u32), Ordering::Release);
        Ok(n)
    }

    /// Takes out as much as there is, up to `into.len()`, and says how much. For the consuming end.
    pub(super) fn pop(self, into: &mut [u8]) -> Result<usize, BadIndex> {
        // Only this end moves `cons`.
        let cons = self.cons.load(Ordering::Relaxed);
        // Acquire: pairs with the Release of `prod` in `push`.
        let there = self.prod.load(Ordering::Acquire).wrapping_sub(cons) as usize;
        if there > RING_SIZE {
            return Err(BadIndex);
        }
        let n = there.min(into.len());
        for (i, byte) in into[..n].iter_mut().enumerate() {
            // Relaxed: the Acquire above ordered it.
            *byte = self.bytes[(cons as usize).wrapping_add(i) % RING_SIZE].load(Ordering::Relaxed);
        }
        // Release: the bytes were read before the other end may overwrite them; pairs with `push`.
        self.cons.store(cons.wrapping_add(n as u32), Ordering::Release);
        Ok(n)
    }
}

impl Pipe<'_> {
    /// Throws away what there is, for the consuming end.
    pub(super) fn discard(self) {
        // Acquire and Release: as in `pop`.
        self.cons.store(self.prod.load(Ordering::Acquire), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn a_pipe_is_a_queue_of_bytes_that_holds_1024(
            start in any::<u32>(),
            steps in prop::collection::vec((any::<bool>(), 0usize..1500), 0..60),
        ) {
            let ring = Ring::new();
            ring.req_cons.store(start, Ordering::Relaxed);
            ring.req_prod.store(start, Ordering::Relaxed);
            let mut model = VecDeque::new();
            let mut next = 0u8;
            for (push, n) in steps {
                if push {
                    let data: Vec<u8> = (0..n).map(|i| next.wrapping_add(i as u8)).collect();
                    let taken = ring.requests().push(&data).unwrap();
                    prop_assert_eq!(taken, n.min(RING_SIZE - model.len()));
                    model.extend(&data[..taken]);
                    next = next.wrapping_add(taken as u8);
                } else {
                    let mut into = vec![0; n];
                    let got = ring.requests().pop(&mut into).unwrap();
                    prop_assert_eq!(got, n.min(model.len()));
                    prop_assert_eq!(&into[..got], &model.drain(..got).collect::<Vec<u8>>()[..]);
                }
            }
        }
    }

    #[test]
    fn an_index_out_of_range_is_noticed_on_both_ends() {
        let ring = Ring::new();
        ring.rsp_prod.store(1025, Ordering::Relaxed);
        assert_eq!(ring.replies().pop(&mut [0; 4]), Err(BadIndex));
        ring.req_cons.store(1, Ordering::Relaxed);
        assert_eq!(ring.requests().push(&[0; 4]), Err(BadIndex));
    }
}
