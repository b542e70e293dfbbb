//! The joint: `pvlock` on `evtchn` in this kernel. The file to copy.
//!
//! Owns the lock's storage and one kicker a vCPU.

use evtchn::{Errno, Kicker, Port, WaitCounts};
use pvlock::{CpuNodes, HashStorage, HashTable, Platform};

use crate::boot::MAX_VCPUS;
use crate::current_vcpu;
use crate::xen::{Xen, events, system_time};

/// This kernel's mutex: four bytes and the value.
pub type Mutex<T> = pvlock::Mutex<T, Kernel>;

static NODES: [CpuNodes; MAX_VCPUS] = [const { CpuNodes::new() }; MAX_VCPUS];
/// The smallest there is: 64 lines of four entries, of which a vCPU needs at most four.
static STORAGE: HashStorage<64> = HashStorage::new();
static SLEEPERS: HashTable = HashTable::new(&STORAGE);
static KICKERS: [Kicker; MAX_VCPUS] = [const { Kicker::new() }; MAX_VCPUS];

/// Gives `vcpu` the port on which it is kicked, before it takes its first contended lock.
pub fn bind(vcpu: u32) -> Result<Port, Errno> {
    KICKERS[vcpu as usize].bind(&Xen, &events(), vcpu)
}

/// What the waits of `vcpu` came to.
pub fn counts(vcpu: u32) -> WaitCounts {
    KICKERS[vcpu as usize].counts()
}

pub struct Kernel;

// SAFETY: 1. `current_vcpu` is the number this vCPU was started with; nothing migrates. 2. The
// statics are static and used by this platform alone. 3. Nothing interrupts: interrupts are off. 4,
// 5. As `Kicker::wait` and `Kicker::kick` promise.
unsafe impl Platform for Kernel {
    const MAX_CPUS: usize = MAX_VCPUS;

    fn current_cpu() -> usize {
        current_vcpu()
    }

    fn nodes(cpu: usize) -> &'static CpuNodes {
        &NODES[cpu]
    }

    fn hash() -> &'static HashTable {
        &SLEEPERS
    }

    fn wait(still_blocked: impl Fn() -> bool) {
        // The deadline is for bugs: a lost kick then costs a second, and shows in the counts.
        let deadline = system_time() + 1_000_000_000;
        KICKERS[current_vcpu()].wait(&Xen, &events(), deadline, still_blocked);
    }

    fn kick(cpu: usize) {
        // It fails only where the port is gone, with its vCPU.
        let _ = KICKERS[cpu].kick(&Xen);
    }

    fn now() -> u64 {
        system_time()
    }

    /// How long to spin before sleeping. Less than the default, because here the lock is held for
    /// long.
    fn spin_turns() -> u32 {
        100
    }
}
