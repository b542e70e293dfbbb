//! From Xen's first instruction in us to the programme's `main`.
//!
//! This file owns the ELF notes that tell Xen how to boot the image, the entry points, and the
//! order in which vCPU 0 sets things up. What there is to set up in each kind of domain is in
//! `pv.rs` and `pvh.rs`.

use pvh::start_info::reader::StartInfoReader;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;
use xen_sys as sys;

use super::machine::Machine;
use super::{descriptors, pv, trap};
use crate::daemons::console::{self, Sink};
use crate::daemons::xenstore;
use crate::events::{shared_info, upcall};
use crate::vcpu::{MAX_VCPUS, area, gs_base, identity, start};
use crate::xen::hypercall;

/// The programme: gets the machine on vCPU 0, with upcalls masked, and never returns.
pub type Main = fn(&'static Machine) -> !;

/// Makes the crate that uses it a kernel: ELF notes, entry points, and `main` as where they lead.
///
/// Link it with `link.ld` of this crate, with the flags in docs/boot.md, and with this crate's
/// feature `image`, which brings the memory functions a C library has otherwise. The crate also
/// needs a panic handler ([`crash::panic`](crate::kernel::crash::panic)) and a global allocator
/// ([`heap::Heap`](crate::kernel::heap::Heap)).
///
/// ```text
/// use xen_guest::kernel::machine::{Machine, ShutdownReason};
///
/// fn main(machine: &'static Machine) -> ! {
///     machine.console_write(b"hello\n");
///     machine.shutdown(ShutdownReason::Poweroff)
/// }
/// xen_guest::kernel!(main);
/// ```
#[macro_export]
macro_rules! kernel {
    ($main:path) => {
        const _: $crate::kernel::boot::Main = $main;
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
            tables = sym $crate::kernel::pvh::TABLES,
            cr0 = const $crate::kernel::smp::CR0,
            cr4 = const $crate::kernel::smp::CR4,
            efer = const $crate::kernel::smp::EFER_LME_NXE,
            pvh_start = sym $crate::kernel::boot::start_pvh,
            stacks = sym $crate::kernel::stack::STACKS,
            stack_top = const $crate::kernel::stack::FIRST_TOP,
            main = sym $main,
            pv_start = sym $crate::kernel::boot::start_pv,
            options(att_syntax)
        );
    };
}

/// What a boot protocol has found out.
struct Found {
    cmdline: &'static [u8],
    xenstore: Option<&'static xenstore::Ring>,
}

/// First Rust code of vCPU 0 of a PV domain, on its own stack.
///
/// # Safety
///
/// Called once, by the entry code, with the `start_info` Xen passed.
#[doc(hidden)]
#[allow(improper_ctypes_definitions, reason = "the entry code passes the function's address on")]
pub unsafe extern "C" fn start_pv(info: *mut sys::start_info, main: Main) -> ! {
    // SAFETY: GS has no other use. Before this line nothing may ask which vCPU it runs on.
    let gs = unsafe { pv::set_gs_base(gs_base::of(0)) };
    // SAFETY: set above, and by `smp` for each other vCPU; where it failed the domain ends below.
    unsafe { identity::identify_by_gs_base() };
    // SAFETY: what Xen passed.
    unsafe { pv::take_start_info(info) };

    let shared = pv::map_shared_info();
    // SAFETY: the line above mapped it there; where that failed the domain ends below.
    unsafe { shared_info::install(shared_info::placeholder()) };
    shared_info::two_level().mask_all();
    let registered = area::register(0);

    // Whatever failed above is reported once there is a console to report it on.
    let xenstore = if pv::is_initial_domain() {
        console::init(Sink::Xen);
        None
    } else {
        pv::rings().install()
    };
    gs.expect("the GS base can be set");
    shared.expect("the shared page can be mapped");
    registered.expect("vCPU 0 can be registered");
    shared_info::describe_memory(pv::memory());
    trap::init_pv();
    pv::protect();
    finish(Found { cmdline: pv::cmdline(), xenstore }, main)
}

/// First Rust code of vCPU 0 of a PVH domain, in 64-bit mode, on its own stack.
///
/// # Safety
///
/// Called once, by the entry code, with the address of `hvm_start_info` that Xen passed.
#[doc(hidden)]
#[allow(improper_ctypes_definitions, reason = "the entry code passes the function's address on")]
pub unsafe extern "C" fn start_pvh(info: u32, main: Main) -> ! {
    // Before this line nothing may ask which vCPU it runs on.
    GsBase::write(VirtAddr::new(gs_base::of(0)));
    // SAFETY: set above, and by `smp` for each other vCPU.
    unsafe { identity::identify_by_gs_base() };
    descriptors::init_vcpu();
    if !hypercall::enable_pvh() {
        // Without Xen there is no console to say so on.
        // SAFETY: stops this CPU: it faults, and again in the fault's handler.
        unsafe { core::arch::asm!("ud2", options(noreturn)) };
    }
    super::pvh::protect();

    let shared = shared_info::map_pvh();
    let registered = area::register(0);
    // SAFETY: Xen leaves the structure and what it points to where it is; the first 4 GiB are
    // mapped one to one.
    let info = unsafe { StartInfoReader::from_paddr_identity(info) };
    let initial =
        info.as_ref().is_some_and(|info| info.raw().flags.bits() & sys::SIF_INITDOMAIN != 0);
    // Whatever failed above is reported once there is a console to report it on.
    let xenstore = if initial {
        console::init(Sink::Xen);
        None
    } else {
        super::pvh::rings().install()
    };
    shared.expect("the shared page can be mapped");
    registered.expect("vCPU 0 can be registered");
    upcall::connect_pvh(0, descriptors::UPCALL_VECTOR).expect("an upcall vector can be set");
    upcall::announce_pvh(descriptors::UPCALL_VECTOR)
        .expect("a PVH domain may choose how its events come");

    let info = info.expect("Xen passed a start_info with its magic number");
    let cmdline = info.cmdline().map_or(&[][..], |line| line.to_bytes());
    finish(Found { cmdline, xenstore }, main)
}

/// The part of boot that no protocol differs in, once hypercalls, the shared page, the area and the
/// traps of vCPU 0 are in place.
fn finish(found: Found, main: Main) -> ! {
    console::init_log(log::LevelFilter::Info);
    let cmdline = match core::str::from_utf8(found.cmdline) {
        Ok(text) => text,
        Err(error) => {
            panic!("the command line (extra=) is not UTF-8 from byte {}", error.valid_up_to())
        }
    };
    let vcpus = start::count().unwrap_or_else(|| {
        panic!("the domain has more than {MAX_VCPUS} vCPUs; set vcpus= to at most that")
    });
    main(Machine::install(Machine { cmdline, vcpus, xenstore: found.xenstore }))
}
