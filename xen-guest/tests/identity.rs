//! A kernel with per-CPU areas of its own says which vCPU it runs on: clock, timer and console ask
//! it, and never the GS base, which in this process is the C library's.

use std::cell::Cell;
use std::panic::catch_unwind;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use evtchn::Errno;
use xen_guest::events::timer;
use xen_guest::vcpu::{self, Area, clock, gs_base, identity};

std::thread_local! {
    /// Where this kernel keeps it.
    static NUMBER: Cell<u32> = const { Cell::new(0) };
}

#[test]
fn every_part_asks_the_kernel_which_vcpu_this_is() {
    // A kernel that forgot to say is told so, by whatever asks first.
    let asking: [fn(); 3] = [
        || {
            vcpu::current();
        },
        || {
            clock::now();
        },
        || timer::set(1).unwrap(),
    ];
    for ask in asking {
        let said = catch_unwind(ask).unwrap_err();
        let said = said.downcast_ref::<String>().map_or("", |said| said);
        assert!(said.contains("call vcpu::identity::identify_by"), "{said:?}");
    }
    assert_eq!(identity::try_current(), None);

    // SAFETY: each thread has a number of its own, which never changes once it is set.
    unsafe { identity::identify_by(|| NUMBER.get()) };
    for number in [3, 77, 127] {
        // What Xen would write: the time of this vCPU.
        Area::of(number).info.time.system_time.store(u64::from(number) * 1_000, SeqCst);
    }
    let on = |number: u32| {
        NUMBER.set(number);
        assert_eq!((vcpu::current(), identity::try_current()), (number, Some(number)));
        assert_eq!(clock::now(), u64::from(number) * 1_000);
        // It knows whose timer; there is no Xen to set it.
        assert_eq!(timer::set(1), Err(Errno::ENOSYS));
    };
    thread::scope(|scope| {
        for number in [3, 77, 127] {
            scope.spawn(move || on(number));
        }
    });
    // The default is no part of it: an address, to be written by whoever wants it.
    assert_ne!(gs_base::of(3), gs_base::of(77));
}
