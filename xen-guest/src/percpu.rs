//! What exists once per vCPU, and how a vCPU finds its own.
//!
//! This file owns the per-vCPU areas and the use of the GS base as the pointer to them. It starts
//! no vCPU and gives no meaning to what lies in the areas.

use core::arch::asm;
use core::mem::offset_of;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

use evtchn::PortSet;
use xen_sys as sys;

use crate::abi::{RunstateInfo, VcpuInfo};

/// How many vCPUs one domain of this kernel can have.
pub const MAX_VCPUS: usize = 128;

/// One vCPU's area. Two cache lines of it are written by Xen.
#[repr(C, align(256))]
pub struct PerCpu {
    /// Registered with `VCPUOP_register_vcpu_info`.
    pub info: VcpuInfo,
    /// Registered with `VCPUOP_register_runstate_memory_area`.
    pub runstate: RunstateInfo,
    /// Its own address, so that one load through GS finds the area.
    own: AtomicU64,
    number: AtomicU64,
    /// What the vCPU runs when it starts: the address of a `fn(u32)`, or 0.
    pub(crate) entry: AtomicUsize,
    /// Whether Xen knows where it starts.
    pub(crate) initialised: AtomicBool,
    /// The port it sleeps on, or 0.
    pub(crate) sleep_port: AtomicU32,
    /// The port of its timer, or 0.
    pub(crate) timer_port: AtomicU32,
    /// When its timer was last told to fire; 0 = never.
    pub(crate) timer_deadline: AtomicU64,
    /// The port by which it is held while the domain is suspended, or 0.
    pub(crate) hold_port: AtomicU32,
    /// Its stack pointer while it is down and will come back where it was.
    pub(crate) stack_pointer: AtomicU64,
    /// Ports whose upcalls this vCPU handles, with the 2-level ABI; see
    /// [`handle_on`](crate::events::handle_on).
    pub(crate) ports: PortSet,
}

static AREAS: [PerCpu; MAX_VCPUS] = [const {
    PerCpu {
        info: VcpuInfo::new(),
        runstate: RunstateInfo::new(),
        own: AtomicU64::new(0),
        number: AtomicU64::new(0),
        entry: AtomicUsize::new(0),
        initialised: AtomicBool::new(false),
        sleep_port: AtomicU32::new(0),
        timer_port: AtomicU32::new(0),
        timer_deadline: AtomicU64::new(0),
        hold_port: AtomicU32::new(0),
        stack_pointer: AtomicU64::new(0),
        ports: PortSet::new(),
    }
}; MAX_VCPUS];

impl PerCpu {
    /// The area of `vcpu`.
    ///
    /// # Panics
    ///
    /// If `vcpu` is not below [`MAX_VCPUS`].
    pub fn of(vcpu: u32) -> &'static PerCpu {
        &AREAS[vcpu as usize]
    }

    /// The vCPU's event flags.
    #[inline]
    pub fn flags(&self) -> evtchn::VcpuInfo {
        let info = NonNull::from(&self.info).cast::<sys::vcpu_info>();
        // SAFETY: areas are static, the layouts agree (asserted at the declaration), and the
        // event fields are private atomics that nobody else touches.
        unsafe { evtchn::VcpuInfo::new(info) }
    }

    /// The area of the vCPU this runs on.
    #[inline]
    pub fn current() -> &'static PerCpu {
        let own: *const PerCpu;
        // SAFETY: every vCPU enters Rust code with its GS base at its area (the boot code and
        // smp.rs see to it), whose `own` field is set by then. It never changes afterwards, so
        // the load may be merged with others.
        unsafe {
            asm!(
                "mov {own}, gs:[{offset}]",
                own = out(reg) own,
                offset = const offset_of!(PerCpu, own),
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        // SAFETY: the value is the address of an element of the static above.
        unsafe { &*own }
    }

    /// Fills in what [`current`](PerCpu::current) needs. Returns the value for the GS base, which boot code
    /// writes on that vCPU before anything there asks who it is.
    pub fn prepare(vcpu: u32) -> u64 {
        use core::sync::atomic::Ordering::Relaxed;
        let area = PerCpu::of(vcpu);
        let address = core::ptr::from_ref(area) as u64;
        // Relaxed: the vCPU that reads these either runs this code itself or is started later by
        // a hypercall, which orders everything before it.
        area.own.store(address, Relaxed);
        area.number.store(u64::from(vcpu), Relaxed);
        address
    }
}

/// The number of the vCPU this runs on.
#[inline]
pub fn current_vcpu() -> u32 {
    let number: u64;
    // SAFETY: as in `PerCpu::current`; the field is set once, before the vCPU runs.
    unsafe {
        asm!(
            "mov {number}, gs:[{offset}]",
            number = out(reg) number,
            offset = const offset_of!(PerCpu, number),
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    number as u32
}
