//! Random runs of both ABIs against a model that knows what every port must look like, and which
//! events each dispatch must hand out, in which order.
//!
//! The rule behind it: no event is lost and none comes twice, whatever is masked, unmasked,
//! cleared, moved, closed and opened again in between.

use evtchn::fake::FakeXen;
use evtchn::{
    Abi, ChosenAbi, DomId, Fifo, FifoVcpu, Port, PortSet, Priority, alloc_unbound,
    bind_interdomain, close, move_port, send, set_priority,
};
use proptest::prelude::*;

const VCPUS: u32 = 3;
const SLOTS: usize = 6;

#[derive(Clone, Debug)]
enum Step {
    Send(usize),
    Mask(usize),
    Unmask(usize),
    Clear(usize),
    Move(usize, u32),
    Priority(usize, u32),
    Reopen(usize),
    Dispatch(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let slot = 0..SLOTS;
    prop_oneof![
        6 => slot.clone().prop_map(Step::Send),
        2 => slot.clone().prop_map(Step::Mask),
        2 => slot.clone().prop_map(Step::Unmask),
        1 => slot.clone().prop_map(Step::Clear),
        2 => (slot.clone(), 0..VCPUS).prop_map(|(slot, vcpu)| Step::Move(slot, vcpu)),
        1 => (slot.clone(), 0u32..16).prop_map(|(slot, level)| Step::Priority(slot, level)),
        1 => slot.prop_map(Step::Reopen),
        4 => (0..VCPUS).prop_map(Step::Dispatch),
    ]
}

/// What the model knows of one port.
#[derive(Clone, Debug)]
struct Expected {
    /// Sending here raises an event on `port`.
    peer: Port,
    port: Port,
    vcpu: u32,
    priority: u32,
    pending: bool,
    masked: bool,
    /// FIFO: in the queue of this vCPU and priority, since that moment.
    queued: Option<(u32, u32, u64)>,
}

struct Machine<'a> {
    xen: &'a FakeXen,
    abi: ChosenAbi<'a>,
    queues: &'a [FifoVcpu],
    sets: [PortSet; VCPUS as usize],
    slots: Vec<Expected>,
    moments: u64,
}

impl<'a> Machine<'a> {
    fn new(xen: &'a FakeXen, abi: ChosenAbi<'a>, queues: &'a [FifoVcpu]) -> Self {
        let sets = std::array::from_fn(|_| PortSet::new());
        let mut machine = Self { xen, abi, queues, sets, slots: Vec::new(), moments: 0 };
        for _ in 0..SLOTS {
            let opened = machine.open();
            machine.slots.push(opened);
        }
        machine
    }

    fn is_fifo(&self) -> bool {
        matches!(self.abi, ChosenAbi::Fifo(_))
    }

    fn open(&mut self) -> Expected {
        let xen = self.xen.vcpu(0);
        let peer = alloc_unbound(&xen, DomId::SELF).unwrap();
        self.abi.mask(peer);
        let port = bind_interdomain(&xen, DomId::SELF, peer).unwrap();
        // The number may have been used before, so its mask bit may be either.
        let masked = self.abi.is_masked(port);
        let mut opened =
            Expected { peer, port, vcpu: 0, priority: 7, pending: false, masked, queued: None };
        self.raise(&mut opened); // a new connection is pending at once
        if !self.is_fifo() {
            self.sets[0].insert(port);
        }
        opened
    }

    /// What an event does to a port.
    fn raise(&mut self, slot: &mut Expected) {
        slot.pending = true;
        if !slot.masked && slot.queued.is_none() {
            self.moments += 1;
            slot.queued = Some((slot.vcpu, slot.priority, self.moments));
        }
    }

    fn with(&mut self, slot: usize, change: impl FnOnce(&mut Self, &mut Expected)) {
        let mut copy = self.slots[slot].clone();
        change(self, &mut copy);
        self.slots[slot] = copy;
    }

    fn run(&mut self, step: Step) {
        let (xen, abi) = (self.xen.vcpu(0), self.abi);
        match step {
            Step::Send(slot) => self.with(slot, |this, slot| {
                send(&xen, slot.peer).unwrap();
                this.raise(slot);
            }),
            Step::Mask(slot) => self.with(slot, |_, slot| {
                abi.mask(slot.port);
                slot.masked = true;
            }),
            Step::Unmask(slot) => self.with(slot, |this, slot| {
                abi.unmask(&xen, slot.port).unwrap();
                slot.masked = false;
                if slot.pending {
                    this.raise(slot);
                }
            }),
            Step::Clear(slot) => self.with(slot, |_, slot| {
                assert_eq!(abi.clear(slot.port), slot.pending);
                slot.pending = false;
            }),
            Step::Move(slot, vcpu) => self.with(slot, |this, slot| {
                move_port(&xen, &abi, slot.port, vcpu, || {
                    if !this.is_fifo() {
                        assert!(this.sets[slot.vcpu as usize].remove(slot.port));
                        this.sets[vcpu as usize].insert(slot.port);
                    }
                })
                .unwrap();
                slot.vcpu = vcpu;
                if slot.pending && !slot.masked {
                    this.raise(slot);
                }
            }),
            Step::Priority(slot, level) => self.with(slot, |this, slot| {
                if this.is_fifo() {
                    set_priority(&xen, slot.port, Priority::new(level).unwrap()).unwrap();
                    slot.priority = level;
                }
            }),
            Step::Reopen(slot) => {
                let old = self.slots[slot].clone();
                close(&xen, old.port).unwrap();
                close(&xen, old.peer).unwrap();
                self.sets[old.vcpu as usize].remove(old.port);
                self.slots[slot] = self.open();
            }
            Step::Dispatch(vcpu) => self.dispatch(vcpu),
        }
        for slot in &self.slots {
            assert_eq!(self.abi.is_pending(slot.port), slot.pending, "{slot:?}");
            assert_eq!(self.abi.is_masked(slot.port), slot.masked, "{slot:?}");
        }
    }

    fn dispatch(&mut self, vcpu: u32) {
        let info = self.xen.vcpu_info(vcpu);
        let mut seen = Vec::new();
        let count = match self.abi {
            ChosenAbi::TwoLevel(abi) => {
                abi.dispatch(&info, &self.sets[vcpu as usize], |port| seen.push(port))
            }
            ChosenAbi::Fifo(events) => {
                self.queues[vcpu as usize].dispatch(events, &info, |port| seen.push(port))
            }
        };
        assert_eq!(count, seen.len());
        assert!(!info.upcall_pending());

        let mut due: Vec<_> = self.slots.iter_mut().filter(|slot| slot.pending).collect();
        if let ChosenAbi::Fifo(_) = self.abi {
            due.retain(|slot| slot.queued.is_some_and(|queued| queued.0 == vcpu));
            due.sort_by_key(|slot| slot.queued);
        } else {
            due.retain(|slot| slot.vcpu == vcpu);
            due.sort_by_key(|slot| slot.port);
        }
        due.retain(|slot| !slot.masked);
        let expected: Vec<Port> = due.iter().map(|slot| slot.port).collect();
        for slot in due {
            slot.pending = false;
        }
        for slot in &mut self.slots {
            if slot.queued.is_some_and(|queued| queued.0 == vcpu) {
                slot.queued = None;
            }
        }
        assert_eq!(seen, expected);
    }

    /// In the end: everything unmasked, every event comes out somewhere.
    fn drain(&mut self) {
        for slot in 0..SLOTS {
            self.run(Step::Unmask(slot));
        }
        for vcpu in 0..VCPUS {
            self.run(Step::Dispatch(vcpu));
        }
        assert!(self.slots.iter().all(|slot| !slot.pending), "lost: {:?}", self.slots);
    }
}

fn run(mut machine: Machine<'_>, steps: Vec<Step>) {
    for step in steps {
        machine.run(step);
    }
    machine.drain();
}

fn fifo(xen: &FakeXen) -> (Fifo, Vec<FifoVcpu>) {
    let queues = (0..VCPUS)
        .map(|vcpu| {
            let (queues, frame) = xen.fifo_queues();
            queues.init(&xen.vcpu(0), vcpu, frame, 0).unwrap();
            queues
        })
        .collect();
    let (events, frame) = xen.fifo_memory(1);
    events.expand(&xen.vcpu(0), frame).unwrap();
    (events, queues)
}

proptest! {
    #[test]
    fn two_level_loses_no_event(steps in prop::collection::vec(step(), 0..120)) {
        let xen = FakeXen::new(VCPUS);
        run(Machine::new(&xen, ChosenAbi::TwoLevel(xen.two_level()), &[]), steps);
    }

    #[test]
    fn fifo_loses_no_event_and_keeps_the_order(steps in prop::collection::vec(step(), 0..120)) {
        let xen = FakeXen::new(VCPUS);
        let (events, queues) = fifo(&xen);
        run(Machine::new(&xen, ChosenAbi::Fifo(&events), &queues), steps);
    }
}
