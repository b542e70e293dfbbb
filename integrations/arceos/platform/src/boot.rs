//! From Xen's first instruction to ArceOS.
//!
//! Owns the ELF note by which Xen finds the entry, the page tables (the first 4 GiB, one to one) and
//! the first stack. Other vCPUs start in 64-bit mode with a stack of ArceOS', see `cpu.rs`.

use core::arch::global_asm;
use core::cell::UnsafeCell;

use x86_64::registers::control::{Cr0Flags, Cr4Flags};
use x86_64::registers::model_specific::EferFlags;

const CR0: u64 = Cr0Flags::PROTECTED_MODE_ENABLE.bits()
    | Cr0Flags::MONITOR_COPROCESSOR.bits()
    | Cr0Flags::EXTENSION_TYPE.bits()
    | Cr0Flags::NUMERIC_ERROR.bits()
    | Cr0Flags::WRITE_PROTECT.bits()
    | Cr0Flags::PAGING.bits();
/// With SSE: the host's prebuilt `core` uses it.
const CR4: u64 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION.bits()
    | Cr4Flags::PAGE_GLOBAL.bits()
    | Cr4Flags::OSFXSR.bits()
    | Cr4Flags::OSXMMEXCPT_ENABLE.bits();
const EFER: u64 = EferFlags::LONG_MODE_ENABLE.bits() | EferFlags::NO_EXECUTE_ENABLE.bits();

#[repr(C, align(16))]
struct Stack(UnsafeCell<[u8; crate::config::TASK_STACK_SIZE]>);

// SAFETY: used through the stack pointer of vCPU 0 alone.
unsafe impl Sync for Stack {}

// Not in .bss, which ArceOS zeroes when it stands on it already.
#[unsafe(link_section = ".bss.stack")]
static STACK: Stack = Stack(UnsafeCell::new([0; crate::config::TASK_STACK_SIZE]));

global_asm!(
    // XEN_ELFNOTE_PHYS32_ENTRY = 18 (Xen public/elfnote.h).
    ".pushsection .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 4, 18",
    ".asciz \"Xen\"",
    ".long pvh_entry",
    ".popsection",

    // 4 GiB in pages of 2 MiB: the image, RAM, Xen's pages, the local APIC.
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
    "boot_gdt: .quad 0, 0x00af9a000000ffff", // a 64-bit code segment
    "boot_gdt_pointer: .word 15",
    ".long boot_gdt",
    ".popsection",

    // 32-bit, paging off, start_info in ebx (Xen docs/misc/pvh.html).
    ".pushsection .text.boot, \"ax\", @progbits",
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
    "or ${efer}, %eax",
    "wrmsr",
    "mov ${cr0}, %eax",
    "mov %eax, %cr0",
    "lgdt boot_gdt_pointer",
    "ljmpl $8, $pvh_long",
    ".code64",
    "pvh_long:",
    "xor %eax, %eax",
    "mov %eax, %ds",
    "mov %eax, %es",
    "mov %eax, %ss",
    "mov %eax, %fs",
    "mov %eax, %gs",
    "lea {stack} + {stack_size}(%rip), %rsp",
    "xor %ebp, %ebp", // ends backtraces
    "mov %ebx, %edi",
    "call {main}",
    "ud2",
    ".popsection",
    cr0 = const CR0,
    cr4 = const CR4,
    efer = const EFER,
    stack = sym STACK,
    stack_size = const crate::config::TASK_STACK_SIZE,
    main = sym main,
    options(att_syntax)
);

/// ArceOS' vCPU 0 from here on. `start_info`: address of Xen's structure.
extern "C" fn main(start_info: usize) -> ! {
    axplat::call_main(0, start_info)
}
