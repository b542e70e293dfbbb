//! The platform of a guest of Hyper-V: a read of the idle register, or `HLT`, to sleep; an
//! interrupt to kick; and a word to the hypervisor from whoever spins long. Compiled, so that it
//! stays true to the trait; nobody has run it.
//!
//! Written from Microsoft's Hypervisor Top Level Functional Specification (TLFS) alone. The names
//! of registers, calls and bits are its own.

#[cfg(target_arch = "x86_64")]
mod hyperv {
    use core::arch::asm;
    use core::arch::x86_64::__cpuid;
    use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
    use pvlock::{CpuNodes, HashStorage, HashTable, Mode, ModeCell, Platform};

    /// The call takes its targets as a mask of 64 bits; for more there is
    /// `HvCallSendSyntheticClusterIpiEx`.
    const MAX: usize = 64;
    static NODES: [CpuNodes; MAX] = [const { CpuNodes::new() }; MAX];
    static STORAGE: HashStorage<64> = HashStorage::new();
    static TABLE: HashTable = HashTable::new(&STORAGE);

    // Registers (MSRs).
    const HV_X64_MSR_GUEST_OS_ID: u32 = 0x4000_0000;
    const HV_X64_MSR_HYPERCALL: u32 = 0x4000_0001;
    const HV_X64_MSR_VP_INDEX: u32 = 0x4000_0002;
    const HV_X64_MSR_TIME_REF_COUNT: u32 = 0x4000_0020;
    const HV_X64_MSR_GUEST_IDLE: u32 = 0x4000_00f0;

    /// `HvCallNotifyLongSpinWait`, and `HvCallSendSyntheticClusterIpi`. Bit 16: the input is in
    /// registers.
    const NOTIFY_LONG_SPIN_WAIT: u64 = 0x0008 | 1 << 16;
    const SEND_SYNTHETIC_CLUSTER_IPI: u64 = 0x000b | 1 << 16;

    /// What a lock needs, of leaf 0x4000_0003, EAX: the reference counter, hypercalls, and the
    /// index of a vCPU.
    const NEEDED: u32 = 1 << 1 | 1 << 5 | 1 << 6;
    /// Of the same, `AccessGuestIdleReg`; and EDX has another bit for it.
    const GUEST_IDLE: u32 = 1 << 10;
    const GUEST_IDLE_AVAILABLE: u32 = 1 << 5;
    /// Of leaf 0x4000_0004, EAX: interrupts by hypercall are recommended.
    const CLUSTER_IPI: u32 = 1 << 10;
    /// Of the same, EBX: never to tell of a spin.
    const NEVER: u32 = u32::MAX;

    /// The vector of a kick. Its handler acknowledges the interrupt and does nothing else.
    const KICK: u64 = 0x40;
    /// The flag in RFLAGS.
    const INTERRUPTS: u64 = 1 << 9;

    static MODE: ModeCell = ModeCell::new(Mode::TestAndSet);
    /// Where the hypercall page is mapped. Stored before the mode is chosen.
    static PAGE: AtomicU64 = AtomicU64::new(0);
    /// Turns of a spin between two words to the hypervisor; 0: none.
    static TURNS: AtomicU32 = AtomicU32::new(0);
    /// Whether there is the idle register.
    static IDLE: AtomicBool = AtomicBool::new(false);

    /// What boot code does on the first CPU, before the others start: makes hypercalls possible and
    /// chooses the lock. Answers whether waiters can sleep.
    ///
    /// # Safety
    ///
    /// In ring 0. `frame` is the number of a page that nothing else uses, mapped executable at
    /// `address`, for ever. The interrupt [`KICK`] has its handler, and `identity` is the kernel's
    /// own as the TLFS encodes it, not 0.
    #[allow(dead_code, reason = "a process has no registers to write")]
    pub(crate) unsafe fn start(frame: u64, address: u64, identity: u64) -> bool {
        // A hypervisor, with the interface "Hv#1" and leaves enough.
        if __cpuid(1).ecx & 1 << 31 == 0
            || __cpuid(0x4000_0001).eax != u32::from_le_bytes(*b"Hv#1")
            || __cpuid(0x4000_0000).eax < 0x4000_0005
        {
            return false;
        }
        let (features, recommended) = (__cpuid(0x4000_0003), __cpuid(0x4000_0004));
        if features.eax & NEEDED != NEEDED || recommended.eax & CLUSTER_IPI == 0 {
            return false;
        }
        // Enabled already: only who did that knows where it is mapped.
        // SAFETY: the registers are there, as the features say.
        let page = unsafe { read(HV_X64_MSR_HYPERCALL) };
        if page & 1 != 0 {
            return false;
        }
        // SAFETY: as above.
        if unsafe { read(HV_X64_MSR_GUEST_OS_ID) } == 0 {
            // SAFETY: as above. Without a name there are no hypercalls.
            unsafe { write(HV_X64_MSR_GUEST_OS_ID, identity) };
        }
        // SAFETY: as above; the frame is promised. Bits 2 to 11 stay as they are.
        unsafe { write(HV_X64_MSR_HYPERCALL, frame << 12 | page & 0xffc | 1) };
        // SAFETY: as above.
        if unsafe { read(HV_X64_MSR_HYPERCALL) } & 1 == 0 {
            return false;
        }
        // Relaxed, all of them: to start a CPU orders them before what that CPU does.
        PAGE.store(address, Relaxed);
        let turns = if recommended.ebx == NEVER { 0 } else { recommended.ebx };
        TURNS.store(turns, Relaxed);
        let idle = features.eax & GUEST_IDLE != 0 && features.edx & GUEST_IDLE_AVAILABLE != 0;
        IDLE.store(idle, Relaxed);
        MODE.init(Mode::Pv).is_ok()
    }

    pub(crate) struct HyperV;

    // SAFETY: by clause: 1. a CPU's number is its index of the hypervisor's, and preemption is off
    // inside `lock`; 2. statics; 3. so do interrupts nest; 4. interrupts are off from the look on,
    // so a kick that comes after it is pending when the CPU goes to sleep, and ends the sleep; 5. a
    // kick is a hypercall, which is a full barrier, and leaves nothing that `wait` takes but the
    // interrupt; 6. nothing here panics.
    unsafe impl Platform for HyperV {
        const MAX_CPUS: usize = MAX;

        fn current_cpu() -> usize {
            // To read it is to leave the guest: a kernel reads its per-CPU area.
            // SAFETY: the interface "Hv#1" has this register.
            unsafe { read(HV_X64_MSR_VP_INDEX) as usize }
        }

        fn nodes(cpu: usize) -> &'static CpuNodes {
            &NODES[cpu]
        }

        fn hash() -> &'static HashTable {
            &TABLE
        }

        fn wait(still_blocked: impl Fn() -> bool) {
            let flags: u64;
            // SAFETY: reads the flags, and turns interrupts off.
            unsafe { asm!("pushfq", "pop {}", "cli", out(reg) flags) };
            let enabled = flags & INTERRUPTS != 0;
            if still_blocked() {
                if IDLE.load(Relaxed) {
                    // Sleeps until an interrupt arrives, enabled or not. That one which has arrived
                    // already counts too is how we read the TLFS, and nobody has tried it; the
                    // kernel's next timer interrupt ends the sleep in any case.
                    // SAFETY: the register is there.
                    unsafe { read(HV_X64_MSR_GUEST_IDLE) };
                } else if enabled {
                    // SAFETY: handlers run as they would without this. `sti` takes effect after the
                    // next instruction, so the interrupt that is pending ends the HLT. An NMI
                    // between the two can spoil this; then it is the timer's interrupt that ends
                    // it.
                    unsafe { asm!("sti", "hlt") };
                }
                // In a handler, and no such register: nothing but spinning is left.
            }
            if enabled {
                // SAFETY: they were on.
                unsafe { asm!("sti") };
            }
        }

        fn kick(cpu: usize) {
            // Vector and trust level (0: no other than the caller's) are one word, the mask the
            // other.
            // SAFETY: the handler of this interrupt does nothing.
            unsafe { hypercall(SEND_SYNTHETIC_CLUSTER_IPI, KICK, 1 << cpu) };
        }

        fn now() -> u64 {
            // In units of 100 ns. A kernel reads the reference TSC page, without leaving the guest.
            // SAFETY: `start` has looked whether it is there.
            unsafe { read(HV_X64_MSR_TIME_REF_COUNT) * 100 }
        }

        fn mode() -> Mode {
            MODE.get()
        }

        fn plain_unlock() -> bool {
            MODE.plain_unlock()
        }

        fn relax(turn: u32) {
            // So often as the hypervisor recommends, tell it that another vCPU of the guest had
            // better run. Not at the first turn, which has waited for nothing yet.
            let turns = TURNS.load(Relaxed);
            if turns != 0 && turn != 0 && turn % turns == 0 {
                // SAFETY: advice; it changes nothing.
                unsafe { hypercall(NOTIFY_LONG_SPIN_WAIT, turn.into(), 0) };
            } else {
                core::hint::spin_loop();
            }
        }
    }

    /// A hypercall with up to two words of input and no output; its result is not looked at.
    ///
    /// # Safety
    ///
    /// In ring 0, after [`start`] has succeeded; and what the call does must be allowed.
    unsafe fn hypercall(call: u64, first: u64, second: u64) {
        // SAFETY: as promised, code of the hypervisor's is there, which returns and changes RAX
        // alone. Without `nomem` it is a barrier for the compiler; without `nostack` there is a
        // stack for the return address.
        unsafe {
            asm!("call {page}", page = in(reg) PAGE.load(Relaxed), inlateout("rcx") call => _,
                 in("rdx") first, in("r8") second, lateout("rax") _)
        };
    }

    /// # Safety
    ///
    /// In ring 0, and there is such a register.
    unsafe fn read(register: u32) -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: as promised.
        unsafe {
            asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nostack))
        };
        u64::from(high) << 32 | u64::from(low)
    }

    /// # Safety
    ///
    /// In ring 0, there is such a register, and it takes `value`.
    unsafe fn write(register: u32, value: u64) {
        let (low, high) = (value as u32, (value >> 32) as u32);
        // SAFETY: as promised.
        unsafe {
            asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high, options(nostack))
        };
    }
}

/// An uncontended lock asks for nothing of this, so it can be shown in a process.
fn main() {
    #[cfg(target_arch = "x86_64")]
    {
        static COUNT: pvlock::Mutex<u32, hyperv::HyperV> = pvlock::Mutex::new(1);
        *COUNT.lock() += 1;
        println!("{}", *COUNT.lock());
    }
}
