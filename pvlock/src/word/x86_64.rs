//! The word on x86-64: every access is one instruction of inline assembly.
//!
//! # Why this is sound
//!
//! 1. No Rust reference to the word's bytes is ever read or written by Rust code after `new`; the
//!    memory is in an [`UnsafeCell`] and reached by these blocks alone. So the Rust memory model,
//!    which has no atomics of mixed size, never sees two accesses of different size that race.
//! 2. What the blocks do is defined by the processor: aligned accesses of 1, 2 and 4 bytes are
//!    single-copy atomic, a byte and a word that contains it are coherent (they share a cache line),
//!    loads are not reordered with loads, stores not with stores, and a locked instruction (`xchg`
//!    with memory has the lock implied) is a full barrier. (Intel SDM volume 3, "Memory Ordering".)
//! 3. A block without `nomem` may read and write any memory for all the compiler knows, so the
//!    compiler moves no access across it. Hence every load here is an acquire, every store a
//!    release, and every locked instruction sequentially consistent; the orderings that the
//!    portable version names are all met, with the same instructions.

use core::arch::asm;
use core::cell::UnsafeCell;

use super::{LOCKED, PENDING, SLOW, Snapshot, TAIL_SHIFT, Tail};

/// The lock word.
#[repr(transparent)]
pub(crate) struct Word(UnsafeCell<u32>);

// SAFETY: the word has no owner; all access to it is by atomic instructions (module text).
unsafe impl Sync for Word {}

const LOCKED_BYTE: usize = 0;
const PENDING_BYTE: usize = 1;
const TAIL_HALF: usize = 2;

impl Word {
    pub(crate) const fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    #[inline(always)]
    fn at(&self, byte: usize) -> *mut u8 {
        self.0.get().cast::<u8>().wrapping_add(byte)
    }

    #[inline]
    pub(crate) fn load(&self) -> Snapshot {
        let value: u32;
        // SAFETY: reads the four bytes that `self` owns.
        unsafe {
            asm!("mov {v:e}, dword ptr [{p}]", v = lateout(reg) value, p = in(reg) self.at(LOCKED_BYTE),
                 options(nostack, preserves_flags, readonly));
        }
        Snapshot(value)
    }

    #[inline]
    pub(crate) fn load_acquire(&self) -> Snapshot {
        let value: u32;
        // SAFETY: reads the four bytes that `self` owns. Not `readonly`: no access may move above it.
        unsafe {
            asm!("mov {v:e}, dword ptr [{p}]", v = lateout(reg) value, p = in(reg) self.at(LOCKED_BYTE),
                 options(nostack, preserves_flags));
        }
        Snapshot(value)
    }

    /// `lock cmpxchg` on the whole word: what it was.
    #[inline(always)]
    fn compare_exchange(&self, expected: u32, new: u32) -> u32 {
        let was: u32;
        // SAFETY: accesses the four bytes that `self` owns; they are 4-aligned.
        unsafe {
            asm!("lock cmpxchg dword ptr [{p}], {new:e}", p = in(reg) self.at(LOCKED_BYTE),
                 new = in(reg) new, inout("eax") expected => was, options(nostack));
        }
        was
    }

    /// `lock cmpxchg` on the low half, (pending, locked): whether it was as expected.
    #[inline(always)]
    fn compare_exchange_low_half(&self, expected: u16, new: u16) -> bool {
        let was: u16;
        // SAFETY: accesses the low two of the four bytes that `self` owns; they are 2-aligned.
        unsafe {
            asm!("lock cmpxchg word ptr [{p}], {new:x}", p = in(reg) self.at(LOCKED_BYTE),
                 new = in(reg) new, inout("ax") expected => was, options(nostack));
        }
        was == expected
    }

    /// `mov` to one byte.
    #[inline(always)]
    fn store_byte(&self, byte: usize, value: u8) {
        // SAFETY: writes one of the four bytes that `self` owns.
        unsafe {
            asm!("mov byte ptr [{p}], {v}", p = in(reg) self.at(byte), v = in(reg_byte) value,
                 options(nostack, preserves_flags));
        }
    }

    #[inline]
    pub(crate) fn try_acquire(&self) -> Result<(), Snapshot> {
        let was = self.compare_exchange(0, u32::from(LOCKED));
        if was == 0 { Ok(()) } else { Err(Snapshot(was)) }
    }

    #[inline]
    pub(crate) fn release(&self) {
        // SAFETY: writes the low one of the four bytes that `self` owns. An immediate is the
        // shortest form, and this is the fast path.
        unsafe {
            asm!("mov byte ptr [{p}], 0", p = in(reg) self.at(LOCKED_BYTE),
                 options(nostack, preserves_flags));
        }
    }

    #[inline]
    pub(crate) fn try_release(&self) -> Result<(), u8> {
        let was: u8;
        // SAFETY: accesses the low one of the four bytes that `self` owns.
        unsafe {
            asm!("lock cmpxchg byte ptr [{p}], {new}", p = in(reg) self.at(LOCKED_BYTE),
                 new = in(reg_byte) 0_u8, inout("al") LOCKED => was, options(nostack));
        }
        if was == LOCKED { Ok(()) } else { Err(was) }
    }

    pub(crate) fn exchange_pending(&self) -> Snapshot {
        let was: u8;
        // SAFETY: accesses the second of the four bytes that `self` owns.
        unsafe {
            asm!("xchg byte ptr [{p}], {v}", p = in(reg) self.at(PENDING_BYTE),
                 v = inout(reg_byte) 1_u8 => was, options(nostack, preserves_flags));
        }
        // The other fields a moment later. A queue that came up in between is as good as one before.
        Snapshot(self.load().0 & !PENDING | u32::from(was) << PENDING.trailing_zeros())
    }

    pub(crate) fn clear_pending_set_locked(&self) {
        // SAFETY: writes the low two of the four bytes that `self` owns; they are 2-aligned.
        unsafe {
            asm!("mov word ptr [{p}], {v:x}", p = in(reg) self.at(LOCKED_BYTE),
                 v = in(reg) u16::from(LOCKED), options(nostack, preserves_flags));
        }
    }

    pub(crate) fn exchange_tail(&self, tail: Tail) -> Option<Tail> {
        let was: u16;
        // SAFETY: accesses the high two of the four bytes that `self` owns; they are 2-aligned.
        unsafe {
            asm!("xchg word ptr [{p}], {v:x}", p = in(reg) self.at(TAIL_HALF),
                 v = inout(reg) tail.0 => was, options(nostack, preserves_flags));
        }
        Tail::from_bits(was)
    }

    pub(crate) fn try_clear_tail(&self, tail: Tail) -> bool {
        let whole = u32::from(tail.0) << TAIL_SHIFT | u32::from(LOCKED);
        self.compare_exchange(whole, u32::from(LOCKED)) == whole
    }

    pub(crate) fn try_take_alone(&self, seen: Snapshot) -> bool {
        self.compare_exchange(seen.0, u32::from(LOCKED)) == seen.0
    }

    pub(crate) fn set_locked(&self) {
        self.store_byte(LOCKED_BYTE, LOCKED);
    }

    pub(crate) fn try_steal(&self) -> bool {
        self.compare_exchange_low_half(0, u16::from(LOCKED))
    }

    pub(crate) fn try_take_as_head(&self) -> bool {
        // Only the head changes pending in PV mode, so what it reads stays as it is.
        let pending = if self.load().pending() { PENDING as u16 } else { 0 };
        self.compare_exchange_low_half(pending, u16::from(LOCKED))
    }

    pub(crate) fn set_pending(&self) {
        self.store_byte(PENDING_BYTE, 1);
    }

    pub(crate) fn clear_pending(&self) {
        self.store_byte(PENDING_BYTE, 0);
    }

    pub(crate) fn exchange_slow(&self) -> u8 {
        let was: u8;
        // SAFETY: accesses the low one of the four bytes that `self` owns.
        unsafe {
            asm!("xchg byte ptr [{p}], {v}", p = in(reg) self.at(LOCKED_BYTE),
                 v = inout(reg_byte) SLOW => was, options(nostack, preserves_flags));
        }
        was
    }

    pub(crate) fn set_slow(&self) {
        self.store_byte(LOCKED_BYTE, SLOW);
    }

    pub(crate) fn slow_to_locked(&self) {
        self.store_byte(LOCKED_BYTE, LOCKED);
    }
}
