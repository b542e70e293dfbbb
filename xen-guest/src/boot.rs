//! From Xen's first instruction in us to the programme's `main`.
//!
//! This file owns the ELF notes that tell Xen how to boot the image, the entry points, and the
//! memory layout and order of set-up that both kinds of domain share. What differs between them is in
//! [`pv`] and [`pvh`].

pub mod pv;
pub mod pvh;

use core::cell::UnsafeCell;

use x86_64::structures::paging::PageTableFlags;

use evtchn::{Errno, Port};

use crate::abi::{ConsoleRing, PAGE_SIZE};
use crate::console::{self, Sink};
use crate::hypercall::Resumed;
use crate::machine::{self, DomainType, Machine};
use crate::percpu::MAX_VCPUS;
use crate::{hypercall, stack, timer, trap};

/// The programme: gets the machine on vCPU 0, with upcalls masked, and never returns.
pub type Main = fn(&'static Machine) -> !;

/// Makes the crate that uses it a kernel: ELF notes, entry points, and `main` as where they lead.
///
/// Link it with `link.ld` of this crate, with the flags in docs/boot.md, and with this crate's feature
/// `image`, which brings the memory functions a C library has otherwise. The crate also needs a panic
/// handler ([`crash::panic`](crate::crash::panic)) and a global allocator
/// ([`heap::Heap`](crate::heap::Heap)). Nothing of the experiment is linked in. `src/bin/selftest.rs` is a
/// kernel made so.
///
/// ```text
/// fn main(machine: &'static xen_guest::machine::Machine) -> ! {
///     machine.console_write(b"hello\n");
///     machine.shutdown(xen_guest::machine::ShutdownReason::Poweroff)
/// }
/// xen_guest::kernel!(main);
/// ```
#[macro_export]
macro_rules! kernel {
    ($main:path) => {
        const _: $crate::boot::Main = $main;
        ::core::arch::global_asm!(
            // One note: type (Xen public/elfnote.h) and contents.
            ".macro xen_note type:req, contents:vararg",
            ".pushsection .note.Xen, \"a\", @note",
            ".balign 4",
            ".long 4, 2f - 1f, \\type",
            ".asciz \"Xen\"",
            "1: \\contents",
            "2: .balign 4",
            ".popsection",
            ".endm",
            "xen_note 6, .asciz \"xen-guest\"",             // GUEST_OS
            "xen_note 8, .asciz \"generic\"",               // LOADER
            "xen_note 5, .asciz \"xen-3.0\"",               // XEN_VERSION
            "xen_note 3, .quad 0",                          // VIRT_BASE
            "xen_note 4, .quad 0",                          // PADDR_OFFSET
            "xen_note 1, .quad xen_pv_entry",               // ENTRY
            "xen_note 2, .quad xen_hypercall_page",         // HYPERCALL_PAGE
            "xen_note 9, .asciz \"yes\"",                   // PAE_MODE
            "xen_note 14, .long 1",                         // SUSPEND_CANCEL
            "xen_note 18, .long xen_pvh_entry",             // PHYS32_ENTRY
            // 64-bit, paging on, start_info in rsi.
            ".pushsection .text.xen_entry, \"ax\", @progbits",
            ".globl xen_pv_entry",
            "xen_pv_entry:",
            "cld",
            "lea {stacks} + {stack_top}(%rip), %rsp",
            "xor %ebp, %ebp", // ends backtraces
            "mov %rsi, %rdi",
            "lea {main}(%rip), %rsi",
            "call {pv_start}",
            "ud2",
            // 32-bit, paging off, hvm_start_info in ebx. Links the page tables, turns on what
            // 64-bit mode and compiled code need, and goes on as above.
            ".code32",
            ".globl xen_pvh_entry",
            "xen_pvh_entry:",
            "cld",
            "movl ${tables} + 0x1003, {tables}",
            "movl ${tables} + 0x2003, {tables} + 0x1000",
            "movl ${tables} + 0x3003, {tables} + 0x1008",
            "movl ${tables} + 0x4003, {tables} + 0x1010",
            "movl ${tables} + 0x5003, {tables} + 0x1018",
            "mov ${tables}, %eax",
            "mov %eax, %cr3",
            "mov ${cr4}, %eax",
            "mov %eax, %cr4",
            "mov $0xc0000080, %ecx", // EFER
            "rdmsr",
            "or ${efer}, %eax",
            "wrmsr",
            "mov ${cr0}, %eax",
            "mov %eax, %cr0",
            "lgdt xen_pvh_gdt_pointer",
            "ljmpl $8, $xen_pvh_long",
            ".code64",
            "xen_pvh_long:",
            "xor %eax, %eax",
            "mov %eax, %ds",
            "mov %eax, %es",
            "mov %eax, %ss",
            "mov %eax, %fs",
            "mov %eax, %gs",
            "lea {stacks} + {stack_top}(%rip), %rsp",
            "xor %ebp, %ebp",
            "mov %ebx, %edi",
            "lea {main}(%rip), %rsi",
            "call {pvh_start}",
            "ud2",
            ".popsection",
            ".pushsection .rodata.xen_pvh, \"a\", @progbits",
            ".balign 8",
            "xen_pvh_gdt: .quad 0, 0x00af9a000000ffff", // a 64-bit code segment
            "xen_pvh_gdt_pointer: .word 15",
            ".long xen_pvh_gdt",
            ".popsection",
            tables = sym $crate::boot::pvh::TABLES,
            cr0 = const $crate::smp::CR0,
            cr4 = const $crate::smp::CR4,
            efer = const $crate::smp::EFER_LME_NXE,
            pvh_start = sym $crate::boot::pvh::start,
            stacks = sym $crate::stack::STACKS,
            stack_top = const $crate::stack::FIRST_TOP,
            main = sym $main,
            pv_start = sym $crate::boot::pv::start,
            options(att_syntax)
        );
    };
}

/// The page that the shared page replaces.
#[repr(C, align(4096))]
struct Placeholder(UnsafeCell<[u8; PAGE_SIZE]>);

// SAFETY: never used as what it is declared; what gets mapped over it is all atomics.
unsafe impl Sync for Placeholder {}

impl Placeholder {
    fn address(&self) -> usize {
        self.0.get() as usize
    }
}

static SHARED_PAGE: Placeholder = Placeholder(UnsafeCell::new([0; PAGE_SIZE]));

// From link.ld: each kind of memory starts on a page of its own.
unsafe extern "C" {
    static __text_start: u8;
    static __rodata_start: u8;
    static __data_start: u8;
    static __image_end: u8;
}

/// The addresses of the image.
fn image() -> core::ops::Range<usize> {
    &raw const __text_start as usize..&raw const __image_end as usize
}

const DATA: PageTableFlags =
    PageTableFlags::PRESENT.union(PageTableFlags::WRITABLE).union(PageTableFlags::NO_EXECUTE);

/// What the page at `address` should allow; `None`: nothing.
fn protection(address: usize) -> Option<PageTableFlags> {
    let constants = &raw const __rodata_start as usize;
    let data = &raw const __data_start as usize;
    if address == 0 || stack::guards().contains(&address) && stack::is_guard(address) {
        None
    } else if (image().start..constants).contains(&address) {
        Some(PageTableFlags::PRESENT)
    } else if (constants..data).contains(&address) {
        Some(PageTableFlags::PRESENT | PageTableFlags::NO_EXECUTE)
    } else {
        Some(DATA)
    }
}

/// Whether this is a PVH domain: it translates no frames.
pub(crate) fn is_pvh() -> bool {
    !pv::has_machine_frames()
}

/// What a boot protocol has found out.
struct Found {
    domain_type: DomainType,
    cmdline: &'static [u8],
    xenstore: Option<&'static crate::xenstore::Ring>,
}

/// The pages shared with the daemons, and the ports beside them.
struct Rings {
    console: Option<(&'static ConsoleRing, Port)>,
    xenstore: Option<(&'static crate::xenstore::Ring, Port)>,
}

impl Rings {
    /// Makes the rings the ones that are used; returns what the machine keeps of them.
    fn install(self) -> Option<&'static crate::xenstore::Ring> {
        self.reconnect();
        console::init(self.console.map_or(Sink::None, |(ring, _)| Sink::Ring(ring)));
        self.xenstore.map(|(ring, _)| ring)
    }

    /// Uses the ports from now on: the pages are where they were, the ports are new after a restore.
    fn reconnect(&self) {
        console::set_port(self.console.map(|(_, port)| port));
        machine::set_xenstore_port(self.xenstore.map(|(_, port)| port));
    }
}

/// Suspends the domain from vCPU 0, while all its other vCPUs are held, and makes good what this boot
/// protocol has of its own: the shared page, console and xenstore.
pub(crate) fn suspend() -> Result<Resumed, Errno> {
    if is_pvh() { pvh::suspend() } else { pv::suspend() }
}

/// The part of boot that no protocol differs in, once hypercalls, the shared page, the per-vCPU area
/// and traps of vCPU 0 are in place.
fn finish(found: Found, main: Main) -> ! {
    console::init_log(log::LevelFilter::Info);
    trap::register_runstate(0).expect("the runstate area can be registered");
    timer::stop_periodic(0);
    let cmdline = match core::str::from_utf8(found.cmdline) {
        Ok(text) => text,
        Err(error) => {
            panic!("the command line (extra=) is not UTF-8 from byte {}", error.valid_up_to())
        }
    };
    let machine = Machine::install(Machine {
        domain_type: found.domain_type,
        cmdline,
        vcpus: count_vcpus(),
        xenstore: found.xenstore,
    });
    main(machine)
}

/// How many vCPUs the domain has: the numbers up to the first that Xen does not know.
fn count_vcpus() -> u32 {
    let known =
        (0..MAX_VCPUS as u32).take_while(|vcpu| hypercall::vcpu_is_up(*vcpu).is_ok()).count();
    if known == MAX_VCPUS && hypercall::vcpu_is_up(known as u32).is_ok() {
        panic!("the domain has more than {MAX_VCPUS} vCPUs; set vcpus= to at most that");
    }
    known as u32
}
