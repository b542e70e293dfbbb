//! A Xen for host tests: one domain, threads as vCPUs, event channels and polls as documented.
//!
//! This module owns the fake's face. What it keeps of Xen's behaviour, each point with a unit test
//! of its own (`do_poll`, `evtchn_*` as Xen 4.17 behaves):
//!
//! * An event latches in the port's pending bit. A port that is pending already takes no further
//!   event: no upcall, no wake.
//! * A polled port ends its poll, masked or not. Another port's event ends it only if that port is
//!   unmasked and makes `evtchn_upcall_pending` go from 0 to 1; the vCPU's upcall mask is not asked.
//! * `SCHEDOP_poll` looks in this order: an upcall that is due (pending and not masked) returns 0;
//!   a closed or Xen-owned port is `EINVAL`; a pending port returns 0; then it sleeps. A deadline
//!   in the past returns 0, one that ends returns 0.
//! * Closing a port drops its pending bit and does **not** wake its pollers.
//! * Ports start unmasked. Port 0 is never given out; the lowest free number is.
//! * `EVTCHNOP_unmask` raises an upcall only if it finds the port masked and pending.
//!
//! It never interrupts a thread: a test calls [`TwoLevel::dispatch`] where an upcall would come.
//! Interdomain channels exist within the one domain ([`DomId::SELF`](crate::DomId::SELF)).

mod clock;
mod domain;
mod fifo;
#[cfg(test)]
mod fifo_tests;
mod sync;
#[cfg(test)]
mod tests;

use core::ptr::NonNull;
use std::boxed::Box;
use std::vec::Vec;

use xen_sys as sys;

use self::domain::Domain;
use self::sync::{Condvar, Mutex, MutexGuard};
use crate::{
    Errno, EventChannelOp, Fifo, FifoVcpu, Hypercalls, Port, SchedOp, TwoLevel, VcpuInfo, Virq,
};

/// A domain on a fake Xen.
///
/// ```
/// use evtchn::{Abi, Errno, bind_ipi, close, fake::FakeXen, poll};
///
/// let xen = FakeXen::new(4);
/// let vcpu = xen.vcpu(3);
/// let port = bind_ipi(&vcpu, 3)?;
/// close(&vcpu, port)?;
/// assert_eq!(poll(&vcpu, port, 0), Err(Errno::EINVAL));
/// # Ok::<(), Errno>(())
/// ```
#[derive(Debug)]
pub struct FakeXen {
    domain: Mutex<Domain>,
    /// One a vCPU, waited on while it polls or blocks.
    wakeups: Vec<Condvar>,
    two_level: TwoLevel,
    infos: Vec<VcpuInfo>,
}

/// What the fake hypervisor saw, in hypercalls since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// `EVTCHNOP_send`s.
    pub sends: u64,
    /// Of those, sends that woke a polling vCPU.
    pub waking_sends: u64,
    /// `SCHEDOP_poll`s.
    pub polls: u64,
    /// Of those, polls that slept.
    pub blocked_polls: u64,
    /// Of those, polls that their deadline ended.
    pub expired_polls: u64,
}

impl FakeXen {
    /// A domain of `vcpus` vCPUs, all up, on the host's clock (on a virtual one under shuttle,
    /// whose threads know no time).
    ///
    /// The memory shared with the guest is never freed, so that copies of
    /// [`two_level`](Self::two_level) stay valid: some 4 KiB a domain.
    ///
    /// # Panics
    ///
    /// If `vcpus` is 0.
    #[must_use]
    pub fn new(vcpus: u32) -> Self {
        if cfg!(shuttle) {
            return Self::with_virtual_clock(vcpus);
        }
        Self::with_clock(vcpus, clock::Clock::Host(std::time::Instant::now()))
    }

    /// The same with virtual time, which stands still while a vCPU runs and jumps to the next
    /// deadline when all sleep. So deadlines cost nothing, and a deadline that is ever reached
    /// shows that nobody was left to wake the sleeper.
    ///
    /// All vCPUs count as running until they poll or block; one that has nothing to do must say so
    /// with [`FakeVcpu::down`]. If all sleep and none has a deadline, the sleepers panic: that is a
    /// deadlock.
    #[must_use]
    pub fn with_virtual_clock(vcpus: u32) -> Self {
        Self::with_clock(vcpus, clock::Clock::Virtual(1))
    }

    fn with_clock(vcpus: u32, clock: clock::Clock) -> Self {
        assert!(vcpus > 0, "a domain has at least one vCPU");
        // SAFETY: both structures are integers and arrays of them; all-zero is a value, and is
        // what Xen hands out at boot.
        let shared: Box<sys::shared_info> = Box::new(unsafe { core::mem::zeroed() });
        // SAFETY: leaked, hence valid for ever; nobody but the atomics of TwoLevel touches it.
        let two_level = unsafe { TwoLevel::new(NonNull::from(Box::leak(shared))) };
        let infos: Vec<VcpuInfo> = (0..vcpus)
            .map(|_| {
                // SAFETY: as for shared_info above.
                let info: Box<sys::vcpu_info> = Box::new(unsafe { core::mem::zeroed() });
                // SAFETY: leaked, hence valid for ever; only VcpuInfo's atomics touch it.
                unsafe { VcpuInfo::new(NonNull::from(Box::leak(info))) }
            })
            .collect();
        Self {
            domain: Mutex::new(Domain::new(two_level, infos.clone(), clock)),
            wakeups: (0..vcpus).map(|_| Condvar::new()).collect(),
            two_level,
            infos,
        }
    }

    /// The vCPU of this number, through which a thread makes its hypercalls. Only one thread at a
    /// time may use a vCPU.
    ///
    /// # Panics
    ///
    /// If the domain has no such vCPU.
    #[must_use]
    pub fn vcpu(&self, vcpu: u32) -> FakeVcpu<'_> {
        assert!((vcpu as usize) < self.infos.len(), "no vCPU {vcpu} in this domain");
        FakeVcpu { xen: self, vcpu }
    }

    /// The domain's 2-level bitmaps.
    #[must_use]
    pub fn two_level(&self) -> TwoLevel {
        self.two_level
    }

    /// Memory for an event array of `pages` pages, and the frame number of the first; the others
    /// follow. Leaked, as all shared memory of the fake.
    ///
    /// # Panics
    ///
    /// If `pages` is 0 or beyond [`Fifo::MAX_PAGES`].
    #[must_use]
    pub fn fifo_memory(&self, pages: u32) -> (Fifo, u64) {
        let (memory, frame) = self.pages(pages as usize);
        // SAFETY: leaked, hence valid for ever; nobody else knows the pages.
        (unsafe { Fifo::new(memory, pages) }, frame)
    }

    /// Memory for the queues of one vCPU, and its frame number; the control block is at offset 0.
    #[must_use]
    pub fn fifo_queues(&self) -> (FifoVcpu, u64) {
        let (memory, frame) = self.pages(1);
        // SAFETY: leaked, hence valid for ever; nobody else knows the page.
        (unsafe { FifoVcpu::new(memory.cast()) }, frame)
    }

    fn pages(&self, pages: usize) -> (NonNull<u32>, u64) {
        #[repr(C, align(4096))]
        struct Page([u32; fifo::PAGE / size_of::<u32>()]);
        let memory: Vec<Page> =
            (0..pages).map(|_| Page([0; fifo::PAGE / size_of::<u32>()])).collect();
        let memory = NonNull::new(memory.leak().as_mut_ptr().cast()).expect("at least one page");
        let frame = self.lock().frames.add(memory, pages);
        (memory, frame)
    }

    /// From now on this Xen does not offer the FIFO ABI, like one started with `fifo` off.
    pub fn withhold_fifo(&self) {
        self.lock().offers_fifo = false;
    }

    /// A vCPU's event flags.
    ///
    /// # Panics
    ///
    /// If the domain has no such vCPU.
    #[must_use]
    pub fn vcpu_info(&self, vcpu: u32) -> VcpuInfo {
        self.infos[vcpu as usize]
    }

    /// Raises a virtual interrupt, as Xen does. Nothing happens if it is not bound.
    pub fn raise_virq(&self, vcpu: u32, virq: Virq) {
        let mut domain = self.lock();
        domain.raise_virq(vcpu, virq);
        self.wake(&mut domain);
    }

    /// A port that belongs to Xen (like an ioreq server's), which a guest may not use.
    #[must_use]
    pub fn xen_owned_port(&self) -> Port {
        self.lock().xen_owned_port()
    }

    /// What the hypervisor saw so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.lock().seen
    }

    fn lock(&self) -> MutexGuard<'_, Domain> {
        // A panic in one vCPU's thread must not hide behind "poisoned" in all others.
        self.domain.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Lets the threads of vCPUs that were made runnable go on.
    fn wake(&self, domain: &mut Domain) {
        for vcpu in domain.take_woken() {
            self.wakeups[vcpu].notify_all();
        }
    }

    /// Sleeps until the vCPU is runnable again or its deadline has passed.
    fn sleep(&self, mut domain: MutexGuard<'_, Domain>, vcpu: u32) {
        domain.let_virtual_time_pass();
        self.wake(&mut domain);
        while !domain.is_running(vcpu) {
            let wakeup = &self.wakeups[vcpu as usize];
            domain = match domain.host_time_left(vcpu) {
                #[cfg(not(shuttle))]
                Some(left) => {
                    wakeup
                        .wait_timeout(domain, left)
                        .unwrap_or_else(|poisoned| poisoned.into_inner())
                        .0
                }
                _ => wakeup.wait(domain).unwrap_or_else(|poisoned| poisoned.into_inner()),
            };
            domain.expire(vcpu);
            domain.check_deadlock();
        }
    }
}

/// One vCPU of a [`FakeXen`]: what its thread makes hypercalls with.
#[derive(Clone, Copy, Debug)]
pub struct FakeVcpu<'a> {
    xen: &'a FakeXen,
    vcpu: u32,
}

impl FakeVcpu<'_> {
    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.vcpu
    }

    /// Takes the vCPU down, like `VCPUOP_down`: virtual time no longer waits for it. It must make
    /// no more hypercalls.
    pub fn down(&self) {
        let mut domain = self.xen.lock();
        domain.take_down(self.vcpu);
        domain.let_virtual_time_pass();
        self.xen.wake(&mut domain);
    }
}

impl Hypercalls for FakeVcpu<'_> {
    fn event_channel_op(&self, op: EventChannelOp<'_>) -> Result<(), Errno> {
        let mut domain = self.xen.lock();
        let result = domain.event_channel_op(op);
        self.xen.wake(&mut domain);
        result
    }

    fn sched_op(&self, op: SchedOp) -> Result<(), Errno> {
        let mut domain = self.xen.lock();
        let sleeps = match op {
            SchedOp::Poll { port, deadline_ns } => domain.poll(self.vcpu, port, deadline_ns)?,
            SchedOp::Block => domain.block(self.vcpu),
            SchedOp::Yield => {
                drop(domain);
                sync::yield_now();
                return Ok(());
            }
        };
        if sleeps {
            self.xen.sleep(domain, self.vcpu);
        }
        Ok(())
    }

    fn system_time_ns(&self) -> u64 {
        self.xen.lock().now_ns()
    }
}
