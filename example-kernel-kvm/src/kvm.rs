//! What this kernel asks of KVM: features, clock, steal time, the kick.
//!
//! Owns the numbers and layouts of KVM's paravirtual interface (Linux' public documentation,
//! `virt/kvm/x86/{cpuid,msr,hypercalls}.rst`).

use core::arch::asm;
use core::arch::x86_64::{__cpuid, _rdtsc};
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

use pvlock::Mode;

use crate::cpu::{MAX_VCPUS, current_vcpu, write_msr};

const FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
const FEATURE_STEAL_TIME: u32 = 1 << 5;
const FEATURE_PV_UNHALT: u32 = 1 << 7;
const HINT_REALTIME: u32 = 1 << 0;

const MSR_SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
const MSR_STEAL_TIME: u32 = 0x4b56_4d03;
#[doc(alias = "KVM_HC_KICK_CPU")]
const HC_KICK_CPU: u64 = 5;

/// What the machine said that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// It runs on a hypervisor, of whatever kind.
    pub hypervisor: bool,
    /// It runs on KVM.
    pub kvm: bool,
    /// KVM's features (CPUID 0x40000001 eax), 0 elsewhere.
    pub features: u32,
    /// KVM's hints (edx).
    pub hints: u32,
}

impl Machine {
    /// Asks the processor.
    pub fn ask() -> Machine {
        let hypervisor = __cpuid(1).ecx & 1 << 31 != 0;
        // A hypervisor may show several interfaces, 0x100 leaves apart (Hyper-V's first, then KVM's).
        let base = (0x4000_0000..0x4001_0000_u32).step_by(0x100).find(|leaf| {
            let told = __cpuid(*leaf);
            hypervisor && [told.ebx, told.ecx, told.edx] == [0x4b4d_564b, 0x564b_4d56, 0x4d]
        });
        let told = base.map(|base| __cpuid(base + 1));
        Machine {
            hypervisor,
            kvm: base.is_some(),
            features: told.map_or(0, |told| told.eax),
            hints: told.map_or(0, |told| told.edx),
        }
    }

    fn has(&self, feature: u32) -> bool {
        self.features & feature != 0
    }

    /// Whether a HLT can be ended by a kick.
    pub fn can_kick(&self) -> bool {
        self.has(FEATURE_PV_UNHALT)
    }

    /// Which lock to be on `vcpus` vCPUs of this machine.
    ///
    /// | machine | lock | because |
    /// |---|---|---|
    /// | one vCPU, no hypervisor, or KVM's promise of vCPUs of their own | native | nobody is preempted |
    /// | KVM with `PV_UNHALT` | PV | a HLT can be ended by a kick |
    /// | any other hypervisor | test-and-set | a queue stands still behind a preempted vCPU |
    pub fn mode(&self, vcpus: u32) -> Mode {
        if !self.hypervisor || vcpus == 1 || self.hints & HINT_REALTIME != 0 {
            Mode::Native
        } else if self.can_kick() {
            Mode::Pv
        } else {
            Mode::TestAndSet
        }
    }
}

/// `pvclock_vcpu_time_info`.
#[repr(C, align(64))]
struct Clock {
    version: AtomicU32,
    _pad: u32,
    tsc_timestamp: AtomicU64,
    system_time: AtomicU64,
    tsc_to_system_mul: AtomicU32,
    tsc_shift: AtomicU8,
    _flags: [u8; 3],
}

/// `kvm_steal_time`.
#[repr(C, align(64))]
struct StealTime {
    steal: AtomicU64,
    version: AtomicU32,
    _flags: u32,
    _preempted: AtomicU8,
    _pad: [u8; 47],
}

const _: () = assert!(size_of::<Clock>() == 64 && size_of::<StealTime>() == 64);

static CLOCKS: [Clock; MAX_VCPUS] = [const {
    Clock {
        version: AtomicU32::new(0),
        _pad: 0,
        tsc_timestamp: AtomicU64::new(0),
        system_time: AtomicU64::new(0),
        tsc_to_system_mul: AtomicU32::new(0),
        tsc_shift: AtomicU8::new(0),
        _flags: [0; 3],
    }
}; MAX_VCPUS];

static STEAL_TIMES: [StealTime; MAX_VCPUS] = [const {
    StealTime {
        steal: AtomicU64::new(0),
        version: AtomicU32::new(0),
        _flags: 0,
        _preempted: AtomicU8::new(0),
        _pad: [0; 47],
    }
}; MAX_VCPUS];

/// Whether KVM writes the clock; else time is the TSC's.
static HAS_CLOCK: AtomicBool = AtomicBool::new(false);
/// Whether a hypercall is `vmmcall` (AMD) and not `vmcall` (Intel).
static VMMCALL: AtomicBool = AtomicBool::new(false);

/// Gives KVM this vCPU's areas. On each vCPU, first thing.
pub fn init(machine: &Machine, vcpu: usize) {
    let vendor = __cpuid(0).ebx.to_le_bytes();
    // Relaxed, here and below: every vCPU writes the same values before it reads them.
    VMMCALL.store(vendor == *b"Auth" || vendor == *b"Hygo", Ordering::Relaxed);
    // Bit 0 enables. Physical addresses are virtual ones here.
    if machine.has(FEATURE_CLOCKSOURCE2) {
        // SAFETY: KVM writes into a static of the layout it defines, made of atomics.
        unsafe { write_msr(MSR_SYSTEM_TIME_NEW, &raw const CLOCKS[vcpu] as u64 | 1) };
        HAS_CLOCK.store(true, Ordering::Relaxed);
    }
    if machine.has(FEATURE_STEAL_TIME) {
        // SAFETY: as above.
        unsafe { write_msr(MSR_STEAL_TIME, &raw const STEAL_TIMES[vcpu] as u64 | 1) };
    }
}

/// Nanoseconds by this vCPU's clock, which all vCPUs of the machine share.
pub fn now() -> u64 {
    // SAFETY: reads a counter.
    let tsc = || unsafe { _rdtsc() };
    if !HAS_CLOCK.load(Ordering::Relaxed) {
        return tsc();
    }
    let clock = &CLOCKS[current_vcpu()];
    loop {
        // Acquire: the fields are read after the version.
        let version = clock.version.load(Ordering::Acquire);
        // Relaxed: KVM writes them while this vCPU does not run.
        let ticks = tsc().wrapping_sub(clock.tsc_timestamp.load(Ordering::Relaxed));
        let shift = clock.tsc_shift.load(Ordering::Relaxed) as i8;
        let ticks = if shift < 0 { ticks >> -shift } else { ticks << shift };
        let multiplier = clock.tsc_to_system_mul.load(Ordering::Relaxed);
        let since = (u128::from(ticks) * u128::from(multiplier)) >> 32;
        let time = clock.system_time.load(Ordering::Relaxed) + since as u64;
        // Acquire: the fields are read before the version is looked at again.
        fence(Ordering::Acquire);
        if version & 1 == 0 && version == clock.version.load(Ordering::Relaxed) {
            return time;
        }
    }
}

/// How long `vcpu` could have run and others did, in nanoseconds.
pub fn stolen(vcpu: usize) -> u64 {
    // Relaxed: a figure for a report.
    STEAL_TIMES[vcpu].steal.load(Ordering::Relaxed)
}

/// Ends the HLT of `vcpu`, or its next one.
pub fn kick(vcpu: usize) {
    macro_rules! by {
        ($instruction:literal) => {
            // SAFETY: flags 0 and an APIC id; it changes no memory of ours. Without `nomem` it is a
            // barrier for the compiler. rbx is the compiler's own.
            unsafe {
                asm!("xchg rbx, {flags}", $instruction, "xchg rbx, {flags}",
                     flags = inout(reg) 0_u64 => _,
                     inlateout("rax") HC_KICK_CPU => _, in("rcx") vcpu,
                     options(nostack))
            }
        };
    }
    if VMMCALL.load(Ordering::Relaxed) { by!("vmmcall") } else { by!("vmcall") }
}
