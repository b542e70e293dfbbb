//! The per-port bits Xen shares with the guest, whichever ABI lays them out.
//!
//! This file owns the seam between code that masks, tests and clears a port and the two layouts
//! that hold those bits. It must never assume one of them.

use crate::{Errno, Hypercalls, Port, bind_vcpu, send};

/// How a domain and Xen share the pending and mask bit of every port.
///
/// [`TwoLevel`](crate::TwoLevel) is the one every Xen offers and every domain starts with. [`Fifo`](crate::Fifo) has 32 times the
/// ports, priorities, and an order of arrival; Xen 4.4 and later offer it.
///
/// **Ports start unmasked.** Under both ABIs the shared words are zero at boot and Xen does not
/// mask a port when it binds it, so a guest masks everything before its first bind
/// ([`TwoLevel::mask_all`](crate::TwoLevel::mask_all), [`Fifo::expand`](crate::Fifo::expand)).
pub trait Abi {
    /// How many ports the ABI has room for; the largest usable port is one less.
    fn ports(&self) -> u32;

    /// Stops upcalls for `port`. Events still latch, and still end a poll of this port.
    fn mask(&self, port: Port);

    /// Whether `port` is masked.
    fn is_masked(&self, port: Port) -> bool;

    /// Whether an event of `port` is latched.
    ///
    /// Orders nothing by itself when it answers `false`. When it answers `true`, what the sender
    /// wrote before its send is visible.
    fn is_pending(&self, port: Port) -> bool;

    /// Drops `port`'s latched event, and says whether there was one.
    ///
    /// What the sender of that event wrote before its send is visible afterwards; an event that
    /// comes later latches anew.
    fn clear(&self, port: Port) -> bool;

    /// Allows upcalls for `port` again, and raises the one that is due. One hypercall at most, and
    /// none if no event is latched.
    ///
    /// # Errors
    ///
    /// `EINVAL`: an event was latched, but the port is closed.
    fn unmask(&self, xen: &impl Hypercalls, port: Port) -> Result<(), Errno>;
}

/// Moves `port`'s upcalls to `vcpu` and loses no event on the way.
///
/// `owners` runs while the port is masked and bound to `vcpu`: with the 2-level ABI, move the port
/// from the old vCPU's [`PortSet`](crate::PortSet) to the new one's there, or an event that the old
/// vCPU was told of would find no taker. With FIFO there is nothing to do; an event that stood in a
/// queue of the old vCPU is still handled there.
///
/// A handler that runs on the old vCPU goes on meanwhile. A port that was masked stays masked.
///
/// # Errors
///
/// As [`bind_vcpu`]; the port then stays where it was, and `owners` does not run.
///
/// ```
/// use evtchn::{Abi, DomId, PortSet, alloc_unbound, bind_interdomain, fake::FakeXen, move_port};
///
/// let xen = FakeXen::new(2);
/// let (vcpu, events) = (xen.vcpu(0), xen.two_level());
/// let sets = [PortSet::new(), PortSet::new()];
/// let peer = alloc_unbound(&vcpu, DomId::SELF)?;
/// let port = bind_interdomain(&vcpu, DomId::SELF, peer)?; // pending, and vCPU 0 was told
/// sets[0].insert(port);
/// move_port(&vcpu, &events, port, 1, || {
///     sets[0].remove(port);
///     sets[1].insert(port);
/// })?;
/// assert_eq!(events.dispatch(&xen.vcpu_info(0), &sets[0], |_| ()), 0);
/// assert_eq!(events.dispatch(&xen.vcpu_info(1), &sets[1], |_| ()), 1);
/// # Ok::<(), evtchn::Errno>(())
/// ```
pub fn move_port(
    xen: &impl Hypercalls,
    abi: &impl Abi,
    port: Port,
    vcpu: u32,
    owners: impl FnOnce(),
) -> Result<(), Errno> {
    // Masked, an event latches and tells nobody. Unmasking tells the vCPU the port is bound to by
    // then, if an event is latched, whoever was told before.
    let was_masked = abi.is_masked(port);
    abi.mask(port);
    let moved = bind_vcpu(xen, port, vcpu);
    if moved.is_ok() {
        owners();
    }
    if !was_masked {
        abi.unmask(xen, port)?;
    }
    moved
}

/// What [`take_own`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// No event was latched.
    Nothing,
    /// One was, and it is used up.
    Own,
    /// One was, but of another's port: it was given back.
    Foreign,
}

/// Clears `port`'s latched event for someone who read the port's number before, where an interrupt may
/// have suspended and restored the domain in between: the number is another's then, and so is the event.
///
/// `is_own` says whether the number still is the caller's. An event that turns out to be another's is
/// sent again.
///
/// ```
/// use core::sync::atomic::{AtomicU32, Ordering::SeqCst};
/// use evtchn::{Abi, Taken, bind_ipi, fake::FakeXen, send, take_own};
///
/// let xen = FakeXen::new(1);
/// let (vcpu, events) = (xen.vcpu(0), xen.two_level());
/// let port = bind_ipi(&vcpu, 0)?;
/// let mine = AtomicU32::new(port.get());
/// let is_own = || mine.load(SeqCst) == port.get();
/// send(&vcpu, port)?;
/// assert_eq!(take_own(&vcpu, &events, port, is_own), Taken::Own);
/// assert_eq!(take_own(&vcpu, &events, port, is_own), Taken::Nothing);
/// mine.store(0, SeqCst); // restored: whoever has the number now must not miss its event
/// send(&vcpu, port)?;
/// assert_eq!(take_own(&vcpu, &events, port, is_own), Taken::Foreign);
/// assert!(events.is_pending(port));
/// # Ok::<(), evtchn::Errno>(())
/// ```
pub fn take_own(
    xen: &impl Hypercalls,
    abi: &impl Abi,
    port: Port,
    is_own: impl FnOnce() -> bool,
) -> Taken {
    // Looked at before it is cleared, which is a locked instruction.
    if !(abi.is_pending(port) && abi.clear(port)) {
        return Taken::Nothing;
    }
    if is_own() {
        return Taken::Own;
    }
    // An error says that nobody has the number now.
    let _ = send(xen, port);
    Taken::Foreign
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeXen;
    use crate::{DomId, PortSet, alloc_unbound, bind_interdomain, bind_ipi, send};

    #[test]
    fn an_event_during_the_move_goes_to_the_new_vcpu() {
        let xen = FakeXen::new(2);
        let (vcpu, events) = (xen.vcpu(0), xen.two_level());
        let peer = alloc_unbound(&vcpu, DomId::SELF).unwrap();
        let port = bind_interdomain(&vcpu, DomId::SELF, peer).unwrap();
        events.clear(port);
        let mine = PortSet::new();
        move_port(&vcpu, &events, port, 1, || {
            send(&vcpu, peer).unwrap();
            assert!(events.is_masked(port) && !xen.vcpu_info(1).upcall_pending());
            mine.insert(port);
        })
        .unwrap();
        assert!(!events.is_masked(port));
        assert_eq!(events.dispatch(&xen.vcpu_info(1), &mine, |_| ()), 1);
    }

    #[test]
    fn a_masked_port_stays_masked_and_one_that_cannot_move_stays_unmasked() {
        let xen = FakeXen::new(2);
        let (vcpu, events) = (xen.vcpu(0), xen.two_level());
        let port = alloc_unbound(&vcpu, DomId::SELF).unwrap();
        events.mask(port);
        move_port(&vcpu, &events, port, 1, || ()).unwrap();
        assert!(events.is_masked(port));

        let ipi = bind_ipi(&vcpu, 0).unwrap();
        let moved = move_port(&vcpu, &events, ipi, 1, || panic!("it has not moved"));
        assert_eq!(moved, Err(Errno::EINVAL));
        assert!(!events.is_masked(ipi));
    }
}
