//! The platform of a guest of Hyper-V: the idle register to sleep, an interrupt to kick, and a
//! hypercall that tells of long spins. Compiled, so that it stays true to the trait; nobody has run
//! it.
//!
//! The facts are from Microsoft's Hypervisor Top Level Functional Specification: a read of
//! `HV_X64_MSR_GUEST_IDLE` lasts until an interrupt comes, whether interrupts are on or off;
//! `HvCallNotifyLongSpinWait` is told how long somebody has been spinning, where CPUID leaf
//! 0x40000004 names the number of turns after which the hypervisor wants to know.

#[cfg(target_arch = "x86_64")]
mod hyperv {
    use core::arch::asm;
    use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
    use pvlock::{CpuNodes, HashStorage, HashTable, Platform};

    const MAX: usize = 64;
    static NODES: [CpuNodes; MAX] = [const { CpuNodes::new() }; MAX];
    static STORAGE: HashStorage<64> = HashStorage::new();
    static TABLE: HashTable = HashTable::new(&STORAGE);

    #[doc(alias = "HV_X64_MSR_VP_INDEX")]
    const VP_INDEX: u32 = 0x4000_0002;
    #[doc(alias = "HV_X64_MSR_TIME_REF_COUNT")]
    const TIME: u32 = 0x4000_0020;
    #[doc(alias = "HV_X64_MSR_ICR")]
    const INTERRUPT_COMMAND: u32 = 0x4000_0071;
    #[doc(alias = "HV_X64_MSR_GUEST_IDLE")]
    const IDLE: u32 = 0x4000_00f0;
    /// `HvCallNotifyLongSpinWait`, with its input in a register.
    const NOTIFY_LONG_SPIN_WAIT: u64 = 0x0008 | 1 << 16;

    /// The vector of a kick. Its handler acknowledges the interrupt, and does nothing else.
    const KICK: u64 = 0xf3;
    /// The flag in RFLAGS.
    const INTERRUPTS: u64 = 1 << 9;

    /// Where the hypercall page is mapped. The kernel stores it at boot; 0 = not yet.
    static HYPERCALL_PAGE: AtomicU64 = AtomicU64::new(0);
    /// Turns between two notes of a long spin: EBX of CPUID leaf 0x40000004; `u32::MAX` = never.
    static TURNS: AtomicU32 = AtomicU32::new(u32::MAX);

    fn read_msr(register: u32) -> u64 {
        let (low, high): (u32, u32);
        // SAFETY: of the registers above, IDLE sleeps and the others tell. Without `nomem` it is a
        // barrier for the compiler.
        unsafe {
            asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high,
                 options(nostack, preserves_flags))
        };
        u64::from(high) << 32 | u64::from(low)
    }

    pub(crate) struct HyperV;

    // SAFETY: by clause: 1. the index of a virtual processor stays, and preemption is off inside
    // `lock`; 2. statics; 3. so do interrupts nest; 4. interrupts are off from the look to the end
    // of the sleep. A kick before that has been delivered, and its condition has changed; one that
    // comes later stays pending, and ends the sleep. 5. `kick` begins with a full barrier, and a
    // read of IDLE leaves the guest; 6. nothing here panics.
    unsafe impl Platform for HyperV {
        const MAX_CPUS: usize = MAX;

        fn current_cpu() -> usize {
            // To read it is to leave the guest: a kernel reads its per-CPU area.
            read_msr(VP_INDEX) as usize
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
            if still_blocked() {
                read_msr(IDLE);
            }
            if flags & INTERRUPTS != 0 {
                // SAFETY: they were on. The kick's interrupt is delivered here.
                unsafe { asm!("sti") };
            }
        }

        fn kick(cpu: usize) {
            fence(Ordering::SeqCst);
            // Fixed delivery to the APIC of that number, which is the index here.
            let command = (cpu as u64) << 56 | KICK;
            // SAFETY: interrupts one virtual processor, whose handler does nothing.
            unsafe {
                asm!("wrmsr", in("ecx") INTERRUPT_COMMAND, in("eax") command as u32,
                     in("edx") (command >> 32) as u32, options(nostack, preserves_flags))
            };
        }

        fn now() -> u64 {
            // Units of 100 ns. A kernel reads the page of the reference TSC.
            read_msr(TIME) * 100
        }

        fn relax(turn: u32) {
            core::hint::spin_loop();
            // Relaxed: both are stored at boot, before the second processor starts.
            let every = TURNS.load(Ordering::Relaxed);
            if every == u32::MAX || turn == 0 || turn % every.max(1) != 0 {
                return;
            }
            let page = HYPERCALL_PAGE.load(Ordering::Relaxed);
            // SAFETY: the page is mapped where the kernel says. Advice, which changes no memory;
            // the registers are those that a call of this convention may change.
            unsafe {
                asm!("call {page}", page = in(reg) page,
                     inout("rcx") NOTIFY_LONG_SPIN_WAIT => _, inout("rdx") u64::from(turn) => _,
                     in("r8") 0_u64, clobber_abi("sysv64"))
            };
        }
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
