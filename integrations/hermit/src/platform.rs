//! Whose vCPUs wait, and who wakes them: Xen's, by `xen_guest::glue`.
//!
//! In this crate's own tests threads are the vCPUs, and Xen is `evtchn`'s fake.

/// What the locks ask.
#[cfg(not(test))]
pub(crate) type Platform = xen_guest::glue::XenPlatform;

/// What the locks ask.
#[cfg(test)]
pub(crate) type Platform = xen_guest::glue::XenPlatform<threads::Threads>;

#[cfg(test)]
pub(crate) mod threads {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
    use std::thread_local;

    use evtchn::fake::FakeXen;
    use evtchn::{Abi, Hypercalls};
    use xen_guest::glue::{Kernel, XenPlatform};

    /// More than there are threads at a time: one a test, and those they start.
    const VCPUS: u32 = 100;

    /// Threads as vCPUs of a fake Xen. A kick is an event channel here too, and a wait a poll.
    #[derive(Debug)]
    pub struct Threads;

    /// Time stands still while a vCPU runs, and most never wait: no deadline can pass.
    static XEN: LazyLock<FakeXen> = LazyLock::new(|| FakeXen::with_virtual_clock(VCPUS));

    /// Gives each vCPU the port on which it is kicked.
    static PORTS: LazyLock<()> = LazyLock::new(|| {
        XEN.two_level().mask_all();
        for vcpu in 0..VCPUS {
            XenPlatform::<Boot>::bind(vcpu).expect("a port for each vCPU");
        }
    });

    static TAKEN: [AtomicBool; VCPUS as usize] = [const { AtomicBool::new(false) }; VCPUS as usize];

    /// A vCPU's number, which goes back when its thread ends.
    struct Number(u32);

    impl Number {
        fn take() -> Self {
            LazyLock::force(&PORTS);
            let free = TAKEN.iter().position(|taken| !taken.swap(true, SeqCst));
            Self(free.expect("a number for each thread") as u32)
        }
    }

    impl Drop for Number {
        fn drop(&mut self) {
            TAKEN[self.0 as usize].store(false, SeqCst);
        }
    }

    thread_local!(static NUMBER: Number = Number::take());

    /// The vCPU that this thread is.
    pub(crate) fn current() -> u32 {
        NUMBER.with(|number| number.0)
    }

    // SAFETY: a thread keeps its number while it runs, the hypervisor is that of all of them, and nothing is
    // told.
    unsafe impl Kernel for Threads {
        fn current_vcpu() -> u32 {
            current()
        }

        fn xen() -> impl Hypercalls {
            XEN.vcpu(current())
        }

        fn events() -> impl Abi {
            XEN.two_level()
        }
    }

    /// The same machine before a thread has a number.
    struct Boot;

    // SAFETY: takes no lock; it only binds ports.
    unsafe impl Kernel for Boot {
        fn current_vcpu() -> u32 {
            0
        }

        fn xen() -> impl Hypercalls {
            XEN.vcpu(0)
        }

        fn events() -> impl Abi {
            XEN.two_level()
        }
    }
}
