//! What a vCPU of a PVH domain needs of its CPU: descriptor tables and fault stacks.
//!
//! This file owns them. A PV domain uses none: there Xen owns the CPU.
//!
//! Faults that may come from a broken stack, and NMIs, run on stacks of their own (Intel SDM volume
//! 3, 6.14.5), so that a stack overflow ends in a report and not in a reset.

use alloc::boxed::Box;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::Ordering::Relaxed;

use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::tables::load_tss;
use x86_64::registers::segmentation::{CS, DS, ES, SS, Segment, SegmentSelector};
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;

use super::trap;
use crate::events::upcall;
use crate::vcpu::{self, MAX_VCPUS};

/// Vector of event upcalls. Any from 0x10 on will do; this one is above all exceptions.
pub(super) const UPCALL_VECTOR: u8 = 0x20;

/// Stacks beside the vCPU's own, by index in the TSS.
mod ist {
    pub(super) const FAULT: u16 = 0;
    pub(super) const NMI: u16 = 1;
}

/// Bytes of each of these stacks.
const STACK: usize = 8 * 1024;

#[repr(C, align(16))]
struct Stacks([[u8; STACK]; 2]);

static IDT: Once<InterruptDescriptorTable> = Once::new();

/// What one vCPU's CPU is pointed at.
struct Tables {
    gdt: GlobalDescriptorTable,
    tss: TaskStateSegment,
    stacks: Stacks,
}

/// Each vCPU's, once it was started.
static TABLES: [AtomicPtr<Tables>; MAX_VCPUS] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_VCPUS];

/// The selectors of code, data and task in a vCPU's table.
type Selectors = [SegmentSelector; 3];

/// Fills in the tables of `vcpu`: those it had when it was started before, or new ones, for ever.
///
/// # Safety
///
/// The vCPU has not loaded them since it was started, and nobody else asks for them meanwhile.
unsafe fn tables(vcpu: u32) -> (&'static GlobalDescriptorTable, Selectors) {
    let slot = &TABLES[vcpu as usize];
    // Relaxed: only this vCPU uses the slot, and whoever restarts it does so by a hypercall.
    let mut at = slot.load(Relaxed);
    if at.is_null() {
        at = Box::into_raw(Box::new(Tables {
            gdt: GlobalDescriptorTable::new(),
            tss: TaskStateSegment::new(),
            stacks: Stacks([[0; STACK]; 2]),
        }));
        slot.store(at, Relaxed);
    }
    // SAFETY: made by `Box::into_raw` and never freed; the caller is its only user.
    let Tables { gdt, tss, stacks } = unsafe { &mut *at };
    // The structure is packed: fields are assigned whole.
    let mut tops = [VirtAddr::zero(); 7];
    for (top, stack) in tops.iter_mut().zip(&stacks.0) {
        *top = VirtAddr::from_ptr(stack.as_ptr_range().end);
    }
    tss.interrupt_stack_table = tops;
    // Anew each time: loading the task register marks the descriptor as in use, and it cannot be
    // loaded again then.
    *gdt = GlobalDescriptorTable::new();
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    (gdt, [code, data, task])
}

/// Gives the vCPU this runs on its descriptor tables.
pub(super) fn init_vcpu() {
    // SAFETY: this vCPU was started just now, and it asks once a start.
    let (gdt, [code, data, task]) = unsafe { tables(vcpu::current()) };
    gdt.load();
    // SAFETY: the selectors name what was just put into the table just loaded. GS is not touched:
    // its base is this vCPU's number.
    unsafe { CS::set_reg(code) };
    // SAFETY: as above.
    unsafe { SS::set_reg(data) };
    for set in [DS::set_reg, ES::set_reg] {
        // SAFETY: in 64-bit mode no access uses these; empty is what they should be.
        unsafe { set(SegmentSelector::NULL) };
    }
    // SAFETY: the selector names a TSS, and no other vCPU has loaded it.
    unsafe { load_tss(task) };
    IDT.call_once(idt).load();
}

/// Handlers of exceptions and of the upcall vector. All run with interrupts off.
fn idt() -> InterruptDescriptorTable {
    let mut idt = InterruptDescriptorTable::new();
    let address = |vector: u8| VirtAddr::from_ptr(trap::exception_hvm(vector));
    macro_rules! set {
        ($($field:ident = $vector:literal $(on $stack:expr)?;)*) => {$(
            // SAFETY: the entry code of a vector builds the frame that vector has.
            let options = unsafe { idt.$field.set_handler_addr(address($vector)) };
            $(
                // SAFETY: the stack exists in every TSS.
                unsafe { options.set_stack_index($stack) };
            )?
            let _ = options;
        )*};
    }
    set! {
        divide_error = 0;
        debug = 1;
        breakpoint = 3;
        overflow = 4;
        bound_range_exceeded = 5;
        invalid_opcode = 6;
        device_not_available = 7;
        double_fault = 8 on ist::FAULT;
        invalid_tss = 10;
        segment_not_present = 11;
        stack_segment_fault = 12 on ist::FAULT;
        general_protection_fault = 13;
        page_fault = 14 on ist::FAULT;
        x87_floating_point = 16;
        alignment_check = 17;
        machine_check = 18;
        simd_floating_point = 19;
        virtualization = 20;
    }
    // SAFETY: the entry code keeps to the frame of an interrupt.
    let nmi = unsafe {
        idt.non_maskable_interrupt
            .set_handler_addr(VirtAddr::from_ptr(upcall::nmi_pvh as *const ()))
    };
    // SAFETY: the stack exists in every TSS.
    unsafe { nmi.set_stack_index(ist::NMI) };
    // SAFETY: as above; it runs on the interrupted stack, like an upcall on PV.
    unsafe {
        idt[UPCALL_VECTOR].set_handler_addr(VirtAddr::from_ptr(upcall::upcall_pvh as *const ()))
    };
    idt
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each start of a vCPU took 16 KiB of the heap for ever.
    #[test]
    fn a_vcpu_that_is_started_again_has_the_tables_it_had() {
        // SAFETY: no CPU loads them.
        let (first, selectors) = unsafe { tables(1) };
        let at = core::ptr::from_ref(first);
        let entries = first.entries().len();
        // SAFETY: as above; the reference of before is not used any more.
        let (second, same) = unsafe { tables(1) };
        assert!(core::ptr::eq(at, second) && selectors == same);
        assert_eq!(second.entries().len(), entries, "filled anew, not appended to");
        // SAFETY: as above.
        let (other, _) = unsafe { tables(2) };
        assert!(!core::ptr::eq(at, other));
    }
}
