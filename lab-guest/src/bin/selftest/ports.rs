//! Tests of ports and of the choice between the two event channel ABIs.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

use evtchn::{Abi, Errno, Kicker, Port, Priority, WaitOutcome};
use xen_guest::events::{self, EventAbi, Wanted, Xen, events, timer, upcall};
use xen_guest::kernel::machine::Machine;
use xen_guest::vcpu::{Area, mask};
use xen_guest::xen::frames;

use super::support::{COUNT, check, soon, start_others};

/// The ports whose upcalls came, in their order.
static SEEN: [AtomicU32; 8] = [const { AtomicU32::new(0) }; 8];
static SEEN_COUNT: AtomicUsize = AtomicUsize::new(0);

fn note(port: Port) {
    if let Some(place) = SEEN.get(SEEN_COUNT.fetch_add(1, SeqCst)) {
        place.store(port.get(), SeqCst);
    }
}

/// An unmasked IPI port of vCPU 0.
fn ipi() -> Result<Port, &'static str> {
    let port = evtchn::bind_ipi(&Xen, 0).map_err(|_| "no port")?;
    events::handle_on(0, port).map_err(|_| "the port has no word")?;
    events().unmask(&Xen, port).map_err(|_| "the port cannot be unmasked")?;
    Ok(port)
}

fn send(port: Port) -> Result<(), &'static str> {
    evtchn::send(&Xen, port).map_err(|_| "the port cannot be sent to")
}

/// Whether, once upcalls are let go, those of `wanted` come in this order and no others.
fn come_in_order<const N: usize>(
    machine: &'static Machine,
    wanted: [Port; N],
) -> Result<(), &'static str> {
    SEEN_COUNT.store(0, SeqCst);
    mask::enable();
    let all = soon(machine, || SEEN_COUNT.load(SeqCst) >= N);
    mask::disable();
    check(all, "an event was lost")?;
    let seen = SEEN.iter().map(|port| port.load(SeqCst)).take(SEEN_COUNT.load(SeqCst));
    check(seen.eq(wanted.iter().map(|port| port.get())), "events came in the wrong order")
}

/// Events that were held back together come by priority, then by arrival; with the 2-level ABI, by
/// number.
pub(crate) fn priority(machine: &'static Machine) -> Result<(), &'static str> {
    upcall::set_upcall_handler(note);
    let (a, b, c) = (ipi()?, ipi()?, ipi()?);
    events::prefer(b, Priority::MIN).map_err(|_| "no priority")?;
    events::prefer(c, Priority::MAX).map_err(|_| "no priority")?;
    let fifo = events::abi() == EventAbi::Fifo;
    for port in [b, a, c] {
        send(port)?;
    }
    come_in_order(machine, if fifo { [c, a, b] } else { [a, b, c] })?;
    let d = ipi()?;
    for port in [d, a] {
        send(port)?;
    }
    come_in_order(machine, if fifo { [d, a] } else { [a, d] })?;
    // The timer's is before all that came earlier.
    let timer = timer::bind().map_err(|_| "no timer port")?;
    send(a)?;
    timer::set(machine.now()).map_err(|_| "the timer cannot be set")?;
    check(soon(machine, || events().is_pending(timer)), "the timer did not fire")?;
    come_in_order(machine, if fifo { [timer, a] } else { [a, timer] })
}

/// A send to a masked port ends the poll of a vCPU that sleeps, and interrupts nobody: the kicker's
/// rule.
pub(crate) fn masked_poll(machine: &'static Machine) -> Result<(), &'static str> {
    const ROUNDS: u32 = 200;
    static PORT: AtomicU32 = AtomicU32::new(0);
    static WOKEN: AtomicU32 = AtomicU32::new(0);
    upcall::set_upcall_handler(note);
    let port = evtchn::bind_ipi(&Xen, 1).map_err(|_| "no port")?;
    check(events().is_masked(port), "a new port is not masked")?;
    PORT.store(port.get(), SeqCst);
    start_others(machine, |vcpu| {
        let Some(port) = Port::new(PORT.load(SeqCst)).filter(|_| vcpu == 1) else { return };
        mask::enable();
        for _ in 0..ROUNDS {
            // Far beyond what a crowded host takes away from the vCPU that sends.
            let deadline = Machine::get().now() + 30_000_000_000;
            let polled = evtchn::poll(&Xen, port, deadline);
            let in_time = polled.is_ok() && Machine::get().now() < deadline;
            if events().clear(port) && in_time {
                WOKEN.fetch_add(1, SeqCst);
            }
            COUNT.fetch_add(1, SeqCst);
        }
    })?;
    let asleep = || Area::of(1).runstate.state.load(SeqCst) == 2;
    for round in 0..ROUNDS {
        // In this order: it has run since it woke the last time, so that "blocked" is news.
        check(soon(machine, || COUNT.load(SeqCst) == round), "a poll did not end")?;
        check(soon(machine, asleep), "a vCPU that polls does not sleep")?;
        send(port)?;
    }
    check(soon(machine, || COUNT.load(SeqCst) == ROUNDS), "the last poll did not end")?;
    let (woken, upcalls) = (WOKEN.load(SeqCst), SEEN_COUNT.load(SeqCst));
    log::info!("{woken} of {ROUNDS} polls ended by a send to a masked port, {upcalls} upcalls");
    check(woken == ROUNDS, "a poll ended by something else")?;
    check(upcalls == 0, "a masked port interrupted")
}

/// Ports beyond the first page of words: give the domain `max_event_channels` for it.
pub(crate) fn grow(machine: &'static Machine) -> Result<(), &'static str> {
    check(events().ports() == 1024, "the array does not begin with one page")?;
    upcall::set_upcall_handler(note);
    let next = || evtchn::bind_ipi(&Xen, 0).map_err(|_| "no port");
    while next()?.get() < 1100 {}
    let early = next()?;
    send(early)?; // it has no word: Xen keeps the event
    while next()?.get() < 2100 {}
    let kicker = Kicker::new();
    check(kicker.bind(&Xen, &events(), 0) == Err(Errno::ENOSPC), "a kicker without a word")?;
    let late = ipi()?;
    check(late.get() > 2048 && events().ports() == 3072, "the array has not grown to three pages")?;
    check(events().is_pending(early), "an event that came before its word was lost")?;
    check(events().is_masked(early), "a new word is not masked")?;
    send(late)?;
    come_in_order(machine, [late])?;
    events().unmask(&Xen, early).map_err(|_| "the port cannot be unmasked")?;
    come_in_order(machine, [early])?;
    let far = kicker.bind(&Xen, &events(), 0).map_err(|_| "no port for a kicker")?;
    check(far.get() > 2048, "the kicker's port is not beyond the second page")?;
    kicker.kick(&Xen).map_err(|_| "no kick")?;
    let outcome = kicker.wait(&Xen, &events(), machine.now() + 1_000_000_000, || true);
    check(outcome == WaitOutcome::Kicked, "a kick beyond the second page was lost")
}

/// An event that was pending at the switch from 2-level to FIFO is still there.
pub(crate) fn switch(machine: &'static Machine) -> Result<(), &'static str> {
    let port = evtchn::bind_ipi(&Xen, 0).map_err(|_| "no port")?;
    send(port)?;
    check(events().is_pending(port), "an event did not latch")?;
    check(events::choose(machine.vcpus(), Wanted::Auto) == Ok(EventAbi::Fifo), "Xen refuses FIFO")?;
    check(events().is_masked(port), "the switch has unmasked a port")?;
    check(events().is_pending(port), "an event was lost at the switch")?;
    check(
        events::choose(machine.vcpus(), Wanted::Auto) == Ok(EventAbi::Fifo),
        "a second choice differs",
    )?;
    check(events().clear(port), "choosing again has lost an event")?;
    upcalls_come(machine)
}

fn upcalls_come(machine: &'static Machine) -> Result<(), &'static str> {
    upcall::set_upcall_handler(note);
    let port = ipi()?;
    send(port)?;
    come_in_order(machine, [port])
}

/// A frame that no domain has.
const NO_FRAME: u64 = 1 << 39;

/// Xen refuses the very first step: a control block it cannot map.
pub(crate) fn refused_blocks(machine: &'static Machine) -> Result<(), &'static str> {
    refused(machine, |_| NO_FRAME)
}

/// Xen refuses when it has switched already: words it cannot map.
pub(crate) fn refused_words(machine: &'static Machine) -> Result<(), &'static str> {
    refused(machine, |address| {
        // The first frames asked for are those of control blocks, one a vCPU.
        let asked = COUNT.fetch_add(1, SeqCst) % (Machine::get().vcpus() + 1);
        if asked < Machine::get().vcpus() { frames::frame_of(address) } else { NO_FRAME }
    })
}

fn refused(machine: &'static Machine, frame_of: fn(usize) -> u64) -> Result<(), &'static str> {
    wait_for_the_host(machine)?;
    let strict = events::choose_with(machine.vcpus(), Wanted::Fifo, frame_of);
    log::info!("Xen said {strict:?}");
    check(strict == Err(Errno::EINVAL), "Xen did not refuse")?;
    let lenient = events::choose_with(machine.vcpus(), Wanted::Auto, frame_of);
    check(lenient == Ok(EventAbi::TwoLevel), "no fallback to the 2-level ABI")?;
    check(events().ports() == 4096, "the bits are not those of the 2-level ABI")?;
    upcalls_come(machine)?;
    daemons_listen(machine)
}

/// Says so on the console, and waits until somebody in dom0 has read it and writes `data/pvlab/go`.
///
/// The console daemon looks at its end of a new domain's port several times, and where it finds it
/// closed, by a reset, gives up. When it has handed on this line it has done with that.
fn wait_for_the_host(machine: &'static Machine) -> Result<(), &'static str> {
    const PATIENCE_NS: u64 = 120_000_000_000;
    let Some(mut store) = machine.xenstore() else { return Ok(()) };
    log::info!("waits for the host");
    let limit = machine.now() + PATIENCE_NS;
    while store.read("data/pvlab/go").is_err() {
        check(machine.now() < limit, "the host says nothing")?;
        machine.sleep_until(machine.now() + 20_000_000);
    }
    Ok(())
}

/// Xenstored and the console daemon still are at the other end of their ports.
fn daemons_listen(machine: &'static Machine) -> Result<(), &'static str> {
    /// A daemon that is not told costs two seconds for each line that the ring has no room for, and
    /// there are seventy of them; one that is told takes as long as a crowded host lets it.
    const PATIENCE_NS: u64 = 60_000_000_000;
    let Some(mut store) = machine.xenstore() else { return Ok(()) };
    let began = machine.now();
    let domid = store.read("domid");
    check(domid.is_ok_and(|domid| !domid.is_empty()), "xenstored does not answer")?;
    let line = [b'.'; 64];
    for _ in 0..100 {
        machine.console_write(&line);
    }
    machine.console_write(b"\n");
    check(machine.now() < began + PATIENCE_NS, "a daemon is not told")
}
