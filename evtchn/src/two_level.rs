//! The 2-level ABI: two bitmaps of 4,096 bits in `shared_info`, one selector word a vCPU.
//!
//! This file owns those bitmaps. It must never touch a `vcpu_info` but through [`VcpuInfo`], and
//! never decides which vCPU a port belongs to: the caller keeps that in a [`PortSet`].

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use xen_sys as sys;

use crate::{Abi, Errno, Hypercalls, Port, VcpuInfo, unmask};

/// Words in each bitmap, and bits in each word (Xen public/event_channel.h,
/// `EVTCHN_2L_NR_CHANNELS` = 64 * 64).
const WORDS: usize = 64;
const BITS: u32 = u64::BITS;

// Xen public/xen.h. `shared_info` begins with room for 32 vCPUs on x86-64, for one on ARM.
const _: () = {
    use core::mem::offset_of;
    const PENDING: usize = if cfg!(target_arch = "x86_64") { 2048 } else { 48 };
    assert!(offset_of!(sys::shared_info, evtchn_pending) == PENDING);
    assert!(offset_of!(sys::shared_info, evtchn_mask) == PENDING + 8 * WORDS);
    assert!(WORDS as u32 * BITS == TwoLevel::PORTS);
};

/// The bitmaps of one domain. Copies name the same bitmaps.
///
/// ```
/// use evtchn::{Abi, bind_ipi, fake::FakeXen, send};
///
/// let xen = FakeXen::new(1);
/// let vcpu = xen.vcpu(0);
/// let events = xen.two_level(); // in a guest: `unsafe { TwoLevel::new(shared_info) }`
/// events.mask_all(); // ports start unmasked
/// let port = bind_ipi(&vcpu, 0)?;
/// send(&vcpu, port)?;
/// assert!(events.is_pending(port), "masked events latch");
/// assert!(!xen.vcpu_info(0).upcall_pending(), "but raise no upcall");
/// events.unmask(&vcpu, port)?;
/// assert!(xen.vcpu_info(0).upcall_pending());
/// # Ok::<(), evtchn::Errno>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct TwoLevel(NonNull<sys::shared_info>);

// SAFETY: every access through the pointer is atomic, and the memory outlives the value by the
// contract of `new`.
unsafe impl Send for TwoLevel {}
// SAFETY: as above.
unsafe impl Sync for TwoLevel {}

impl TwoLevel {
    /// How many ports the ABI has room for.
    #[doc(alias = "EVTCHN_2L_NR_CHANNELS")]
    pub const PORTS: u32 = 4096;

    /// The bitmaps in `shared_info`.
    ///
    /// # Safety
    ///
    /// 1. `shared_info` stays valid for reads and writes as long as the value or a copy exists.
    /// 2. The guest touches `evtchn_pending` and `evtchn_mask` in it through this type, or
    ///    otherwise atomically, only.
    #[must_use]
    pub const unsafe fn new(shared_info: NonNull<sys::shared_info>) -> Self {
        Self(shared_info)
    }

    fn pending(&self, word: usize) -> &AtomicU64 {
        assert!(word < WORDS);
        // SAFETY: in bounds (asserted) of the structure that `new` was promised.
        let field = unsafe { &raw mut (*self.0.as_ptr()).evtchn_pending[word] };
        // SAFETY: valid and only accessed atomically, by the contract of `new`; 8 bytes, aligned.
        unsafe { AtomicU64::from_ptr(field) }
    }

    fn masks(&self, word: usize) -> &AtomicU64 {
        assert!(word < WORDS);
        // SAFETY: in bounds (asserted) of the structure that `new` was promised.
        let field = unsafe { &raw mut (*self.0.as_ptr()).evtchn_mask[word] };
        // SAFETY: valid and only accessed atomically, by the contract of `new`; 8 bytes, aligned.
        unsafe { AtomicU64::from_ptr(field) }
    }

    /// Masks every port. Do this before the first bind: at boot all are unmasked.
    pub fn mask_all(&self) {
        for word in 0..WORDS {
            // Relaxed: no event is expected yet; Xen reads it in later hypercalls.
            self.masks(word).store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// Which ports are pending, ascending, masked or not: for a crash report.
    pub fn pending_ports(&self) -> impl Iterator<Item = Port> + '_ {
        (0..WORDS).flat_map(|word| {
            // Relaxed: a snapshot for a reader.
            Ones(self.pending(word).load(Ordering::Relaxed)).filter_map(move |bit| port(word, bit))
        })
    }

    /// Calls `handler` once for every latched, unmasked event of `mine`, each cleared before its
    /// call, until nothing more is due on this vCPU. Returns how many there were.
    ///
    /// This is the body of an event upcall. Call it with upcalls masked (in the handler of a PV
    /// upcall or of the vector they are), on the vCPU `info` belongs to. An event that arrives
    /// while `handler` runs is handled before this returns, in the order of port numbers, a sweep
    /// at a time, so that a busy low port cannot starve a high one.
    ///
    /// `mine` is the set of ports bound to this vCPU: the pending bits of all vCPUs stand in the
    /// same words, and a vCPU must leave the others' alone.
    ///
    /// ```
    /// use evtchn::{Abi, PortSet, bind_ipi, fake::FakeXen, send};
    ///
    /// let xen = FakeXen::new(2);
    /// let vcpu = xen.vcpu(0);
    /// let (mine, other) = (bind_ipi(&vcpu, 0)?, bind_ipi(&vcpu, 1)?);
    /// let ports = PortSet::new();
    /// ports.insert(mine);
    /// send(&vcpu, mine)?;
    /// send(&vcpu, other)?;
    ///
    /// let mut seen = Vec::new();
    /// xen.two_level().dispatch(&xen.vcpu_info(0), &ports, |port| seen.push(port));
    /// assert_eq!(seen, [mine]);
    /// assert!(xen.two_level().is_pending(other), "left to vCPU 1");
    /// # Ok::<(), evtchn::Errno>(())
    /// ```
    pub fn dispatch(
        &self,
        info: &VcpuInfo,
        mine: &PortSet,
        mut handler: impl FnMut(Port),
    ) -> usize {
        let mut handled = 0;
        while info.take_upcall_pending() {
            // SeqCst: taken after the flag is down, and before the bits are read: an event whose
            // selector bit this swap missed sets selector and flag again (Xen sets bit, selector,
            // flag in this order with full barriers).
            let words = info.selector().swap(0, Ordering::SeqCst);
            for word in Ones(words) {
                let word = word as usize;
                // Acquire: pairs with Xen's atomic set. Masked events stay latched.
                let masked = self.masks(word).load(Ordering::Acquire);
                let due = self.pending(word).load(Ordering::Acquire) & !masked & mine.word(word);
                for bit in Ones(due) {
                    // Looked at again: a handler may have taken the port away, or all of them, when the
                    // domain was restored meanwhile.
                    if mine.word(word) & (1 << bit) == 0 {
                        continue;
                    }
                    // AcqRel: acquire what the sender wrote; a later event latches anew.
                    let before = self.pending(word).fetch_and(!(1 << bit), Ordering::AcqRel);
                    if before & (1 << bit) == 0 {
                        continue;
                    }
                    if let Some(port) = port(word, bit) {
                        handled += 1;
                        handler(port);
                    }
                }
            }
        }
        handled
    }
}

impl Abi for TwoLevel {
    fn ports(&self) -> u32 {
        Self::PORTS
    }

    /// # Panics
    ///
    /// If `port` is 4,096 or more, as every function of this impl: Xen gives none such out under
    /// this ABI.
    fn mask(&self, port: Port) {
        let (word, bit) = place(port);
        // AcqRel: a full barrier on x86; nothing after it may rely on the old state.
        self.masks(word).fetch_or(bit, Ordering::AcqRel);
    }

    fn is_masked(&self, port: Port) -> bool {
        let (word, bit) = place(port);
        // Relaxed: only the guest and its own hypercalls change mask bits.
        self.masks(word).load(Ordering::Relaxed) & bit != 0
    }

    fn is_pending(&self, port: Port) -> bool {
        let (word, bit) = place(port);
        // Acquire: pairs with Xen's atomic set on behalf of the sender.
        self.pending(word).load(Ordering::Acquire) & bit != 0
    }

    fn clear(&self, port: Port) -> bool {
        let (word, bit) = place(port);
        // AcqRel: acquire pairs with Xen's atomic set on behalf of the sender; the caller's
        // later reads (its wake condition) cannot move before the clear.
        self.pending(word).fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }

    fn unmask(&self, xen: &impl Hypercalls, port: Port) -> Result<(), Errno> {
        let (word, bit) = place(port);
        // SeqCst, both: mask down before the pending bit is read (a store-load order). An event
        // that comes after the read finds the port unmasked and raises its own upcall; one that
        // came before is seen here, and may have raised none.
        self.masks(word).fetch_and(!bit, Ordering::SeqCst);
        if self.pending(word).load(Ordering::SeqCst) & bit == 0 {
            return Ok(());
        }
        // EVTCHNOP_unmask raises the upcall only if it finds the port masked: mask it again first.
        // If the event raised its upcall after all, a second flag is harmless.
        self.masks(word).fetch_or(bit, Ordering::SeqCst);
        unmask(xen, port)
    }
}

/// Xen's own side of the bitmaps, for the fake.
#[cfg(any(feature = "fake", test))]
impl TwoLevel {
    /// Latches an event; whether it was not latched yet.
    pub(crate) fn hypervisor_set_pending(&self, port: Port) -> bool {
        let (word, bit) = place(port);
        // SeqCst, here and below: Xen uses locked operations in this strict order.
        self.pending(word).fetch_or(bit, Ordering::SeqCst) & bit == 0
    }

    /// Points a vCPU's selector to the port; whether it did not point there yet.
    pub(crate) fn hypervisor_select(info: &VcpuInfo, port: Port) -> bool {
        let bit = 1 << place(port).0;
        info.selector().fetch_or(bit, Ordering::SeqCst) & bit == 0
    }

    /// Unmasks; whether the port was masked.
    pub(crate) fn hypervisor_unmask(&self, port: Port) -> bool {
        let (word, bit) = place(port);
        self.masks(word).fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }
}

/// A set of 2-level ports, 512 bytes: those bound to one vCPU, for [`TwoLevel::dispatch`].
///
/// Can stand in a `static`; insert and remove are safe from any vCPU at any time.
#[derive(Debug)]
pub struct PortSet([AtomicU64; WORDS]);

impl PortSet {
    /// An empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; WORDS])
    }

    /// Adds `port`. Do this before the port is unmasked, or its first event may find no taker.
    ///
    /// # Panics
    ///
    /// If `port` is 4,096 or more, as every function of the set.
    pub fn insert(&self, port: Port) {
        let (word, bit) = place(port);
        // Release: pairs with the acquire in `word`; what the caller prepared for the handler is
        // visible when the port is seen.
        self.0[word].fetch_or(bit, Ordering::Release);
    }

    /// Takes `port` out, and says whether it was in.
    pub fn remove(&self, port: Port) -> bool {
        let (word, bit) = place(port);
        // AcqRel: as `insert`, and what follows the removal stays behind it.
        self.0[word].fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }

    /// Whether `port` is in the set.
    #[must_use]
    pub fn contains(&self, port: Port) -> bool {
        let (word, bit) = place(port);
        self.word(word) & bit != 0
    }

    /// Takes all ports out: after a restore none of their numbers means what it meant.
    pub fn clear(&self) {
        for word in &self.0 {
            // Release: as in `insert`.
            word.store(0, Ordering::Release);
        }
    }

    fn word(&self, word: usize) -> u64 {
        // Acquire: pairs with the release in `insert`.
        self.0[word].load(Ordering::Acquire)
    }
}

impl Default for PortSet {
    fn default() -> Self {
        Self::new()
    }
}

/// Word and bit mask of a port.
fn place(port: Port) -> (usize, u64) {
    let number = port.get();
    assert!(number < TwoLevel::PORTS, "port {number} is beyond the 2-level ABI's 4096 ports");
    ((number / BITS) as usize, 1 << (number % BITS))
}

/// The port at a bit. Bit 0 of word 0 is no port.
fn port(word: usize, bit: u32) -> Option<Port> {
    Port::new(word as u32 * BITS + bit)
}

/// The positions of the set bits of a word, ascending.
struct Ones(u64);

impl Iterator for Ones {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let bit = self.0.trailing_zeros();
        if bit == BITS {
            return None;
        }
        self.0 &= self.0 - 1;
        Some(bit)
    }
}
