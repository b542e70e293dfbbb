//! The joint: `pvlock` on KVM. The file to copy.
//!
//! Owns the lock's storage, and the two steps that differ from hypervisor to hypervisor: how a vCPU sleeps
//! and how it is woken.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use pvlock::{Counter, CpuNodes, HashStorage, HashTable, Mode, ModeCell, ModeSettled, Platform};

use crate::cpu::{MAX_VCPUS, current_vcpu};
use crate::{apic, kvm};

static NODES: [CpuNodes; MAX_VCPUS] = [const { CpuNodes::new() }; MAX_VCPUS];
/// The smallest there is: 64 lines of four entries, of which a vCPU needs at most four.
static STORAGE: HashStorage<64> = HashStorage::new();
static SLEEPERS: HashTable = HashTable::new(&STORAGE);
static MODE: ModeCell = ModeCell::new(Mode::Pv);

/// How many turns a waiter spins before it sleeps.
static SPIN_TURNS: AtomicU32 = AtomicU32::new(100);

/// What the waits of one vCPU came to.
#[repr(align(64))]
struct Counts {
    /// Written by the vCPU itself.
    halts: AtomicU64,
    /// As above.
    kicked: AtomicU64,
    /// Kicks sent to it, by any vCPU.
    sent: AtomicU64,
}

static COUNTS: [Counts; MAX_VCPUS] = [const {
    Counts { halts: AtomicU64::new(0), kicked: AtomicU64::new(0), sent: AtomicU64::new(0) }
}; MAX_VCPUS];

/// How many ticks a kick that is owed may be late before it is called lost: its sender may be preempted
/// between the step that ends the wait and the kick.
const LATE_TICKS: u32 = 20;

/// Chooses which lock to be, once, before any is used.
pub fn configure(mode: Mode) -> Result<(), ModeSettled> {
    MODE.init(mode)
}

/// Sets how many turns a waiter spins. Before the other vCPUs start.
pub fn set_spin_turns(turns: u32) {
    // Relaxed: starting a vCPU hands it over.
    SPIN_TURNS.store(turns, Ordering::Relaxed);
}

/// How often `vcpu` halted in a wait.
pub fn halts(vcpu: usize) -> u64 {
    COUNTS[vcpu].halts.load(Ordering::Relaxed)
}

/// How many waits of `vcpu` had their kick.
pub fn kicked(vcpu: usize) -> u64 {
    COUNTS[vcpu].kicked.load(Ordering::Relaxed)
}

/// Adds one. Relaxed: only the vCPU whose count it is writes it.
fn add(count: &AtomicU64) {
    count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

pub struct Kernel;

// SAFETY: `current_vcpu` is the number this vCPU was started with, and nothing migrates. The statics are used
// by this platform alone. Nothing that takes a lock interrupts: the tick's handler only counts. `wait` looks
// with interrupts off and goes from the look to the HLT with nothing in between but the instruction that
// allows interrupts, which takes effect after the HLT; a kick that comes between the two is kept by KVM,
// which then ends the HLT at once. `kick` is a hypercall: a full barrier on both sides.
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
        let vcpu = current_vcpu();
        let counts = &COUNTS[vcpu];
        // Relaxed, here and below: a count; the lock orders what matters.
        let sent = counts.sent.load(Ordering::Relaxed);
        let had_kick = || counts.sent.load(Ordering::Relaxed) != sent;
        // The second look. A kick that came before may be spent already, by a HLT that it ended; but
        // then the condition has gone, too.
        if !still_blocked() {
            return;
        }
        add(&counts.halts);
        apic::halt();
        if had_kick() {
            return add(&counts.kicked);
        }
        // The tick, or a kick from before this wait. If there is nothing left to wait for, somebody
        // owes this vCPU a kick, and no later wait must take it for its own.
        let mut ticks = 0;
        while !still_blocked() && !had_kick() {
            ticks += 1;
            if ticks > LATE_TICKS {
                return pvlock::add_to_counter::<Kernel>(vcpu, Counter::PollTimeout, 1);
            }
            apic::halt();
        }
    }

    fn kick(cpu: usize) {
        // Before the kick: when it ends a HLT, it has been counted.
        COUNTS[cpu].sent.fetch_add(1, Ordering::Relaxed);
        kvm::kick(cpu);
    }

    fn now() -> u64 {
        kvm::now()
    }

    fn spin_turns() -> u32 {
        // Relaxed: see `set_spin_turns`.
        SPIN_TURNS.load(Ordering::Relaxed)
    }

    fn mode() -> Mode {
        MODE.get()
    }

    #[inline]
    fn plain_unlock() -> bool {
        MODE.plain_unlock()
    }
}
