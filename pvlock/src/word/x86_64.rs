//! The steps on a part of the word, on x86-64. [`Steps`] says what each means.
//!
//! Each is one instruction of inline assembly on one or two of the four bytes, but for the two that
//! have to look first. The steps on the whole word are Rust's own atomics.
//!
//! # Why this is sound
//!
//! 1. Rust has no atomic accesses of mixed size, and would call a race of two a defect. So no Rust
//!    access ever touches a part of the word: these blocks do, and what a block of assembly does to
//!    memory has to be something that Rust could have done. It is: each block is one atomic
//!    read-modify-write of the whole word that leaves the other bytes as they are, or one or two
//!    loads of it that use a part.
//! 2. That it is atomic, the processor promises: aligned accesses of 1, 2 and 4 bytes are
//!    single-copy atomic, and all of them are coherent, because they share a cache line. A store of
//!    one byte merges into the line as it is at that moment. (Intel SDM volume 3, "Memory
//!    Ordering".)
//! 3. Its ordering: loads are not reordered with loads, nor stores with stores, so a store is a
//!    release; a locked instruction (`xchg` with memory has the lock implied) is a full barrier. A
//!    block without `nomem` may access any memory for all the compiler knows, so the compiler moves
//!    no access across it.
//! 4. One thing a read-modify-write could not do: a plain load of the word right after a plain
//!    store of one of its bytes, on the same CPU, may by the letter of the architecture see that
//!    byte before others do. (Today's processors wait for the store instead, which is why
//!    `try_release_unqueued` and `try_acquire_byte` are there.) No step rests on such a load: after
//!    a store each CPU's next decision is made by a locked instruction, or by a byte that others
//!    write.

use core::arch::asm;

use super::{FREE, LOCKED, PENDING, SLOW, Snapshot, Steps, Tail};
use crate::sync::{AtomicU32, Ordering::Relaxed};

/// The lock word.
#[repr(transparent)]
pub(crate) struct Word(AtomicU32);

const LOCKED_BYTE: usize = 0;
const PENDING_BYTE: usize = 1;
const TAIL_HALF: usize = 2;
/// The pending byte, in the low half.
const PENDING_16: u16 = PENDING as u16;

impl Word {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    #[inline(always)]
    fn at(&self, byte: usize) -> *mut u8 {
        self.0.as_ptr().cast::<u8>().wrapping_add(byte)
    }

    /// The low half, (pending, locked). Relaxed.
    #[inline(always)]
    fn low_half(&self) -> u16 {
        self.0.load(Relaxed) as u16
    }

    /// `lock cmpxchg` on the low half, or what it is instead of `expected`.
    #[inline(always)]
    fn try_low_half(&self, expected: u16, new: u16) -> Result<(), u16> {
        let was: u16;
        // SAFETY: accesses the low two of the four bytes that `self` owns; they are 2-aligned.
        unsafe {
            asm!("lock cmpxchg word ptr [{p}], {new:x}", p = in(reg) self.at(LOCKED_BYTE),
                 new = in(reg) new, inout("ax") expected => was, options(nostack));
        }
        if was == expected { Ok(()) } else { Err(was) }
    }

    /// `lock cmpxchg` on the locked byte: what it was.
    #[inline(always)]
    fn try_locked_byte(&self, expected: u8, new: u8) -> u8 {
        let was: u8;
        // SAFETY: accesses the low one of the four bytes that `self` owns.
        unsafe {
            asm!("lock cmpxchg byte ptr [{p}], {new}", p = in(reg) self.at(LOCKED_BYTE),
                 new = in(reg_byte) new, inout("al") expected => was, options(nostack));
        }
        was
    }

    /// `mov` to the low half.
    #[inline(always)]
    fn store_low_half(&self, value: u16) {
        // SAFETY: writes the low two of the four bytes that `self` owns; they are 2-aligned.
        unsafe {
            asm!("mov word ptr [{p}], {v:x}", p = in(reg) self.at(LOCKED_BYTE), v = in(reg) value,
                 options(nostack, preserves_flags));
        }
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

    /// `xchg` with one byte: what it was.
    #[inline(always)]
    fn exchange_byte(&self, byte: usize, value: u8) -> u8 {
        let was: u8;
        // SAFETY: accesses one of the four bytes that `self` owns.
        unsafe {
            asm!("xchg byte ptr [{p}], {v}", p = in(reg) self.at(byte),
                 v = inout(reg_byte) value => was, options(nostack, preserves_flags));
        }
        was
    }
}

impl Steps for Word {
    #[inline]
    fn whole(&self) -> &AtomicU32 {
        &self.0
    }

    #[inline]
    fn locked(&self) -> u8 {
        let locked: u8;
        // SAFETY: reads the low one of the four bytes that `self` owns.
        unsafe {
            asm!("mov {locked}, byte ptr [{p}]", p = in(reg) self.at(LOCKED_BYTE),
                 locked = out(reg_byte) locked, options(nostack, preserves_flags));
        }
        locked
    }

    #[inline]
    fn try_take_byte(&self) -> Option<bool> {
        // A waiter that came up in between is as good as one before.
        (self.try_locked_byte(FREE, LOCKED) == FREE).then(|| self.is_waited_for())
    }

    #[inline]
    fn release(&self) {
        // SAFETY: writes the low one of the four bytes that `self` owns. An immediate is the
        // shortest form, and this is inlined.
        unsafe {
            asm!("mov byte ptr [{p}], 0", p = in(reg) self.at(LOCKED_BYTE),
                 options(nostack, preserves_flags));
        }
    }

    #[inline]
    fn try_release(&self) -> Result<(), u8> {
        let was = self.try_locked_byte(LOCKED, FREE);
        if was == LOCKED { Ok(()) } else { Err(was) }
    }

    fn set_locked(&self) {
        self.store_byte(LOCKED_BYTE, LOCKED);
    }

    fn exchange_slow(&self) -> u8 {
        self.exchange_byte(LOCKED_BYTE, SLOW)
    }

    fn set_slow(&self) {
        self.store_byte(LOCKED_BYTE, SLOW);
    }

    fn slow_to_locked(&self) {
        self.store_byte(LOCKED_BYTE, LOCKED);
    }

    fn exchange_pending(&self) -> Snapshot {
        let was = self.exchange_byte(PENDING_BYTE, 1);
        // The other fields a moment later. A queue that came up in between is as good as one
        // before.
        Snapshot(self.load().0 & !PENDING | u32::from(was) << PENDING.trailing_zeros())
    }

    fn clear_pending(&self) {
        self.store_byte(PENDING_BYTE, 0);
    }

    fn try_take_pending(&self) -> bool {
        self.low_half() == PENDING_16 && self.try_low_half(PENDING_16, LOCKED.into()).is_ok()
    }

    fn try_steal(&self) -> bool {
        self.try_low_half(0, LOCKED.into()).is_ok()
    }

    fn try_take_as_head(&self) -> bool {
        // While the lock is free nobody changes pending: an owner does so as it releases.
        let pending = self.low_half() & PENDING_16;
        self.try_low_half(pending, LOCKED.into()).is_ok()
    }

    fn try_release_reserved(&self) -> Result<(), u8> {
        self.try_low_half(LOCKED.into(), PENDING_16).map_err(|was| was as u8)
    }

    fn release_reserved(&self) {
        self.store_low_half(PENDING_16);
    }

    #[inline]
    fn is_waited_for(&self) -> bool {
        let waiters: u32;
        // SAFETY: reads the upper three of the four bytes that `self` owns: a byte and a half.
        unsafe {
            asm!("movzx {w:e}, byte ptr [{p} + 1]", "or {w:x}, word ptr [{p} + 2]",
                 p = in(reg) self.at(LOCKED_BYTE), w = out(reg) waiters, options(nostack));
        }
        waiters != 0
    }

    fn exchange_tail(&self, tail: Tail) -> Option<Tail> {
        let was: u16;
        // SAFETY: accesses the high two of the four bytes that `self` owns; they are 2-aligned.
        unsafe {
            asm!("xchg word ptr [{p}], {v:x}", p = in(reg) self.at(TAIL_HALF),
                 v = inout(reg) tail.0 => was, options(nostack, preserves_flags));
        }
        Tail::from_bits(was)
    }
}
