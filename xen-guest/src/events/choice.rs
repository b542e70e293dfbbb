//! Which of Xen's two event channel ABIs the domain uses, and what of it this kernel must hold.
//!
//! This file owns the choice, the memory of the FIFO ABI (event words, control blocks), and that
//! both are there again after a restore. What the bits mean is the business of `evtchn`; which port
//! is for what, of whoever binds it. A kernel that never calls [`choose`] is on the 2-level ABI, as
//! every domain at boot.

use alloc::boxed::Box;
use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::{Acquire, Release};

use evtchn::{Abi, ChosenAbi, Connection, Errno, Fifo, FifoVcpu, Port, PortSet, Priority};
use spin::{Mutex, Once};
use xen_sys as sys;

use super::xen::Xen;
use super::{shared_info, sleep, toolstack};
use crate::vcpu::{self, Area, MAX_VCPUS, PerVcpu, clock, mask};
use crate::xen::abi::PAGE_SIZE;
use crate::xen::{frames, hypercall};

/// Pages of event words there is memory for: as many ports as the 2-level ABI has.
const PAGES: u32 = 4;

#[repr(C, align(4096))]
struct Words(UnsafeCell<[[u32; PAGE_SIZE / 4]; PAGES as usize]>);

// SAFETY: reached through `ARRAY` alone, which accesses it atomically.
unsafe impl Sync for Words {}

static WORDS: Words = Words(UnsafeCell::new([[0; PAGE_SIZE / 4]; PAGES as usize]));

static ARRAY: Fifo = {
    // SAFETY: the address of a static.
    let words = unsafe { NonNull::new_unchecked(WORDS.0.get().cast()) };
    // SAFETY: page-aligned, of that many pages, for ever; nothing else refers to it.
    unsafe { Fifo::new(words, PAGES) }
};

/// A control block, aligned so that it crosses no page.
#[repr(C, align(128))]
struct Block(UnsafeCell<[u64; 9]>);

// SAFETY: reached through one `FifoVcpu` alone, which accesses it atomically.
unsafe impl Sync for Block {}

const _: () =
    assert!(size_of::<sys::evtchn_fifo_control_block>() == 72 && size_of::<Block>() == 128);

static BLOCKS: [Block; MAX_VCPUS] = [const { Block(UnsafeCell::new([0; 9])) }; MAX_VCPUS];

/// Each vCPU's queues, over its control block.
static QUEUES: Once<Box<[FifoVcpu]>> = Once::new();

/// Whether the domain uses the FIFO ABI.
static FIFO: AtomicBool = AtomicBool::new(false);

/// Held by the vCPU that adds a page of words, with upcalls held back: so no vCPU that is held for
/// a suspend holds it.
static GROWING: Mutex<()> = Mutex::new(());

/// How long a new domain's daemons may take to connect: far longer than they do, where there are
/// any.
const PATIENCE_NS: u64 = 5_000_000_000;

/// Ports whose upcalls each vCPU handles, with the 2-level ABI; see [`handle_on`].
static PORTS: PerVcpu<PortSet> =
    PerVcpu::new([const { PerVcpu::entry(PortSet::new()) }; MAX_VCPUS]);

/// How a domain and Xen share the state of event channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventAbi {
    /// Bits, 4,096 ports: what every domain begins with.
    TwoLevel,
    /// Words and queues, with priorities.
    Fifo,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// The FIFO ABI where Xen offers it, else the 2-level one.
    Auto,
    /// The 2-level ABI, which every Xen offers.
    TwoLevel,
    /// The FIFO ABI or an error.
    Fifo,
}

/// Chooses the ABI: once, on vCPU 0, with no other vCPU running and no port bound but those the
/// toolstack made. All `vcpus` of the domain get their queues, started or not. Allocates once, for
/// ever.
///
/// # Errors
///
/// What Xen answered, where only the FIFO ABI would do. Whenever Xen refuses, half way included,
/// the domain is on the 2-level ABI afterwards, and console and xenstore have their ports.
pub fn choose(vcpus: u32, wanted: Wanted) -> Result<EventAbi, Errno> {
    choose_with(vcpus, wanted, frames::frame_of)
}

/// As [`choose`], with another translation from this kernel's addresses to the frames Xen is given.
///
/// A test makes Xen refuse by a wrong one; no frame that is given may be used for anything else.
///
/// # Errors
///
/// As [`choose`].
pub fn choose_with(
    vcpus: u32,
    wanted: Wanted,
    frame_of: fn(usize) -> u64,
) -> Result<EventAbi, Errno> {
    if wanted == Wanted::TwoLevel {
        return Ok(EventAbi::TwoLevel);
    }
    if abi() == EventAbi::Fifo {
        return Ok(EventAbi::Fifo);
    }
    QUEUES.call_once(|| BLOCKS.iter().map(queues_over).collect());
    match switch(vcpus, 1, frame_of) {
        Ok(()) => Ok(EventAbi::Fifo),
        Err(errno) if wanted == Wanted::Auto => {
            log::warn!(
                "Xen refuses the FIFO event channels ({errno}): the domain uses 2-level ones"
            );
            Ok(EventAbi::TwoLevel)
        }
        Err(errno) => Err(errno),
    }
}

fn queues_over(block: &'static Block) -> FifoVcpu {
    let block = NonNull::from(block).cast();
    // SAFETY: aligned, within a page, for ever; each block is that of one `FifoVcpu`.
    unsafe { FifoVcpu::new(block) }
}

/// The ABI that is in use.
pub fn abi() -> EventAbi {
    // Acquire: pairs with the release in `switch`.
    if FIFO.load(Acquire) { EventAbi::Fifo } else { EventAbi::TwoLevel }
}

/// The domain's event channel bits.
///
/// # Panics
///
/// Before the shared page is mapped, which is one of the first steps of booting.
#[inline]
pub fn events() -> ChosenAbi<'static> {
    match abi() {
        EventAbi::Fifo => ChosenAbi::Fifo(&ARRAY),
        EventAbi::TwoLevel => ChosenAbi::TwoLevel(shared_info::two_level()),
    }
}

/// Makes `vcpu` the one that handles `port`'s upcalls, to which Xen sends them; before it is
/// unmasked.
///
/// # Errors
///
/// `ENOSPC`: there is no word for so large a port, nor memory for more. Others as
/// [`Fifo::expand`]. The port is still open.
pub fn handle_on(vcpu: u32, port: Port) -> Result<(), Errno> {
    while port.get() >= events().ports() {
        grow()?;
    }
    if abi() == EventAbi::TwoLevel {
        // With FIFO each vCPU has queues of its own.
        PORTS.of(vcpu).insert(port);
    }
    Ok(())
}

/// Takes `port` away from `vcpu` again.
pub fn handle_no_more(vcpu: u32, port: Port) {
    if abi() == EventAbi::TwoLevel {
        PORTS.of(vcpu).remove(port);
    }
}

/// Lets `port`'s events be handled before those of a lower priority, where the ABI knows such.
///
/// # Errors
///
/// As [`evtchn::set_priority`].
pub fn prefer(port: Port, priority: Priority) -> Result<(), Errno> {
    match abi() {
        EventAbi::Fifo => evtchn::set_priority(&Xen, port, priority),
        EventAbi::TwoLevel => Ok(()),
    }
}

/// Adds a page of words: 1,024 ports more.
///
/// # Errors
///
/// `ENOSPC`: not with the 2-level ABI, or there is no memory for another. Others as
/// [`Fifo::expand`].
pub fn grow() -> Result<(), Errno> {
    if abi() == EventAbi::TwoLevel {
        return Err(Errno::ENOSPC);
    }
    mask::without(|| {
        let _one_at_a_time = GROWING.lock();
        add_page(frames::frame_of)
    })
}

fn add_page(frame_of: fn(usize) -> u64) -> Result<(), Errno> {
    let page = (ARRAY.ports() / Fifo::WORDS_PER_PAGE) as usize;
    ARRAY.expand(&Xen, frame_of(WORDS.0.get() as usize + page * PAGE_SIZE))
}

/// Handles what is due on this vCPU: the body of an upcall.
pub(super) fn dispatch(handler: impl FnMut(Port)) {
    let vcpu = vcpu::current();
    let flags = Area::of(vcpu).flags();
    match events() {
        ChosenAbi::TwoLevel(events) => events.dispatch(&flags, PORTS.of(vcpu), handler),
        ChosenAbi::Fifo(events) => queues(vcpu).dispatch(events, &flags, handler),
    };
}

/// The queues of `vcpu`; there are some once the FIFO ABI was tried.
fn queues(vcpu: u32) -> &'static FifoVcpu {
    let all = QUEUES.get().expect("queues are made before the FIFO ABI is used");
    &all[vcpu as usize]
}

/// Takes the domain from the 2-level ABI to FIFO, with `pages` pages of words. If it fails, it is
/// on the 2-level ABI as before.
fn switch(vcpus: u32, pages: u32, frame_of: fn(usize) -> u64) -> Result<(), Errno> {
    let init = |vcpu: u32| {
        let block = &raw const BLOCKS[vcpu as usize] as usize;
        queues(vcpu).init(&Xen, vcpu, frame_of(block), (block % PAGE_SIZE) as u32)
    };
    match init(0) {
        Ok(()) => {}
        // Xen has switched, all the same.
        Err(Errno::EOPNOTSUPP) => return Err(go_back(Errno::EOPNOTSUPP)),
        Err(errno) => return Err(errno),
    }
    let rest = (1..vcpus).try_for_each(init);
    ARRAY.forget();
    rest.and_then(|()| (0..pages).try_for_each(|_| add_page(frame_of))).map_err(go_back)?;
    // Release: pairs with the acquire in `abi`.
    FIFO.store(true, Release);
    Ok(())
}

/// Returns to the 2-level ABI half way, with the ports of the toolstack; passes the reason on.
#[cold]
fn go_back(why: Errno) -> Errno {
    // This vCPU is the only one.
    sleep::forget(0);
    shared_info::two_level().mask_all();
    let kept = toolstack::kept();
    // A daemon that comes to connect just when its port is closed finds nothing, and does not come
    // again.
    let limit = clock::now() + PATIENCE_NS;
    let is_awaited = |port| {
        let connection = evtchn::status(&Xen, port).map(|status| status.connection);
        matches!(connection, Ok(Connection::Unbound(_)))
    };
    while kept.into_iter().flatten().any(is_awaited) && clock::now() < limit {
        hypercall::sched_yield();
    }
    // Without them the domain cannot even say so.
    evtchn::reset_keeping(&Xen, kept).expect("a domain can go back to the 2-level event channels");
    why
}

/// After a restore, before any port is bound: the domain is on the 2-level ABI again, with nothing
/// of ours.
///
/// # Errors
///
/// What Xen answered, where it was on FIFO before and cannot be now: upcalls that were held
/// meanwhile would look for their events in vain.
pub(crate) fn restore(vcpus: u32) -> Result<(), Errno> {
    // FIFO queues are empty already.
    (0..vcpus).for_each(|vcpu| PORTS.of(vcpu).clear());
    if abi() == EventAbi::TwoLevel {
        return Ok(());
    }
    // As many as before: a vCPU that is held may be about to use a word.
    switch(vcpus, ARRAY.ports() / Fifo::WORDS_PER_PAGE, frames::frame_of)
}
