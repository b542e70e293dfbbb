//! The FIFO ABI: one word a port, linked into sixteen queues a vCPU.
//!
//! This file owns the event words and the control blocks. It must never allocate their memory (the
//! guest gives it) nor keep state about a queue beyond its head.
//!
//! An event word, from Xen public/event_channel.h:
//!
//! ```text
//!  31       30      29      28    27  17 16            0
//! +---------+-------+-------+-----+------+--------------+
//! | PENDING | MASKED| LINKED| BUSY|   0  | LINK: a port |
//! +---------+-------+-------+-----+------+--------------+
//! ```
//!
//! | bit | set by | cleared by | meaning |
//! |---|---|---|---|
//! | PENDING | Xen | the guest; Xen when the port is closed | an event is latched |
//! | MASKED | the guest | the guest; Xen in `EVTCHNOP_unmask` | do not put it in a queue |
//! | LINKED | Xen | the guest | it is in a queue; LINK is the next port in it, 0 = the last |
//! | BUSY | Xen | Xen | Xen is changing LINK: the guest may change anything but MASKED to 0 |
//!
//! Xen appends; the guest takes from the front. The only word both change is the tail's: Xen writes
//! its LINK if it is LINKED still, the guest takes LINKED and LINK away in one step. So whoever is
//! second sees what the first did.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU32, Ordering};

use xen_sys as sys;

use crate::{Abi, Errno, EventChannelOp, Hypercalls, Port, VcpuInfo, unmask};

pub(crate) const PENDING: u32 = 1 << sys::EVTCHN_FIFO_PENDING;
pub(crate) const MASKED: u32 = 1 << sys::EVTCHN_FIFO_MASKED;
pub(crate) const LINKED: u32 = 1 << sys::EVTCHN_FIFO_LINKED;
pub(crate) const BUSY: u32 = 1 << sys::EVTCHN_FIFO_BUSY;
pub(crate) const LINK: u32 = sys::EVTCHN_FIFO_LINK_MASK;

pub(crate) const QUEUES: usize = sys::EVTCHN_FIFO_MAX_QUEUES as usize;

// Xen public/event_channel.h.
const _: () = {
    use core::mem::{offset_of, size_of};
    assert!(size_of::<sys::evtchn_fifo_control_block>() == 72);
    assert!(offset_of!(sys::evtchn_fifo_control_block, head) == 8);
};

/// Which of a vCPU's sixteen queues an event stands in; 0 is served first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Priority(u32);

impl Priority {
    /// Served before all others.
    #[doc(alias = "EVTCHN_FIFO_PRIORITY_MAX")]
    pub const MAX: Self = Self(sys::EVTCHN_FIFO_PRIORITY_MAX);
    /// Of every port until told otherwise.
    #[doc(alias = "EVTCHN_FIFO_PRIORITY_DEFAULT")]
    pub const DEFAULT: Self = Self(sys::EVTCHN_FIFO_PRIORITY_DEFAULT);
    /// Served after all others.
    #[doc(alias = "EVTCHN_FIFO_PRIORITY_MIN")]
    pub const MIN: Self = Self(sys::EVTCHN_FIFO_PRIORITY_MIN);

    /// Priority `level`, 0 (first) to 15 (last).
    #[must_use]
    pub const fn new(level: u32) -> Option<Self> {
        if level <= Self::MIN.0 { Some(Self(level)) } else { None }
    }
}

/// Lets later events of `port` stand in another queue. One that is queued already stays.
///
/// # Errors
///
/// `ENOSYS`: the domain uses the 2-level ABI. `EACCES`: the port is closed.
#[doc(alias = "EVTCHNOP_set_priority")]
pub fn set_priority(xen: &impl Hypercalls, port: Port, priority: Priority) -> Result<(), Errno> {
    let mut op = sys::evtchn_set_priority { port: port.get(), priority: priority.0 };
    xen.event_channel_op(EventChannelOp::SetPriority(&mut op))
}

/// The event words of a domain.
///
/// Set up at boot, **before the first bind**: [`FifoVcpu::init`] for every vCPU, the first of which
/// switches the domain to this ABI; then [`expand`](Self::expand) by at least one page. Ports that exist
/// already (the console's) keep what they have pending, and are masked. If Xen does not offer the ABI, the
/// first `init` fails and nothing has changed; if memory is short later,
/// [`reset_keeping`](crate::reset_keeping) goes back to [`TwoLevel`](crate::TwoLevel).
///
/// ```
/// use evtchn::{Abi, bind_ipi, fake::FakeXen, send};
///
/// let xen = FakeXen::new(1);
/// let vcpu = xen.vcpu(0);
/// let (events, queues) = (xen.fifo_memory(1), xen.fifo_queues()); // memory of the guest's own
/// queues.0.init(&vcpu, 0, queues.1, 0)?;
/// events.0.expand(&vcpu, events.1)?;
///
/// let port = bind_ipi(&vcpu, 0)?;
/// assert!(events.0.is_masked(port), "`expand` masks what it adds");
/// events.0.unmask(&vcpu, port)?;
/// send(&vcpu, port)?;
/// let mut seen = Vec::new();
/// queues.0.dispatch(&events.0, &xen.vcpu_info(0), |port| seen.push(port));
/// assert_eq!(seen, [port]);
/// # Ok::<(), evtchn::Errno>(())
/// ```
#[derive(Debug)]
pub struct Fifo {
    array: NonNull<u32>,
    /// Pages there is memory for.
    capacity: u32,
    /// Pages Xen knows of.
    pages: AtomicU32,
}

// SAFETY: every access through the pointer is atomic, and the memory outlives the value by the
// contract of `new`.
unsafe impl Send for Fifo {}
// SAFETY: as above.
unsafe impl Sync for Fifo {}

impl Fifo {
    /// Words, and so ports, in a page of 4 KiB.
    pub const WORDS_PER_PAGE: u32 = 1024;

    /// The most pages a domain can have: 131,072 ports.
    pub const MAX_PAGES: u32 = sys::EVTCHN_FIFO_NR_CHANNELS / Self::WORDS_PER_PAGE;

    /// An array that may grow to `capacity` pages at `array`, none of which Xen knows yet.
    ///
    /// # Panics
    ///
    /// If `capacity` is beyond [`MAX_PAGES`](Self::MAX_PAGES).
    ///
    /// # Safety
    ///
    /// 1. `array` is page-aligned and stays valid for reads and writes of `capacity` pages of
    ///    4 KiB, contiguous in the guest's address space, as long as the value exists.
    /// 2. Nothing but this value and Xen accesses them.
    #[must_use]
    pub const unsafe fn new(array: NonNull<u32>, capacity: u32) -> Self {
        assert!(capacity <= Self::MAX_PAGES, "an event array has at most 128 pages");
        Self { array, capacity, pages: AtomicU32::new(0) }
    }

    /// The word of `port`, within the first `pages` pages.
    fn word_within(&self, port: u32, pages: u32) -> &AtomicU32 {
        assert!(
            port / Self::WORDS_PER_PAGE < pages,
            "port {port} is beyond the event array of {pages} pages"
        );
        // SAFETY: in bounds: `pages` is at most the capacity that `new` was promised.
        let word = unsafe { self.array.as_ptr().add(port as usize) };
        // SAFETY: valid and only accessed atomically, by the contract of `new`; 4 bytes, aligned.
        unsafe { AtomicU32::from_ptr(word) }
    }

    fn word(&self, port: Port) -> &AtomicU32 {
        // Acquire: pairs with the release in `expand`.
        self.word_within(port.get(), self.pages.load(Ordering::Acquire))
    }

    /// Gives Xen the next page of the array, machine frame (PV) or guest frame (PVH) `frame`, with
    /// all its ports masked: without that, new ports would start unmasked.
    ///
    /// Only one vCPU at a time may call it.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`: no control block was given yet. `ENOSPC`: the array is full. `EINVAL`: no such
    /// frame. `ENOMEM`: Xen is out of memory.
    #[doc(alias = "EVTCHNOP_expand_array")]
    pub fn expand(&self, xen: &impl Hypercalls, frame: u64) -> Result<(), Errno> {
        // Acquire: the page counted before is complete.
        let pages = self.pages.load(Ordering::Acquire);
        if pages >= self.capacity {
            return Err(Errno::ENOSPC);
        }
        for port in pages * Self::WORDS_PER_PAGE..(pages + 1) * Self::WORDS_PER_PAGE {
            // Relaxed: the hypercall publishes the page to Xen, the count below to other vCPUs.
            self.word_within(port, pages + 1).store(MASKED, Ordering::Relaxed);
        }
        let mut op = sys::evtchn_expand_array { array_gfn: frame };
        xen.event_channel_op(EventChannelOp::ExpandArray(&mut op))?;
        // Release: pairs with the acquire in `word`.
        self.pages.store(pages + 1, Ordering::Release);
        Ok(())
    }

    /// Starts over with an empty array, after a [`reset`](crate::reset) or resume took it from Xen.
    ///
    /// No other vCPU may use the array meanwhile.
    pub fn forget(&self) {
        // Release: as in `expand`.
        self.pages.store(0, Ordering::Release);
    }

    /// Takes `port` out of the front of its queue: its flags before, and the next port or 0.
    fn unlink(&self, port: Port) -> (u32, u32) {
        // AcqRel: acquire what Xen wrote before it linked the port (the next head's word); release
        // for Xen, which reads LINKED as cleared only after we are done with the port's place.
        // Unlike MASKED, LINKED may be cleared while BUSY: Xen then starts a new queue.
        let before = self.word(port).fetch_and(!(LINKED | LINK), Ordering::AcqRel);
        (before, before & LINK)
    }
}

impl Abi for Fifo {
    fn ports(&self) -> u32 {
        self.pages.load(Ordering::Acquire) * Self::WORDS_PER_PAGE
    }

    /// # Panics
    ///
    /// If `port` is beyond the pages given to Xen, as every function of this impl: expand the array
    /// before such a port is used.
    fn mask(&self, port: Port) {
        // AcqRel: a full barrier on x86. Allowed at any time, BUSY or not. The port may stay in
        // its queue: `dispatch` skips it.
        self.word(port).fetch_or(MASKED, Ordering::AcqRel);
    }

    fn is_masked(&self, port: Port) -> bool {
        // Relaxed: only the guest and its own hypercalls change the bit.
        self.word(port).load(Ordering::Relaxed) & MASKED != 0
    }

    fn is_pending(&self, port: Port) -> bool {
        // Acquire: pairs with Xen's atomic set on behalf of the sender.
        self.word(port).load(Ordering::Acquire) & PENDING != 0
    }

    fn clear(&self, port: Port) -> bool {
        // AcqRel: acquire pairs with Xen's atomic set; the caller's later reads stay behind.
        self.word(port).fetch_and(!PENDING, Ordering::AcqRel) & PENDING != 0
    }

    fn unmask(&self, xen: &impl Hypercalls, port: Port) -> Result<(), Errno> {
        let word = self.word(port);
        // Relaxed: a guess for the compare-exchange.
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            if seen & MASKED == 0 {
                return Ok(()); // and if an event is latched, it is in a queue
            }
            if seen & PENDING != 0 {
                // It latched while masked and is in no queue: only Xen can put it there.
                return unmask(xen, port);
            }
            // Not while BUSY: the exchange expects that bit clear. Xen holds it for a few
            // instructions, so this is a spin without a bound but not without an end.
            // AcqRel: PENDING was clear in the same step, so an event that comes later finds the
            // port unmasked and is linked.
            match word.compare_exchange_weak(
                seen & !BUSY,
                seen & !BUSY & !MASKED,
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(now) => seen = now,
            }
            if seen & BUSY != 0 {
                core::hint::spin_loop();
            }
        }
    }
}

/// One vCPU's queues: its control block, and how far it has read each queue.
#[derive(Debug)]
pub struct FifoVcpu {
    control: NonNull<sys::evtchn_fifo_control_block>,
    /// The next port of each queue; 0 = read it from the control block. Used by the owning vCPU
    /// only, within `dispatch`.
    heads: [AtomicU32; QUEUES],
}

// SAFETY: every access through the pointer is atomic, and the memory outlives the value by the
// contract of `new`.
unsafe impl Send for FifoVcpu {}
// SAFETY: as above.
unsafe impl Sync for FifoVcpu {}

impl FifoVcpu {
    /// Empty queues over the control block at `control`.
    ///
    /// # Safety
    ///
    /// 1. `control` is aligned to 8 bytes, crosses no page, and stays valid for reads and writes as
    ///    long as the value exists.
    /// 2. Nothing but this value and Xen accesses it.
    #[must_use]
    pub const unsafe fn new(control: NonNull<sys::evtchn_fifo_control_block>) -> Self {
        Self { control, heads: [const { AtomicU32::new(0) }; QUEUES] }
    }

    /// Tells Xen where `vcpu`'s control block is: in frame `frame`, `offset` bytes in. Several may
    /// share a page. The first call switches the whole domain to the FIFO ABI. After a resume the
    /// domain is back on the 2-level ABI: call it again, then [`Fifo::forget`] and expand again.
    ///
    /// # Errors
    ///
    /// `ENOSYS`: this Xen does not offer the ABI. `ENOENT`: no such vCPU. `EINVAL`: the vCPU has a
    /// control block already, no such frame, or a bad offset. `ENOMEM`: Xen is out of memory.
    /// `EOPNOTSUPP`: Xen has switched, but to words of another layout: go back.
    #[doc(alias = "EVTCHNOP_init_control")]
    pub fn init(
        &self,
        xen: &impl Hypercalls,
        vcpu: u32,
        frame: u64,
        offset: u32,
    ) -> Result<(), Errno> {
        // As at boot: a resume or a reset empties all queues. Relaxed: the hypercall publishes them.
        self.ready().store(0, Ordering::Relaxed);
        for queue in 0..QUEUES {
            self.head(queue).store(0, Ordering::Relaxed);
            self.heads[queue].store(0, Ordering::Relaxed);
        }
        let mut op = sys::evtchn_init_control {
            control_gfn: frame,
            offset,
            vcpu,
            link_bits: 0,
            _pad: [0; 7],
        };
        xen.event_channel_op(EventChannelOp::InitControl(&mut op))?;
        // Xen's LINK field might grow one day; this code knows 17 bits.
        if u32::from(op.link_bits) == sys::EVTCHN_FIFO_LINK_BITS {
            Ok(())
        } else {
            Err(Errno::EOPNOTSUPP)
        }
    }

    fn ready(&self) -> &AtomicU32 {
        // SAFETY: in bounds of the structure that `new` was promised.
        let field = unsafe { &raw mut (*self.control.as_ptr()).ready };
        // SAFETY: valid and only accessed atomically, by the contract of `new`; 4 bytes, aligned.
        unsafe { AtomicU32::from_ptr(field) }
    }

    fn head(&self, queue: usize) -> &AtomicU32 {
        assert!(queue < QUEUES);
        // SAFETY: in bounds (asserted) of the structure that `new` was promised.
        let field = unsafe { &raw mut (*self.control.as_ptr()).head[queue] };
        // SAFETY: valid and only accessed atomically, by the contract of `new`; 4 bytes, aligned.
        unsafe { AtomicU32::from_ptr(field) }
    }

    /// Calls `handler` once for every latched, unmasked event in this vCPU's queues, each cleared
    /// before its call, until nothing more is due. Returns how many there were.
    ///
    /// Queues are served in the order of their priority, looked at anew after every event; within a
    /// queue, in the order of arrival. Otherwise as [`TwoLevel::dispatch`]: the body of an upcall,
    /// with upcalls masked, on the vCPU these queues and `info` belong to. No set of ports is
    /// needed, for each vCPU has its own queues.
    ///
    /// [`TwoLevel::dispatch`]: crate::TwoLevel::dispatch
    pub fn dispatch(&self, events: &Fifo, info: &VcpuInfo, mut handler: impl FnMut(Port)) -> usize {
        let mut handled = 0;
        while info.take_upcall_pending() {
            // SeqCst, here and below: after the flag is down, before the heads are read. Xen
            // writes head, then ready, then the flag, with full barriers.
            let mut ready = self.ready().swap(0, Ordering::SeqCst);
            while ready != 0 {
                let queue = ready.trailing_zeros() as usize % QUEUES;
                let first = self.take_first(events, queue);
                if first.as_ref().is_none_or(|first| first.was_last) {
                    ready &= !(1 << queue);
                }
                match first {
                    Some(First { port, flags, .. })
                        if flags & (PENDING | MASKED) == PENDING && events.clear(port) =>
                    {
                        handled += 1;
                        handler(port);
                    }
                    _ => {}
                }
                ready |= self.ready().swap(0, Ordering::SeqCst);
            }
        }
        handled
    }

    /// Takes the first port out of a queue; `None` if it is empty.
    fn take_first(&self, events: &Fifo, queue: usize) -> Option<First> {
        // Relaxed: this vCPU's own.
        let mut first = self.heads[queue].load(Ordering::Relaxed);
        if first == 0 {
            // We have read the queue to its end, so Xen has written a new head. Acquire: pairs
            // with Xen's write, which comes after the port's word was set.
            first = self.head(queue).load(Ordering::Acquire);
        }
        let port = Port::new(first)?;
        let (flags, next) = events.unlink(port);
        self.heads[queue].store(next, Ordering::Relaxed);
        Some(First { port, flags, was_last: next == 0 })
    }
}

/// What stood first in a queue.
struct First {
    port: Port,
    /// The bits of its word when it was taken out.
    flags: u32,
    was_last: bool,
}

#[cfg(any(feature = "fake", test))]
impl FifoVcpu {
    /// For the fake Xen: the block's fields as Xen reaches them.
    pub(crate) fn hypervisor_block(control: NonNull<sys::evtchn_fifo_control_block>) -> Self {
        Self { control, heads: [const { AtomicU32::new(0) }; QUEUES] }
    }

    /// Writes a queue's head, as Xen does when it starts one.
    pub(crate) fn hypervisor_set_head(&self, queue: usize, port: u32) {
        self.head(queue).store(port, Ordering::SeqCst);
    }

    /// Marks a queue ready; whether it was not yet.
    pub(crate) fn hypervisor_set_ready(&self, queue: usize) -> bool {
        self.ready().fetch_or(1 << queue, Ordering::SeqCst) & (1 << queue) == 0
    }
}
