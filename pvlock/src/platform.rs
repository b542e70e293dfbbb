//! What the lock asks of the kernel it lives in.
//!
//! This file owns the seam, and nothing else: no lock logic, no default for anything that costs.

use crate::{CpuNodes, HashTable, Mode};

/// The kernel under the lock: who am I, where is per-CPU storage, how does a CPU sleep and wake.
///
/// All functions are called by type, so that a lock is four bytes.
///
/// # Safety
///
/// The implementer promises, and mutual exclusion and progress rest on it:
///
/// 1. `current_cpu()` is the number of the CPU that executes the call, less than `MAX_CPUS`, and
///    stays the same for the whole of a `lock` call (no migration between CPUs inside it).
/// 2. `nodes(cpu)` and `hash()` always return the same memory for the same argument, memory that no
///    other platform uses, and it lives for ever.
/// 3. A context that interrupts another on the same CPU (interrupt, NMI) has finished every lock it
///    takes before the interrupted one goes on.
/// 4. `kick(cpu)` before or during `wait` on that CPU makes that `wait` return (the wake token is
///    latched). `wait` may return early for any reason.
/// 5. `wait` takes a latched token (and may then return), and only after that calls `still_blocked`,
///    with a full barrier between the two; the caller of `kick` has changed the condition before, and
///    `kick` begins with a full barrier. Hypercalls and locked instructions are full barriers. An
///    inner level of nesting, which interrupted a `wait`, leaves the outer one's token alone.
pub unsafe trait Platform: 'static {
    /// One more than the largest CPU number; at most 16,383.
    const MAX_CPUS: usize;

    /// The number of the CPU this runs on.
    fn current_cpu() -> usize;

    /// The queue nodes of one CPU.
    fn nodes(cpu: usize) -> &'static CpuNodes;

    /// The table of sleeping queue heads.
    fn hash() -> &'static HashTable;

    /// Blocks this CPU until it is kicked, unless `still_blocked` says false once the wake token is
    /// armed. May return early.
    ///
    /// Interrupts stay as they are. A bounded wait is wise: a deadline that passes is counted by
    /// [`add_to_counter`](crate::add_to_counter) as [`Counter::PollTimeout`](crate::Counter::PollTimeout),
    /// and the waiter looks again by itself.
    #[doc(alias = "pv_wait")]
    fn wait(still_blocked: impl Fn() -> bool);

    /// Ends the present or the next [`wait`](Platform::wait) of `cpu`. A spare kick is harmless.
    #[doc(alias = "pv_kick")]
    fn kick(cpu: usize);

    /// A monotonic clock of this CPU, in nanoseconds. Clocks of two CPUs may differ; then only the
    /// counter of wake-up latencies is wrong.
    fn now() -> u64;

    /// How many turns a waiter spins before it blocks, in policies that count turns.
    fn spin_turns() -> u32 {
        1 << 15
    }

    /// A hint, asked while spinning: whether `cpu` is a vCPU the hypervisor has taken off its pCPU while it could run.
    fn vcpu_is_preempted(cpu: usize) -> bool {
        let _ = cpu;
        false
    }

    /// Which lock to be. Must always return the same once a lock was used.
    ///
    /// Read by every waiter: a constant, or a [`ModeCell`](crate::ModeCell) that is settled at boot.
    #[inline]
    fn mode() -> Mode {
        Mode::Pv
    }

    /// Whether an unlock may be a plain store: never while [`mode`](Platform::mode) is or may become
    /// [`Mode::Pv`]. Read at every unlock: [`ModeCell::plain_unlock`](crate::ModeCell::plain_unlock) is
    /// one comparison.
    #[inline]
    fn plain_unlock() -> bool {
        Self::mode() != Mode::Pv
    }

    /// One turn of a spin loop.
    #[inline]
    fn relax() {
        core::hint::spin_loop();
    }
}
