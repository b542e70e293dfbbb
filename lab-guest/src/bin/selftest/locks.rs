//! Tests of the lock in upcalls and NMIs.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use lab_guest::workload::work::work;
use pvlock::Counter;
use xen_guest::events::{timer, upcall};
use xen_guest::glue::{self, IrqMutex, Mutex, XenPlatform};
use xen_guest::kernel::machine::{DomainType, Machine};
use xen_guest::kernel::stack;
use xen_guest::vcpu::{identity, mask};
use xen_guest::xen::hypercall;

use super::support::{COUNT, check, soon, start_others};

static TASK: Mutex<u64> = Mutex::new(0);
static INTERRUPT: Mutex<u64> = Mutex::new(0);
/// What each vCPU did: acquisitions of its task, and of its upcalls.
static TASKS: [AtomicU64; 128] = [const { AtomicU64::new(0) }; 128];
static INTERRUPTS: [AtomicU64; 128] = [const { AtomicU64::new(0) }; 128];

/// A counter of the lock, over all vCPUs.
fn sum(counter: Counter) -> u64 {
    let of = |vcpu| pvlock::counters::<XenPlatform>(vcpu as usize)[counter as usize];
    (0..Machine::get().vcpus()).map(of).sum()
}

/// Whether an upcall sets the timer that brings the next one.
static SET_AGAIN: AtomicBool = AtomicBool::new(false);

/// As [`nested_lock`], with timers that are set again by their own upcalls: between two upcalls the
/// task may be in a wait, in a critical section, or still in the same wait as before.
pub(crate) fn nested_lock_set_again(machine: &'static Machine) -> Result<(), &'static str> {
    SET_AGAIN.store(true, SeqCst);
    nested_lock(machine)
}

/// Whether each vCPU forgets its GS base before it begins.
static NO_GS_BASE: AtomicBool = AtomicBool::new(false);

/// As [`nested_lock`], on a kernel that finds a vCPU's number by its stack, and on which whatever
/// looks through GS faults.
pub(crate) fn own_identity(machine: &'static Machine) -> Result<(), &'static str> {
    // SAFETY: each vCPU runs on the stack of its number; no NMI comes, and nothing else leaves it.
    unsafe { identity::identify_by(number_of_stack) };
    NO_GS_BASE.store(true, SeqCst);
    nested_lock(machine)
}

/// The number of the vCPU whose stack this is.
fn number_of_stack() -> u32 {
    let here = 0u8;
    let stacks = &stack::STACKS;
    let offset = (&raw const here).addr() - (&raw const *stacks).addr();
    (offset / (size_of_val(stacks) / stacks.len())) as u32
}

/// Makes the GS base of this vCPU 0, where nothing is mapped.
fn forget_gs_base(machine: &Machine) {
    match machine.domain_type() {
        DomainType::Pv => {
            let arguments = [xen_sys::SEGBASE_GS_KERNEL as usize, 0, 0, 0];
            // SAFETY: no code needs it any more.
            let done =
                unsafe { hypercall::call(xen_sys::__HYPERVISOR_set_segment_base, arguments) };
            done.expect("the GS base can be set");
        }
        DomainType::Pvh => {
            const GS_BASE: u32 = 0xc000_0101; // Intel SDM volume 4, IA32_GS_BASE
            // SAFETY: no code needs it any more.
            unsafe {
                core::arch::asm!(
                    "wrmsr",
                    in("ecx") GS_BASE,
                    in("eax") 0,
                    in("edx") 0,
                    options(nostack, preserves_flags),
                );
            }
        }
    }
}

/// Tasks take one lock with upcalls enabled; timer upcalls, which interrupt their waits and their
/// critical sections, take another.
pub(crate) fn nested_lock(machine: &'static Machine) -> Result<(), &'static str> {
    const UPCALLS_EACH: u64 = 20;
    const NESTED: u64 = 5;
    /// From arming to firing, doubled up to five times: some end in the wait, however slow the
    /// machine.
    const AFTER_NS: u64 = 50_000;
    glue::configure(pvlock::Mode::Pv, 100).map_err(|_| "the mode is settled already")?;
    for vcpu in 0..machine.vcpus() {
        glue::bind(vcpu).map_err(|_| "no port for a kicker")?;
    }
    upcall::set_upcall_handler(|port| {
        if timer::is_mine(port) {
            let machine = Machine::get();
            let began = machine.now();
            let mut inside = INTERRUPT.lock();
            work(20_000);
            *inside += 1;
            drop(inside);
            INTERRUPTS[Machine::current_vcpu() as usize].fetch_add(1, SeqCst);
            if SET_AGAIN.load(SeqCst) {
                // Three times as long for the task as this took, however slow the machine: upcalls
                // without a pause would leave the task no time, and its kicks would come late.
                let now = machine.now();
                let _ = timer::set(now + 3 * (now - began) + AFTER_NS);
            }
        }
    });
    fn contend(vcpu: u32) {
        let machine = Machine::get();
        if NO_GS_BASE.load(SeqCst) {
            forget_gs_base(machine);
        }
        let _ = timer::bind();
        mask::enable();
        while INTERRUPTS[vcpu as usize].load(SeqCst) < UPCALLS_EACH
            || sum(Counter::UseNode2) < NESTED && machine.vcpus() > 1
        {
            let round = TASKS[vcpu as usize].load(SeqCst);
            if !SET_AGAIN.load(SeqCst) || round == 0 {
                let _ = timer::set(machine.now() + (AFTER_NS << (round % 6)));
            }
            let mut inside = TASK.lock();
            work(20_000);
            *inside += 1;
            drop(inside);
            TASKS[vcpu as usize].fetch_add(1, SeqCst);
        }
        // A last one may be due: held back, it cannot come any more.
        mask::disable();
        COUNT.fetch_add(1, SeqCst);
    }
    start_others(machine, contend)?;
    contend(0);
    let limit = machine.now() + 120_000_000_000;
    while COUNT.load(SeqCst) < machine.vcpus() {
        check(machine.now() < limit, "a vCPU hangs")?;
        machine.sleep_until(machine.now() + 10_000_000);
    }
    let all = |counts: &[AtomicU64]| counts.iter().map(|n| n.load(SeqCst)).sum::<u64>();
    let (tasks, interrupts) = (all(&TASKS), all(&INTERRUPTS));
    // The loop above ends only after some upcalls have waited inside a wait.
    let (nested, timeouts) = (sum(Counter::UseNode2), sum(Counter::PollTimeout));
    log::info!("{tasks} tasks, {interrupts} upcalls, {nested} nested, {timeouts} polls timed out");
    check(*TASK.lock() == tasks, "exclusion between tasks is broken")?;
    check(*INTERRUPT.lock() == interrupts, "exclusion between upcalls is broken")?;
    check(timeouts == 0, "a wake-up was lost")
}

/// Waits for an NMI (`xl trigger DOMAIN nmi`) that comes while its lock is held, and one when it is
/// free.
pub(crate) fn nmi(machine: &'static Machine) -> Result<(), &'static str> {
    static LOCK: Mutex<u32> = Mutex::new(0);
    static HELD: AtomicU32 = AtomicU32::new(0);
    static FREE: AtomicU32 = AtomicU32::new(0);
    glue::bind(0).map_err(|_| "no port for a kicker")?;
    upcall::set_nmi_handler(|| {
        match LOCK.try_lock() {
            Some(mut inside) => {
                *inside += 1;
                FREE.fetch_add(1, SeqCst);
            }
            None => {
                HELD.fetch_add(1, SeqCst);
            }
        };
    });
    log::info!("waiting for NMIs");
    let limit = machine.now() + 120_000_000_000;
    loop {
        {
            let _held = LOCK.lock();
            machine.sleep_until(machine.now() + 100_000);
        }
        let (held, free) = (HELD.load(SeqCst), FREE.load(SeqCst));
        if held > 0 && free > 0 {
            log::info!("{held} NMIs found the lock held, {free} found it free");
            return check(*LOCK.lock() == free, "exclusion is broken");
        }
        check(machine.now() < limit, "no NMI came in both states")?;
        machine.sleep_until(machine.now() + 100_000);
    }
}

/// Tasks and timer upcalls take one and the same lock, whose guard holds upcalls back: without that
/// an upcall would wait for the task it interrupted, for ever.
pub(crate) fn irq_guard(machine: &'static Machine) -> Result<(), &'static str> {
    const UPCALLS_EACH: u64 = 20;
    static BOTH: IrqMutex<u64> = IrqMutex::new(0);
    static WRONG: AtomicU32 = AtomicU32::new(0);
    fn enabled_must_be(wanted: bool) {
        if mask::are_enabled() != wanted {
            WRONG.fetch_add(1, SeqCst);
        }
    }
    glue::configure(pvlock::Mode::Pv, 100).map_err(|_| "the mode is settled already")?;
    for vcpu in 0..machine.vcpus() {
        glue::bind(vcpu).map_err(|_| "no port for a kicker")?;
    }
    upcall::set_upcall_handler(|port| {
        if timer::is_mine(port) {
            *BOTH.lock() += 1;
            // Found off, left off.
            enabled_must_be(false);
            INTERRUPTS[Machine::current_vcpu() as usize].fetch_add(1, SeqCst);
        }
    });
    fn contend(vcpu: u32) {
        let _ = timer::bind();
        mask::enable();
        let (tasks, interrupts) = (&TASKS[vcpu as usize], &INTERRUPTS[vcpu as usize]);
        while interrupts.load(SeqCst) < UPCALLS_EACH {
            let machine = Machine::get();
            let before = interrupts.load(SeqCst);
            let mut inside = BOTH.lock();
            enabled_must_be(false);
            // Due while the lock is held, and after the last one was served.
            let _ = timer::set(machine.now() + 10_000);
            work(50_000);
            *inside += 1;
            let held_back = interrupts.load(SeqCst) == before;
            drop(inside);
            enabled_must_be(true);
            tasks.fetch_add(1, SeqCst);
            let came = soon(machine, || interrupts.load(SeqCst) > before);
            if !(held_back && came) {
                WRONG.fetch_add(1, SeqCst);
            }
            // Held by another vCPU or not: it leaves upcalls as it found them.
            let _ = BOTH.try_lock().map(|_| enabled_must_be(false));
            enabled_must_be(true);
        }
        mask::disable();
        COUNT.fetch_add(1, SeqCst);
    }
    start_others(machine, contend)?;
    contend(0);
    let all_done = || COUNT.load(SeqCst) == machine.vcpus();
    let limit = machine.now() + 120_000_000_000;
    while !all_done() {
        check(machine.now() < limit, "a vCPU hangs")?;
        machine.sleep_until(machine.now() + 10_000_000);
    }
    let all = |counts: &[AtomicU64]| counts.iter().map(|n| n.load(SeqCst)).sum::<u64>();
    let (tasks, interrupts, wrong) = (all(&TASKS), all(&INTERRUPTS), WRONG.load(SeqCst));
    log::info!("{tasks} tasks, {interrupts} upcalls, {wrong} times wrong");
    check(wrong == 0, "upcalls were not held back, or not let go")?;
    check(*BOTH.lock() == tasks + interrupts, "exclusion is broken")
}
