//! The vCPUs' stacks.
//!
//! This file owns their memory and their guard pages. The lowest page of each is never used: the
//! boot code unmaps it, so that an overflow faults instead of running into the next stack.

use core::cell::UnsafeCell;

use crate::vcpu::MAX_VCPUS;
use crate::xen::abi::PAGE_SIZE;

/// Bytes a vCPU's stack has, without its guard page.
pub const SIZE: usize = 32 * 1024;

/// Offset of vCPU 0's stack top in [`STACKS`]: for the entry code.
pub const FIRST_TOP: usize = PAGE_SIZE + SIZE;

/// A guard page with a stack above it.
#[repr(C, align(4096))]
pub struct Stack(UnsafeCell<[u8; PAGE_SIZE + SIZE]>);

// SAFETY: only the vCPU that runs on a stack uses it, and never through this type.
unsafe impl Sync for Stack {}

/// One a vCPU, in order.
pub static STACKS: [Stack; MAX_VCPUS] =
    [const { Stack(UnsafeCell::new([0; PAGE_SIZE + SIZE])) }; MAX_VCPUS];

/// Where the stacks are, for those who look at the domain from outside: `pvlab`, when Xen has ended
/// it. Found in the image by the name `xen_guest_stacks`.
#[repr(C)]
pub struct Map {
    /// The first guard page; its stack lies above it.
    first: &'static [Stack; MAX_VCPUS],
    /// Bytes from one guard page to the next.
    stride: u64,
    /// Bytes of a guard page.
    guard: u64,
    /// How many stacks.
    count: u64,
}

#[used]
#[unsafe(export_name = "xen_guest_stacks")]
#[unsafe(link_section = ".rodata.xen_guest_stacks")]
static MAP: Map = Map {
    first: &STACKS,
    stride: size_of::<Stack>() as u64,
    guard: PAGE_SIZE as u64,
    count: MAX_VCPUS as u64,
};

/// Where `vcpu`'s stack starts (it grows down from here). 16-byte aligned.
pub(super) fn top(vcpu: u32) -> usize {
    guard(vcpu) + FIRST_TOP
}

/// Address of `vcpu`'s guard page.
pub(super) fn guard(vcpu: u32) -> usize {
    core::ptr::from_ref(&STACKS[vcpu as usize]) as usize
}

/// From the first guard page to the end of the last stack.
pub(super) fn guards() -> core::ops::Range<usize> {
    guard(0)..guard(0) + size_of_val(&STACKS)
}

/// Whether the page at `address`, inside [`guards`], is a guard page.
pub(super) fn is_guard(address: usize) -> bool {
    (address - guard(0)) % size_of::<Stack>() < PAGE_SIZE
}

/// Whether a word can be read at `address`, because it lies in the usable part of some stack.
pub(super) fn contains_word(address: usize) -> bool {
    let Some(offset) = address.checked_sub(guard(0)) else { return false };
    let size = size_of::<Stack>();
    offset < size * MAX_VCPUS
        && offset % size >= PAGE_SIZE
        && offset % size <= size - 8
        && address.is_multiple_of(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_and_ends_are_not_stack() {
        assert!(!contains_word(guard(0) - 8));
        assert!(!contains_word(guard(0)));
        assert!(!contains_word(guard(3) + PAGE_SIZE - 8));
        assert!(contains_word(guard(3) + PAGE_SIZE));
        assert!(contains_word(top(3) - 8));
        assert!(!contains_word(top(3) - 4));
        assert_eq!(top(3), guard(4));
        assert!(!contains_word(top(MAX_VCPUS as u32 - 1)));
        assert_eq!(top(0) % 16, 0);
    }
}
