//! The guest's side: what the lock finds around itself on a simulated vCPU.
//!
//! Owns `pvlock`'s platform and `evtchn`'s hypercalls as the simulation has them, and the one door
//! through which a vCPU's code gives control to the scheduler. Never decides who runs: that is
//! [`host`](crate::host).
//!
//! A vCPU's code runs in no time from one call of the platform to the next; every call costs
//! what the configuration says, and the code behind it runs when the clock is there.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ptr;
use std::rc::Rc;

use corosensei::Yielder;
use evtchn::{Abi, Errno, EventChannelOp, Hypercalls, Kicker, Port, SchedOp};
use pvlock::{CpuNodes, HashStorage, HashTable, Mode, Platform};

use crate::config::{Config, Fault, LEVELS};
use crate::dist::{NEVER, Random};

/// Why a vCPU's code gives control to the scheduler.
#[derive(Debug)]
pub(crate) enum Request {
    /// Its clock has come to a moment before which something else happens.
    Run,
    /// `SCHEDOP_poll` of its port.
    Poll(Port),
    /// `EVTCHNOP_send`.
    Send(Port),
    /// The hypervisor takes it off its pCPU here.
    Preempt,
    /// It has nothing to do for so many nanoseconds.
    Idle(u64),
    /// It found two owners of a lock: itself and this vCPU.
    TwoOwners { lock: usize, other: usize },
}

pub(crate) type Door = Yielder<(), Request>;

/// What all vCPUs of a simulation share.
pub(crate) struct Guest {
    nodes: Vec<CpuNodes>,
    hash: HashTable,
    kickers: Vec<Kicker>,
    /// By port: whether an event is latched. All ports are masked, so there is nothing else to know.
    latched: Vec<Cell<bool>>,
    /// By vCPU: polls that slept.
    pub(crate) slept: Vec<Cell<u64>>,
    /// By vCPU: kicks that ended a sleep.
    pub(crate) woken: Vec<Cell<u64>>,
    /// By vCPU: the lock it waits for.
    pub(crate) wants: Vec<Cell<Option<usize>>>,
    /// By vCPU: the lock it waited for last.
    about: Vec<Cell<Option<usize>>>,
    /// By vCPU: when its next upcall is due.
    pub(crate) upcall_at: Vec<Cell<u64>>,
    /// By vCPU: how many handlers are under way.
    level: Vec<Cell<usize>>,
    /// By vCPU: what an upcall does, at a level from 1 on.
    handlers: RefCell<Vec<Handler>>,
    /// What happened last.
    history: RefCell<VecDeque<Note>>,
    chance: RefCell<Random>,
    config: Config,
    mode: Mode,
}

/// What an upcall does on a vCPU, at a level of nesting; returns how long it is until the next.
pub(crate) type Handler = Rc<dyn Fn(usize) -> u64>;

/// A step, when it was, whose, and which lock that vCPU had to do with last.
pub(crate) struct Note {
    at: u64,
    vcpu: usize,
    event: Event,
    about: Option<usize>,
}

/// A step worth telling when a run fails.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    Wants(usize),
    Owns(usize),
    Releases(usize),
    Sleeps,
    Kicks(usize),
    LosesKick(usize),
    Wakes,
    Preempted,
    GoesOn,
    Upcall,
    Done,
}

impl std::fmt::Display for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Wants(lock) => write!(f, "wants lock {lock}"),
            Self::Owns(lock) => write!(f, "owns lock {lock}"),
            Self::Releases(lock) => write!(f, "releases lock {lock}"),
            Self::Sleeps => f.write_str("sleeps in a poll"),
            Self::Kicks(vcpu) => write!(f, "kicks vCPU {vcpu}"),
            Self::LosesKick(vcpu) => write!(f, "kicks vCPU {vcpu}, and the kick is lost (--fault)"),
            Self::Wakes => f.write_str("wakes up"),
            Self::Preempted => f.write_str("is preempted"),
            Self::GoesOn => f.write_str("goes on"),
            Self::Upcall => f.write_str("takes an upcall"),
            Self::Done => f.write_str("is done"),
        }
    }
}

/// Steps that are kept.
const HISTORY: usize = 10_000;
/// A vCPU's number where none runs.
const NONE: usize = usize::MAX;

thread_local! {
    static GUEST: Cell<Option<&'static Guest>> = const { Cell::new(None) };
    /// The vCPU that runs, and its clock.
    static VCPU: Cell<usize> = const { Cell::new(NONE) };
    static NOW: Cell<u64> = const { Cell::new(0) };
    /// Up to here the running vCPU is alone in the world.
    static HORIZON: Cell<u64> = const { Cell::new(0) };
    static DOOR: Cell<*const Door> = const { Cell::new(ptr::null()) };
}

impl Guest {
    /// The guest of this thread's simulation, from now on.
    pub(crate) fn install<const CPUS: usize, const LINES: usize>(
        config: &Config,
        mode: Mode,
        chance: Random,
    ) -> Installed {
        let storage = storage::<LINES>();
        let vcpus = config.vcpus;
        let guest = Box::into_raw(Box::new(Self {
            nodes: (0..CPUS).map(|_| CpuNodes::new()).collect(),
            hash: HashTable::new(storage),
            kickers: (0..vcpus).map(|_| Kicker::new()).collect(),
            latched: vec![Cell::new(false); vcpus + 1],
            slept: vec![Cell::new(0); vcpus],
            woken: vec![Cell::new(0); vcpus],
            wants: vec![Cell::new(None); vcpus],
            about: vec![Cell::new(None); vcpus],
            upcall_at: vec![Cell::new(NEVER); vcpus],
            level: vec![Cell::new(0); vcpus],
            handlers: RefCell::default(),
            history: RefCell::default(),
            chance: RefCell::new(chance),
            config: config.clone(),
            mode,
        }));
        // SAFETY: from the box above, which lives until `Installed` goes.
        let shared: &'static Self = unsafe { &*guest };
        GUEST.set(Some(shared));
        for (vcpu, kicker) in shared.kickers.iter().enumerate() {
            kicker.bind(&Xen, &Latches(shared), vcpu as u32).expect("a port for each vCPU");
        }
        Installed { guest, storage }
    }

    /// Upcalls from now on; without handlers there are none.
    pub(crate) fn set_handlers(&self, handlers: Vec<Handler>) {
        self.handlers.replace(handlers);
    }

    /// Runs the handler of the running vCPU if an upcall is due and may come.
    pub(crate) fn take_upcall(&self) {
        let vcpu = VCPU.get();
        if vcpu == NONE || NOW.get() < self.upcall_at[vcpu].get() {
            return;
        }
        let level = self.level[vcpu].get() + 1;
        if level > LEVELS {
            return;
        }
        let handler = self.handlers.borrow()[vcpu].clone();
        self.upcall_at[vcpu].set(NEVER);
        self.level[vcpu].set(level);
        let (wants, about) = (self.wants[vcpu].get(), self.about[vcpu].get());
        let (slept, woken) = (self.slept[vcpu].get(), self.woken[vcpu].get());
        self.note(NOW.get(), vcpu, Event::Upcall);
        let until_next = handler(level);
        // The handler's sleeps are told with its own acquisition.
        self.slept[vcpu].set(slept);
        self.woken[vcpu].set(woken);
        self.wants[vcpu].set(wants);
        self.about[vcpu].set(about);
        self.level[vcpu].set(level - 1);
        self.upcall_at[vcpu].set(NOW.get() + until_next);
    }

    pub(crate) fn nodes_in_use(&self) -> usize {
        self.nodes.iter().map(CpuNodes::depth).sum()
    }

    pub(crate) fn hash(&self) -> &HashTable {
        &self.hash
    }

    /// Latches an event of `port`: whether there was none.
    pub(crate) fn latch(&self, port: Port) -> bool {
        !self.latched[port.get() as usize].replace(true)
    }

    pub(crate) fn is_latched(&self, port: Port) -> bool {
        self.latched[port.get() as usize].get()
    }

    pub(crate) fn note(&self, at: u64, vcpu: usize, event: Event) {
        if let Event::Wants(lock) = event {
            self.about[vcpu].set(Some(lock));
        }
        let mut history = self.history.borrow_mut();
        if history.len() == HISTORY {
            history.pop_front();
        }
        history.push_back(Note { at, vcpu, event, about: self.about[vcpu].get() });
    }

    /// The last `count` steps to do with `lock`, or with any, the latest first.
    pub(crate) fn history(&self, lock: Option<usize>, count: usize) -> Vec<String> {
        let history = self.history.borrow();
        let wanted = |note: &&Note| lock.is_none() || note.about == lock;
        let tell = |note: &Note| format!("{:>14} ns  vCPU {} {}", note.at, note.vcpu, note.event);
        history.iter().rev().filter(wanted).take(count).map(tell).collect()
    }
}

/// The port of a vCPU.
pub(crate) fn port_of(vcpu: usize) -> Port {
    Port::new(vcpu as u32 + 1).expect("vCPU numbers are small")
}

/// The vCPU of a port.
pub(crate) fn vcpu_of(port: Port) -> usize {
    port.get() as usize - 1
}

/// The guest of this thread, until it is dropped. Nobody may use a reference to it after that: drop
/// coroutines and scheduler first.
pub(crate) struct Installed {
    guest: *mut Guest,
    storage: &'static dyn Any,
}

impl Installed {
    pub(crate) fn guest(&self) -> &'static Guest {
        // SAFETY: from a box that lives as long as `self`; who asks keeps to the rule above.
        unsafe { &*self.guest }
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        GUEST.set(None);
        if self.guest().hash.is_empty() {
            SPARE.with_borrow_mut(|spare| spare.push(self.storage));
        }
        // SAFETY: the pointer came from a box; by the rule above all references are gone, those that
        // `Platform::nodes` gave out with the coroutines they were in.
        drop(unsafe { Box::from_raw(self.guest) });
    }
}

thread_local! {
    /// Storage of tables that were empty when their simulation ended. Only a failure leaks one.
    static SPARE: RefCell<Vec<&'static dyn Any>> = const { RefCell::new(Vec::new()) };
}

/// Storage for a hash table: a spare one, or one made on a stack that is large enough for a copy.
fn storage<const LINES: usize>() -> &'static HashStorage<LINES> {
    let spare = SPARE.with_borrow_mut(|spare| {
        let index = spare.iter().position(|any| any.is::<HashStorage<LINES>>())?;
        spare.swap_remove(index).downcast_ref()
    });
    spare.unwrap_or_else(|| {
        std::thread::Builder::new()
            .stack_size(16 << 20)
            .spawn(|| &*Box::leak(Box::new(HashStorage::new())))
            .expect("a thread can be started")
            .join()
            .expect("a new table is made")
    })
}

/// Lets `vcpu`'s code run from `now` on; it gives control back before its clock passes `horizon`.
pub(crate) fn enter(vcpu: usize, now: u64, horizon: u64) {
    VCPU.set(vcpu);
    NOW.set(now);
    HORIZON.set(horizon);
}

/// No vCPU runs any more. The clock of the one that did.
pub(crate) fn leave() -> u64 {
    VCPU.set(NONE);
    NOW.get()
}

/// What a vCPU's code begins with.
pub(crate) fn begin(door: &Door) {
    DOOR.set(door);
}

/// The clock of the running vCPU.
pub(crate) fn now() -> u64 {
    NOW.get()
}

/// Gives control to the scheduler.
pub(crate) fn give(request: Request) {
    let door = DOOR.get();
    // SAFETY: `begin` put it there at the start of the coroutine that runs now, or this function
    // did when it went on; it lives as long as the coroutine.
    unsafe { &*door }.suspend(request);
    DOOR.set(door);
}

/// Lets time pass for the running vCPU. Without one (a dump looks at the lock) nothing happens.
pub(crate) fn spend(nanoseconds: u64) {
    if VCPU.get() == NONE {
        return;
    }
    let now = NOW.get() + nanoseconds;
    NOW.set(now);
    if now > HORIZON.get() {
        give(Request::Run);
    }
}

fn guest() -> &'static Guest {
    GUEST.get().expect("a lock of the simulation is used in a simulation only")
}

/// A step of the lock that may be the last before a preemption.
fn step(nanoseconds: u64) -> &'static Guest {
    let guest = guest();
    spend(nanoseconds);
    let one_in = guest.config.preempt_one_in;
    if one_in != 0 && VCPU.get() != NONE && guest.chance.borrow_mut().one_in(one_in) {
        give(Request::Preempt);
    }
    guest.take_upcall();
    guest
}

/// The platform of a simulated guest with up to `CPUS` vCPUs.
pub(crate) struct Vm<const CPUS: usize>;

// SAFETY: 1. A coroutine is one vCPU for ever. 2. The guest's memory is its simulation's alone, and
// outlives every coroutine in which a lock is used; its thread has no other guest while the simulation lasts. 3. An upcall is a call from a
// step. 4., 5. As `Kicker`'s documentation promises: `Request::Send` latches before
// anything else happens, and `Request::Poll` looks at the latch before it sleeps. All on one
// thread, so every step is a full barrier.
unsafe impl<const CPUS: usize> Platform for Vm<CPUS> {
    const MAX_CPUS: usize = CPUS;

    fn current_cpu() -> usize {
        spend(guest().config.step.0);
        VCPU.get()
    }

    fn nodes(cpu: usize) -> &'static CpuNodes {
        &step(guest().config.step.0).nodes[cpu]
    }

    fn hash() -> &'static HashTable {
        &step(guest().config.step.0).hash
    }

    fn wait(still_blocked: impl Fn() -> bool) {
        let guest = step(0);
        if guest.config.fault == Fault::NestedClears && guest.level[VCPU.get()].get() > 0 {
            Latches(guest).clear(port_of(VCPU.get()));
        }
        let looked = || {
            let blocked = still_blocked();
            // The worst moment: after the look, before the poll. By chance it would come too seldom.
            let at = &guest.upcall_at[VCPU.get()];
            if at.get() < NEVER && guest.chance.borrow_mut().one_in(4) {
                at.set(NOW.get());
            }
            guest.take_upcall();
            blocked
        };
        guest.kickers[VCPU.get()].wait(&Xen, &Latches(guest), 0, looked);
    }

    fn kick(cpu: usize) {
        step(0).kickers[cpu].kick(&Xen).expect("the port is bound");
    }

    fn now() -> u64 {
        step(guest().config.step.0);
        NOW.get()
    }

    fn online_cpus() -> usize {
        guest().config.vcpus
    }

    fn spin_turns() -> u32 {
        let config = &guest().config;
        u32::try_from(config.spin.0 / config.turn.0.max(1)).unwrap_or(u32::MAX)
    }

    fn mode() -> Mode {
        guest().mode
    }

    fn relax(_turn: u32) {
        step(guest().config.turn.0);
    }
}

/// The hypercalls of the running vCPU.
struct Xen;

impl Hypercalls for Xen {
    fn event_channel_op(&self, op: EventChannelOp<'_>) -> Result<(), Errno> {
        match op {
            EventChannelOp::BindIpi(op) => op.port = port_of(op.vcpu as usize).get(),
            EventChannelOp::Send(op) => {
                spend(guest().config.hypercall.0);
                give(Request::Send(Port::new(op.port).ok_or(Errno::EINVAL)?));
            }
            _ => return Err(Errno::ENOSYS),
        }
        Ok(())
    }

    fn sched_op(&self, op: SchedOp) -> Result<(), Errno> {
        let SchedOp::Poll { port, .. } = op else { return Err(Errno::ENOSYS) };
        spend(guest().config.hypercall.0);
        give(Request::Poll(port));
        Ok(())
    }

    fn system_time_ns(&self) -> u64 {
        now().max(1)
    }
}

/// The pending bits, one to a port.
struct Latches(&'static Guest);

impl Abi for Latches {
    fn ports(&self) -> u32 {
        self.0.latched.len() as u32
    }

    fn mask(&self, _port: Port) {}

    fn is_masked(&self, _port: Port) -> bool {
        true
    }

    fn is_pending(&self, port: Port) -> bool {
        self.0.is_latched(port)
    }

    fn clear(&self, port: Port) -> bool {
        self.0.latched[port.get() as usize].replace(false)
    }

    fn unmask(&self, _xen: &impl Hypercalls, _port: Port) -> Result<(), Errno> {
        Err(Errno::ENOSYS) // a kicker's port stays masked for ever
    }
}
