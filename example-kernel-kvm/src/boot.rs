//! From the first instruction to [`crate::start`], for every vCPU.
//!
//! Owns the ELF note, the page tables, the descriptor tables, the stacks, and the start of the other
//! vCPUs by INIT and SIPI. It knows no hypervisor: a bare machine starts its CPUs the same way.

use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::apic;
use crate::cpu::MAX_VCPUS;

const STACK: usize = 32 * 1024;

#[repr(C, align(16))]
struct Stacks(UnsafeCell<[[u8; STACK]; MAX_VCPUS]>);

// SAFETY: each vCPU uses its own part, through its stack pointer alone.
unsafe impl Sync for Stacks {}

static STACKS: Stacks = Stacks(UnsafeCell::new([[0; STACK]; MAX_VCPUS]));

/// Where vCPU 0 finds its `hvm_start_info` (Xen public/arch-x86/hvm/start_info.h).
static START_INFO: AtomicU64 = AtomicU64::new(0);

/// Where the other vCPUs begin: a page below 1 MiB, because they begin in real mode.
const TRAMPOLINE: usize = 0x8000;

// Control registers of 64-bit mode (Intel SDM volume 3, chapter 2).
/// Paging, write protection in kernel mode, x87 as compiled code expects it, protected mode.
const CR0: u32 = 1 << 31 | 1 << 16 | 1 << 5 | 1 << 4 | 1 << 1 | 1;
/// Physical address extension, and SSE: the host's prebuilt `core` uses it.
const CR4: u32 = 1 << 5 | 1 << 9 | 1 << 10;
/// 64-bit mode.
const EFER_LME: u32 = 1 << 8;

global_asm!(
    // Where a loader of the PVH protocol enters: XEN_ELFNOTE_PHYS32_ENTRY = 18 (Xen public/elfnote.h).
    // QEMU, Cloud Hypervisor and Firecracker read the same note as Xen.
    ".pushsection .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 4, 18",
    ".asciz \"Xen\"",
    ".long pvh_entry",
    ".popsection",

    // The first 4 GiB, one to one, in pages of 2 MiB: the image, RAM, and the local APICs.
    ".pushsection .data.page_tables, \"aw\", @progbits",
    ".balign 4096",
    "page_tables: .quad pointers + 3",
    ".fill 511, 8, 0",
    "pointers: .quad directories + 0x3, directories + 0x1003, directories + 0x2003, directories + 0x3003",
    ".fill 508, 8, 0",
    "directories:",
    ".set page, 0",
    ".rept 2048",
    ".quad (page << 21) + 0x83", // present, writable, large
    ".set page, page + 1",
    ".endr",
    // A 64-bit code segment, and what the way there needs: flat 32-bit code and data.
    "gdt: .quad 0, 0x00af9a000000ffff, 0x00cf9a000000ffff, 0x00cf92000000ffff",
    "gdt_pointer: .word 31",
    ".long gdt",
    ".popsection",

    // vCPU 0: 32-bit, paging off, ebx = hvm_start_info.
    ".pushsection .text.entry, \"ax\", @progbits",
    ".code32",
    ".globl pvh_entry",
    "pvh_entry:",
    "cli",
    "cld",
    "mov %ebx, {start_info}",
    "xor %edi, %edi", // vCPU 0
    "lgdt gdt_pointer",

    // Every vCPU: 32-bit, paging off, flat, its number in edi.
    "to_long_mode:",
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
    "ljmpl $8, $long_mode",
    ".code64",
    "long_mode:",
    "xor %eax, %eax",
    "mov %eax, %ds",
    "mov %eax, %es",
    "mov %eax, %ss",
    "mov %edi, %edi",
    "lea 1(%rdi), %rax",
    "imul ${stack}, %rax, %rax",
    "lea {stacks}(%rip), %rsp",
    "add %rax, %rsp",
    "xor %ebp, %ebp",
    "call {start}",
    "ud2",

    // The other vCPUs: real mode, cs:ip = 0x0800:0. Copied to TRAMPOLINE, so it names addresses there.
    ".globl trampoline",
    ".globl trampoline_end",
    ".code16",
    "trampoline:",
    "cli",
    "cld",
    "xor %ax, %ax",
    "mov %ax, %ds",
    "lgdtl {trampoline} + (trampoline_gdt - trampoline)",
    "mov %cr0, %eax",
    "or $1, %eax",
    "mov %eax, %cr0",
    "ljmpl $16, ${trampoline} + (trampoline_32 - trampoline)",
    ".code32",
    "trampoline_32:",
    "mov $24, %eax",
    "mov %eax, %ds",
    "mov %eax, %es",
    "mov %eax, %ss",
    // Who am I: the initial APIC id (Intel SDM volume 2, CPUID leaf 1).
    "mov $1, %eax",
    "cpuid",
    "shr $24, %ebx",
    "mov %ebx, %edi",
    "mov $to_long_mode, %eax",
    "jmp *%eax",
    "trampoline_gdt: .word 31",
    ".long gdt",
    "trampoline_end:",
    ".code64",

    // The tick: says that it was seen. No Rust, no vector registers.
    ".globl tick_entry",
    "tick_entry:",
    "push %rax",
    "push %rcx",
    "push %rdx",
    "mov ${eoi}, %ecx",
    "xor %eax, %eax",
    "xor %edx, %edx",
    "wrmsr",
    "pop %rdx",
    "pop %rcx",
    "pop %rax",
    "iretq",
    ".popsection",
    start_info = sym START_INFO,
    stacks = sym STACKS,
    stack = const STACK,
    trampoline = const TRAMPOLINE,
    eoi = const apic::EOI,
    cr0 = const CR0,
    cr4 = const CR4,
    lme = const EFER_LME,
    start = sym crate::start,
    options(att_syntax)
);

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
    safe fn tick_entry();
}

/// The interrupt descriptor table: of 256 vectors, the tick's alone is there. Any other is a fault
/// without a handler, which ends the machine: an example shows no more.
#[repr(C, align(16))]
struct Idt(UnsafeCell<[u64; 512]>);

// SAFETY: written by vCPU 0 before the others start, read by the processor alone afterwards.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([0; 512]));

/// Fills in the descriptor table. On vCPU 0, before any vCPU calls [`load_idt`].
pub fn init_idt() {
    let handler = tick_entry as *const () as u64;
    // A 64-bit interrupt gate in the code segment 8 (Intel SDM volume 3, chapter 6.14).
    let low = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    let gate = IDT.0.get().cast::<[u64; 2]>().wrapping_add(apic::TICK_VECTOR as usize);
    // SAFETY: in bounds of the static; nobody else looks at it yet.
    unsafe { gate.write([low, handler >> 32]) };
}

/// Makes this vCPU use the table.
pub fn load_idt() {
    #[repr(C, packed)]
    struct Pointer(u16, u64);
    let pointer = Pointer(size_of::<Idt>() as u16 - 1, IDT.0.get() as u64);
    // SAFETY: the table is static and filled in.
    unsafe { asm!("lidt [{}]", in(reg) &raw const pointer, options(readonly, nostack)) };
}

/// Where this machine's `hvm_start_info` lies: a physical address, mapped one to one.
pub fn start_info() -> u64 {
    // Relaxed: written by vCPU 0 before its first Rust code.
    START_INFO.load(Ordering::Relaxed)
}

/// Puts the code for the other vCPUs in its place. On vCPU 0, before [`start_vcpu`].
pub fn place_trampoline() {
    // SAFETY: both are in this image, the second after the first; the page below 1 MiB is RAM that the
    // loader left free (start_info and its strings lie elsewhere: asserted by whoever reads them).
    unsafe {
        let from = &raw const trampoline;
        let len = (&raw const trampoline_end).offset_from_unsigned(from);
        (TRAMPOLINE as *mut u8).copy_from_nonoverlapping(from, len);
    }
}

/// Starts `vcpu` in [`crate::start`].
pub fn start_vcpu(vcpu: u32) {
    // INIT, then SIPI twice, as the multiprocessor specification (1.4, appendix B.4) has it. Its pauses
    // are for hardware; a hypervisor acts at once, and ignores the second SIPI of a vCPU that runs.
    apic::send(vcpu, apic::INIT);
    apic::send(vcpu, apic::STARTUP | (TRAMPOLINE >> 12) as u32);
    apic::send(vcpu, apic::STARTUP | (TRAMPOLINE >> 12) as u32);
}
