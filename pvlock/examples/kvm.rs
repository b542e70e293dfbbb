//! The platform of a guest of KVM: `HLT` to sleep, one hypercall to kick. Compiled, so that it
//! stays true to the trait; the kernel in `example-kernel-kvm` of the repository runs the same on
//! real KVM.
//!
//! The facts are from Linux' public documentation, `virt/kvm/x86/hypercalls.rst` and `cpuid.rst`: a
//! guest may do so where CPUID says `KVM_FEATURE_PV_UNHALT`.

#[cfg(target_arch = "x86_64")]
mod kvm {
    use core::arch::asm;
    use core::arch::x86_64::{__cpuid, _rdtsc};
    use pvlock::{CpuNodes, HashStorage, HashTable, Platform};

    const MAX: usize = 64;
    static NODES: [CpuNodes; MAX] = [const { CpuNodes::new() }; MAX];
    static STORAGE: HashStorage<64> = HashStorage::new();
    static TABLE: HashTable = HashTable::new(&STORAGE);

    const HC_KICK_CPU: u64 = 5;
    /// The flag in RFLAGS.
    const INTERRUPTS: u64 = 1 << 9;

    pub(crate) struct Kvm;

    // SAFETY: by clause: 1. a CPU's number is its APIC id, and preemption is off inside `lock`; 2.
    // statics; 3. so do interrupts nest; 4. interrupts are off from the look on: a handler comes
    // before it, or after the sleep. KVM keeps a kick that finds the vCPU awake, and its next HLT
    // ends at once; 5. a hypercall is a full barrier; 6. nothing here panics.
    unsafe impl Platform for Kvm {
        const MAX_CPUS: usize = MAX;

        fn current_cpu() -> usize {
            // To be told by CPUID is to leave the guest: a kernel reads its per-CPU area.
            (__cpuid(1).ebx >> 24) as usize
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
                if enabled {
                    // SAFETY: handlers run as they would without this. `sti` takes effect after the
                    // next instruction, so none runs between the look and the HLT.
                    unsafe { asm!("sti", "hlt") };
                } else {
                    // In a handler: only a kick, or an NMI, ends this HLT. A kernel that wants
                    // waits to be bounded spins here instead. SAFETY: sleeps.
                    unsafe { asm!("hlt") };
                }
            } else if enabled {
                // SAFETY: they were on.
                unsafe { asm!("sti") };
            }
        }

        fn kick(cpu: usize) {
            // SAFETY: changes no memory of ours. Without `nomem` it is a barrier for the compiler.
            // rbx is the compiler's own. On AMD the instruction is `vmmcall`.
            unsafe {
                asm!("xchg rbx, {zero}", "vmcall", "xchg rbx, {zero}",
                     zero = inout(reg) 0_u64 => _, inlateout("rax") HC_KICK_CPU => _,
                     in("rcx") cpu, options(nostack))
            };
        }

        fn now() -> u64 {
            // SAFETY: reads a counter. A kernel reads KVM's clock, whose unit is the nanosecond.
            unsafe { _rdtsc() }
        }
    }
}

/// An uncontended lock asks for nothing of this, so it can be shown in a process.
fn main() {
    #[cfg(target_arch = "x86_64")]
    {
        static COUNT: pvlock::Mutex<u32, kvm::Kvm> = pvlock::Mutex::new(1);
        *COUNT.lock() += 1;
        println!("{}", *COUNT.lock());
    }
}
