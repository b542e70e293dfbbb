//! The events of Xen public/trace.h that this crate reads, their names and their layouts.
//!
//! Owns the numbers. Decides nothing about what an event means for a vCPU: that is `analysis`.
//! Numbers and layouts are the same from Xen 4.17 to 4.22 but for [`is_vmexit`].

mod names;

pub use names::{fields, hypercall_name, svm_exit_name, vector_name, vmx_exit_name};

/// Bits 0..27 of a record's first word.
pub const EVENT_MASK: u32 = 0x0fff_ffff;
/// Class of an event, one bit for each.
pub const CLASS_MASK: u32 = 0x0fff_0000;
/// Class and subclass of an event: what `xentrace -e` selects.
pub const GROUP_MASK: u32 = 0x0fff_f000;
/// Group of the format's own records.
#[doc(alias = "TRC_GEN")]
pub const GENERAL: u32 = 0x0001_f000;
/// Group of the runstate changes.
#[doc(alias = "TRC_SCHED_MIN")]
pub const SCHED_MIN: u32 = 0x0002_1000;
/// Group of wakes, blocks and switches.
#[doc(alias = "TRC_SCHED_VERBOSE")]
pub const SCHED_VERBOSE: u32 = 0x0002_8000;
/// Group of the entries and exits of HVM and PVH guests.
#[doc(alias = "TRC_HVM_ENTRYEXIT")]
pub const HVM_ENTRY_EXIT: u32 = 0x0008_1000;
/// Group of what is done between an exit and the next entry.
#[doc(alias = "TRC_HVM_HANDLER")]
pub const HVM_HANDLER: u32 = 0x0008_2000;
/// Group of the hypercalls, traps and faults of PV guests.
#[doc(alias = "TRC_PV_ENTRY")]
pub const PV_ENTRY: u32 = 0x0020_1000;
/// Group of a host's domains: created, destroyed.
#[doc(alias = "TRC_DOM0_DOMOPS")]
pub const DOMAINS: u32 = 0x0004_1000;
/// Group of the interrupts Xen serves.
#[doc(alias = "TRC_HW_IRQ")]
pub const INTERRUPTS: u32 = 0x0080_2000;
/// Group of the entries of PV multicalls.
#[doc(alias = "TRC_PV_SUBCALL")]
pub const PV_SUBCALLS: u32 = 0x0020_2000;

/// Header of a window: which pCPU's records follow, and how many bytes of them.
#[doc(alias = "TRC_TRACE_CPU_CHANGE")]
pub const CPU_CHANGE: u32 = 0x0001_f003;
/// Padding at the end of a ring; its payload is garbage.
#[doc(alias = "TRC_TRACE_WRAP_BUFFER")]
pub const WRAP_BUFFER: u32 = 0x0001_f002;
/// Records were dropped because the ring was full.
#[doc(alias = "TRC_LOST_RECORDS")]
pub const LOST_RECORDS: u32 = 0x0001_f001;

/// Runstate changes are `RUNSTATE_CHANGE | old << 8 | new << 4`.
#[doc(alias = "TRC_SCHED_RUNSTATE_CHANGE")]
pub const RUNSTATE_CHANGE: u32 = 0x0002_1001;
/// The scheduler ran and chose the same vCPU.
#[doc(alias = "TRC_SCHED_CONTINUE_RUNNING")]
pub const CONTINUE_RUNNING: u32 = 0x0002_1002;
/// A vCPU was put to sleep by the toolstack or by itself.
#[doc(alias = "TRC_SCHED_SLEEP")]
pub const SLEEP: u32 = 0x0002_8003;
/// Something wakes a vCPU; written on the pCPU that does it.
#[doc(alias = "TRC_SCHED_WAKE")]
pub const WAKE: u32 = 0x0002_8004;
/// A vCPU gave up its pCPU.
#[doc(alias = "TRC_SCHED_YIELD")]
pub const YIELD: u32 = 0x0002_8005;
/// A vCPU is about to block, in `SCHEDOP_block`, `SCHEDOP_poll` or HLT.
#[doc(alias = "TRC_SCHED_BLOCK")]
pub const BLOCK: u32 = 0x0002_8006;
/// A domain with this number begins.
#[doc(alias = "TRC_SCHED_DOM_ADD")]
pub const DOM_ADD: u32 = 0x0002_8001;
/// The domain with this number ends.
#[doc(alias = "TRC_SCHED_DOM_REM")]
pub const DOM_REM: u32 = 0x0002_8002;
/// As [`DOM_ADD`], in another class.
#[doc(alias = "TRC_DOM0_DOM_ADD")]
pub const DOMAIN_CREATE: u32 = 0x0004_1001;
/// As [`DOM_REM`], in another class.
#[doc(alias = "TRC_DOM0_DOM_REM")]
pub const DOMAIN_DESTROY: u32 = 0x0004_1002;
/// A domain shut down.
#[doc(alias = "TRC_SCHED_SHUTDOWN")]
pub const SHUTDOWN: u32 = 0x0002_8007;
/// A switch: previous and next.
#[doc(alias = "TRC_SCHED_SWITCH")]
pub const SWITCH: u32 = 0x0002_800a;
/// A switch: who leaves, and how many ns it ran (modulo 2^32).
#[doc(alias = "TRC_SCHED_SWITCH_INFPREV")]
pub const SWITCH_INFPREV: u32 = 0x0002_800e;
/// A switch: who comes.
#[doc(alias = "TRC_SCHED_SWITCH_INFNEXT")]
pub const SWITCH_INFNEXT: u32 = 0x0002_800f;
/// No switch: who goes on.
#[doc(alias = "TRC_SCHED_SWITCH_INFCONT")]
pub const SWITCH_INFCONT: u32 = 0x0002_8011;

/// A PV hypercall, before it is done: number and arguments' widths, then arguments.
#[doc(alias = "TRC_PV_HYPERCALL_V2")]
pub const PV_HYPERCALL: u32 = 0x0020_100d;
/// A trap of a 32-bit PV guest: its address, then vector (15 bits) and error code.
#[doc(alias = "TRC_PV_TRAP")]
pub const PV_TRAP: u32 = 0x0020_1003;
/// [`PV_TRAP`] of a 64-bit guest, whose address takes two words.
pub const PV_TRAP_64: u32 = PV_TRAP | 0x100;
/// One entry of a PV multicall, as [`PV_HYPERCALL`].
#[doc(alias = "TRC_PV_HYPERCALL_SUBCALL")]
pub const PV_SUBCALL: u32 = 0x0020_200e;

/// The guest runs again.
#[doc(alias = "TRC_HVM_VMENTRY")]
pub const VMENTRY: u32 = 0x0008_1001;
/// Xen has served an interrupt on this pCPU.
#[doc(alias = "TRC_HW_IRQ_HANDLED")]
pub const IRQ_HANDLED: u32 = 0x0080_2008;
/// A hypercall of an HVM or PVH guest: its number only.
#[doc(alias = "TRC_HVM_VMMCALL")]
pub const VMMCALL: u32 = 0x0008_2012;
/// A guest halted; written after the BLOCK it caused.
#[doc(alias = "TRC_HVM_HLT")]
pub const HLT: u32 = 0x0008_2013;

/// Hypercall number of `sched_op` (Xen public/xen.h).
#[doc(alias = "__HYPERVISOR_sched_op")]
pub const HYPERCALL_SCHED_OP: u32 = 29;
/// Hypercall number of `event_channel_op`.
#[doc(alias = "__HYPERVISOR_event_channel_op")]
pub const HYPERCALL_EVENT_CHANNEL_OP: u32 = 32;
/// Hypercall number of `hvm_op`, which carries `HVMOP_xentrace`.
#[doc(alias = "__HYPERVISOR_hvm_op")]
pub const HYPERCALL_HVM_OP: u32 = 34;
/// `sched_op` commands (Xen public/sched.h).
#[doc(alias = "SCHEDOP_yield")]
pub const SCHEDOP_YIELD: u32 = 0;
/// See [`SCHEDOP_YIELD`].
#[doc(alias = "SCHEDOP_block")]
pub const SCHEDOP_BLOCK: u32 = 1;
/// See [`SCHEDOP_YIELD`].
#[doc(alias = "SCHEDOP_poll")]
pub const SCHEDOP_POLL: u32 = 3;

/// One more than the highest pCPU number accepted: Xen's own limit (NR_CPUS is at most 16383).
pub const MAX_PCPUS: u32 = 16384;

/// The domain of Xen's idle vCPUs.
pub const DOMID_IDLE: u32 = 0x7fff;

/// True for an exit of an HVM or PVH guest. Intel is 0x81002 (32-bit) and 0x81102 (64-bit) in every
/// version; AMD was the same up to Xen 4.18 and is 0x81003 and 0x81103 from 4.19 on. 0x400 marks a
/// nested guest.
#[must_use]
pub const fn is_vmexit(event: u32) -> bool {
    matches!(event & !0x500, 0x0008_1002 | 0x0008_1003)
}

/// Whether an exit with this reason is for a hypercall: VMCALL of Intel, VMMCALL of AMD. A nested
/// guest's is not Xen's.
#[must_use]
pub const fn is_call_exit(event: u32, reason: u32) -> bool {
    const VMX_VMCALL: u32 = 18;
    const SVM_VMMCALL: u32 = 0x81;
    is_vmexit(event) && event & 0x400 == 0 && matches!(reason, VMX_VMCALL | SVM_VMMCALL)
}

/// True for an entry into an HVM or PVH guest, nested (0x400) or not.
#[must_use]
pub const fn is_vmentry(event: u32) -> bool {
    event & !0x400 == VMENTRY
}

/// The state of a vCPU (Xen public/vcpu.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runstate {
    /// On a pCPU.
    #[doc(alias = "RUNSTATE_running")]
    Running,
    /// Wants a pCPU and has none: the time it loses is stolen.
    #[doc(alias = "RUNSTATE_runnable")]
    Runnable,
    /// Waits for an event.
    #[doc(alias = "RUNSTATE_blocked")]
    Blocked,
    /// Down or paused.
    #[doc(alias = "RUNSTATE_offline")]
    Offline,
}

impl Runstate {
    /// The runstate with Xen's number `n` (modulo 4).
    #[must_use]
    pub const fn from_bits(n: u32) -> Self {
        match n & 3 {
            0 => Self::Running,
            1 => Self::Runnable,
            2 => Self::Blocked,
            _ => Self::Offline,
        }
    }

    /// The name used in every output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Runnable => "runnable",
            Self::Blocked => "blocked",
            Self::Offline => "offline",
        }
    }
}

/// Splits a runstate change's event into old and new state; `None` for another event.
#[must_use]
#[inline]
pub const fn runstate_change(event: u32) -> Option<(Runstate, Runstate)> {
    // 0x21<old><new>1: bits 10..11 and 6..7 are part of the pattern, so states above 3 do not
    // match.
    if event & 0x0fff_fccf == RUNSTATE_CHANGE {
        Some((Runstate::from_bits(event >> 8), Runstate::from_bits(event >> 4)))
    } else {
        None
    }
}

/// The widths of a PV hypercall's arguments stand in its first word from bit 20 on, two bits each:
/// 1 is one word, 2 is two. Returns the low word of argument 0, if it was recorded.
#[must_use]
#[inline]
pub fn hypercall_arg0(words: &[u32]) -> Option<u32> {
    match words {
        [first, arg0, ..] if (first >> 20) & 3 != 0 => Some(*arg0),
        _ => None,
    }
}

/// Shadow paging, and the bits of its events that tell the guest's levels of page tables.
const SHADOW: u32 = 0x0040_f000;
const SHADOW_LEVELS: u32 = 0x300;

// Names of families of events.
const RUNSTATE_CHANGE_NAME: &str = "runstate_change";
const VMEXIT_NAME: &str = "vmexit";
const GUEST_NAME: &str = "guest";

/// A short name for the event, as `dump` prints it; `None` when this crate does not know it.
#[must_use]
pub fn name(event: u32) -> Option<&'static str> {
    if runstate_change(event).is_some() {
        return Some(RUNSTATE_CHANGE_NAME);
    }
    if is_vmexit(event) {
        return Some(VMEXIT_NAME);
    }
    let event = match event & GROUP_MASK {
        _ if is_vmentry(event) => VMENTRY,
        SHADOW => event & !SHADOW_LEVELS,
        _ => event,
    };
    let own = names::EVENTS.iter().find(|(number, ..)| *number == event);
    let guest = || (event & !0xfff == crate::markers::GUEST).then_some(GUEST_NAME);
    own.map(|(_, name, _)| *name).or_else(guest)
}

/// All names that [`name`] gives.
pub fn names() -> impl Iterator<Item = &'static str> {
    let families = [RUNSTATE_CHANGE_NAME, VMEXIT_NAME, GUEST_NAME];
    names::EVENTS.iter().map(|(_, name, _)| *name).chain(families)
}
