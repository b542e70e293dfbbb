//! The FIFO ABI's rules, guest side and fake Xen together.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::vec::Vec;

use crate::fake::FakeXen;
use crate::{
    Abi, Connection, DomId, Errno, Fifo, FifoVcpu, Kicker, Port, Priority, Virq, WaitOutcome,
    alloc_unbound, bind_interdomain, bind_ipi, bind_virq, close, poll, reset, reset_keeping, send,
    set_priority, status, unmask,
};

/// A domain with the FIFO ABI, one array page, and queues for every vCPU.
fn domain(vcpus: u32) -> (FakeXen, Fifo, Vec<FifoVcpu>) {
    let xen = FakeXen::new(vcpus);
    let queues = (0..vcpus)
        .map(|vcpu| {
            let (queues, frame) = xen.fifo_queues();
            queues.init(&xen.vcpu(0), vcpu, frame, 0).unwrap();
            queues
        })
        .collect();
    let (events, frame) = xen.fifo_memory(2);
    events.expand(&xen.vcpu(0), frame).unwrap();
    (xen, events, queues)
}

fn unmasked_ipi(xen: &FakeXen, events: &Fifo, vcpu: u32) -> Port {
    let port = bind_ipi(&xen.vcpu(0), vcpu).unwrap();
    events.unmask(&xen.vcpu(0), port).unwrap();
    port
}

fn dispatched(xen: &FakeXen, events: &Fifo, queues: &[FifoVcpu], vcpu: usize) -> Vec<Port> {
    let mut seen = Vec::new();
    queues[vcpu].dispatch(events, &xen.vcpu_info(vcpu as u32), |port| seen.push(port));
    seen
}

#[test]
fn events_come_by_priority_then_by_arrival() {
    let (xen, events, queues) = domain(1);
    let vcpu = xen.vcpu(0);
    let ports: Vec<Port> = (0..5).map(|_| unmasked_ipi(&xen, &events, 0)).collect();
    set_priority(&vcpu, ports[1], Priority::MIN).unwrap();
    set_priority(&vcpu, ports[4], Priority::MAX).unwrap();
    for index in [3, 1, 0, 4, 2] {
        send(&vcpu, ports[index]).unwrap();
    }
    let expected: Vec<Port> = [4, 3, 0, 2, 1].map(|index| ports[index]).into();
    assert_eq!(dispatched(&xen, &events, &queues, 0), expected);
    assert_eq!(dispatched(&xen, &events, &queues, 0), []);
}

#[test]
fn a_more_urgent_event_overtakes_while_a_handler_runs() {
    let (xen, events, queues) = domain(1);
    let vcpu = xen.vcpu(0);
    let [low, next, urgent] = [(); 3].map(|()| unmasked_ipi(&xen, &events, 0));
    set_priority(&vcpu, urgent, Priority::MAX).unwrap();
    send(&vcpu, low).unwrap();
    send(&vcpu, next).unwrap();
    let mut seen = Vec::new();
    queues[0].dispatch(&events, &xen.vcpu_info(0), |port| {
        if seen.is_empty() {
            send(&vcpu, urgent).unwrap();
            send(&vcpu, low).unwrap();
        }
        seen.push(port);
    });
    assert_eq!(seen, [low, urgent, next, low]);
}

#[test]
fn a_masked_event_stands_in_no_queue_until_it_is_unmasked() {
    let (xen, events, queues) = domain(1);
    let vcpu = xen.vcpu(0);
    let port = bind_ipi(&vcpu, 0).unwrap();
    send(&vcpu, port).unwrap();
    assert!(events.is_pending(port) && !xen.vcpu_info(0).upcall_pending());
    events.unmask(&vcpu, port).unwrap();
    assert_eq!(dispatched(&xen, &events, &queues, 0), [port]);

    // Masked while it stands in a queue: skipped there, and kept for later.
    send(&vcpu, port).unwrap();
    events.mask(port);
    assert_eq!(dispatched(&xen, &events, &queues, 0), []);
    assert!(events.is_pending(port));
    events.unmask(&vcpu, port).unwrap();
    assert_eq!(dispatched(&xen, &events, &queues, 0), [port]);
}

#[test]
fn a_cleared_event_is_skipped_in_its_queue() {
    let (xen, events, queues) = domain(1);
    let ports = [(); 3].map(|()| unmasked_ipi(&xen, &events, 0));
    for port in ports {
        send(&xen.vcpu(0), port).unwrap();
    }
    assert!(events.clear(ports[1]));
    assert_eq!(dispatched(&xen, &events, &queues, 0), [ports[0], ports[2]]);
}

#[test]
fn unmask_waits_while_xen_links_the_port() {
    let (xen, events, _queues) = domain(1);
    let port = bind_ipi(&xen.vcpu(0), 0).unwrap();
    xen.lock().set_busy(port.get(), true);
    thread::scope(|scope| {
        let unmasking = scope.spawn(|| events.unmask(&xen.vcpu(0), port));
        // It can only end after BUSY is gone, however long that takes.
        for _ in 0..100 {
            thread::yield_now();
            assert!(events.is_masked(port) && !unmasking.is_finished());
        }
        xen.lock().set_busy(port.get(), false);
        unmasking.join().unwrap().unwrap();
    });
    assert!(!events.is_masked(port));
}

#[test]
fn a_masked_port_ends_a_poll_and_latches_under_fifo_too() {
    let (xen, events, _queues) = domain(2);
    let kicker = Kicker::new();
    kicker.bind(&xen.vcpu(0), &events, 1).unwrap();
    kicker.kick(&xen.vcpu(0)).unwrap();
    poll(&xen.vcpu(1), kicker.port().unwrap(), 0).unwrap();
    assert_eq!(kicker.wait(&xen.vcpu(1), &events, 0, || true), WaitOutcome::Kicked);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| kicker.wait(&xen.vcpu(1), &events, 0, || true));
        while xen.seen().blocked_polls == 0 {
            thread::yield_now();
        }
        kicker.kick(&xen.vcpu(0)).unwrap();
        assert_eq!(waiter.join().unwrap(), WaitOutcome::Kicked);
    });
    assert!(!xen.vcpu_info(1).upcall_pending());
}

#[test]
fn a_closed_port_that_stands_in_a_queue_is_not_given_out() {
    let (xen, events, queues) = domain(1);
    let vcpu = xen.vcpu(0);
    let port = unmasked_ipi(&xen, &events, 0);
    send(&vcpu, port).unwrap();
    close(&vcpu, port).unwrap();
    assert!(!events.is_pending(port));
    let other = bind_ipi(&vcpu, 0).unwrap();
    assert_ne!(other, port);
    assert_eq!(dispatched(&xen, &events, &queues, 0), []);
    assert_eq!(bind_ipi(&vcpu, 0), Ok(port), "out of the queue, it is free");
}

#[test]
fn events_before_their_page_and_before_the_switch_are_kept() {
    let xen = FakeXen::new(1);
    let vcpu = xen.vcpu(0);
    let before = bind_virq(&vcpu, Virq::TIMER, 0).unwrap();
    xen.raise_virq(0, Virq::TIMER);
    let (queues, frame) = xen.fifo_queues();
    queues.init(&vcpu, 0, frame, 0).unwrap();
    let early = bind_ipi(&vcpu, 0).unwrap();
    send(&vcpu, early).unwrap();
    let (events, frame) = xen.fifo_memory(1);
    events.expand(&vcpu, frame).unwrap();
    assert!(events.is_pending(before) && events.is_pending(early));
    assert!(events.is_masked(before) && events.is_masked(early));
}

#[test]
fn the_array_grows_past_its_first_page() {
    let (xen, events, queues) = domain(1);
    let vcpu = xen.vcpu(0);
    let mut last = bind_ipi(&vcpu, 0).unwrap();
    while last.get() < 1023 {
        last = bind_ipi(&vcpu, 0).unwrap();
    }
    let beyond = bind_ipi(&vcpu, 0).unwrap();
    send(&vcpu, beyond).unwrap(); // kept until the page is there
    // The second page follows the first, whose frame `domain` used.
    let frame = 0x1000 + 2;
    events.expand(&vcpu, frame).unwrap();
    assert_eq!(events.ports(), 2048);
    events.unmask(&vcpu, beyond).unwrap();
    assert_eq!(dispatched(&xen, &events, &queues, 0), [beyond]);
    assert_eq!(events.expand(&vcpu, frame), Err(Errno::ENOSPC), "no memory for a third");
}

#[test]
#[should_panic(expected = "port 1024 is beyond the event array of 1 pages")]
fn a_port_without_a_page_is_named() {
    let (_xen, events, _queues) = domain(1);
    events.mask(Port::new(1024).unwrap());
}

#[test]
fn what_xen_refuses() {
    let xen = FakeXen::new(1);
    let vcpu = xen.vcpu(0);
    let (events, array) = xen.fifo_memory(1);
    let (queues, block) = xen.fifo_queues();
    let port = bind_ipi(&vcpu, 0).unwrap();
    assert_eq!(set_priority(&vcpu, port, Priority::MAX), Err(Errno::ENOSYS), "2-level");
    assert_eq!(events.expand(&vcpu, array), Err(Errno::EOPNOTSUPP), "no control block yet");
    assert_eq!(queues.init(&vcpu, 1, block, 0), Err(Errno::ENOENT));
    for offset in [4, 4096 - 64, u32::MAX] {
        assert_eq!(queues.init(&vcpu, 0, block, offset), Err(Errno::EINVAL), "offset {offset}");
    }
    assert_eq!(queues.init(&vcpu, 0, 7, 0), Err(Errno::EINVAL), "no such frame");
    queues.init(&vcpu, 0, block, 4096 - 72).unwrap();
    assert_eq!(queues.init(&vcpu, 0, block, 0), Err(Errno::EINVAL), "it has one");
    assert_eq!(events.expand(&vcpu, 7), Err(Errno::EINVAL), "no such frame");
    close(&vcpu, port).unwrap();
    assert_eq!(set_priority(&vcpu, port, Priority::MAX), Err(Errno::EACCES), "closed");
    assert_eq!(unmask(&vcpu, port), Err(Errno::EINVAL));

    // Back to 2-level, and to FIFO again.
    reset(&vcpu).unwrap();
    assert_eq!(set_priority(&vcpu, port, Priority::MAX), Err(Errno::ENOSYS), "2-level again");
    queues.init(&vcpu, 0, block, 0).unwrap();
    events.forget();
    events.expand(&vcpu, array).unwrap();

    xen.withhold_fifo();
    assert_eq!(queues.init(&vcpu, 0, block, 0), Err(Errno::ENOSYS));
}

/// Threads send, each to a port of its own, while the vCPU masks, unmasks and dispatches. What the
/// handler of a port saw last must be the last that was sent.
#[test]
fn no_event_is_lost_between_concurrent_senders_and_masking() {
    const SENDERS: usize = 3;
    const SENDS: u32 = 5_000;
    let (xen, events, queues) = domain(SENDERS as u32 + 1);
    let ports: Vec<Port> = (0..SENDERS).map(|_| unmasked_ipi(&xen, &events, 0)).collect();
    let sent = [const { AtomicU32::new(0) }; SENDERS];
    let mut seen = [0; SENDERS];
    thread::scope(|scope| {
        for (sender, port) in ports.iter().enumerate() {
            let (xen, sent) = (&xen, &sent[sender]);
            scope.spawn(move || {
                for value in 1..=SENDS {
                    sent.store(value, Ordering::Release);
                    send(&xen.vcpu(sender as u32 + 1), *port).unwrap();
                }
            });
        }
        let mut turn = 0;
        while seen.iter().any(|value| *value < SENDS) {
            let port = ports[turn % SENDERS];
            turn += 1;
            events.mask(port);
            events.unmask(&xen.vcpu(0), port).unwrap();
            queues[0].dispatch(&events, &xen.vcpu_info(0), |port| {
                let sender = ports.iter().position(|p| *p == port).unwrap();
                seen[sender] = sent[sender].load(Ordering::Acquire);
            });
            thread::yield_now();
        }
    });
    let pending: BTreeSet<_> = ports.iter().filter(|port| events.is_pending(**port)).collect();
    assert!(pending.is_empty() || dispatched(&xen, &events, &queues, 0).len() == pending.len());
}

/// A kicker whose port had no word panicked in the mask.
#[test]
fn a_kicker_whose_port_has_no_word_says_so_and_is_bound_once_there_is_one() {
    let (xen, events, _queues) = domain(1);
    let vcpu = xen.vcpu(0);
    while bind_ipi(&vcpu, 0).unwrap().get() < 1023 {}
    let kicker = Kicker::new();
    assert_eq!(kicker.bind(&vcpu, &events, 0), Err(Errno::ENOSPC));
    assert_eq!(kicker.port(), None);
    events.expand(&vcpu, 0x1000 + 2).unwrap();
    let port = kicker.bind(&vcpu, &events, 0).unwrap();
    assert_eq!(port.get(), 1024, "the number was given back");
    assert!(events.is_masked(port));
}

#[test]
fn going_back_keeps_the_ports_named_and_closes_all_others() {
    let (xen, events, _queues) = domain(1);
    let vcpu = xen.vcpu(0);
    let ipis = [bind_ipi(&vcpu, 0).unwrap(), bind_ipi(&vcpu, 0).unwrap()];
    let (store, console) =
        (alloc_unbound(&vcpu, DomId(0)).unwrap(), alloc_unbound(&vcpu, DomId(1)).unwrap());
    assert_eq!(reset_keeping(&vcpu, [Some(ipis[0])]), Err(Errno::EINVAL), "not for an IPI");
    assert!(events.is_masked(console), "and nothing has happened");

    reset_keeping(&vcpu, [Some(console), None, Some(store)]).unwrap();
    let connection = |port| status(&vcpu, port).unwrap().connection;
    assert_eq!(connection(store), Connection::Unbound(DomId(0)));
    assert_eq!(connection(console), Connection::Unbound(DomId(1)));
    assert!(ipis.iter().all(|port| connection(*port) == Connection::Closed));
    assert_eq!(bind_ipi(&vcpu, 0), Ok(ipis[0]), "no number below is left taken");
    // On the 2-level ABI again.
    assert_eq!(set_priority(&vcpu, console, Priority::MAX), Err(Errno::ENOSYS));
    reset_keeping(&vcpu, [None; 2]).unwrap();
    assert_eq!(connection(console), Connection::Closed);
}

/// The console daemon closes its end when it looks at it during the reset; the guest panicked.
#[test]
fn a_peer_that_is_gone_after_the_reset_may_come_again() {
    let (xen, _events, _queues) = domain(1);
    let vcpu = xen.vcpu(0);
    let console = alloc_unbound(&vcpu, DomId::SELF).unwrap();
    // In the fake the peer is a port of the same domain, which the reset closes.
    let daemon = bind_interdomain(&vcpu, DomId::SELF, console).unwrap();
    assert!(daemon > console);
    reset_keeping(&vcpu, [Some(console)]).unwrap();
    assert_eq!(status(&vcpu, console).unwrap().connection, Connection::Unbound(DomId::SELF));
    assert_eq!(bind_interdomain(&vcpu, DomId::SELF, console), Ok(daemon));
}
