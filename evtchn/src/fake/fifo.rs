//! The hypervisor's side of the FIFO ABI.
//!
//! This file owns the queues' tails and what Xen writes into event words. It must never decide who
//! is woken: it reports what changed, the domain does the rest.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use xen_sys as sys;

use crate::fifo::{BUSY, FifoVcpu, LINK, LINKED, MASKED, PENDING, QUEUES};
use crate::{Errno, Fifo};

/// Bytes in a page.
pub(super) const PAGE: usize = 4096;

/// The guest's memory by frame number: the address of each page. Pages are leaked when made, so
/// that an address is good for ever.
#[derive(Debug, Default)]
pub(super) struct Frames(BTreeMap<u64, NonNull<u32>>);

// SAFETY: the pages are plain memory that is only accessed atomically.
unsafe impl Send for Frames {}

impl Frames {
    /// The first frame of those made next.
    const FIRST: u64 = 0x1000;

    /// Registers `pages` contiguous pages at `memory`; the number of the first.
    pub(super) fn add(&mut self, memory: NonNull<u32>, pages: usize) -> u64 {
        let first = Self::FIRST + self.0.len() as u64;
        for page in 0..pages {
            // SAFETY: in bounds of the `pages` pages the caller made.
            let address = unsafe { memory.add(page * PAGE / size_of::<u32>()) };
            self.0.insert(first + page as u64, address);
        }
        first
    }

    fn get(&self, frame: u64) -> Result<NonNull<u32>, Errno> {
        self.0.get(&frame).copied().ok_or(Errno::EINVAL)
    }
}

/// Where an event was queued last: vCPU and priority.
pub(super) type Queue = (u32, u32);

#[derive(Debug)]
struct Vcpu {
    block: Option<FifoVcpu>,
    tails: [u32; QUEUES],
}

/// What an event did.
pub(super) struct Raised {
    /// It latched: pollers are to be woken.
    pub(super) latched: bool,
    /// It made a queue ready that was not: an upcall is due.
    pub(super) upcall: bool,
}

/// The state Xen keeps once a domain has switched to the FIFO ABI.
#[derive(Debug)]
pub(super) struct FifoDomain {
    vcpus: Vec<Vcpu>,
    pages: Vec<NonNull<u32>>,
    /// Ports whose events came before their page.
    early: BTreeSet<u32>,
}

// SAFETY: the pages are plain memory that is only accessed atomically.
unsafe impl Send for FifoDomain {}

impl FifoDomain {
    pub(super) fn new(vcpus: usize) -> Self {
        let vcpu = || Vcpu { block: None, tails: [0; QUEUES] };
        Self {
            vcpus: (0..vcpus).map(|_| vcpu()).collect(),
            pages: Vec::new(),
            early: BTreeSet::new(),
        }
    }

    /// An event that the 2-level ABI had latched at the switch.
    pub(super) fn save(&mut self, port: u32) {
        self.early.insert(port);
    }

    pub(super) fn init_control(
        &mut self,
        frames: &Frames,
        op: &mut sys::evtchn_init_control,
    ) -> Result<(), Errno> {
        op.link_bits = sys::EVTCHN_FIFO_LINK_BITS as u8;
        let vcpu = self.vcpus.get_mut(op.vcpu as usize).ok_or(Errno::ENOENT)?;
        if op.offset as usize > PAGE - size_of::<sys::evtchn_fifo_control_block>()
            || op.offset % 8 != 0
            || vcpu.block.is_some()
        {
            return Err(Errno::EINVAL);
        }
        let page = frames.get(op.control_gfn)?;
        // SAFETY: the offset was checked to be within the page.
        let block = unsafe { page.byte_add(op.offset as usize) };
        vcpu.block = Some(FifoVcpu::hypervisor_block(block.cast()));
        Ok(())
    }

    /// Adds a page; the ports on it whose events had come before.
    pub(super) fn expand(&mut self, frames: &Frames, frame: u64) -> Result<Vec<u32>, Errno> {
        if self.pages.len() == Fifo::MAX_PAGES as usize {
            return Err(Errno::ENOSPC);
        }
        self.pages.push(frames.get(frame)?);
        let end = self.pages.len() as u32 * Fifo::WORDS_PER_PAGE;
        let later = self.early.split_off(&end);
        Ok(core::mem::replace(&mut self.early, later).into_iter().collect())
    }

    fn word(&self, port: u32) -> Option<&AtomicU32> {
        let page = self.pages.get((port / Fifo::WORDS_PER_PAGE) as usize)?;
        // SAFETY: in bounds of the page: the remainder is less than its number of words.
        let word = unsafe { page.add((port % Fifo::WORDS_PER_PAGE) as usize) };
        // SAFETY: leaked, hence valid for ever, aligned, and only accessed atomically.
        Some(unsafe { AtomicU32::from_ptr(word.as_ptr()) })
    }

    fn has(&self, port: u32, flag: u32) -> bool {
        self.word(port).is_some_and(|word| word.load(Ordering::SeqCst) & flag != 0)
    }

    pub(super) fn is_pending(&self, port: u32) -> bool {
        self.has(port, PENDING)
    }

    /// Whether the guest has the port in a queue still: Xen gives no such number out.
    pub(super) fn is_linked(&self, port: u32) -> bool {
        self.has(port, LINKED)
    }

    pub(super) fn clear_pending(&mut self, port: u32) {
        self.early.remove(&port);
        if let Some(word) = self.word(port) {
            word.fetch_and(!PENDING, Ordering::SeqCst);
        }
    }

    /// Takes MASKED away; whether an event is latched that must be raised now.
    pub(super) fn unmask(&mut self, port: u32) -> bool {
        match self.word(port) {
            Some(word) => {
                word.fetch_and(!MASKED, Ordering::SeqCst);
                word.load(Ordering::SeqCst) & PENDING != 0
            }
            None => false,
        }
    }

    /// Raises an event for queue `to`; `last` is where the port was queued the time before.
    pub(super) fn set_pending(&mut self, port: u32, to: Queue, last: &mut Queue) -> Raised {
        let mut raised = Raised { latched: false, upcall: false };
        if self.word(port).is_none() {
            self.early.insert(port);
            return raised;
        }
        if self.vcpus[to.0 as usize].block.is_none() {
            return raised; // the guest must not use a vCPU without a control block
        }
        let word = self.word(port).expect("looked up above");
        raised.latched = word.fetch_or(PENDING, Ordering::SeqCst) & PENDING == 0;
        if word.load(Ordering::SeqCst) & MASKED != 0
            || word.fetch_or(LINKED, Ordering::SeqCst) & LINKED != 0
        {
            return raised;
        }
        // It was in no queue. If it was a tail, that queue is empty by now.
        let old_tail = &mut self.vcpus[last.0 as usize].tails[last.1 as usize];
        if *old_tail == port {
            *old_tail = 0;
        }
        *last = to;
        let queue = to.1 as usize;
        let tail = self.vcpus[to.0 as usize].tails[queue];
        let linked = tail != 0 && self.link(tail, port);
        self.vcpus[to.0 as usize].tails[queue] = port;
        if !linked {
            let block = self.vcpus[to.0 as usize].block.as_ref().expect("checked above");
            block.hypervisor_set_head(queue, port);
            raised.upcall = block.hypervisor_set_ready(queue);
        }
        raised
    }

    /// Makes `port` the successor of `tail`, if the guest has not taken that out meanwhile.
    fn link(&self, tail: u32, port: u32) -> bool {
        let word = self.word(tail).expect("a tail has a word");
        let try_link = |seen: u32| {
            let new = seen & !(BUSY | LINK) | port;
            word.compare_exchange(seen, new, Ordering::SeqCst, Ordering::SeqCst)
        };
        let mut seen = word.load(Ordering::SeqCst);
        if seen & LINKED == 0 {
            return false;
        }
        if try_link(seen).is_ok() {
            return true;
        }
        // The guest changes the word at the same time. BUSY stops it from unmasking; all else it
        // may do, it can do once each.
        seen = word.fetch_or(BUSY, Ordering::SeqCst) | BUSY;
        while seen & LINKED != 0 {
            match try_link(seen) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
        word.fetch_and(!BUSY, Ordering::SeqCst);
        false
    }

    /// For tests: marks the word as if Xen were linking it, or no longer.
    #[cfg(test)]
    pub(super) fn set_busy(&self, port: u32, busy: bool) {
        let word = self.word(port).expect("a word");
        if busy {
            word.fetch_or(BUSY, Ordering::SeqCst);
        } else {
            word.fetch_and(!BUSY, Ordering::SeqCst);
        }
    }
}
