//! Which vCPU is this? The kernel says.
//!
//! This file owns the question, and whom it is put to: a function of the kernel's own
//! ([`identify_by`]: its per-CPU area, the `percpu` crate, thread-local storage, the stack pointer,
//! ...), or ours, the GS base ([`identify_by_gs_base`]), which [`kernel!`](crate::kernel!) chooses.
//! Clock, timer, upcalls, console and locks ask here and nowhere else.
//!
//! One of the two is called once, on vCPU 0, before the first of them is used. On every other vCPU
//! there is nothing to call: the kernel's function must answer there before that vCPU waits for a
//! lock or reads the clock.
//!
//! ```
//! use std::cell::Cell;
//! use xen_guest::vcpu;
//!
//! thread_local! {
//!     // This "kernel" keeps the number where it likes.
//!     static NUMBER: Cell<u32> = const { Cell::new(0) };
//! }
//!
//! // SAFETY: each thread has a number of its own, which never changes.
//! unsafe { vcpu::identity::identify_by(|| NUMBER.get()) };
//! NUMBER.set(7);
//! assert_eq!(vcpu::current(), 7);
//! ```

use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;

use super::gs_base;

/// Nobody has said anything yet.
const NOBODY: usize = 0;
/// [`gs_base::number`].
const GS_BASE: usize = 1;

/// Who is asked: [`NOBODY`], [`GS_BASE`], or the address of a `fn() -> u32`.
static ASKED: AtomicUsize = AtomicUsize::new(NOBODY);

/// Makes `current` the answer, from now on and on every vCPU.
///
/// # Safety
///
/// `current` returns the number that Xen gives the vCPU it runs on, below
/// [`MAX_VCPUS`](super::MAX_VCPUS), wherever it is called: in tasks, in upcalls, in NMIs. Code that
/// asks and then uses the answer is not moved to another vCPU in between: a kernel that moves tasks
/// holds that off around console, timer and lock.
pub unsafe fn identify_by(current: fn() -> u32) {
    // Relaxed, here and below: vCPU 0 writes it before it starts another one by a hypercall.
    ASKED.store(current as usize, Relaxed);
}

/// Makes the GS base the answer, from now on and on every vCPU.
///
/// # Safety
///
/// The GS base of each vCPU is [`gs_base::of`] its number from before it asks for the first time,
/// for ever.
pub unsafe fn identify_by_gs_base() {
    ASKED.store(GS_BASE, Relaxed);
}

/// The number of the vCPU this runs on.
///
/// # Panics
///
/// If nobody has said how to find out.
#[inline]
pub fn current() -> u32 {
    match ASKED.load(Relaxed) {
        // SAFETY: `identify_by_gs_base` was promised it.
        GS_BASE => unsafe { gs_base::number() },
        other => ask(other).expect(
            "which vCPU this is, nobody has said: call vcpu::identity::identify_by or \
             identify_by_gs_base first",
        ),
    }
}

/// As [`current`], or `None` if nobody has said how to find out: for reports of what went wrong.
pub fn try_current() -> Option<u32> {
    match ASKED.load(Relaxed) {
        // SAFETY: as in `current`.
        GS_BASE => Some(unsafe { gs_base::number() }),
        other => ask(other),
    }
}

/// As [`current`], for a kernel that knows when it is compiled that the GS base is the answer.
///
/// # Safety
///
/// As for [`identify_by_gs_base`].
#[inline]
pub unsafe fn current_by_gs_base() -> u32 {
    // SAFETY: the caller's promise.
    unsafe { gs_base::number() }
}

fn ask(whom: usize) -> Option<u32> {
    if whom == NOBODY {
        return None;
    }
    // SAFETY: only `identify_by` stores anything but the two constants, and it stores a `fn() ->
    // u32`.
    let current = unsafe { core::mem::transmute::<usize, fn() -> u32>(whom) };
    Some(current())
}
