//! A second image: does `xen-guest` keep its promises? One test a domain, named on the command line
//! (`extra = "test=NAME"`); the verdict is a line `selftest NAME: success` or `failure: WHY` on the
//! console and the reason of the domain's shutdown. `events=fifo` runs it with FIFO event channels,
//! `events=2-level` or nothing without. Tests that must crash have no line of their own: their
//! verdict is the crash report.
#![no_std]
#![no_main]

mod locks;
mod ports;
mod support;

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};

use evtchn::{Abi, Port};
use xen_guest::events::{self, Wanted, Xen, events, shared_info, timer, upcall};
use xen_guest::kernel::heap::Heap;
use xen_guest::kernel::machine::{Machine, ShutdownReason};
use xen_guest::vcpu::{Area, mask};

use support::{COUNT, check, soon, start_others};

#[global_allocator]
static HEAP: Heap = Heap;

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    xen_guest::kernel::crash::panic(info)
}

xen_guest::kernel!(main);

type Test = fn(&'static Machine) -> Result<(), &'static str>;

/// Name, and what runs. All atomics in the tests are SeqCst: they are not what is tested.
const TESTS: &[(&str, Test)] = &[
    ("vcpus", vcpus),
    ("vcpus-again", vcpus_again),
    ("runstate", runstate),
    ("upcall", upcalls),
    ("timer", timers),
    ("priority", ports::priority),
    ("masked-poll", ports::masked_poll),
    ("grow", ports::grow),
    ("nested-lock", locks::nested_lock),
    ("nested-lock-set-again", locks::nested_lock_set_again),
    ("own-identity", locks::own_identity),
    ("irq-guard", locks::irq_guard),
    ("nmi", locks::nmi),
    ("panic", |_| panic!("as the test asked for")),
    ("null-read", null_read),
    ("write-code", write_code),
    ("write-constant", write_constant),
    ("execute-data", execute_data),
    ("invalid-opcode", invalid_opcode),
    ("stack-overflow", stack_overflow),
];

/// Tests of the choice of the event channel ABI, which they make themselves.
const CHOICES: &[(&str, Test)] = &[
    ("switch", ports::switch),
    ("refused-blocks", ports::refused_blocks),
    ("refused-words", ports::refused_words),
];

/// The value of a word of the command line.
fn word(machine: &'static Machine, key: &str) -> &'static str {
    let value = |word: &'static str| word.strip_prefix(key)?.strip_prefix('=');
    machine.cmdline().split_ascii_whitespace().find_map(value).unwrap_or_default()
}

fn main(machine: &'static Machine) -> ! {
    let name = word(machine, "test");
    let find = |tests: &[(&'static str, Test)]| tests.iter().copied().find(|test| test.0 == name);
    let Some((name, test)) = find(TESTS).or_else(|| find(CHOICES)) else {
        log::error!("extra= must be test=NAME, with one of:");
        TESTS.iter().chain(CHOICES).for_each(|(name, _)| log::error!("  {name}"));
        machine.shutdown(ShutdownReason::Crash)
    };
    if find(TESTS).is_some() {
        let wanted = match word(machine, "events") {
            "fifo" => Wanted::Fifo,
            _ => Wanted::TwoLevel,
        };
        let abi = events::choose(machine.vcpus(), wanted).expect("Xen offers the FIFO ABI");
        log::info!("selftest {name}: events {abi:?}");
    }
    let reason = match test(machine) {
        Ok(()) => {
            log::info!("selftest {name}: success");
            ShutdownReason::Poweroff
        }
        Err(why) => {
            log::error!("selftest {name}: failure: {why}");
            ShutdownReason::Crash
        }
    };
    machine.shutdown(reason)
}

fn vcpus(machine: &'static Machine) -> Result<(), &'static str> {
    static SEEN: [AtomicBool; 128] = [const { AtomicBool::new(false) }; 128];
    start_others(machine, |vcpu| {
        let right = Machine::current_vcpu() == vcpu && Machine::get().now() > 0;
        SEEN[vcpu as usize].store(right, SeqCst);
    })?;
    let others = 1..machine.vcpus() as usize;
    check(machine.vcpus() > 1, "give the domain vCPUs")?;
    check(
        soon(machine, || others.clone().all(|vcpu| SEEN[vcpu].load(SeqCst))),
        "a vCPU did not run",
    )
}

fn vcpus_again(machine: &'static Machine) -> Result<(), &'static str> {
    for round in 1..=10 {
        COUNT.store(0, SeqCst);
        start_others(machine, |_| {
            COUNT.fetch_add(1, SeqCst);
        })?;
        let all = soon(machine, || COUNT.load(SeqCst) == machine.vcpus() - 1);
        check(all, "a vCPU did not run again after it had parked")?;
        log::info!("round {round}");
    }
    Ok(())
}

fn runstate(machine: &'static Machine) -> Result<(), &'static str> {
    let state = |vcpu| Area::of(vcpu).runstate.state.load(SeqCst);
    check(state(0) == 0, "the vCPU that looks is not running")?;
    static STOP: AtomicBool = AtomicBool::new(false);
    machine
        .start_vcpu(1, |_| {
            let machine = Machine::get();
            while !STOP.load(SeqCst) {
                machine.sleep_until(machine.now() + 50_000_000);
            }
        })
        .map_err(|_| "vCPU 1 could not be started")?;
    check(soon(machine, || state(1) == 2), "a sleeping vCPU is not blocked")?;
    STOP.store(true, SeqCst);
    check(soon(machine, || state(1) == 3), "a parked vCPU is not offline")?;
    let blocked = Area::of(1).runstate.time[2].load(SeqCst);
    check(blocked > 0, "no time was counted as blocked")
}

static PORT: AtomicU32 = AtomicU32::new(0);

fn count_port(port: Port) {
    if port.get() == PORT.load(SeqCst) {
        COUNT.fetch_add(1, SeqCst);
    }
}

fn upcalls(machine: &'static Machine) -> Result<(), &'static str> {
    upcall::set_upcall_handler(count_port);
    let port = evtchn::bind_ipi(&Xen, 0).map_err(|_| "no port")?;
    PORT.store(port.get(), SeqCst);
    events::handle_on(0, port).map_err(|_| "the port has no word")?;
    let send = || evtchn::send(&Xen, port).map_err(|_| "the port cannot be sent to");
    let count = || COUNT.load(SeqCst);

    mask::enable();
    send()?;
    machine.sleep_until(machine.now() + 1_000_000);
    check(count() == 0, "a masked port interrupted")?;
    events().unmask(&Xen, port).map_err(|_| "the port cannot be unmasked")?;
    check(soon(machine, || count() == 1), "unmasking a pending port brought no upcall")?;
    for n in 2..1000 {
        send()?;
        check(soon(machine, || count() == n), "an event brought no upcall, or two")?;
    }
    let before = count();
    check(mask::disable(), "upcalls were not enabled after an upcall")?;
    send()?;
    send()?;
    machine.sleep_until(machine.now() + 1_000_000);
    check(count() == before, "an upcall came while they were held back")?;
    mask::enable();
    check(soon(machine, || count() == before + 1), "an event held back was lost, or came twice")?;
    registers_survive(machine, send)
}

/// Vector and general registers are the same before and after an upcall that comes between.
fn registers_survive(
    machine: &'static Machine,
    send: impl Fn() -> Result<(), &'static str>,
) -> Result<(), &'static str> {
    upcall::set_upcall_handler(|_| {
        // Compiled code that uses vector registers: it copies and formats.
        log::info!("upcall with {:?}", [1.5f64, 2.5]);
        COUNT.fetch_add(1, SeqCst);
    });
    let before = COUNT.load(SeqCst);
    timer::bind().map_err(|_| "no timer port")?;
    timer::set(machine.now() + 2_000_000).map_err(|_| "the timer cannot be set")?;
    // The first and a late vector register: compiled code uses the first ones first.
    let (mut vector, mut late, mut general): (u64, u64, u64) = (0, 0, 0);
    // A loop long enough for the timer to fire in it, however late a crowded host is.
    for _ in 0..100_000 {
        // SAFETY: loads three registers, counts a fourth down, and stores the three.
        unsafe {
            core::arch::asm!(
                "movq xmm0, {pattern}",
                "movq xmm9, {pattern}",
                "mov r10, {pattern}",
                "2: dec {turns}",
                "jnz 2b",
                "movq {vector}, xmm0",
                "movq {late}, xmm9",
                "mov {general}, r10",
                pattern = in(reg) 0x1234_5678_9abc_def0_u64,
                turns = inout(reg) 20_000_u64 => _,
                vector = lateout(reg) vector,
                late = lateout(reg) late,
                general = lateout(reg) general,
                out("xmm0") _,
                out("xmm9") _,
                out("r10") _,
            );
        }
        for vector in [vector, late] {
            check(vector == 0x1234_5678_9abc_def0, "an upcall changed a vector register")?;
        }
        check(general == 0x1234_5678_9abc_def0, "an upcall changed a general register")?;
        if COUNT.load(SeqCst) > before {
            return send();
        }
    }
    Err("the timer did not fire within two billion turns")
}

static FIRED: AtomicU64 = AtomicU64::new(0);

fn timers(machine: &'static Machine) -> Result<(), &'static str> {
    upcall::set_upcall_handler(|port| {
        if timer::is_mine(port) {
            FIRED.store(Machine::get().now(), SeqCst);
        }
    });
    timer::bind().map_err(|_| "no timer port")?;
    mask::enable();
    for _ in 0..20 {
        FIRED.store(0, SeqCst);
        let deadline = machine.now() + 3_000_000;
        timer::set(deadline).map_err(|_| "the timer cannot be set")?;
        check(soon(machine, || FIRED.load(SeqCst) != 0), "the timer did not fire")?;
        // Xen may fire up to its timer slop (50 us) early.
        check(FIRED.load(SeqCst) + 100_000 >= deadline, "the timer fired early")?;
    }
    check(shared_info::epoch_offset_ns() > 0, "Xen tells no wall clock")
}

fn null_read(_: &'static Machine) -> Result<(), &'static str> {
    let null: *const u64 = core::hint::black_box(core::ptr::null());
    // SAFETY: none: the test is that it faults.
    let value = unsafe { null.wrapping_add(1).read_volatile() };
    Err(if value == 0 { "reading near null gave 0" } else { "reading near null gave something" })
}

fn write_code(_: &'static Machine) -> Result<(), &'static str> {
    let code = core::hint::black_box(write_code as *const () as *mut u8);
    // SAFETY: none: the test is that it faults.
    unsafe { code.write_volatile(0x90) };
    Err("code is writable")
}

fn write_constant(_: &'static Machine) -> Result<(), &'static str> {
    static CONSTANT: [u8; 16] = *b"a constant text.";
    let constant = core::hint::black_box(CONSTANT.as_ptr().cast_mut());
    // SAFETY: none: the test is that it faults.
    unsafe { constant.write_volatile(0) };
    Err("constants are writable")
}

fn execute_data(_: &'static Machine) -> Result<(), &'static str> {
    static DATA: AtomicU64 = AtomicU64::new(0xc3c3_c3c3_c3c3_c3c3); // ret
    let data = core::hint::black_box(DATA.as_ptr().cast_const());
    // SAFETY: none: the test is that it faults.
    let function = unsafe { core::mem::transmute::<*const u64, fn()>(data) };
    function();
    Err("data is executable")
}

fn invalid_opcode(_: &'static Machine) -> Result<(), &'static str> {
    // SAFETY: none: the test is that it faults.
    unsafe { core::arch::asm!("ud2") };
    Err("ud2 did nothing")
}

fn stack_overflow(_: &'static Machine) -> Result<(), &'static str> {
    #[inline(never)]
    fn deeper(depth: u64) -> u64 {
        let frame = core::hint::black_box([depth; 16]);
        if depth == u64::MAX { 0 } else { deeper(depth + 1) + frame[3] }
    }
    deeper(0);
    Err("the stack has no end")
}
