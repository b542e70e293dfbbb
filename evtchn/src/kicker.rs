//! Sleep and wake for one vCPU: wait until kicked, kick from anywhere.
//!
//! This file owns the rules that make one event channel a reliable wake token: the port stays
//! masked for ever, a nested wait leaves the token it found, every poll has a deadline. It knows
//! nothing of locks, and must never decide whether a waiter may go on: waits return early, and the
//! caller looks for itself.
//!
//! # Nested waits
//!
//! An interrupt that is served during a wait may wait in its turn. That is a **nested** wait; the
//! wait it interrupts is the one **below** it, and one that is below all others is **outermost**.
//! All of a vCPU share one port, and nobody can tell whose kick a latched token is. So:
//!
//! - The outermost wait takes a token for good.
//! - A nested wait takes the token that it finds as it begins, because no poll sleeps with one in
//!   place. It ends with a token latched if it found one, or if one came since.
//!
//! Nothing of it depends on the ABI: a masked port is in no queue, its event is a bit, and a send
//! sets it again. Each race is named where the code closes it.
//!
//! - **N1** The wait below is between its look and its poll, and its kick has come. The nested wait
//!   takes that token, and leaves one before the handler returns: the poll below finds it. A wait
//!   below that was asleep is no case of its own: the upcall has ended its poll before the handler
//!   runs, and it looks at the latch after it.
//! - **N2** The kick of the nested wait comes before the take. Its condition has changed before,
//!   and the look after the take sees it.
//! - **N3** A kick comes after the take. It is latched, and the poll does not sleep or ends. The
//!   nested wait leaves it in place, whosever it is.
//! - **N4** A kick comes between the last look at the latch and the send that gives the token back,
//!   or during that send: two kicks are one. The send may be one too many, never one too few.
//! - **N5** A nested wait is interrupted, and the handler waits. What holds of N1 holds of the two,
//!   at any step: the handler's wait leaves a token if there was one, so that none that is seen
//!   latched here is gone later. One taken here is out of its reach, and given back here.
//! - **N6** The domain is restored in the middle. The token is gone with the port, and so is the
//!   debt: who binds anew kicks once. A look at the old number may find another's event, and says
//!   only that nothing is owed.
//! - **N7** An NMI comes. It never waits; its kicks are like those of another vCPU.
//!
//! The price: a wait below may end for nothing once for each nested wait above it.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use crate::{Abi, Errno, Hypercalls, Port, Taken, bind_ipi, close, poll, send, take_own};

/// Why a [`Kicker::wait`] returned. Only ever a hint: the caller tests its condition again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WaitOutcome {
    /// A kick had come, before the wait or during it; its token is used up.
    Kicked,
    /// `still_blocked` said no; Xen was not asked.
    ConditionGone,
    /// The deadline passed without a kick.
    TimedOut,
    /// Something else ended the poll: another event's upcall, or (in a nested wait) a token that
    /// may belong to the interrupted wait and was left in place for it.
    Early,
    /// This context cannot block: no port is bound, or it is an NMI. Spin instead.
    NoPort,
}

/// What one vCPU's waits came to, since boot. Each field counts waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitCounts {
    /// That asked Xen to poll.
    pub polls: u64,
    /// That found a kick latched already, and did not ask Xen. Counted in `kicked` too.
    pub latched: u64,
    /// That ended [`Kicked`](WaitOutcome::Kicked).
    pub kicked: u64,
    /// That ended [`TimedOut`](WaitOutcome::TimedOut), whatever the condition then was.
    pub timed_out: u64,
    /// Of the timed-out ones, those whose condition no longer held: the waiter could have gone on,
    /// and no kick had told it. Either the kick was lost, or it was still on its way. 0 in a
    /// healthy run with deadlines far beyond a kick's latency.
    pub timed_out_unblocked: u64,
    /// That ended [`Early`](WaitOutcome::Early).
    pub early: u64,
}

/// Lets one vCPU sleep until another one kicks it.
///
/// One `Kicker` a vCPU, usually in a `static` array. A kick that comes while the vCPU does not
/// wait is latched and ends its next wait, so no wake-up is lost between looking and sleeping.
///
/// ```
/// use core::sync::atomic::{AtomicBool, Ordering};
/// use evtchn::{Kicker, WaitOutcome, fake::FakeXen};
///
/// static KICKER: Kicker = Kicker::new();
/// static DONE: AtomicBool = AtomicBool::new(false);
///
/// let xen = FakeXen::new(2);
/// let events = xen.two_level();
/// KICKER.bind(&xen.vcpu(1), &events, 1)?;
///
/// std::thread::scope(|scope| {
///     scope.spawn(|| {
///         let vcpu1 = xen.vcpu(1);
///         while !DONE.load(Ordering::Acquire) {
///             // No deadline, for the example's sake. Give one: a lost kick then costs time only.
///             KICKER.wait(&vcpu1, &events, 0, || !DONE.load(Ordering::Acquire));
///         }
///     });
///     DONE.store(true, Ordering::Release); // first the condition,
///     KICKER.kick(&xen.vcpu(0)) // then the kick
/// })?;
/// # Ok::<(), evtchn::Errno>(())
/// ```
#[derive(Debug)]
pub struct Kicker {
    /// The port's number; 0 = none.
    port: AtomicU32,
    /// How many waits of this vCPU are under way: an interrupt handler may wait inside a wait.
    /// Written by the owning vCPU only.
    depth: AtomicU32,
    /// How many NMI handlers of this vCPU are under way. Written by the owning vCPU only.
    nmi: AtomicU32,
    counts: Counts,
}

/// Whether a wait is inside another one of its vCPU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Outermost,
    Nested,
}

#[derive(Debug)]
struct Counts {
    polls: AtomicU64,
    latched: AtomicU64,
    kicked: AtomicU64,
    timed_out: AtomicU64,
    timed_out_unblocked: AtomicU64,
    early: AtomicU64,
}

fn count(counter: &AtomicU64) {
    // Relaxed: a statistic. An atomic add, because an interrupt may count in between.
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Kicker {
    /// A kicker without a port: waits return [`WaitOutcome::NoPort`], kicks do nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            port: AtomicU32::new(0),
            depth: AtomicU32::new(0),
            nmi: AtomicU32::new(0),
            counts: Counts {
                polls: AtomicU64::new(0),
                latched: AtomicU64::new(0),
                kicked: AtomicU64::new(0),
                timed_out: AtomicU64::new(0),
                timed_out_unblocked: AtomicU64::new(0),
                early: AtomicU64::new(0),
            },
        }
    }

    /// Binds an IPI port of `vcpu`, masks it for ever, and publishes it for kicks.
    ///
    /// Any vCPU may call it, before `vcpu` waits for the first time. After a restore every port is
    /// gone: bind again, then [`kick`](Self::kick) once. Waits and kicks may be under way meanwhile:
    /// a wait on the old port returns early, a kick that still goes to the old port is made good by
    /// the one that follows the bind.
    ///
    /// # Errors
    ///
    /// As [`bind_ipi`]. `ENOSPC` too if the ABI has no word for the port that Xen gave (it is closed
    /// again): [expand](crate::Fifo::expand) the event array, and bind again.
    pub fn bind(&self, xen: &impl Hypercalls, abi: &impl Abi, vcpu: u32) -> Result<Port, Errno> {
        let port = bind_ipi(xen, vcpu)?;
        if port.get() >= abi.ports() {
            close(xen, port)?;
            return Err(Errno::ENOSPC);
        }
        // Ports start unmasked. Nobody knows this one yet, so no event can slip through here.
        abi.mask(port);
        // A number used before may carry an old event; it would only make one wait return early.
        abi.clear(port);
        // Release: pairs with the acquire in `port`, so that whoever kicks finds the port masked.
        self.port.store(port.get(), Ordering::Release);
        Ok(port)
    }

    /// Closes the port. From now on kicks do nothing and waits return [`WaitOutcome::NoPort`].
    ///
    /// Call it when the vCPU is **down** and nobody can still decide to kick it. A port must
    /// outlive its vCPU's last wait: Xen does not wake a poll whose port is closed, and a kick
    /// under way would find the number closed or, worse, given to somebody else. Who kicks decides
    /// first and sends later, so "down" is not enough: under `pvlock`, call its `wait_for_kicks`
    /// between the two; with a protocol of your own, let every vCPU pass a point at which it is in
    /// the middle of no kick.
    ///
    /// # Errors
    ///
    /// As [`close`].
    pub fn unbind(&self, xen: &impl Hypercalls) -> Result<(), Errno> {
        // AcqRel: later kicks see none; the close stays behind the swap.
        match Port::new(self.port.swap(0, Ordering::AcqRel)) {
            Some(port) => close(xen, port),
            None => Ok(()),
        }
    }

    /// The bound port.
    #[must_use]
    pub fn port(&self) -> Option<Port> {
        // Acquire: pairs with the release in `bind`.
        Port::new(self.port.load(Ordering::Acquire))
    }

    /// Blocks the calling vCPU, which must be this kicker's own, until it is kicked.
    ///
    /// Returns at once if a kick is latched already, or if `still_blocked` says no; it is called
    /// at most once before the poll. May return early for other reasons, so call it in a loop.
    /// After it returned, everything the kicker wrote before its kick is visible.
    ///
    /// `deadline_ns` is absolute Xen system time in nanoseconds, 0 = none. Always give one: a kick
    /// lost to a bug then costs time, and shows in [`counts`](Kicker::counts), instead of hanging
    /// the vCPU.
    ///
    /// Upcalls stay as they are. With upcalls enabled the vCPU serves them during the wait, and
    /// their handlers may wait in their turn. A nested wait sleeps like any other, also while a
    /// token is latched for the interrupted one, which then looks again when the handler is done.
    pub fn wait(
        &self,
        xen: &impl Hypercalls,
        abi: &impl Abi,
        deadline_ns: u64,
        still_blocked: impl Fn() -> bool,
    ) -> WaitOutcome {
        self.enter(|port, depth| self.wait_at(xen, abi, port, depth, deadline_ns, still_blocked))
    }

    /// Blocks like [`wait`](Self::wait) until a kick comes that is owed already, whatever the
    /// caller's condition: for one that finds its condition gone at the deadline, and wants to know
    /// whether the kick is late or lost.
    ///
    /// A token that is latched already ends it, and in a nested wait stays where it is: it may be
    /// the one that is owed, or not.
    pub fn wait_for_owed_kick(
        &self,
        xen: &impl Hypercalls,
        abi: &impl Abi,
        deadline_ns: u64,
    ) -> WaitOutcome {
        self.enter(|port, depth| match depth {
            Depth::Outermost => self.wait_at(xen, abi, port, depth, deadline_ns, || true),
            Depth::Nested if abi.is_pending(port) => WaitOutcome::Early,
            Depth::Nested => self.poll_at(xen, abi, port, depth, deadline_ns, || true),
        })
    }

    /// Calls `wait` with the port to wait on, if this context can block, and counts its outcome.
    fn enter(&self, wait: impl FnOnce(Port, Depth) -> WaitOutcome) -> WaitOutcome {
        // Relaxed: only handlers of this vCPU write it, and they are done when this goes on.
        let in_nmi = self.nmi.load(Ordering::Relaxed) != 0;
        let Some(port) = self.port() else { return WaitOutcome::NoPort };
        if in_nmi {
            return WaitOutcome::NoPort;
        }

        // Relaxed, here and below: the depth orders this vCPU against itself only, and an
        // interrupt sees its own vCPU's program order.
        let outermost = self.depth.fetch_add(1, Ordering::Relaxed) == 0;
        let outcome = wait(port, if outermost { Depth::Outermost } else { Depth::Nested });
        self.depth.fetch_sub(1, Ordering::Relaxed);

        match outcome {
            WaitOutcome::Kicked => count(&self.counts.kicked),
            WaitOutcome::TimedOut => count(&self.counts.timed_out),
            WaitOutcome::Early => count(&self.counts.early),
            WaitOutcome::ConditionGone | WaitOutcome::NoPort => {}
        }
        outcome
    }

    fn wait_at(
        &self,
        xen: &impl Hypercalls,
        abi: &impl Abi,
        port: Port,
        depth: Depth,
        deadline_ns: u64,
        still_blocked: impl Fn() -> bool,
    ) -> WaitOutcome {
        // Polling with a token in place would return at once, for ever.
        let taken = self.take(xen, abi, port);
        match (taken, depth) {
            (Taken::Own, Depth::Outermost) => {
                count(&self.counts.latched);
                return WaitOutcome::Kicked;
            }
            (Taken::Foreign, _) => return WaitOutcome::Early,
            (Taken::Own, Depth::Nested) | (Taken::Nothing, _) => {}
        }
        // A kick whose condition this look misses comes after the take above, so that it is
        // latched when the poll looks: Xen tests the pending bit after it has registered the
        // poller, both with full barriers. N2 and N3 too.
        let outcome = if still_blocked() {
            self.poll_at(xen, abi, port, depth, deadline_ns, still_blocked)
        } else {
            WaitOutcome::ConditionGone
        };
        // N1. After N3 there is one already. N6: an old number, and a kick too many at worst.
        if taken == Taken::Own && !abi.is_pending(port) {
            // It fails only where the port is gone, and with it whoever waits on it.
            let _ = self.kick(xen);
        }
        outcome
    }

    /// Asks Xen to poll, and says how that ended.
    fn poll_at(
        &self,
        xen: &impl Hypercalls,
        abi: &impl Abi,
        port: Port,
        depth: Depth,
        deadline_ns: u64,
        still_blocked: impl Fn() -> bool,
    ) -> WaitOutcome {
        count(&self.counts.polls);
        let polled = poll(xen, port, deadline_ns);
        if self.port() != Some(port) {
            // Bound anew during the poll, by a restore: the old number says nothing any more, or is
            // another's. The kick that follows a bind waits in the new port for the next wait.
            return WaitOutcome::Early;
        }
        // From here on a kick may be used up together with an earlier one: both were for this
        // wait, and the caller tests its condition after the take.
        if let Some(outcome) = self.token(xen, abi, port, depth) {
            return outcome;
        }
        if polled.is_ok() && deadline_ns != 0 && xen.system_time_ns() >= deadline_ns {
            // Count only after the token was looked for: a kick is told from a timeout by it.
            if !still_blocked() {
                count(&self.counts.timed_out_unblocked);
            }
            return WaitOutcome::TimedOut;
        }
        WaitOutcome::Early
    }

    /// How a wait ends if a token is latched. Only the outermost wait uses it up.
    fn token(
        &self,
        xen: &impl Hypercalls,
        abi: &impl Abi,
        port: Port,
        depth: Depth,
    ) -> Option<WaitOutcome> {
        if depth == Depth::Nested {
            return abi.is_pending(port).then_some(WaitOutcome::Early);
        }
        match self.take(xen, abi, port) {
            Taken::Nothing => None,
            Taken::Own => Some(WaitOutcome::Kicked),
            Taken::Foreign => Some(WaitOutcome::Early),
        }
    }

    /// Takes the token, if one is latched. It is foreign if an interrupt has suspended and restored
    /// the domain since `port` was read.
    fn take(&self, xen: &impl Hypercalls, abi: &impl Abi, port: Port) -> Taken {
        take_own(xen, abi, port, || self.port() == Some(port))
    }

    /// Ends the present or the next wait of this kicker's vCPU. Any vCPU may call it.
    ///
    /// Change the condition first, then kick. Kicks do not add up: two before a wait are one.
    /// One hypercall; none if no port is bound.
    ///
    /// # Errors
    ///
    /// As [`send`]; only a port closed behind the kicker's back makes it fail.
    pub fn kick(&self, xen: &impl Hypercalls) -> Result<(), Errno> {
        // Pairs with the bind after a restore: a kicker that still reads the old port here has its
        // changed condition seen by whoever waits on the new one.
        fence(Ordering::SeqCst);
        match self.port() {
            Some(port) => send(xen, port),
            None => Ok(()),
        }
    }

    /// Marks the calling vCPU, this kicker's own, as being in an NMI until the guard is dropped:
    /// waits in it return [`WaitOutcome::NoPort`]. Call it first in the NMI handler.
    #[must_use = "the NMI lasts until the guard is dropped"]
    pub fn enter_nmi(&self) -> NmiGuard<'_> {
        // Relaxed: read on this vCPU only.
        self.nmi.fetch_add(1, Ordering::Relaxed);
        NmiGuard(self)
    }

    /// How many waits have blocked so far: the first of [`counts`](Self::counts), by one load. May
    /// be read from any vCPU.
    #[inline]
    #[must_use]
    pub fn polls(&self) -> u64 {
        self.counts.polls.load(Ordering::Relaxed) // Relaxed: statistics.
    }

    /// What the waits came to so far. May be read from any vCPU; each number is exact, the five
    /// together are no snapshot.
    #[inline]
    #[must_use]
    pub fn counts(&self) -> WaitCounts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed); // Relaxed: statistics.
        WaitCounts {
            polls: get(&self.counts.polls),
            latched: get(&self.counts.latched),
            kicked: get(&self.counts.kicked),
            timed_out: get(&self.counts.timed_out),
            timed_out_unblocked: get(&self.counts.timed_out_unblocked),
            early: get(&self.counts.early),
        }
    }
}

impl Default for Kicker {
    fn default() -> Self {
        Self::new()
    }
}

/// An NMI under way on a vCPU; see [`Kicker::enter_nmi`].
#[derive(Debug)]
pub struct NmiGuard<'a>(&'a Kicker);

impl Drop for NmiGuard<'_> {
    fn drop(&mut self) {
        // Relaxed: read on this vCPU only.
        self.0.nmi.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use core::cell::Cell;
    use core::sync::atomic::AtomicBool;
    use std::thread;

    use super::*;
    use crate::fake::FakeXen;
    use crate::status;

    const NEVER: u64 = u64::MAX;

    fn bound(vcpus: u32) -> (FakeXen, Kicker) {
        let (xen, kicker) = (FakeXen::with_virtual_clock(vcpus), Kicker::new());
        kicker.bind(&xen.vcpu(0), &xen.two_level(), 0).unwrap();
        (xen, kicker)
    }

    #[test]
    fn the_port_is_masked_and_stays_so() {
        let (xen, kicker) = bound(1);
        let port = kicker.port().unwrap();
        kicker.kick(&xen.vcpu(0)).unwrap();
        assert!(xen.two_level().is_masked(port));
        assert!(!xen.vcpu_info(0).upcall_pending());
        assert_eq!(status(&xen.vcpu(0), port).unwrap().vcpu, 0);
    }

    #[test]
    fn a_kick_before_the_wait_ends_it_and_is_used_up() {
        let (xen, kicker) = bound(1);
        let (vcpu, events) = (xen.vcpu(0), xen.two_level());
        kicker.kick(&vcpu).unwrap();
        kicker.kick(&vcpu).unwrap();
        assert_eq!(kicker.wait(&vcpu, &events, NEVER, || true), WaitOutcome::Kicked);
        assert_eq!(kicker.wait(&vcpu, &events, 5, || true), WaitOutcome::TimedOut);
        assert_eq!(xen.seen().polls, 1, "the latched kick asked Xen nothing");
        let counts = kicker.counts();
        assert_eq!((counts.polls, counts.latched, counts.kicked), (1, 1, 1));
    }

    #[test]
    fn a_kick_between_the_look_and_the_poll_is_not_lost() {
        let (xen, kicker) = bound(1);
        let (vcpu, events) = (xen.vcpu(0), xen.two_level());
        let looked = || {
            kicker.kick(&vcpu).unwrap();
            true
        };
        assert_eq!(kicker.wait(&vcpu, &events, NEVER, looked), WaitOutcome::Kicked);
        assert_eq!(xen.seen().blocked_polls, 0);
        assert!(!events.is_pending(kicker.port().unwrap()), "no token is left to spin on");
    }

    #[test]
    fn a_kick_wakes_a_sleeper() {
        let (xen, kicker) = bound(2);
        let blocked = AtomicBool::new(true);
        let outcome = thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                kicker
                    .wait(&xen.vcpu(0), &xen.two_level(), NEVER, || blocked.load(Ordering::Acquire))
            });
            while xen.seen().blocked_polls == 0 {
                thread::yield_now();
            }
            blocked.store(false, Ordering::Release);
            kicker.kick(&xen.vcpu(1)).unwrap();
            sleeper.join().unwrap()
        });
        assert_eq!(outcome, WaitOutcome::Kicked);
        let expected = WaitCounts { polls: 1, kicked: 1, ..WaitCounts::default() };
        assert_eq!(kicker.counts(), expected);
    }

    /// Found on real Xen: after a restore, waiters went on with their old numbers and took the kicks of
    /// those who had the numbers now.
    #[test]
    fn a_wait_during_a_restore_takes_no_kick_of_another_vcpu() {
        let xen = FakeXen::with_virtual_clock(2);
        let (vcpu, events) = (xen.vcpu(0), xen.two_level());
        let (waiter, other) = (Kicker::new(), Kicker::new());
        let old = waiter.bind(&vcpu, &events, 0).unwrap();
        let restored = || {
            close(&vcpu, old).unwrap();
            assert_eq!(other.bind(&vcpu, &events, 1).unwrap(), old, "the number is used again");
            waiter.bind(&vcpu, &events, 0).unwrap();
            other.kick(&vcpu).unwrap();
            waiter.kick(&vcpu).unwrap();
            true
        };
        assert_eq!(waiter.wait(&vcpu, &events, 5, restored), WaitOutcome::Early);
        assert!(events.is_pending(old), "the other's kick");
        assert_eq!(waiter.wait(&vcpu, &events, 5, || true), WaitOutcome::Kicked);
        assert_eq!(other.wait(&xen.vcpu(1), &events, 5, || true), WaitOutcome::Kicked);
    }

    #[test]
    fn a_gone_condition_asks_xen_nothing() {
        let (xen, kicker) = bound(1);
        let outcome = kicker.wait(&xen.vcpu(0), &xen.two_level(), NEVER, || false);
        assert_eq!((outcome, xen.seen().polls), (WaitOutcome::ConditionGone, 0));
    }

    #[test]
    fn expiries_are_counted_and_lost_kicks_apart() {
        let (xen, kicker) = bound(1);
        let (vcpu, events) = (xen.vcpu(0), xen.two_level());
        assert_eq!(kicker.wait(&vcpu, &events, 100, || true), WaitOutcome::TimedOut);
        assert_eq!(kicker.counts().timed_out_unblocked, 0, "still blocked: a long wait, no more");
        // The condition goes during the poll, and nobody kicks.
        let looks = Cell::new(0);
        let blocked = || looks.replace(looks.get() + 1) == 0;
        assert_eq!(kicker.wait(&vcpu, &events, 200, blocked), WaitOutcome::TimedOut);
        let counts = kicker.counts();
        assert_eq!((counts.polls, counts.timed_out, counts.timed_out_unblocked), (2, 2, 1));
    }

    #[test]
    fn another_events_upcall_ends_the_wait_early() {
        let (xen, kicker) = bound(1);
        let (vcpu, events) = (xen.vcpu(0), xen.two_level());
        let other = bind_ipi(&vcpu, 0).unwrap();
        send(&vcpu, other).unwrap(); // unmasked: its upcall is due
        assert_eq!(kicker.wait(&vcpu, &events, NEVER, || true), WaitOutcome::Early);
        assert_eq!(kicker.counts().early, 1);
    }

    #[test]
    fn a_nested_wait_gives_the_outer_waits_kick_back() {
        let (xen, kicker) = bound(1);
        let (vcpu, events) = (xen.vcpu(0), xen.two_level());
        let inner = Cell::new(None);
        // The handler of an interrupt that comes between the outer wait's look and its poll,
        // after the outer wait's kick.
        let interrupted = || {
            kicker.kick(&vcpu).unwrap();
            inner.set(Some(kicker.wait(&vcpu, &events, 5, || true)));
            true
        };
        assert_eq!(kicker.wait(&vcpu, &events, NEVER, interrupted), WaitOutcome::Kicked);
        assert_eq!(inner.get(), Some(WaitOutcome::TimedOut));
        assert_eq!(xen.seen().blocked_polls, 1, "the inner one");
    }

    #[test]
    fn a_restore_during_a_nested_wait_gives_nothing_to_whoever_has_the_number_now() {
        let (xen, waiter) = bound(2);
        let (vcpu, events, other) = (xen.vcpu(0), xen.two_level(), Kicker::new());
        xen.vcpu(1).down();
        let old = waiter.port().unwrap();
        let restored = || {
            close(&vcpu, old).unwrap();
            assert_eq!(other.bind(&vcpu, &events, 1).unwrap(), old, "the number is used again");
            waiter.bind(&vcpu, &events, 0).unwrap();
            waiter.kick(&vcpu).unwrap();
            true
        };
        let interrupted = || {
            waiter.kick(&vcpu).unwrap();
            assert_eq!(waiter.wait(&vcpu, &events, 5, restored), WaitOutcome::Early);
            true
        };
        assert_eq!(waiter.wait(&vcpu, &events, 10, interrupted), WaitOutcome::Early);
        assert!(!events.is_pending(old), "the other's port");
        assert_eq!(waiter.wait(&vcpu, &events, 15, || true), WaitOutcome::Kicked);
    }

    #[test]
    fn an_owed_kick_ends_a_nested_wait_for_it_whether_it_came_before_or_later() {
        let (xen, kicker) = bound(1);
        let (vcpu, events) = (xen.vcpu(0), xen.two_level());
        let owed = |deadline| kicker.wait_for_owed_kick(&vcpu, &events, deadline);
        let interrupted = || {
            assert_eq!(owed(5), WaitOutcome::TimedOut);
            kicker.kick(&vcpu).unwrap();
            assert_eq!(owed(NEVER), WaitOutcome::Early);
            true
        };
        assert_eq!(kicker.wait(&vcpu, &events, NEVER, interrupted), WaitOutcome::Kicked);
        assert_eq!(owed(10), WaitOutcome::TimedOut);
        kicker.kick(&vcpu).unwrap();
        assert_eq!(owed(NEVER), WaitOutcome::Kicked);
        assert_eq!(kicker.counts().timed_out_unblocked, 0);
    }

    #[test]
    fn a_nested_waits_own_kick_makes_the_outer_wait_look_again() {
        let (xen, kicker) = bound(2);
        let (vcpu, events) = (xen.vcpu(0), xen.two_level());
        let outer = thread::scope(|scope| {
            let kick = scope.spawn(|| {
                while xen.seen().blocked_polls == 0 {
                    thread::yield_now();
                }
                kicker.kick(&xen.vcpu(1)).unwrap();
            });
            let interrupted = || {
                assert_eq!(kicker.wait(&vcpu, &events, NEVER, || true), WaitOutcome::Early);
                true
            };
            let outer = kicker.wait(&vcpu, &events, NEVER, interrupted);
            kick.join().unwrap();
            outer
        });
        assert_eq!(outer, WaitOutcome::Kicked);
        assert!(!events.is_pending(kicker.port().unwrap()));
    }

    #[test]
    fn an_nmi_and_an_unbound_kicker_do_not_block() {
        let (xen, kicker) = bound(1);
        let (vcpu, events) = (xen.vcpu(0), xen.two_level());
        {
            let _nmi = kicker.enter_nmi();
            assert_eq!(kicker.wait(&vcpu, &events, NEVER, || true), WaitOutcome::NoPort);
        }
        kicker.kick(&vcpu).unwrap();
        assert_eq!(kicker.wait(&vcpu, &events, NEVER, || true), WaitOutcome::Kicked);
        kicker.unbind(&vcpu).unwrap();
        kicker.unbind(&vcpu).unwrap();
        kicker.kick(&vcpu).unwrap();
        assert_eq!(kicker.wait(&vcpu, &events, NEVER, || true), WaitOutcome::NoPort);
        assert_eq!(xen.seen().polls, 0);
    }

    #[test]
    fn a_port_closed_behind_the_kickers_back_is_an_error_to_kick_and_early_to_wait() {
        let (xen, kicker) = bound(1);
        let vcpu = xen.vcpu(0);
        close(&vcpu, kicker.port().unwrap()).unwrap();
        assert_eq!(kicker.kick(&vcpu), Err(Errno::EINVAL));
        assert_eq!(kicker.wait(&vcpu, &xen.two_level(), 1, || true), WaitOutcome::Early);
        // After a resume all ports are gone like this one: bind again.
        kicker.bind(&vcpu, &xen.two_level(), 0).unwrap();
        kicker.kick(&vcpu).unwrap();
        assert_eq!(kicker.wait(&vcpu, &xen.two_level(), NEVER, || true), WaitOutcome::Kicked);
    }
}
