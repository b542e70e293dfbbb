//! The memory functions the compiler calls, which a freestanding image must bring itself.
//!
//! Only in the image: on a host the C library has them. String instructions, because Rust code here
//! could be compiled into a call of the very function it implements.

use core::arch::asm;

/// Copies `len` bytes; the ranges do not overlap.
///
/// # Safety
///
/// C's rules for `memcpy`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: writes `len` bytes at `to`, reads as many at `from`; the direction flag is clear by
    // the calling convention.
    unsafe {
        asm!(
            "rep movsq",
            "mov rcx, {tail}",
            "rep movsb",
            tail = in(reg) len % 8,
            inout("rcx") len / 8 => _,
            inout("rdi") to => _,
            inout("rsi") from => _,
            options(nostack, preserves_flags),
        );
    }
    to
}

/// Copies `len` bytes; the ranges may overlap.
///
/// # Safety
///
/// C's rules for `memmove`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // Forwards is right unless `to` starts inside the source.
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: the caller's promise; a forward copy reads each byte before writing over it.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: as `memcpy`, from the last byte down; the direction flag is clear again afterwards.
    unsafe {
        asm!(
            "std",
            "rep movsb",
            "cld",
            inout("rcx") len => _,
            inout("rdi") to.wrapping_add(len).wrapping_sub(1) => _,
            inout("rsi") from.wrapping_add(len).wrapping_sub(1) => _,
            options(nostack),
        );
    }
    to
}

/// Fills `len` bytes.
///
/// # Safety
///
/// C's rules for `memset`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
    // SAFETY: writes `len` bytes at `to`; the direction flag is clear by the calling convention.
    unsafe {
        asm!(
            "rep stosq",
            "mov rcx, {tail}",
            "rep stosb",
            tail = in(reg) len % 8,
            inout("rcx") len / 8 => _,
            inout("rdi") to => _,
            in("rax") u64::from(byte as u8) * 0x0101_0101_0101_0101,
            options(nostack, preserves_flags),
        );
    }
    to
}

/// Compares `len` bytes.
///
/// # Safety
///
/// C's rules for `memcmp`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    let (after_a, after_b): (*const u8, *const u8);
    let left: usize;
    let equal: u8;
    // SAFETY: reads up to `len` bytes at both. Comparing rax with itself makes "equal" the answer
    // for no bytes.
    unsafe {
        asm!(
            "cmp rax, rax",
            "repe cmpsb",
            "sete {equal}",
            equal = out(reg_byte) equal,
            inout("rcx") len => left,
            inout("rsi") a => after_a,
            inout("rdi") b => after_b,
            out("rax") _,
            options(nostack, readonly),
        );
    }
    let _ = left;
    if equal != 0 {
        return 0;
    }
    // SAFETY: the last bytes compared, inside both ranges.
    let a = unsafe { after_a.wrapping_sub(1).read() };
    // SAFETY: as above.
    let b = unsafe { after_b.wrapping_sub(1).read() };
    i32::from(a) - i32::from(b)
}

/// Compares `len` bytes for equality.
///
/// # Safety
///
/// C's rules for `bcmp`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(a, b, len) }
}

/// Counts bytes up to a zero.
///
/// # Safety
///
/// C's rules for `strlen`.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let left: usize;
    // SAFETY: reads up to and including the zero byte that the caller promises.
    unsafe {
        asm!(
            "repne scasb",
            inout("rcx") usize::MAX => left,
            inout("rdi") text => _,
            in("al") 0u8,
            options(nostack, readonly),
        );
    }
    // It has counted down once for every byte, the zero included.
    usize::MAX - left - 1
}
