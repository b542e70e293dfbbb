//! The life of a port: make it, connect it, send through it, poll it, close it.
//!
//! This file owns one thin function an operation. Each is one hypercall; none touches memory that
//! Xen shares with the guest (that is [`Abi`](crate::Abi)'s job) and none keeps state.

use xen_sys as sys;

use crate::{DomId, Errno, EventChannelOp, Hypercalls, Port, SchedOp, Virq};

/// A port number that Xen gave. Xen never gives 0, nor one beyond its own limit.
fn given(port: u32) -> Result<Port, Errno> {
    Port::new(port).ok_or(Errno::EINVAL)
}

/// Makes a port whose sender and receiver are this domain and whose events go to `vcpu`.
///
/// The new port is **unmasked**: mask it before its first event unless an upcall is wanted. The
/// vCPU can never be changed.
///
/// # Errors
///
/// `ENOENT`: the domain has no such vCPU. `ENOSPC`: no port is free.
///
/// ```
/// use evtchn::{Abi, bind_ipi, fake::FakeXen, send};
///
/// let xen = FakeXen::new(2);
/// let port = bind_ipi(&xen.vcpu(0), 1)?;
/// send(&xen.vcpu(0), port)?;
/// assert!(xen.two_level().is_pending(port));
/// # Ok::<(), evtchn::Errno>(())
/// ```
#[doc(alias = "EVTCHNOP_bind_ipi")]
pub fn bind_ipi(xen: &impl Hypercalls, vcpu: u32) -> Result<Port, Errno> {
    let mut op = sys::evtchn_bind_ipi { vcpu, port: 0 };
    xen.event_channel_op(EventChannelOp::BindIpi(&mut op))?;
    given(op.port)
}

/// Makes a port on which Xen raises `virq` for `vcpu`.
///
/// # Errors
///
/// `EINVAL`: no such interrupt, or a global one on a vCPU other than 0. `ENOENT`: no such vCPU.
/// `EEXIST`: bound already. `ENOSPC`: no port is free.
#[doc(alias = "EVTCHNOP_bind_virq")]
pub fn bind_virq(xen: &impl Hypercalls, virq: Virq, vcpu: u32) -> Result<Port, Errno> {
    let mut op = sys::evtchn_bind_virq { virq: virq.0, vcpu, port: 0 };
    xen.event_channel_op(EventChannelOp::BindVirq(&mut op))?;
    given(op.port)
}

/// Makes a port to which `remote` may connect with [`bind_interdomain`].
///
/// Events go to vCPU 0 until [`bind_vcpu`] says otherwise.
///
/// # Errors
///
/// `ESRCH`: no such domain. `ENOSPC`: no port is free.
#[doc(alias = "EVTCHNOP_alloc_unbound")]
pub fn alloc_unbound(xen: &impl Hypercalls, remote: DomId) -> Result<Port, Errno> {
    let mut op = sys::evtchn_alloc_unbound { dom: DomId::SELF.0, remote_dom: remote.0, port: 0 };
    xen.event_channel_op(EventChannelOp::AllocUnbound(&mut op))?;
    given(op.port)
}

/// Makes a port connected to `remote`'s port `remote_port`, which must wait for this domain.
///
/// Xen makes the new port pending at once, because the peer may have sent before the connection
/// stood. `remote` may be [`DomId::SELF`].
///
/// # Errors
///
/// `ESRCH`: no such domain. `EINVAL`: the remote port does not wait for this domain. `ENOSPC`: no
/// port is free.
#[doc(alias = "EVTCHNOP_bind_interdomain")]
pub fn bind_interdomain(
    xen: &impl Hypercalls,
    remote: DomId,
    remote_port: Port,
) -> Result<Port, Errno> {
    let mut op = sys::evtchn_bind_interdomain {
        remote_dom: remote.0,
        remote_port: remote_port.get(),
        local_port: 0,
    };
    xen.event_channel_op(EventChannelOp::BindInterdomain(&mut op))?;
    given(op.local_port)
}

/// Lets `port`'s events go to `vcpu` from now on.
///
/// # Errors
///
/// `EINVAL`: the port is closed, an IPI, or a per-vCPU interrupt; those never move. `ENOENT`: no
/// such vCPU.
#[doc(alias = "EVTCHNOP_bind_vcpu")]
pub fn bind_vcpu(xen: &impl Hypercalls, port: Port, vcpu: u32) -> Result<(), Errno> {
    let mut op = sys::evtchn_bind_vcpu { port: port.get(), vcpu };
    xen.event_channel_op(EventChannelOp::BindVcpu(&mut op))
}

/// Closes `port`; a pending event is dropped, and the peer's end waits for a new connection.
///
/// The number may be given out again at once. A vCPU that polls the port without a deadline is
/// *not* woken.
///
/// # Errors
///
/// `EINVAL`: the port is not open, or belongs to Xen.
#[doc(alias = "EVTCHNOP_close")]
pub fn close(xen: &impl Hypercalls, port: Port) -> Result<(), Errno> {
    let mut op = sys::evtchn_close { port: port.get() };
    xen.event_channel_op(EventChannelOp::Close(&mut op))
}

/// Makes the other end of `port` pending. Nothing more happens if it is pending already.
///
/// # Errors
///
/// `EINVAL`: the port is closed, bound to an interrupt, or belongs to Xen.
#[doc(alias = "EVTCHNOP_send")]
pub fn send(xen: &impl Hypercalls, port: Port) -> Result<(), Errno> {
    let mut op = sys::evtchn_send { port: port.get() };
    xen.event_channel_op(EventChannelOp::Send(&mut op))
}

/// Unmasks `port` by hypercall; if it is pending, its upcall is raised.
///
/// [`Abi::unmask`](crate::Abi::unmask) saves the hypercall where it can.
///
/// # Errors
///
/// `EINVAL`: the port is closed.
#[doc(alias = "EVTCHNOP_unmask")]
pub fn unmask(xen: &impl Hypercalls, port: Port) -> Result<(), Errno> {
    let mut op = sys::evtchn_unmask { port: port.get() };
    xen.event_channel_op(EventChannelOp::Unmask(&mut op))
}

/// Closes every port of the domain and goes back to the 2-level ABI. Events in flight are lost.
///
/// **Every** port: those of the console and of xenstore, which the toolstack made, too. A domain that
/// lives on wants [`reset_keeping`].
///
/// # Errors
///
/// What Xen answered; none is known for a domain that resets itself.
#[doc(alias = "EVTCHNOP_reset")]
pub fn reset(xen: &impl Hypercalls) -> Result<(), Errno> {
    let mut op = sys::evtchn_reset { dom: DomId::SELF.0 };
    xen.event_channel_op(EventChannelOp::Reset(&mut op))
}

/// As [`reset`], and makes the ports of `keep` again, with their old numbers and connected as before.
///
/// For a guest that gives the FIFO ABI up half way. Events that were pending are lost: look once at what
/// the ports announce. All go to vCPU 0 again. Nobody else may make or close ports meanwhile, and a domain
/// that comes to connect to a waiting port just then finds none: wait until it has. A peer that closes its
/// end meanwhile leaves a port that waits for it.
///
/// # Errors
///
/// `EINVAL`: one of `keep` is neither connected to a domain nor waiting for one; nothing has happened
/// then. Otherwise what Xen answered; the domain is on the 2-level ABI, and has lost its ports.
///
/// ```
/// use evtchn::{Connection, DomId, alloc_unbound, bind_ipi, fake::FakeXen, reset_keeping, status};
///
/// let xen = FakeXen::new(1);
/// let vcpu = xen.vcpu(0);
/// let ipi = bind_ipi(&vcpu, 0)?;
/// let console = alloc_unbound(&vcpu, DomId(0))?;
/// reset_keeping(&vcpu, [Some(console), None])?;
/// assert_eq!(status(&vcpu, console)?.connection, Connection::Unbound(DomId(0)));
/// assert_eq!(status(&vcpu, ipi)?.connection, Connection::Closed);
/// # Ok::<(), evtchn::Errno>(())
/// ```
pub fn reset_keeping<const N: usize>(
    xen: &impl Hypercalls,
    keep: [Option<Port>; N],
) -> Result<(), Errno> {
    let mut kept = [None; N];
    for (slot, port) in kept.iter_mut().zip(keep) {
        let Some(port) = port else { continue };
        let connection = status(xen, port)?.connection;
        if !matches!(connection, Connection::Unbound(_) | Connection::Interdomain(..)) {
            return Err(Errno::EINVAL);
        }
        *slot = Some((port, connection));
    }
    kept.sort_unstable_by_key(|kept| kept.map(|(port, _)| port));
    reset(xen)?;
    // Xen gives out the lowest free number. So every lower one is taken, and given back at the end.
    let kept = || kept.iter().flatten().copied();
    for (port, connection) in kept() {
        // Ends: its own number is free.
        while alloc_unbound(xen, DomId::SELF)? != port {}
        close(xen, port)?;
        let again = match connection {
            Connection::Interdomain(peer, remote) => match bind_interdomain(xen, peer, remote) {
                // The peer found its end unconnected and closed it. It may come again.
                Err(Errno::EINVAL) => alloc_unbound(xen, peer)?,
                bound => bound?,
            },
            Connection::Unbound(peer) => alloc_unbound(xen, peer)?,
            _ => return Err(Errno::EINVAL),
        };
        if again != port {
            return Err(Errno::EINVAL);
        }
    }
    let last = kept().map(|(port, _)| port.get()).max().unwrap_or(0);
    for number in 1..last {
        if kept().all(|(port, _)| port.get() != number) {
            // Fails for a number that is Xen's own, which was not ours to begin with.
            let _ = close(xen, given(number)?);
        }
    }
    Ok(())
}

/// Blocks this vCPU until `port` is pending, the deadline has passed, or anything else ends it.
///
/// A return says nothing about why: test the port with [`Abi::is_pending`](crate::Abi::is_pending)
/// and the clock. The poll ends when (`do_poll`, as Xen 4.17 behaves):
///
/// * the port is pending or becomes so, **masked or not**;
/// * `deadline_ns` (absolute Xen system time, 0 = none) is reached, or already past;
/// * an upcall is due at the call, or another, unmasked port makes `evtchn_upcall_pending` go from
///   0 to 1 during it. A second such port does not end a poll that began with the flag set.
///
/// An event that was pending before is no new event: clear the port before polling for the next.
///
/// # Errors
///
/// `EINVAL`: the port is closed, or belongs to Xen.
///
/// ```
/// use evtchn::{Abi, bind_ipi, fake::FakeXen, poll, send};
///
/// let xen = FakeXen::new(1);
/// let vcpu = xen.vcpu(0);
/// let port = bind_ipi(&vcpu, 0)?;
/// xen.two_level().mask(port);
/// send(&vcpu, port)?;
/// poll(&vcpu, port, 0)?; // returns: the event was latched, masked or not
/// assert!(xen.two_level().clear(port));
/// # Ok::<(), evtchn::Errno>(())
/// ```
#[doc(alias = "SCHEDOP_poll")]
pub fn poll(xen: &impl Hypercalls, port: Port, deadline_ns: u64) -> Result<(), Errno> {
    xen.sched_op(SchedOp::Poll { port, deadline_ns })
}

/// What a port is connected to, and which vCPU its events go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// What it is connected to.
    pub connection: Connection,
    /// The vCPU its events go to.
    pub vcpu: u32,
}

/// What a port is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// Not in use.
    #[doc(alias = "EVTCHNSTAT_closed")]
    Closed,
    /// Waiting for this domain to connect.
    #[doc(alias = "EVTCHNSTAT_unbound")]
    Unbound(DomId),
    /// Another domain's port.
    #[doc(alias = "EVTCHNSTAT_interdomain")]
    Interdomain(DomId, Port),
    /// A physical interrupt of this number.
    #[doc(alias = "EVTCHNSTAT_pirq")]
    Pirq(u32),
    /// A virtual interrupt.
    #[doc(alias = "EVTCHNSTAT_virq")]
    Virq(Virq),
    /// Itself: an inter-processor interrupt.
    #[doc(alias = "EVTCHNSTAT_ipi")]
    Ipi,
}

/// What `port` is connected to.
///
/// # Errors
///
/// `EINVAL`: Xen has never allocated a port of so large a number.
///
/// ```
/// use evtchn::{Connection, bind_ipi, close, fake::FakeXen, status};
///
/// let xen = FakeXen::new(2);
/// let port = bind_ipi(&xen.vcpu(0), 1)?;
/// let now = status(&xen.vcpu(0), port)?;
/// assert_eq!((now.connection, now.vcpu), (Connection::Ipi, 1));
/// close(&xen.vcpu(0), port)?;
/// assert_eq!(status(&xen.vcpu(0), port)?.connection, Connection::Closed);
/// # Ok::<(), evtchn::Errno>(())
/// ```
#[doc(alias = "EVTCHNOP_status")]
pub fn status(xen: &impl Hypercalls, port: Port) -> Result<Status, Errno> {
    let mut op = sys::evtchn_status {
        dom: DomId::SELF.0,
        port: port.get(),
        status: sys::EVTCHNSTAT_closed,
        vcpu: 0,
        u: sys::evtchn_status__bindgen_ty_1 { pirq: 0 },
    };
    xen.event_channel_op(EventChannelOp::Status(&mut op))?;
    let connection = match op.status {
        sys::EVTCHNSTAT_closed => Connection::Closed,
        // SAFETY: Xen filled in the member of the union that `status` names.
        sys::EVTCHNSTAT_unbound => Connection::Unbound(DomId(unsafe { op.u.unbound }.dom)),
        sys::EVTCHNSTAT_interdomain => {
            // SAFETY: as above.
            let peer = unsafe { op.u.interdomain };
            Connection::Interdomain(DomId(peer.dom), given(peer.port)?)
        }
        // SAFETY: as above.
        sys::EVTCHNSTAT_pirq => Connection::Pirq(unsafe { op.u.pirq }),
        // SAFETY: as above.
        sys::EVTCHNSTAT_virq => Connection::Virq(Virq(unsafe { op.u.virq })),
        sys::EVTCHNSTAT_ipi => Connection::Ipi,
        _ => return Err(Errno::EINVAL),
    };
    Ok(Status { connection, vcpu: op.vcpu })
}
