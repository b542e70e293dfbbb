//! Waits inside waits: an interrupt comes at any step of a wait and waits in its turn, up to three
//! deep, and each one's kick comes at any step of it all.
//!
//! The rule behind it: nobody sleeps for a kick that has come, and nobody turns in a circle because
//! a kick has come that is another's.

use std::cell::{Cell, RefCell};

use evtchn::fake::{FakeVcpu, FakeXen};
use evtchn::{Abi, ChosenAbi, Errno, EventChannelOp, Hypercalls, Kicker, Port, SchedOp};

/// What happens to vCPU 0 from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Another vCPU changes the condition of the wait at this depth, and kicks.
    Kick(usize),
    /// An interrupt, whose handler waits until the condition of its depth changes.
    Interrupt,
}

/// vCPU 0 under a script: each event, and the step of vCPU 0 before which it comes.
struct Machine<'a> {
    xen: &'a FakeXen,
    abi: ChosenAbi<'a>,
    kicker: Kicker,
    script: RefCell<Vec<(u32, Event)>>,
    steps: Cell<u32>,
    /// Whether the wait at each depth may go on.
    may_go_on: [Cell<bool>; DEPTH],
    /// Handlers under way.
    depth: Cell<usize>,
    /// Waits that ended, at each depth; and those with nothing to show for it.
    waits: [Cell<usize>; DEPTH],
    for_nothing: [Cell<usize>; DEPTH],
}

const DEPTH: usize = 3;
/// An event that comes once vCPU 0 sleeps.
const ASLEEP: u32 = u32::MAX;
/// More steps than any of these scripts takes: it turns in a circle.
const TOO_MANY: u32 = 500;

impl<'a> Machine<'a> {
    fn new(xen: &'a FakeXen, abi: ChosenAbi<'a>, script: &[(u32, Event)]) -> Self {
        let kicker = Kicker::new();
        kicker.bind(&xen.vcpu(0), &abi, 0).unwrap();
        Self {
            xen,
            abi,
            kicker,
            script: RefCell::new(script.to_vec()),
            steps: Cell::new(0),
            may_go_on: Default::default(),
            depth: Cell::new(0),
            waits: Default::default(),
            for_nothing: Default::default(),
        }
    }

    /// Lets come what is due before this step of vCPU 0.
    fn step(&self) {
        let step = self.steps.get();
        assert!(step < TOO_MANY, "it turns in a circle at depth {}", self.depth.get());
        self.steps.set(step + 1);
        while let Some(event) = self.take_event(|at| at <= step) {
            self.happen(event);
        }
    }

    fn take_event(&self, is_due: impl Fn(u32) -> bool) -> Option<Event> {
        let mut script = self.script.borrow_mut();
        let at = script.iter().position(|&(at, _)| is_due(at))?;
        Some(script.remove(at).1)
    }

    fn happen(&self, event: Event) {
        match event {
            Event::Kick(depth) => {
                self.may_go_on[depth].set(true);
                self.kicker.kick(&self.xen.vcpu(1)).unwrap();
            }
            Event::Interrupt => {
                self.depth.set(self.depth.get() + 1);
                self.wait_until_kicked();
                self.depth.set(self.depth.get() - 1);
            }
        }
    }

    /// What a lock does in the context that runs: it waits until its condition has changed.
    fn wait_until_kicked(&self) {
        let depth = self.depth.get();
        let blocked = || {
            self.step();
            let blocked = !self.may_go_on[depth].get();
            self.step();
            blocked
        };
        while blocked() {
            self.kicker.wait(self, self, 0, blocked);
            let add = |counter: &Cell<usize>| counter.set(counter.get() + 1);
            add(&self.waits[depth]);
            if blocked() {
                add(&self.for_nothing[depth]);
            }
        }
    }

    fn vcpu(&self) -> FakeVcpu<'_> {
        self.xen.vcpu(0)
    }
}

impl Hypercalls for Machine<'_> {
    fn event_channel_op(&self, op: EventChannelOp<'_>) -> Result<(), Errno> {
        self.step();
        self.vcpu().event_channel_op(op)
    }

    fn sched_op(&self, op: SchedOp) -> Result<(), Errno> {
        self.step();
        let SchedOp::Poll { port, .. } = op else { return Err(Errno::ENOSYS) };
        while !self.abi.is_pending(port) {
            // It sleeps, until the next event.
            match self.take_event(|_| true) {
                Some(Event::Interrupt) => {
                    // The upcall ends the poll, and its handler runs before anything else.
                    self.happen(Event::Interrupt);
                    return Ok(());
                }
                Some(kick) => self.happen(kick),
                None => panic!("a lost wake-up at depth {}", self.depth.get()),
            }
        }
        self.vcpu().sched_op(op)
    }

    fn system_time_ns(&self) -> u64 {
        1
    }
}

impl Abi for Machine<'_> {
    fn ports(&self) -> u32 {
        self.abi.ports()
    }

    fn mask(&self, port: Port) {
        self.abi.mask(port);
    }

    fn is_masked(&self, port: Port) -> bool {
        self.abi.is_masked(port)
    }

    fn is_pending(&self, port: Port) -> bool {
        self.step();
        self.abi.is_pending(port)
    }

    fn clear(&self, port: Port) -> bool {
        self.step();
        self.abi.clear(port)
    }

    fn unmask(&self, xen: &impl Hypercalls, port: Port) -> Result<(), Errno> {
        self.abi.unmask(xen, port)
    }
}

/// Calls `run` with a fresh vCPU on either ABI.
fn on_both(mut run: impl FnMut(&FakeXen, ChosenAbi<'_>)) {
    let xen = FakeXen::with_virtual_clock(2);
    run(&xen, ChosenAbi::TwoLevel(xen.two_level()));
    let xen = FakeXen::with_virtual_clock(2);
    let (queues, frame) = xen.fifo_queues();
    queues.init(&xen.vcpu(0), 0, frame, 0).unwrap();
    let (fifo, frame) = xen.fifo_memory(1);
    fifo.expand(&xen.vcpu(0), frame).unwrap();
    run(&xen, ChosenAbi::Fifo(&fifo));
}

/// Runs every script in which each of `events` comes before one of the first `steps`, or once vCPU
/// 0 sleeps.
fn check(events: &[Event], steps: u32) {
    let mut scripts = vec![Vec::new()];
    for &event in events {
        let longer = |script: &Vec<(u32, Event)>| {
            let script = script.clone();
            (0..steps).chain([ASLEEP]).map(move |at| [script.as_slice(), &[(at, event)]].concat())
        };
        scripts = scripts.iter().flat_map(longer).collect();
    }
    let mut most_steps = 0;
    for script in &mut scripts {
        script.sort_by_key(|&(at, _)| at);
        on_both(|xen, abi| {
            let machine = Machine::new(xen, abi, script);
            machine.wait_until_kicked();
            while let Some(event) = machine.take_event(|_| true) {
                machine.happen(event);
            }
            for depth in 0..DEPTH {
                // Each ends one: an interrupt, a kick of another context, a wait above.
                let above: usize = machine.waits[depth + 1..].iter().map(Cell::get).sum();
                let others = events.iter().filter(|&&event| event != Event::Kick(depth)).count();
                let for_nothing = machine.for_nothing[depth].get();
                assert!(for_nothing <= above + others, "{for_nothing} at {depth}: {script:?}");
            }
            most_steps = most_steps.max(machine.steps.get());
        });
    }
    assert!(most_steps > steps, "events come at every step");
}

#[test]
fn an_interrupt_waits_at_any_step_of_a_wait() {
    check(&[Event::Kick(0), Event::Kick(1), Event::Interrupt], 24);
}

#[test]
fn an_interrupt_waits_while_an_interrupt_waits() {
    let events =
        [Event::Kick(0), Event::Kick(1), Event::Kick(2), Event::Interrupt, Event::Interrupt];
    check(&events, 6);
}

/// Found in storms on real Xen: a handler that waited turned in a circle for as long as the context
/// it had interrupted did not take its kick, which is until the handler was done.
#[test]
fn a_nested_wait_sleeps_though_the_interrupted_one_was_kicked() {
    on_both(|xen, abi| {
        // The outer wait is kicked between its look and its poll, and interrupted.
        let script = [(3, Event::Kick(0)), (3, Event::Interrupt), (ASLEEP, Event::Kick(1))];
        let machine = Machine::new(xen, abi, &script);
        machine.wait_until_kicked();
        assert_eq!(machine.waits.each_ref().map(Cell::get), [1, 1, 0]);
        assert_eq!(xen.seen().sends, 2, "nothing to give back: the kick has come");
    });
}
