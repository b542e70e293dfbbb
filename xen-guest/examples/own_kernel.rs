//! A kernel that has boot code, descriptor tables, interrupts and per-CPU areas of its own, and
//! takes the rest from `xen-guest`: the layer between the two, as it would stand in a PVH kernel.
//!
//! [`kernel`] stands for that kernel. What matters is [`platform`]: it uses neither `kernel!` nor
//! the GS base, and each of its functions can be called as soon as those that its comment names
//! were. Compiled as a library, so that it stays true.
#![no_std]

use evtchn::Errno;
use pvlock::{KickAtUnlock, RawPvLock};
use xen_guest::glue::XenPlatform;

/// What this kernel has by itself.
mod kernel {
    use core::arch::asm;

    /// Its per-CPU area is found through FS; the number comes first in it.
    pub(crate) fn cpu_number() -> u32 {
        let number: u32;
        // SAFETY: FS leads to this CPU's area, set before anything else runs there.
        unsafe {
            asm!(
                "mov {number:e}, fs:[0]",
                number = out(reg) number,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        number
    }

    pub(crate) fn init_per_cpu(_number: u32) {}

    pub(crate) fn on_timer() {}

    /// Its first Rust function on a CPU that it has started.
    pub(crate) fn secondary_main(number: u32) -> ! {
        init_per_cpu(number);
        super::platform::init_vcpu(number).expect("a vCPU can be registered with Xen");
        loop {
            core::hint::spin_loop();
        }
    }
}

/// The layer between the kernel and Xen.
pub mod platform {
    use evtchn::{Errno, Port};
    use xen_guest::daemons::{console, rings::Rings};
    use xen_guest::events::{lapic, shared_info, timer, upcall};
    use xen_guest::vcpu::{area, clock, identity, start};
    use xen_guest::xen::hypercall::{self, ShutdownReason};
    use xen_guest::{glue, xen};

    use super::kernel;

    /// The vector of Xen's upcalls, in this kernel's own table of interrupts.
    pub const UPCALL_VECTOR: u8 = 0xf3;

    /// Memory as this kernel maps it: all of it, at this distance.
    const OFFSET: usize = 0xffff_8000_0000_0000;

    fn physical(address: usize) -> usize {
        address - OFFSET
    }

    /// Once, on vCPU 0: the domain. After it, text goes to the console.
    ///
    /// # Errors
    ///
    /// What Xen says.
    pub fn init_domain() -> Result<(), Errno> {
        // SAFETY: a CPU's number never changes; this kernel moves no task that holds a lock.
        unsafe { identity::identify_by(kernel::cpu_number) };
        // SAFETY: right for the image.
        unsafe { xen::frames::translate_by(physical) };
        // SAFETY: the local APIC is mapped like everything.
        unsafe { lapic::map_at(OFFSET + 0xfee0_0000) };
        assert!(hypercall::enable_pvh(), "this kernel runs on Xen only");
        shared_info::map_pvh()?;
        // SAFETY: as above.
        unsafe { Rings::of_pvh(|frame| OFFSET + frame as usize * 4096) }.install();
        upcall::set_upcall_handler(on_event);
        upcall::announce_pvh(UPCALL_VECTOR)
    }

    /// On every vCPU, 0 too, after [`init_domain`]: clock, interrupts, timer, and the port on which
    /// it is kicked out of a wait for a lock. In this order or any other.
    ///
    /// # Errors
    ///
    /// What Xen says.
    pub fn init_vcpu(number: u32) -> Result<(), Errno> {
        area::register(number)?;
        upcall::connect_pvh(number, UPCALL_VECTOR)?;
        timer::bind()?;
        glue::bind(number).map(drop)
    }

    /// From any vCPU: starts another, on a stack of this kernel's.
    ///
    /// # Errors
    ///
    /// What Xen says.
    ///
    /// # Safety
    ///
    /// The stack is that CPU's alone.
    pub unsafe fn start_cpu(number: u32, stack_top: usize) -> Result<(), Errno> {
        extern "C" fn entry(number: u32) -> ! {
            kernel::secondary_main(number)
        }
        // SAFETY: the caller's promise; `secondary_main` needs nothing but a stack.
        unsafe { start::start_pvh(number, entry, stack_top) }
    }

    /// Called by this kernel's own entry code, which has saved the registers, for every interrupt.
    /// A kernel whose entry code saves no vector registers puts [`upcall::upcall_pvh`] into its
    /// table instead.
    pub fn on_interrupt(vector: u8) {
        if vector == UPCALL_VECTOR {
            lapic::end_of_interrupt();
            upcall::serve();
        }
    }

    fn on_event(port: Port) {
        if timer::is_mine(port) {
            kernel::on_timer();
        }
    }

    /// After [`init_vcpu`], on that vCPU.
    ///
    /// # Errors
    ///
    /// What Xen says.
    pub fn set_timer(deadline_ns: u64) -> Result<(), Errno> {
        timer::set(deadline_ns)
    }

    /// After [`init_vcpu`], on that vCPU.
    pub fn now_ns() -> u64 {
        clock::now()
    }

    /// Nanoseconds since 1970. After [`init_vcpu`], on that vCPU.
    pub fn wall_ns() -> u64 {
        shared_info::epoch_offset_ns() + clock::now()
    }

    /// After [`init_domain`].
    pub fn print(text: &str) {
        console::write(text.as_bytes());
    }

    /// The end.
    pub fn power_off() -> ! {
        console::flush();
        hypercall::sched_shutdown(ShutdownReason::Poweroff)
    }
}

/// The lock under this kernel's spin locks: four bytes, and nothing to set up.
static SCHEDULER: RawPvLock<XenPlatform, KickAtUnlock> = RawPvLock::new();

/// Its first Rust function on vCPU 0.
///
/// # Errors
///
/// What Xen says.
pub fn main(stack_top_of: fn(u32) -> usize) -> Result<(), Errno> {
    kernel::init_per_cpu(0);
    platform::init_domain()?;
    platform::init_vcpu(0)?;
    for number in 1..xen_guest::vcpu::start::count().expect("no more than 128 vCPUs") {
        // SAFETY: one stack a vCPU.
        unsafe { platform::start_cpu(number, stack_top_of(number)) }?;
    }
    SCHEDULER.lock();
    platform::print("hello\n");
    // SAFETY: locked above.
    unsafe { SCHEDULER.unlock() };
    platform::set_timer(platform::now_ns() + 10_000_000)
}
