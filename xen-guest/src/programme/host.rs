//! The conversation with the host, through xenstore.
//!
//! Owns the client and what is said when. A domain without xenstore, or whose xenstored refuses or is
//! silent, runs all the same and has its console for the result: each failure costs one warning.

use alloc::format;
use alloc::string::String;

use evtchn::Port;

use crate::machine::Machine;
use crate::report::{self, path};
use crate::xenstore::{Client, Error, Link};

const LONGEST_WAIT_NS: u64 = 5_000_000_000;

/// The connection of vCPU 0 to xenstored, if there is one.
pub(super) struct Host {
    store: Option<Client<'static, StoreLink>>,
    domid: u16,
}

/// The event channel beside the shared page.
struct StoreLink {
    machine: &'static Machine,
    port: Port,
}

impl Link for StoreLink {
    fn notify(&self) {
        if let Err(errno) = self.machine.notify(self.port) {
            log::warn!("xenstored cannot be notified: {errno:?}");
        }
    }

    fn wait(&self, deadline_ns: u64) {
        // Bounded, so that a lost announcement costs a moment, and because Xen takes a deadline of
        // 2^63 ns and more for one in the past. An error returns at once; the client comes back.
        let deadline_ns = deadline_ns.min(self.machine.now() + LONGEST_WAIT_NS);
        let _ = self.machine.poll_port(self.port, deadline_ns);
        // Cleared before the client looks at the ring again, so that no announcement is lost.
        self.machine.take_pending(self.port);
    }

    fn now(&self) -> u64 {
        self.machine.now()
    }
}

impl Host {
    pub(super) fn connect(machine: &'static Machine) -> Host {
        let store = machine
            .xenstore_ring()
            .map(|(ring, port)| Client::new(ring, StoreLink { machine, port }));
        let mut host = Host { store, domid: 0 };
        let domid = host.ask(|store| store.read("domid"));
        host.domid = domid
            .and_then(|text| core::str::from_utf8(&text).ok()?.trim().parse().ok())
            .unwrap_or(0);
        host
    }

    pub(super) fn domid(&self) -> u16 {
        self.domid
    }

    pub(super) fn set_state(&mut self, state: &str) {
        self.ask(|store| store.write(path::STATE, state.as_bytes()));
    }

    pub(super) fn set_error(&mut self, why: &str) {
        self.ask(|store| store.write(path::ERROR, why.as_bytes()));
    }

    pub(super) fn publish(&mut self, document: &str) {
        self.ask(|store| report::to_xenstore(document, store));
    }

    /// Sleeps until the host has written `1` to [`path::GO`].
    pub(super) fn wait_for_go(&mut self) -> Result<(), String> {
        let Some(store) = &mut self.store else {
            return Err("start=wait: this domain has no xenstore; accepted: start=now".into());
        };
        let mut wait = || -> Result<(), Error> {
            // The watch fires once at once, so a host that was faster is not missed.
            store.watch(path::GO, "go")?;
            loop {
                let event = store.next_event(u64::MAX)?;
                if event.is_some() && store.read(path::GO).is_ok_and(|value| value == b"1") {
                    return store.unwatch(path::GO, "go");
                }
            }
        };
        wait().map_err(|error| format!("start=wait: {error}"))
    }

    /// Asks xenstored; a refusal is worth a line and no more.
    fn ask<T>(
        &mut self,
        request: impl FnOnce(&mut Client<'static, StoreLink>) -> Result<T, Error>,
    ) -> Option<T> {
        match request(self.store.as_mut()?) {
            Ok(answer) => Some(answer),
            Err(error) => {
                log::warn!("{error}");
                if error == Error::Timeout {
                    // Each further request would cost as long again.
                    self.store = None;
                }
                None
            }
        }
    }
}
