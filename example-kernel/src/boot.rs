//! From Xen's first instruction to [`crate::start`], for every vCPU.
//!
//! Owns the ELF note, the page tables, the stacks and the start of the other vCPUs. It sets up no
//! interrupts: this kernel never turns them on, and the lock does not need them.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use evtchn::Errno;

use crate::xen;

/// How many vCPUs this kernel uses.
pub const MAX_VCPUS: usize = 8;

const STACK: usize = 32 * 1024;

#[repr(C, align(16))]
struct Stacks(UnsafeCell<[[u8; STACK]; MAX_VCPUS]>);

// SAFETY: each vCPU uses its own part, through its stack pointer alone.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK]; MAX_VCPUS]));

// Control registers of 64-bit mode (Intel SDM volume 3, chapter 2).
/// Paging, write protection in kernel mode, x87 as compiled code expects it, protected mode.
const CR0: u32 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1;
/// Physical address extension, and SSE: the host's prebuilt `core` uses it.
const CR4: u32 = 1 << 5 | 1 << 9 | 1 << 10;
/// 64-bit mode.
const EFER_LME: u32 = 1 << 8;
/// 64-bit mode is active.
const EFER_LMA: u32 = 1 << 10;

global_asm!(
    // Where Xen enters: XEN_ELFNOTE_PHYS32_ENTRY = 18 (Xen public/elfnote.h).
    ".pushsection .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 4, 18",
    ".asciz \"Xen\"",
    ".long pvh_entry",
    ".popsection",

    // The first 4 GiB, one to one, in pages of 2 MiB: the image, RAM, and the pages Xen adds.
    ".pushsection .data.page_tables, \"aw\", @progbits",
    ".balign 4096",
    "page_tables: .quad pointers + 3",
    ".fill 511, 8, 0",
    "pointers: .quad directories + 0x0003, directories + 0x1003",
    ".quad directories + 0x2003, directories + 0x3003",
    ".fill 508, 8, 0",
    "directories:",
    ".set page, 0",
    ".rept 2048",
    ".quad (page << 21) + 0x83", // present, writable, large
    ".set page, page + 1",
    ".endr",
    "gdt: .quad 0, 0x00af9a000000ffff", // a 64-bit code segment
    "gdt_pointer: .word 15",
    ".long gdt",
    ".popsection",

    // vCPU 0: 32-bit, paging off (Xen docs/misc/pvh.html).
    ".pushsection .text.entry, \"ax\", @progbits",
    ".code32",
    ".globl pvh_entry",
    "pvh_entry:",
    "cld",
    "mov $page_tables, %eax",
    "mov %eax, %cr3",
    "mov ${cr4}, %eax",
    "mov %eax, %cr4",
    "mov $0xc0000080, %ecx", // EFER
    "rdmsr",
    "or ${lme}, %eax",
    "wrmsr",
    "mov ${cr0}, %eax",
    "mov %eax, %cr0",
    "lgdt gdt_pointer",
    "ljmpl $8, $pvh_long",
    ".code64",
    "pvh_long:",
    "xor %eax, %eax",
    "mov %eax, %ds",
    "mov %eax, %es",
    "mov %eax, %ss",
    "lea {stacks} + {stack}(%rip), %rsp",
    "xor %edi, %edi", // vCPU 0

    // Every vCPU: 64-bit, on its own stack, its number in edi.
    ".globl vcpu_entry",
    "vcpu_entry:",
    "cld",
    "xor %ebp, %ebp",
    "call {start}",
    "ud2",
    ".popsection",
    stacks = sym STACKS,
    stack = const STACK,
    cr0 = const CR0,
    cr4 = const CR4,
    lme = const EFER_LME,
    start = sym crate::start,
    options(att_syntax)
);

unsafe extern "C" {
    static page_tables: [u64; 512];
    safe fn vcpu_entry() -> !;
}

/// Starts `vcpu` in [`crate::start`].
pub fn start_vcpu(vcpu: u32) -> Result<(), Errno> {
    let stacks = STACKS.0.get() as u64;
    let mut context = xen::VcpuHvmContext {
        mode: 1, // 64-bit
        rip: vcpu_entry as *const () as u64,
        rsp: stacks + (u64::from(vcpu) + 1) * STACK as u64,
        rdi: u64::from(vcpu),
        rflags: 2,
        cr0: u64::from(CR0),
        cr3: &raw const page_tables as u64,
        cr4: u64::from(CR4),
        efer: u64::from(EFER_LME | EFER_LMA),
        ..Default::default()
    };
    // SAFETY: the context leads to `vcpu_entry` on a stack that nobody else uses; Xen copies it.
    unsafe { xen::vcpu_op(xen::VCPUOP_INITIALISE, vcpu, &mut context) }?;
    // SAFETY: the operation takes no argument.
    unsafe { xen::vcpu_op(xen::VCPUOP_UP, vcpu, &mut ()) }
}
