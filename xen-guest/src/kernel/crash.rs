//! The last words of the domain.
//!
//! This file owns the crash report: what happened, on which vCPU, registers, and the way there by
//! frame pointers. It ends in `SCHEDOP_shutdown(crash)`, so that the toolstack sees a crash and can
//! keep the domain. It allocates nothing and takes no lock for good.

use core::arch::asm;
use core::fmt::{self, Write};
use core::panic::PanicInfo;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{AcqRel, Acquire};

use super::stack;
use crate::daemons::console;
use crate::vcpu::identity;
use crate::xen::abi::PAGE_SIZE;
use crate::xen::hypercall::{self, ShutdownReason};

/// Registers at an exception, in the order the entry code pushes them.
#[derive(Debug)]
#[repr(C)]
pub(super) struct TrapFrame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    error_code: u64,
    rip: u64,
    pub(super) cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// Writes past anybody who holds the console.
struct Out;

impl Write for Out {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        console::write_crash(text.as_bytes());
        Ok(())
    }
}

/// Nobody is crashing.
const NOBODY: u32 = u32::MAX;
/// The vCPU that writes the report.
static REPORTER: AtomicU32 = AtomicU32::new(NOBODY);

/// The vCPU this runs on; one that does not exist if nobody can tell yet.
fn vcpu() -> u32 {
    identity::try_current().unwrap_or(NOBODY - 1)
}

/// Makes this vCPU the reporter; the others wait for the end, and a crash in the report is the end.
fn enter() {
    let vcpu = vcpu();
    // AcqRel/Acquire: one vCPU wins; nothing else is passed on.
    match REPORTER.compare_exchange(NOBODY, vcpu, AcqRel, Acquire) {
        Ok(_) => {}
        Err(reporter) if reporter == vcpu => hypercall::sched_shutdown(ShutdownReason::Crash),
        Err(_) => loop {
            hypercall::sched_yield();
        },
    }
}

fn leave() -> ! {
    console::flush();
    hypercall::sched_shutdown(ShutdownReason::Crash)
}

/// Reports a panic and ends the domain: what a kernel's panic handler calls.
pub fn panic(info: &PanicInfo<'_>) -> ! {
    enter();
    // Writing to the console does not fail, here and below.
    let _ = writeln!(Out, "guest crash: panic on vCPU {}: {}", vcpu(), info.message());
    if let Some(place) = info.location() {
        let _ = writeln!(Out, "guest crash: at {}:{}", place.file(), place.line());
    }
    let rbp: usize;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, rbp", out(reg) rbp, options(nomem, nostack, preserves_flags)) };
    backtrace(rbp);
    leave()
}

/// Reports an exception and ends the domain.
pub(super) fn exception(frame: &TrapFrame, cr2: u64) -> ! {
    enter();
    let vcpu = vcpu();
    let _ = writeln!(
        Out,
        "guest crash: {} (vector {}) on vCPU {vcpu}, error code {:#x}",
        name(frame.vector),
        frame.vector,
        frame.error_code
    );
    if frame.vector == PAGE_FAULT {
        let null = if (cr2 as usize) < PAGE_SIZE { " (a null pointer)" } else { "" };
        let _ = writeln!(Out, "guest crash: {} {cr2:#x}{null}", access(frame.error_code));
    }
    if overflowed(frame.rsp as usize) {
        let _ = writeln!(Out, "guest crash: the stack overflowed into its guard page");
    }
    let f = frame;
    let _ = writeln!(
        Out,
        "  rip {:016x} rflags {:08x} cs {:04x} ss {:04x}",
        f.rip, f.rflags, f.cs as u16, f.ss as u16
    );
    let _ = writeln!(
        Out,
        "  rsp {:016x} rbp {:016x} rax {:016x} rbx {:016x}",
        f.rsp, f.rbp, f.rax, f.rbx
    );
    let _ = writeln!(
        Out,
        "  rcx {:016x} rdx {:016x} rsi {:016x} rdi {:016x}",
        f.rcx, f.rdx, f.rsi, f.rdi
    );
    let _ = writeln!(
        Out,
        "  r8  {:016x} r9  {:016x} r10 {:016x} r11 {:016x}",
        f.r8, f.r9, f.r10, f.r11
    );
    let _ = writeln!(
        Out,
        "  r12 {:016x} r13 {:016x} r14 {:016x} r15 {:016x}",
        f.r12, f.r13, f.r14, f.r15
    );
    let _ = writeln!(Out, "  backtrace: {:#x}", f.rip);
    backtrace(f.rbp as usize);
    leave()
}

/// Prints return addresses, innermost first, by the chain of frame pointers that starts at `rbp`.
/// One that comes again and again, as in a recursion without end, takes one line.
fn backtrace(rbp: usize) {
    let mut lines = 0;
    let mut last = None;
    let mut times = 0;
    for back in frames(rbp).map(Some).chain([None]) {
        if back.is_some() && back == last {
            times += 1;
            continue;
        }
        if let Some(last) = last {
            let _ = match times {
                1 => writeln!(Out, "  backtrace: {last:#x}"),
                _ => writeln!(Out, "  backtrace: {last:#x} ({times} times)"),
            };
            lines += 1;
        }
        if lines == 32 {
            break;
        }
        (last, times) = (back, 1);
    }
}

/// The return addresses in the chain of frame pointers that starts at `rbp`.
fn frames(rbp: usize) -> impl Iterator<Item = usize> {
    let mut next = Some(rbp);
    core::iter::from_fn(move || {
        let rbp = next.take()?;
        if !stack::contains_word(rbp) || !stack::contains_word(rbp + 8) {
            return None;
        }
        let words = rbp as *const usize;
        // SAFETY: the address lies in the usable part of a stack, which is always mapped.
        let caller = unsafe { words.read() };
        // SAFETY: as above, for the next word.
        let back = unsafe { words.wrapping_add(1).read() };
        // Callers lie higher; anything else is the end, or a broken chain.
        next = (caller > rbp).then_some(caller);
        Some(back)
    })
}

const PAGE_FAULT: u64 = 14;

/// What a page fault was about, from its error code (Intel SDM volume 3, 4.7).
fn access(error_code: u64) -> &'static str {
    match (error_code & 1 != 0, error_code & 2 != 0, error_code & 16 != 0) {
        (_, _, true) => "executing at",
        (false, true, _) => "writing to unmapped",
        (false, false, _) => "reading from unmapped",
        (true, true, _) => "writing to read-only",
        (true, false, _) => "reading from protected",
    }
}

/// Whether a stack pointer says that the stack is used up: the next push, or what lies at it, is in
/// a guard page. The fault address would say so too, but not every emulator passes it on to PVH
/// domains.
fn overflowed(rsp: usize) -> bool {
    let below = rsp.wrapping_sub(8);
    stack::guards().contains(&below) && stack::is_guard(below)
}

/// Name of an exception (Intel SDM volume 3, table 6-1).
fn name(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug exception",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range exceeded",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack fault",
        13 => "general protection fault",
        14 => "page fault",
        16 => "x87 floating-point error",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD floating-point error",
        20 => "virtualization exception",
        21 => "control protection exception",
        _ => "exception",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_says_what_was_tried() {
        assert_eq!(access(0), "reading from unmapped");
        assert_eq!(access(3), "writing to read-only");
        assert_eq!(access(17), "executing at");
    }

    #[test]
    fn a_stack_pointer_at_or_in_the_guard_page_is_an_overflow() {
        let guard = stack::guards().start;
        assert!(overflowed(guard + 16));
        assert!(overflowed(guard + PAGE_SIZE));
        assert!(!overflowed(guard + PAGE_SIZE + 8));
        assert!(!overflowed(0));
    }
}
