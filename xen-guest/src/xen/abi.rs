//! What the guest and Xen share, where `xen-sys` has no declaration of it.
//!
//! This file owns layouts and numbers from Xen's public headers (MIT licence; the header is named
//! at each item) and proves their sizes at compile time. It holds no behaviour.
//!
//! Memory that the other side changes while we look is declared as atomics: that makes it safe to
//! share, and the ordering is stated where it is used.

use core::mem::{offset_of, size_of};
use core::sync::atomic::{AtomicI8, AtomicU8, AtomicU32, AtomicU64};

use xen_sys as sys;

/// Bytes of a page, of a ring page, of everything Xen maps.
pub const PAGE_SIZE: usize = 4096;

/// The page shared with the console daemon. Xen public/io/console.h.
#[doc(alias = "xencons_interface")]
#[repr(C)]
#[derive(Debug)]
pub struct ConsoleRing {
    /// Typed at the console.
    pub input: [AtomicU8; 1024],
    /// Printed by the guest.
    pub out: [AtomicU8; 2048],
    /// How far the guest has read.
    pub in_cons: AtomicU32,
    /// How far the daemon has written.
    pub in_prod: AtomicU32,
    /// How far the daemon has read.
    pub out_cons: AtomicU32,
    /// How far the guest has written.
    pub out_prod: AtomicU32,
}
const _: () = assert!(offset_of!(ConsoleRing, in_cons) == 3072);
const _: () = assert!(offset_of!(ConsoleRing, out_prod) == 3084);

/// A vCPU's clock: system time at one reading of the TSC, and how to go on from there.
///
/// An odd `version` says that Xen is writing. Xen public/xen.h.
#[doc(alias = "vcpu_time_info")]
#[repr(C)]
#[derive(Debug, Default)]
pub struct TimeInfo {
    /// Odd while Xen writes; another value afterwards.
    pub version: AtomicU32,
    _pad0: u32,
    /// TSC at the reading.
    pub tsc_timestamp: AtomicU64,
    /// System time at the reading, in nanoseconds.
    pub system_time: AtomicU64,
    /// Nanoseconds per TSC tick, times 2^32, after the shift.
    pub tsc_to_system_mul: AtomicU32,
    /// Left shift of the TSC difference; negative shifts right.
    pub tsc_shift: AtomicI8,
    _pad1: [u8; 3],
}
const _: () = assert!(size_of::<TimeInfo>() == size_of::<sys::vcpu_time_info>());
const _: () =
    assert!(offset_of!(TimeInfo, tsc_shift) == offset_of!(sys::vcpu_time_info, tsc_shift));

/// The wall clock in the shared page. Xen public/xen.h, "wc_version".
#[repr(C)]
#[derive(Debug, Default)]
pub struct WallClock {
    /// Odd while Xen writes; another value afterwards.
    pub version: AtomicU32,
    /// Seconds since 1970 when system time was 0, the low half.
    pub sec: AtomicU32,
    /// And nanoseconds.
    pub nsec: AtomicU32,
    /// The high half of the seconds.
    pub sec_hi: AtomicU32,
}
const _: () = {
    let start = offset_of!(sys::shared_info, wc_version);
    assert!(offset_of!(WallClock, sec) == offset_of!(sys::shared_info, wc_sec) - start);
    assert!(offset_of!(WallClock, nsec) == offset_of!(sys::shared_info, wc_nsec) - start);
    assert!(offset_of!(WallClock, sec_hi) == offset_of!(sys::shared_info, wc_sec_hi) - start);
};

/// What Xen and one vCPU share. Xen public/xen.h.
#[doc(alias = "vcpu_info")]
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct VcpuInfo {
    // The event fields: `evtchn::VcpuInfo` is their only user.
    evtchn_upcall_pending: AtomicU8,
    evtchn_upcall_mask: AtomicU8,
    evtchn_pending_sel: AtomicU64,
    /// Fault address of the last page fault (PV).
    pub cr2: AtomicU64,
    _pad: u64,
    /// The clock.
    pub time: TimeInfo,
}
impl VcpuInfo {
    /// All zero, which is what Xen starts from.
    pub const fn new() -> VcpuInfo {
        VcpuInfo {
            evtchn_upcall_pending: AtomicU8::new(0),
            evtchn_upcall_mask: AtomicU8::new(0),
            evtchn_pending_sel: AtomicU64::new(0),
            cr2: AtomicU64::new(0),
            _pad: 0,
            time: TimeInfo {
                version: AtomicU32::new(0),
                _pad0: 0,
                tsc_timestamp: AtomicU64::new(0),
                system_time: AtomicU64::new(0),
                tsc_to_system_mul: AtomicU32::new(0),
                tsc_shift: AtomicI8::new(0),
                _pad1: [0; 3],
            },
        }
    }
}
const _: () = assert!(offset_of!(VcpuInfo, evtchn_upcall_pending) == 0);
const _: () = assert!(offset_of!(VcpuInfo, evtchn_upcall_mask) == 1);
const _: () = assert!(offset_of!(VcpuInfo, evtchn_pending_sel) == 8);
const _: () = assert!(size_of::<VcpuInfo>() == size_of::<sys::vcpu_info>());
const _: () = assert!(offset_of!(VcpuInfo, time) == offset_of!(sys::vcpu_info, time));

/// Where a vCPU's time went, written by Xen at the vCPU's own context switches.
///
/// Xen public/vcpu.h.
#[doc(alias = "vcpu_runstate_info")]
#[repr(C)]
#[derive(Debug, Default)]
pub struct RunstateInfo {
    /// 0 running, 1 runnable (preempted), 2 blocked, 3 offline.
    pub state: AtomicU32,
    _pad: u32,
    /// When the vCPU entered `state`, in nanoseconds of system time.
    pub state_entry_time: AtomicU64,
    /// Nanoseconds spent in each state.
    pub time: [AtomicU64; 4],
}
impl RunstateInfo {
    /// All zero: "running", until Xen writes it.
    pub const fn new() -> RunstateInfo {
        RunstateInfo {
            state: AtomicU32::new(0),
            _pad: 0,
            state_entry_time: AtomicU64::new(0),
            time: [const { AtomicU64::new(0) }; 4],
        }
    }
}
impl RunstateInfo {
    /// Nanoseconds the vCPU could have run while somebody else did (steal time). Read it on that
    /// vCPU: Xen brings it up to date before the vCPU runs again.
    #[doc(alias = "RUNSTATE_runnable")]
    pub fn stolen_ns(&self) -> u64 {
        // Relaxed: a number, written by Xen while this vCPU does not run.
        self.time[1].load(core::sync::atomic::Ordering::Relaxed)
    }

    /// Nanoseconds the vCPU has slept in the hypervisor. Read it on that vCPU, as [`stolen_ns`](Self::stolen_ns).
    #[doc(alias = "RUNSTATE_blocked")]
    pub fn blocked_ns(&self) -> u64 {
        // Relaxed: as above.
        self.time[2].load(core::sync::atomic::Ordering::Relaxed)
    }
}
const _: () = assert!(size_of::<RunstateInfo>() == 48);

/// Numbers of `vcpu_op`. Xen public/vcpu.h.
#[allow(missing_docs, reason = "named by the header")]
pub mod vcpuop {
    pub const INITIALISE: usize = 0;
    pub const UP: usize = 1;
    pub const DOWN: usize = 2;
    pub const IS_UP: usize = 3;
    pub const REGISTER_RUNSTATE_MEMORY_AREA: usize = 5;
    pub const STOP_PERIODIC_TIMER: usize = 7;
    pub const SET_SINGLESHOT_TIMER: usize = 8;
    pub const STOP_SINGLESHOT_TIMER: usize = 9;
    pub const REGISTER_VCPU_INFO: usize = 10;
}

/// Argument of `VCPUOP_register_vcpu_info`. Xen public/vcpu.h.
#[doc(alias = "vcpu_register_vcpu_info")]
#[repr(C)]
#[derive(Debug)]
pub struct RegisterVcpuInfo {
    /// Machine frame (PV) or guest frame (PVH) of the page.
    pub frame: u64,
    /// Offset of the structure in the page.
    pub offset: u32,
    /// Unused.
    pub rsvd: u32,
}

/// Argument of `CALLBACKOP_register`. Xen public/callback.h.
#[doc(alias = "callback_register")]
#[repr(C)]
#[derive(Debug)]
pub struct CallbackRegister {
    /// [`CALLBACKTYPE_EVENT`] and its like.
    pub kind: u16,
    /// 1 = mask events on entry.
    pub flags: u16,
    /// Entry point.
    pub address: u64,
}
const _: () = assert!(offset_of!(CallbackRegister, address) == 8);

/// Event upcall. Xen public/callback.h.
pub const CALLBACKTYPE_EVENT: u16 = 0;
/// Xen could not load the guest's segments on the way back. Xen public/callback.h.
pub const CALLBACKTYPE_FAILSAFE: u16 = 1;
/// Non-maskable interrupt. Xen public/callback.h.
pub const CALLBACKTYPE_NMI: u16 = 4;

/// `HVMOP_xentrace`. Xen public/hvm/hvm_op.h.
pub const HVMOP_XENTRACE: usize = 11;
/// `HVMOP_set_param`. Xen public/hvm/hvm_op.h.
pub const HVMOP_SET_PARAM: usize = 0;
/// `HVMOP_get_param`. Xen public/hvm/hvm_op.h.
pub const HVMOP_GET_PARAM: usize = 1;

/// Most words a trace record of the guest's own can carry (`TRACE_EXTRA_MAX`, Xen public/trace.h).
pub const TRACE_EXTRA_MAX: usize = 7;

/// Argument of `HVMOP_xentrace`. Xen public/hvm/hvm_op.h.
#[doc(alias = "xen_hvm_xentrace")]
#[repr(C)]
#[derive(Debug, Default)]
pub struct HvmXentrace {
    /// Event number, below 0x1000.
    pub event: u16,
    /// Bytes used in `extra`.
    pub extra_bytes: u16,
    /// The words.
    pub extra: [u32; TRACE_EXTRA_MAX],
}
const _: () = assert!(size_of::<HvmXentrace>() == 32);

/// Argument of `HVMOP_get_param` and `HVMOP_set_param`. Xen public/hvm/hvm_op.h.
#[doc(alias = "xen_hvm_param")]
#[repr(C)]
#[derive(Debug)]
pub struct HvmParam {
    /// `DOMID_SELF`.
    pub domid: u16,
    /// `HVM_PARAM_*`.
    pub index: u32,
    /// The value.
    pub value: u64,
}
const _: () = assert!(offset_of!(HvmParam, value) == 8);

/// "This domain", wherever a domain id is asked for. Xen public/xen.h.
pub const DOMID_SELF: u16 = 0x7ff0;

/// `HVMOP_set_evtchn_upcall_vector`. Xen public/hvm/hvm_op.h.
pub const HVMOP_SET_EVTCHN_UPCALL_VECTOR: usize = 23;

/// Argument of `HVMOP_set_evtchn_upcall_vector`. Xen public/hvm/hvm_op.h.
#[doc(alias = "xen_hvm_evtchn_upcall_vector")]
#[repr(C)]
#[derive(Debug)]
pub struct HvmUpcallVector {
    /// Which vCPU.
    pub vcpu: u32,
    /// Interrupt vector, 0x10 or more.
    pub vector: u8,
}

/// Parameters of a PVH domain. Xen public/hvm/params.h.
#[allow(missing_docs, reason = "named by the header")]
pub mod hvm_param {
    pub const CALLBACK_IRQ: u32 = 0;
    pub const STORE_PFN: u32 = 1;
    pub const STORE_EVTCHN: u32 = 2;
    pub const CONSOLE_PFN: u32 = 17;
    pub const CONSOLE_EVTCHN: u32 = 18;
}

/// [`hvm_param::CALLBACK_IRQ`]: events of any vCPU come as the vector in the low byte.
#[doc(alias = "HVM_PARAM_CALLBACK_TYPE_VECTOR")]
pub const CALLBACK_TYPE_VECTOR: u64 = 2 << 56;

/// `XENMEM_add_to_physmap`. Xen public/memory.h.
pub const XENMEM_ADD_TO_PHYSMAP: usize = 7;

/// Argument of `XENMEM_add_to_physmap`. Xen public/memory.h.
#[doc(alias = "xen_add_to_physmap")]
#[repr(C)]
#[derive(Debug)]
pub struct AddToPhysmap {
    /// [`DOMID_SELF`].
    pub domid: u16,
    /// Unused here.
    pub size: u16,
    /// 0 = the shared page.
    pub space: u32,
    /// Which page of that space.
    pub index: u64,
    /// Guest frame where it shall appear.
    pub frame: u64,
}
const _: () = assert!(size_of::<AddToPhysmap>() == 24);

/// Registers a vCPU of a PVH domain starts with, 64-bit mode. Xen public/hvm/hvm_vcpu.h.
#[doc(alias = "vcpu_hvm_context")]
#[repr(C)]
#[derive(Debug, Default)]
#[allow(missing_docs, reason = "registers are named by the architecture")]
pub struct VcpuHvmContext {
    /// 1 = 64-bit.
    pub mode: u32,
    pub pad: u32,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rip: u64,
    pub rflags: u64,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    // The 32-bit form, which shares the space, is longer.
    pub rest: [u64; 8],
}
