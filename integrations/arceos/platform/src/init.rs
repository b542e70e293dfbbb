//! The order in which each vCPU is made ready.
//!
//! Owns that order, and no step of it. Nothing may be set up before `init_early`: ArceOS zeroes its
//! variables just before.

use axplat::init::InitIf;
use xen_guest::daemons::rings::Rings;
use xen_guest::events::{shared_info, upcall};
use xen_guest::xen::hypercall;

use crate::{cpu, irq, mem, time};

struct Init;

#[impl_plat_interface]
impl InitIf for Init {
    fn init_early(cpu_id: usize, start_info: usize) {
        traps_and_number(cpu_id);
        assert!(hypercall::enable_pvh(), "this kernel runs on Xen only");
        shared_info::map_pvh().expect("the shared page can be mapped");
        // SAFETY: the boot page tables map the first 4 GiB one to one; the rings lie there.
        let rings = unsafe { Rings::of_pvh(|frame| frame as usize * axplat::mem::PAGE_SIZE_4K) };
        rings.install();
        cpu::prepare(cpu_id);
        time::init();
        mem::init(start_info, &rings);
    }

    fn init_early_secondary(cpu_id: usize) {
        traps_and_number(cpu_id);
    }

    fn init_later(_cpu_id: usize, _start_info: usize) {
        upcall::announce_pvh(irq::VECTOR).expect("a domain chooses how its events come");
        irq::init();
        // ArceOS sets the timer of this vCPU in the timer's handler only.
        time::set_first_tick();
    }

    fn init_later_secondary(_cpu_id: usize) {
        irq::init();
    }
}

/// Before anything on this vCPU can ask for its number, wait for a lock, or fault.
fn traps_and_number(cpu_id: usize) {
    axcpu::init::init_trap();
    irq::load_table();
    cpu::set_number(cpu_id);
}
