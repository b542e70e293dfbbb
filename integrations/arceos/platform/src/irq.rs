//! Interrupts: Xen's events as ArceOS' IRQs.
//!
//! Owns the vector of Xen's upcalls, which event is which IRQ, and each vCPU's port for IPIs. There
//! are three IRQs: the timer, IPIs, and input on the console.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use axplat::irq::{HandlerTable, IpiTarget, IrqHandler, IrqIf};
use evtchn::{Abi, Port};
use spin::Once;
use x86_64::VirtAddr;
use x86_64::instructions::tables;
use x86_64::structures::idt::InterruptDescriptorTable;
use xen_guest::events::{self, Xen, lapic, timer, toolstack, upcall};
use xen_guest::vcpu::{MAX_VCPUS, PerVcpu};

use crate::config::devices::{IPI_IRQ, TIMER_IRQ};
use crate::cpu;

/// The vector of Xen's upcalls, one of those that ArceOS takes for interrupts.
pub(crate) const VECTOR: u8 = 0xf3;

/// Input on the console has come, or there is room for output. On vCPU 0.
pub(crate) const CONSOLE_IRQ: usize = 3;

static HANDLERS: HandlerTable<4> = HandlerTable::new();

/// Each vCPU's port for IPIs, or 0.
static IPI_PORTS: PerVcpu<AtomicU32> =
    PerVcpu::new([const { PerVcpu::entry(AtomicU32::new(0)) }; MAX_VCPUS]);

/// Loads ArceOS' table of interrupts with an entry of ours: theirs saves no vector registers, and the
/// prebuilt `core` uses them.
pub(crate) fn load_table() {
    static TABLE: Once<InterruptDescriptorTable> = Once::new();
    TABLE
        .call_once(|| {
            let theirs = tables::sidt().base.as_ptr::<InterruptDescriptorTable>();
            // SAFETY: axcpu has just loaded it; it is static, and never changes.
            let mut table = unsafe { (*theirs).clone() };
            let entry = VirtAddr::from_ptr(upcall_entry as *const ());
            // SAFETY: made for it: an interrupt gate, whose code saves what it changes.
            unsafe { table[VECTOR].set_handler_addr(entry) };
            table
        })
        .load();
}

xen_guest::interrupt_entry! {
    /// Entry of Xen's upcalls.
    unsafe fn upcall_entry() calls on_upcall
}

extern "C" fn on_upcall() {
    // First: an event that comes during the handlers raises the vector again.
    lapic::end_of_interrupt();
    // axhal's: it calls `handle` below, and may switch to another task afterwards.
    if let Some(handler) = axcpu::trap::IRQ.first() {
        handler(usize::from(VECTOR));
    }
}

/// Lets events interrupt the vCPU this runs on: its timer and IPIs. Interrupts are still off.
pub(crate) fn init() {
    let vcpu = cpu::number();
    upcall::set_upcall_handler(on_event);
    upcall::connect_pvh(vcpu, VECTOR).expect("a vCPU chooses its vector");
    timer::bind().expect("a vCPU has a timer");
    let port = evtchn::bind_ipi(&Xen, vcpu).expect("a vCPU gets a port");
    // Relaxed, here and below: the number of a port, which never changes again.
    IPI_PORTS.of(vcpu).store(port.get(), Relaxed);
    listen(vcpu, port);
}

fn listen(vcpu: u32, port: Port) {
    events::handle_on(vcpu, port).expect("ports are few");
    events::events().unmask(&Xen, port).expect("the port is open");
}

fn on_event(port: Port) {
    let is = |irq: usize| port_of(irq) == Some(port);
    if let Some(irq) = [TIMER_IRQ, IPI_IRQ, CONSOLE_IRQ].into_iter().find(|irq| is(*irq)) {
        HANDLERS.handle(irq);
    }
}

/// The port of `irq` on the vCPU this runs on.
fn port_of(irq: usize) -> Option<Port> {
    match irq {
        TIMER_IRQ => timer::port(),
        IPI_IRQ => Port::new(IPI_PORTS.of(cpu::number()).load(Relaxed)),
        CONSOLE_IRQ => toolstack::console(),
        _ => None,
    }
}

struct Irq;

#[impl_plat_interface]
impl IrqIf for Irq {
    fn set_enable(irq: usize, enabled: bool) {
        x86_64::instructions::interrupts::without_interrupts(|| match port_of(irq) {
            Some(port) if enabled => {
                listen(if irq == CONSOLE_IRQ { 0 } else { cpu::number() }, port)
            }
            Some(port) => events::events().mask(port),
            None => {}
        });
    }

    fn register(irq: usize, handler: IrqHandler) -> bool {
        let registered = HANDLERS.register_handler(irq, handler);
        if registered {
            Self::set_enable(irq, true);
        }
        registered
    }

    fn unregister(irq: usize) -> Option<IrqHandler> {
        Self::set_enable(irq, false);
        HANDLERS.unregister_handler(irq)
    }

    /// All events that are due on this vCPU, whatever brought it here.
    fn handle(vector: usize) -> Option<usize> {
        upcall::serve();
        Some(vector)
    }

    fn send_ipi(irq: usize, target: IpiTarget) {
        assert_eq!(irq, IPI_IRQ, "there is one kind of IPI");
        match target {
            IpiTarget::Current { cpu_id } | IpiTarget::Other { cpu_id } => send(cpu_id),
            IpiTarget::AllExceptCurrent { cpu_id, cpu_num } => {
                (0..cpu_num).filter(|cpu| *cpu != cpu_id).for_each(send);
            }
        }
    }
}

fn send(cpu_id: usize) {
    // A vCPU that has no port yet takes no interrupts yet either.
    if let Some(port) = Port::new(IPI_PORTS.of(cpu_id as u32).load(Relaxed)) {
        evtchn::send(&Xen, port).expect("the port is open");
    }
}
