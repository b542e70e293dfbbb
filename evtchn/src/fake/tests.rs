//! One test a statement of the fake's documentation.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::vec::Vec;

use crate::fake::{FakeVcpu, FakeXen, Seen};
use crate::{
    Abi, Connection, DomId, Errno, Hypercalls, Port, PortSet, SchedOp, Virq, alloc_unbound,
    bind_interdomain, bind_ipi, bind_vcpu, bind_virq, close, poll, reset, send, status, unmask,
};

/// A masked IPI port of `vcpu`.
fn masked_ipi(xen: &FakeXen, vcpu: u32) -> Port {
    let port = bind_ipi(&xen.vcpu(0), vcpu).expect("a free port");
    xen.two_level().mask(port);
    port
}

/// Polls `port` on vCPU 1 in a thread of its own, does `during` on vCPU 0 once it sleeps, and
/// returns the poll's answer. The deadline ends a poll nobody wakes; virtual time makes that quick.
fn poll_while(
    xen: &FakeXen,
    port: Port,
    during: impl FnOnce(FakeVcpu<'_>) + Send,
) -> Result<(), Errno> {
    thread::scope(|scope| {
        let poller = scope.spawn(|| poll(&xen.vcpu(1), port, 1_000_000));
        while xen.seen().blocked_polls == 0 {
            thread::yield_now();
        }
        during(xen.vcpu(0));
        xen.vcpu(0).down();
        poller.join().expect("the poller")
    })
}

#[test]
fn an_event_latches_and_a_pending_port_takes_no_further_one() {
    let xen = FakeXen::new(1);
    let vcpu = xen.vcpu(0);
    let port = bind_ipi(&vcpu, 0).unwrap();
    send(&vcpu, port).unwrap();
    assert!(xen.two_level().is_pending(port));
    assert!(xen.vcpu_info(0).take_upcall_pending());
    xen.vcpu_info(0).selector().store(0, Ordering::SeqCst);
    send(&vcpu, port).unwrap();
    assert!(!xen.vcpu_info(0).upcall_pending(), "no second upcall while latched");
    assert!(xen.two_level().clear(port));
    assert!(!xen.two_level().clear(port), "two sends, one event");
    send(&vcpu, port).unwrap();
    assert!(xen.vcpu_info(0).upcall_pending(), "cleared, it latches anew");
}

#[test]
fn a_masked_event_raises_no_upcall_but_ends_a_poll() {
    let xen = FakeXen::with_virtual_clock(2);
    let port = masked_ipi(&xen, 1);
    poll_while(&xen, port, |vcpu0| send(&vcpu0, port).unwrap()).unwrap();
    assert!(xen.two_level().is_pending(port), "ending a poll does not clear");
    assert!(!xen.vcpu_info(1).upcall_pending());
    let seen = Seen { sends: 1, waking_sends: 1, polls: 1, blocked_polls: 1, expired_polls: 0 };
    assert_eq!(xen.seen(), seen);
}

#[test]
fn a_port_pending_before_the_poll_ends_it_at_once_but_wakes_nobody_later() {
    let xen = FakeXen::with_virtual_clock(2);
    let port = masked_ipi(&xen, 1);
    send(&xen.vcpu(0), port).unwrap();
    poll(&xen.vcpu(1), port, 0).unwrap();
    assert_eq!(xen.seen().blocked_polls, 0);

    // The same port, latched, cannot wake a poll of another port, nor raise anything.
    let other = masked_ipi(&xen, 1);
    poll_while(&xen, other, |vcpu0| send(&vcpu0, port).unwrap()).unwrap();
    assert_eq!(xen.seen().expired_polls, 1, "only its deadline ended that poll");
}

#[test]
fn another_port_ends_a_poll_only_if_unmasked_and_on_the_edge() {
    for (masked, flag_up_before, woken) in
        [(false, false, true), (true, false, false), (false, true, false), (true, true, false)]
    {
        let xen = FakeXen::with_virtual_clock(2);
        let (polled, other) = (masked_ipi(&xen, 1), masked_ipi(&xen, 1));
        // A flag that is up and not masked would end the poll before it sleeps.
        let _ = xen.vcpu_info(1).mask_upcalls();
        if flag_up_before {
            xen.vcpu_info(1).set_upcall_pending();
        }
        if !masked {
            unmask(&xen.vcpu(0), other).unwrap();
        }
        poll_while(&xen, polled, |vcpu0| send(&vcpu0, other).unwrap()).unwrap();
        let expired = xen.seen().expired_polls;
        assert_eq!(expired == 0, woken, "masked {masked}, flag before {flag_up_before}");
        assert_eq!(xen.seen().waking_sends, 0, "an upcall is no kick of the polled port");
    }
}

#[test]
fn the_upcall_mask_does_not_hold_back_the_wake_of_an_edge() {
    let xen = FakeXen::with_virtual_clock(2);
    let (polled, other) = (masked_ipi(&xen, 1), bind_ipi(&xen.vcpu(0), 1).unwrap());
    let _ = xen.vcpu_info(1).mask_upcalls();
    poll_while(&xen, polled, |vcpu0| send(&vcpu0, other).unwrap()).unwrap();
    assert_eq!(xen.seen().expired_polls, 0);
}

#[test]
fn a_port_of_another_vcpu_does_not_end_a_poll() {
    let xen = FakeXen::with_virtual_clock(2);
    let (polled, other) = (masked_ipi(&xen, 1), bind_ipi(&xen.vcpu(0), 0).unwrap());
    poll_while(&xen, polled, |vcpu0| send(&vcpu0, other).unwrap()).unwrap();
    assert_eq!(xen.seen().expired_polls, 1);
}

#[test]
fn poll_looks_for_a_due_upcall_before_it_looks_at_the_port() {
    let xen = FakeXen::new(1);
    let vcpu = xen.vcpu(0);
    let closed = Port::new(77).unwrap();
    assert_eq!(poll(&vcpu, closed, 0), Err(Errno::EINVAL));
    xen.vcpu_info(0).set_upcall_pending();
    assert_eq!(poll(&vcpu, closed, 0), Ok(()));
    let _ = xen.vcpu_info(0).mask_upcalls();
    assert_eq!(poll(&vcpu, closed, 0), Err(Errno::EINVAL), "a masked upcall is not due");
}

#[test]
fn poll_looks_whether_the_port_is_open_before_it_looks_at_its_bit() {
    let xen = FakeXen::new(1);
    let vcpu = xen.vcpu(0);
    for port in [Port::new(5).unwrap(), xen.xen_owned_port()] {
        xen.two_level().hypervisor_set_pending(port);
        assert_eq!(poll(&vcpu, port, 0), Err(Errno::EINVAL));
    }
    // A port that waits for its peer is open.
    let waiting = alloc_unbound(&vcpu, DomId::SELF).unwrap();
    assert_eq!(poll(&vcpu, waiting, 1), Ok(()));
}

#[test]
fn deadlines_past_and_to_come_both_return_success() {
    for xen in [FakeXen::new(1), FakeXen::with_virtual_clock(1)] {
        let vcpu = xen.vcpu(0);
        let port = masked_ipi(&xen, 0);
        poll(&vcpu, port, 1).unwrap();
        let deadline = vcpu.system_time_ns() + 1_000_000;
        poll(&vcpu, port, deadline).unwrap();
        assert!(vcpu.system_time_ns() >= deadline);
        assert_eq!(xen.seen().expired_polls, 2);
    }
}

#[test]
fn closing_drops_the_event_and_wakes_no_poller() {
    let xen = FakeXen::with_virtual_clock(2);
    let port = masked_ipi(&xen, 1);
    poll_while(&xen, port, |vcpu0| close(&vcpu0, port).unwrap()).unwrap();
    assert_eq!(xen.seen().expired_polls, 1);

    let port = masked_ipi(&xen, 0);
    xen.two_level().hypervisor_set_pending(port);
    close(&xen.vcpu(1), port).unwrap();
    assert!(!xen.two_level().is_pending(port));
    assert_eq!(close(&xen.vcpu(1), port), Err(Errno::EINVAL), "closed twice");
    assert_eq!(send(&xen.vcpu(1), port), Err(Errno::EINVAL));
}

#[test]
fn ports_start_unmasked_and_the_lowest_free_number_is_given() {
    let xen = FakeXen::new(1);
    let vcpu = xen.vcpu(0);
    let ports: Vec<Port> = (0..3).map(|_| bind_ipi(&vcpu, 0).unwrap()).collect();
    assert_eq!(ports.iter().map(|p| p.get()).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(ports.iter().all(|port| !xen.two_level().is_masked(*port)));
    close(&vcpu, ports[1]).unwrap();
    assert_eq!(bind_ipi(&vcpu, 0), Ok(ports[1]));
}

#[test]
fn ports_run_out() {
    let xen = FakeXen::new(1);
    for _ in 1..4096 {
        bind_ipi(&xen.vcpu(0), 0).unwrap();
    }
    assert_eq!(bind_ipi(&xen.vcpu(0), 0), Err(Errno::ENOSPC));
}

#[test]
fn unmask_raises_only_what_it_finds_masked_and_pending() {
    let xen = FakeXen::new(1);
    let vcpu = xen.vcpu(0);
    let port = masked_ipi(&xen, 0);
    unmask(&vcpu, port).unwrap();
    assert!(!xen.vcpu_info(0).upcall_pending(), "nothing was pending");

    // The trap: unmasked by hand, the latched event is never delivered.
    xen.two_level().mask(port);
    send(&vcpu, port).unwrap();
    xen.two_level().hypervisor_unmask(port);
    unmask(&vcpu, port).unwrap();
    assert!(!xen.vcpu_info(0).upcall_pending());

    // `Abi::unmask` does not fall into it.
    xen.two_level().mask(port);
    xen.two_level().unmask(&vcpu, port).unwrap();
    assert!(xen.vcpu_info(0).upcall_pending());
    assert!(!xen.two_level().is_masked(port));
    assert_eq!(unmask(&vcpu, Port::new(99).unwrap()), Err(Errno::EINVAL));
}

#[test]
fn virtual_interrupts_bind_once_and_cannot_be_sent() {
    let xen = FakeXen::new(2);
    let vcpu = xen.vcpu(0);
    let timer = bind_virq(&vcpu, Virq::TIMER, 1).unwrap();
    assert_eq!(bind_virq(&vcpu, Virq::TIMER, 1), Err(Errno::EEXIST));
    assert!(bind_virq(&vcpu, Virq::TIMER, 0).is_ok());
    assert_eq!(bind_virq(&vcpu, Virq::TIMER, 2), Err(Errno::ENOENT));
    assert_eq!(bind_virq(&vcpu, Virq(24), 0), Err(Errno::EINVAL), "no such interrupt");
    assert_eq!(bind_virq(&vcpu, Virq(2), 1), Err(Errno::EINVAL), "global: vCPU 0 only");
    assert_eq!(send(&vcpu, timer), Err(Errno::EINVAL));
    xen.raise_virq(1, Virq::TIMER);
    assert!(xen.two_level().is_pending(timer));
    assert!(xen.vcpu_info(1).upcall_pending() && !xen.vcpu_info(0).upcall_pending());
    let now = status(&vcpu, timer).unwrap();
    assert_eq!((now.connection, now.vcpu), (Connection::Virq(Virq::TIMER), 1));
}

#[test]
fn interdomain_ports_signal_each_other_and_wait_again_when_the_peer_closes() {
    let xen = FakeXen::new(1);
    let (vcpu, events) = (xen.vcpu(0), xen.two_level());
    let ours = alloc_unbound(&vcpu, DomId::SELF).unwrap();
    send(&vcpu, ours).unwrap(); // nobody is there: dropped
    assert_eq!(status(&vcpu, ours).unwrap().connection, Connection::Unbound(DomId::SELF));
    assert_eq!(bind_interdomain(&vcpu, DomId(3), ours), Err(Errno::ESRCH));
    let theirs = bind_interdomain(&vcpu, DomId::SELF, ours).unwrap();
    assert_eq!(bind_interdomain(&vcpu, DomId::SELF, ours), Err(Errno::EINVAL), "taken");
    assert!(events.clear(theirs), "pending from the start");

    send(&vcpu, ours).unwrap();
    assert!(events.clear(theirs) && !events.is_pending(ours));
    send(&vcpu, theirs).unwrap();
    assert!(events.clear(ours) && !events.is_pending(theirs));
    assert_eq!(
        status(&vcpu, ours).unwrap().connection,
        Connection::Interdomain(DomId::SELF, theirs)
    );
    close(&vcpu, theirs).unwrap();
    assert_eq!(status(&vcpu, ours).unwrap().connection, Connection::Unbound(DomId::SELF));
    assert_eq!(status(&vcpu, Port::MAX), Err(Errno::EINVAL));
}

#[test]
fn only_ports_without_a_fixed_vcpu_move() {
    let xen = FakeXen::new(2);
    let vcpu = xen.vcpu(0);
    let ipi = bind_ipi(&vcpu, 0).unwrap();
    let timer = bind_virq(&vcpu, Virq::TIMER, 0).unwrap();
    let ours = alloc_unbound(&vcpu, DomId::SELF).unwrap();
    let theirs = bind_interdomain(&vcpu, DomId::SELF, ours).unwrap();
    assert_eq!(bind_vcpu(&vcpu, ipi, 1), Err(Errno::EINVAL));
    assert_eq!(bind_vcpu(&vcpu, timer, 1), Err(Errno::EINVAL));
    assert_eq!(bind_vcpu(&vcpu, ours, 2), Err(Errno::ENOENT));
    bind_vcpu(&vcpu, ours, 1).unwrap();
    send(&vcpu, theirs).unwrap();
    assert!(xen.vcpu_info(1).upcall_pending());
}

#[test]
fn reset_closes_everything_of_the_guest() {
    let xen = FakeXen::new(1);
    let vcpu = xen.vcpu(0);
    let owned = xen.xen_owned_port();
    let port = bind_ipi(&vcpu, 0).unwrap();
    send(&vcpu, port).unwrap();
    reset(&vcpu).unwrap();
    assert!(!xen.two_level().is_pending(port));
    assert_eq!(bind_ipi(&vcpu, 0), Ok(port), "free again");
    assert_ne!(port, owned);
}

#[test]
fn block_unmasks_upcalls_and_ends_on_the_edge() {
    let xen = FakeXen::with_virtual_clock(2);
    let port = bind_ipi(&xen.vcpu(0), 1).unwrap();
    let woken = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let _ = xen.vcpu_info(1).mask_upcalls();
            xen.vcpu(1).sched_op(SchedOp::Block).unwrap();
            assert!(!xen.vcpu_info(1).upcalls_masked());
            woken.store(true, Ordering::SeqCst);
        });
        send(&xen.vcpu(0), port).unwrap();
    });
    assert!(woken.load(Ordering::SeqCst));
    xen.vcpu(0).sched_op(SchedOp::Yield).unwrap();
}

#[test]
#[should_panic(expected = "deadlock: every vCPU sleeps")]
fn virtual_time_finds_a_deadlock() {
    let xen = FakeXen::with_virtual_clock(1);
    let port = masked_ipi(&xen, 0);
    let _ = poll(&xen.vcpu(0), port, 0);
}

#[test]
#[should_panic(expected = "a hypercall of vCPU 0, which is Down")]
fn a_vcpu_that_is_down_makes_no_hypercall() {
    let xen = FakeXen::new(2);
    xen.vcpu(0).down();
    let _ = poll(&xen.vcpu(0), Port::new(1).unwrap(), 0);
}

#[test]
fn dispatch_takes_each_due_event_once_and_leaves_masked_and_foreign_ones() {
    let xen = FakeXen::new(2);
    let (vcpu, events, mine) = (xen.vcpu(0), xen.two_level(), PortSet::new());
    let ports: Vec<Port> = (0..130).map(|_| bind_ipi(&vcpu, 0).unwrap()).collect();
    let foreign = bind_ipi(&vcpu, 1).unwrap();
    for port in &ports {
        mine.insert(*port);
        send(&vcpu, *port).unwrap();
    }
    events.clear(ports[3]);
    events.mask(ports[70]);
    send(&vcpu, foreign).unwrap();

    let mut seen = Vec::new();
    let count = events.dispatch(&xen.vcpu_info(0), &mine, |port| seen.push(port));
    let expected: Vec<Port> =
        ports.iter().copied().filter(|p| *p != ports[3] && *p != ports[70]).collect();
    assert_eq!(seen, expected);
    assert_eq!(count, 128);
    assert_eq!(events.pending_ports().collect::<Vec<_>>(), [ports[70], foreign]);

    // The masked one comes when it is unmasked, and not if it was taken out of the set.
    assert!(mine.remove(ports[70]) && !mine.contains(ports[70]));
    events.unmask(&vcpu, ports[70]).unwrap();
    assert_eq!(events.dispatch(&xen.vcpu_info(0), &mine, |_| ()), 0);
    assert!(events.is_pending(ports[70]));
}

#[test]
fn an_event_of_a_port_that_a_handler_took_away_is_left_alone() {
    let xen = FakeXen::new(2);
    let (vcpu, events) = (xen.vcpu(0), xen.two_level());
    let ports = [0, 0].map(|of| bind_ipi(&vcpu, of).unwrap());
    let mine = PortSet::new();
    ports.iter().for_each(|port| mine.insert(*port));
    ports.iter().for_each(|port| send(&vcpu, *port).unwrap());
    // As after a restore: the numbers mean something else when the handler returns.
    let handled = events.dispatch(&xen.vcpu_info(0), &mine, |_| mine.clear());
    assert_eq!(handled, 1);
    assert!(events.is_pending(ports[1]), "somebody else's, by now");
}

#[test]
fn dispatch_handles_what_arrives_while_a_handler_runs() {
    let xen = FakeXen::new(1);
    let (vcpu, events, mine) = (xen.vcpu(0), xen.two_level(), PortSet::new());
    let (low, high) = (bind_ipi(&vcpu, 0).unwrap(), bind_ipi(&vcpu, 0).unwrap());
    mine.insert(low);
    mine.insert(high);
    send(&vcpu, low).unwrap();
    let mut seen = Vec::new();
    events.dispatch(&xen.vcpu_info(0), &mine, |port| {
        seen.push(port);
        if seen.len() == 1 {
            // A busy low port does not keep the high one waiting.
            send(&vcpu, low).unwrap();
            send(&vcpu, high).unwrap();
        }
    });
    assert_eq!(seen, [low, low, high]);
    assert!(!xen.vcpu_info(0).upcall_pending());
}

#[test]
#[should_panic(expected = "port 4096 is beyond the 2-level ABI's 4096 ports")]
fn the_bitmaps_end_at_4095() {
    let xen = FakeXen::new(1);
    xen.two_level().mask(Port::new(4095).unwrap());
    xen.two_level().mask(Port::new(4096).unwrap());
}
