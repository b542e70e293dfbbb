//! What the lock asks of the kernel it lives in.
//!
//! This file owns the seam, and nothing else: no lock logic, no default for anything that costs.

use crate::trouble::Trouble;
use crate::{CpuNodes, HashTable, Mode};

/// The kernel under the lock: who am I, where is per-CPU storage, how does a CPU sleep and wake.
///
/// All functions are called by type, so that a lock is four bytes. `examples/kvm.rs` and
/// `examples/hyperv.rs` are platforms for these hypervisors; the one for Xen is `xen-guest`'s.
///
/// # Safety
///
/// The implementer promises, and mutual exclusion and progress rest on it:
///
/// 1. **Who am I.** `current_cpu()` is the number of the CPU that executes the call, less than
///    `MAX_CPUS`, and stays the same for the whole of a call of `lock` or `unlock`.
/// 2. **Storage.** `nodes(cpu)` and `hash()` always return the same memory for the same argument.
///    No other platform uses it, and it lives for ever.
/// 3. **Last in, first out.** A context that begins on a CPU while another is inside `lock` or
///    `unlock` there has finished all its calls of both before the other goes on. Interrupts and
///    NMIs are like that. A task that preempts another is not: so preemption is off inside `lock`
///    and `unlock`, and, as with every spinlock, while a lock is held (see
///    [`Preemption`](crate::Preemption)). Debug builds panic when they find this broken.
/// 4. **No kick is lost.** Whoever calls `kick(cpu)` has changed the condition before. Then the
///    next `still_blocked()` of the `wait` that is under way on that CPU, or of its next one, says
///    no; or that `wait` ends. So nothing may come between the look and the sleep: a kick that
///    comes after the look either finds the CPU asleep and wakes it, or keeps it from falling
///    asleep. An interrupt between the two must not use up the kick, even if its handler waits for
///    a lock too.
/// 5. **Order.** What a CPU wrote before `kick` is seen by `still_blocked` where 4 says so. Where a
///    kick leaves a token behind that `wait` looks at and takes, `wait` takes it first and looks at
///    the condition after that, with a full barrier between the two, and `kick` begins with one.
///    Hypercalls and locked instructions are full barriers.
/// 6. **No function unwinds.** One that panics must not return to the lock, nor run its
///    destructors.
///
/// `wait` may end early for any reason. A `kick` that is not needed does no harm.
pub unsafe trait Platform: 'static {
    /// One more than the largest CPU number; at most 16,383.
    const MAX_CPUS: usize;

    /// The number of the CPU this runs on.
    ///
    /// Asked by waiters, and by an unlock that wakes one; with the feature `checker` by every lock
    /// and unlock. A number beyond `MAX_CPUS` is not checked: one for CPUs that have none yet.
    fn current_cpu() -> usize;

    /// The queue nodes of one CPU.
    fn nodes(cpu: usize) -> &'static CpuNodes;

    /// The table of sleeping queue heads.
    fn hash() -> &'static HashTable;

    /// Blocks this CPU until it is kicked, unless `still_blocked` says no. May return early. Called
    /// with interrupts on or off; they are as they were when it returns.
    ///
    /// A bounded wait is wise: a deadline that passes is counted by
    /// [`add_to_counter`](crate::add_to_counter) as
    /// [`Counter::PollTimeout`](crate::Counter::PollTimeout), and the waiter looks again by itself.
    #[doc(alias = "pv_wait")]
    fn wait(still_blocked: impl Fn() -> bool);

    /// Ends the present or the next [`wait`](Platform::wait) of `cpu`.
    ///
    /// The kick may come late: an unlock decides whom to kick, releases the lock, and may lose its
    /// pCPU before it calls this. Meanwhile `cpu` may have woken for another reason, taken the
    /// lock, released it, and gone offline. So before the means to kick a CPU that is down are
    /// taken away, call [`wait_for_kicks`].
    #[doc(alias = "pv_kick")]
    fn kick(cpu: usize);

    /// A monotonic clock of this CPU, in nanoseconds. Clocks of two CPUs may differ; then only the
    /// counter of wake-up latencies is wrong.
    fn now() -> u64;

    /// How many CPUs there are now that take locks. From it comes the horizon of policies that let
    /// each CPU add to it ([`Policy::HORIZON_PER_CPU`]), and nothing else: a number that is wrong,
    /// or changes at any moment because a CPU comes or goes, makes waits longer or shorter and
    /// breaks no lock.
    ///
    /// Asked by waiters, by an unlock that wakes one, and now and then by a CPU that steals: a load
    /// and no count of a mask.
    ///
    /// One by default, which stands for "not known": every horizon is the shortest then. It is not
    /// `MAX_CPUS`, because in a kernel that is built for thousands of CPUs waiters of a small guest
    /// would be passed for seconds.
    ///
    /// [`Policy::HORIZON_PER_CPU`]: crate::Policy::HORIZON_PER_CPU
    #[doc(alias = "num_online_cpus")]
    #[inline]
    fn online_cpus() -> usize {
        1
    }

    /// How many turns a waiter spins before it blocks, in policies that count turns.
    fn spin_turns() -> u32 {
        1 << 15
    }

    /// Which lock to be. Must always return the same once a lock was used.
    ///
    /// Read by every waiter: a constant, or a [`ModeCell`](crate::ModeCell) that is settled at
    /// boot.
    #[inline]
    fn mode() -> Mode {
        Mode::Pv
    }

    /// Whether an unlock may be a plain store: never while [`mode`](Platform::mode) is or may
    /// become [`Mode::Pv`].
    ///
    /// Read at every lock and unlock, which take the shorter way if it says yes. No is right in
    /// every mode. Where `mode` asks a [`ModeCell`](crate::ModeCell), this one has to ask
    /// [`ModeCell::plain_unlock`](crate::ModeCell::plain_unlock), which is one comparison:
    /// otherwise the first lock of all settles the mode.
    #[inline]
    fn plain_unlock() -> bool {
        Self::mode() != Mode::Pv
    }

    /// Told what the lock checker found, on the CPU that found it, in the context that waits.
    /// Called with the feature `checker` alone. When it returns, the CPU goes on as if nothing had
    /// been found.
    ///
    /// What it does itself is not checked. So it may take locks, but it had better not need them:
    /// any lock may be the one that is told of.
    ///
    /// # Panics
    ///
    /// By default, with the text of `trouble`, and does not unwind (clause 6).
    fn report(trouble: &Trouble) {
        crate::trouble::panic_with(trouble);
    }

    /// How long a CPU may wait for a lock before the checker reports it, in nanoseconds of
    /// [`now`](Platform::now); 0 = for ever. Reported again after each such time.
    ///
    /// Looked at every 1,024 turns of a spin, before each [`wait`](Platform::wait), and when the
    /// lock is taken after either. So a wait that nobody ends is found where `wait` returns now and
    /// then. The time in which the CPU was interrupted, or its machine paused, counts where the
    /// clock goes on.
    fn longest_wait() -> u64 {
        10_000_000_000
    }

    /// One turn of a spin loop, which has done `turn` turns so far. The place to tell a hypervisor
    /// that a spin is long, every so many turns.
    #[inline]
    fn relax(turn: u32) {
        let _ = turn;
        core::hint::spin_loop();
    }
}

/// Returns when every kick that was decided before this call has been made.
///
/// For a CPU that has gone offline: it takes no lock any more, so no new kick is meant for it.
/// Those that were decided while it waited for its last lock may still come, from any CPU whose
/// unlock was interrupted or lost its pCPU between its release and its kick. After this call none
/// of them does, and what [`Platform::kick`] needs for that CPU (a port, a vector, an APIC number)
/// may be taken away:
///
/// ```
/// # #[allow(dead_code)] mod platform { include!("../tests/common/threads.rs"); }
/// # use platform::Threads;
/// # fn cpu_is_down(_: usize) -> bool { true }
/// # fn take_away_the_port(_: usize) {}
/// fn after_offline(cpu: usize) {
///     assert!(cpu_is_down(cpu), "it reported, and runs nothing that takes a lock");
///     pvlock::wait_for_kicks::<Threads>();
///     take_away_the_port(cpu);
/// }
/// # after_offline(1);
/// ```
///
/// Waits for no lock, and spins as long as another CPU's kick takes; with interrupts on, because a
/// kick may have been interrupted on this CPU. The caller has seen that the CPU is down by an
/// acquire load or a lock. Must not be called out of [`Platform::kick`].
pub fn wait_for_kicks<P: Platform>() {
    for cpu in 0..P::MAX_CPUS {
        let mut turn = 0_u32;
        while P::nodes(cpu).kick_is_under_way() {
            P::relax(turn);
            turn = turn.saturating_add(1);
        }
    }
}
