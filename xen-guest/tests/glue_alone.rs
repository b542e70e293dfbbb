//! A kernel that takes `glue` and nothing else: it answers every question itself. Threads are its
//! vCPUs, their numbers are in thread-local storage, and the hypervisor is `evtchn`'s fake.

use std::cell::Cell;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::thread;

use evtchn::fake::FakeXen;
use evtchn::{Abi, Hypercalls, WaitOutcome};
use pvlock::Mode;
use xen_guest::glue::{self, Kernel, XenPlatform};

/// Whose number is not what the order of their start would make it.
const OWNER: u32 = 9;
const WAITER: u32 = 5;

/// Time stands still while a vCPU runs, so no deadline can pass.
static XEN: LazyLock<FakeXen> = LazyLock::new(|| FakeXen::with_virtual_clock(10));

std::thread_local! {
    static NUMBER: Cell<u32> = const { Cell::new(u32::MAX) };
}

/// What it was told.
static WAITED: AtomicU32 = AtomicU32::new(0);
static KICKED: AtomicU32 = AtomicU32::new(0);

struct TestKernel;

// SAFETY: each thread has a number of its own, the hypervisor is that of all of them, and no lock
// is taken in what it is told.
unsafe impl Kernel for TestKernel {
    fn current_vcpu() -> u32 {
        NUMBER.get()
    }

    fn xen() -> impl Hypercalls {
        XEN.vcpu(Self::current_vcpu())
    }

    fn events() -> impl Abi {
        XEN.two_level()
    }

    fn around_wait(vcpu: u32, wait: impl FnOnce() -> WaitOutcome) -> WaitOutcome {
        assert_eq!(vcpu, NUMBER.get());
        WAITED.store(vcpu, SeqCst);
        wait()
    }

    fn before_kick(target: u32) {
        KICKED.store(target, SeqCst);
    }
}

type Platform = XenPlatform<TestKernel>;

static COUNT: pvlock::Mutex<u64, Platform> = pvlock::Mutex::new(0);

/// Waits in a lock, sleeps in the hypervisor and is kicked, and nothing asks anybody but the
/// kernel.
#[test]
fn a_kernel_that_takes_only_the_glue_answers_for_itself() {
    NUMBER.set(OWNER);
    XEN.two_level().mask_all();
    glue::configure(Mode::Pv, 1).unwrap();
    Platform::bind(OWNER).unwrap();
    Platform::bind(WAITER).unwrap();
    let mut held = COUNT.lock();
    thread::scope(|scope| {
        scope.spawn(|| {
            NUMBER.set(WAITER);
            *COUNT.lock() += 1;
        });
        while glue::wait_counts(WAITER as usize).polls == 0 {
            thread::yield_now();
        }
        *held += 1;
        drop(held);
    });
    assert_eq!(*COUNT.lock(), 2);
    let counts = glue::wait_counts(WAITER as usize);
    assert_eq!((counts.kicked, counts.timed_out), (1, 0), "{counts:?}");
    assert_eq!((WAITED.load(SeqCst), KICKED.load(SeqCst)), (WAITER, WAITER));
    assert_eq!(xen_guest::vcpu::identity::try_current(), None, "nobody was asked but the kernel");
}
