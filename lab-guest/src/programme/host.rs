//! The conversation with the host, through xenstore.
//!
//! Owns the client and what is said when. A domain without xenstore, or whose xenstored refuses or
//! is silent, runs all the same and has its console for the result: each failure costs one warning.

use alloc::format;
use alloc::string::{String, ToString};

use experiment::{Key, Start};
use xen_guest::daemons::xenstore::{Client, Error, StorePort};
use xen_guest::kernel::machine::{Machine, ShutdownReason};

use super::report::{self, path};

/// Where the toolstack says how the domain is to end, or that it is to be saved.
const SHUTDOWN: &str = "control/shutdown";
/// The parent of the nodes that say which vCPUs are to be up.
const CPU: &str = "cpu";

/// What the toolstack wants of the domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// To end.
    Stop(ShutdownReason),
    /// To be saved.
    Suspend,
    /// Other vCPUs to be up, perhaps.
    LookAtCpus,
    /// To say how many acquisitions it has made.
    Count,
}

/// When the host wants a run to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Go {
    /// As soon as this domain can.
    Now,
    /// At this moment of Xen's system time, in nanoseconds, together with others.
    At(u64),
}

/// The connection of vCPU 0 to xenstored, if there is one.
pub(super) struct Host {
    store: Option<Client<'static, StorePort>>,
    domid: u16,
}

impl Host {
    pub(super) fn connect(machine: &Machine) -> Host {
        let mut host = Host { store: machine.xenstore(), domid: 0 };
        host.domid = host.read_number("domid").unwrap_or(0);
        host
    }

    fn read_number(&mut self, path: &str) -> Option<u16> {
        self.read(path)?.trim().parse().ok()
    }

    /// The text at `path`, where there is one.
    fn read(&mut self, path: &str) -> Option<String> {
        match self.store.as_mut()?.read(path) {
            Ok(value) => String::from_utf8(value).ok(),
            // Nothing is there.
            Err(Error::Refused(_)) => None,
            Err(error) => {
                log::warn!("{path}: {error}");
                None
            }
        }
    }

    /// Asks to be told of what the toolstack wants of this domain; again after a restore.
    pub(super) fn watch_orders(&mut self) {
        for path in [SHUTDOWN, CPU, path::COUNT] {
            self.ask(|store| store.watch(path, path));
        }
    }

    /// What the toolstack wants next, or `None` where `deadline_ns` came first.
    pub(super) fn next_order(&mut self, deadline_ns: u64) -> Option<Order> {
        let event = self.ask(|store| store.next_event(deadline_ns))??;
        match event.token.as_str() {
            SHUTDOWN => {}
            path::COUNT => return Some(Order::Count),
            _ => return Some(Order::LookAtCpus),
        }
        let word = self.read(SHUTDOWN)?;
        let order = match word.as_str() {
            "" => return None,
            "poweroff" | "halt" => Order::Stop(ShutdownReason::Poweroff),
            "reboot" => Order::Stop(ShutdownReason::Reboot),
            "suspend" => Order::Suspend,
            other => {
                log::warn!("{SHUTDOWN}: `{other}` is not understood");
                return None;
            }
        };
        // Taken: the toolstack waits for that.
        self.ask(|store| store.write(SHUTDOWN, b""));
        Some(order)
    }

    /// Whether the toolstack wants `vcpu` to be up.
    pub(super) fn wants(&mut self, vcpu: u32) -> bool {
        self.read(&format!("{CPU}/{vcpu}/availability")).is_none_or(|word| word != "offline")
    }

    /// Takes up the conversation in a restored domain.
    pub(super) fn resume(&mut self) {
        if let Some(store) = &mut self.store {
            store.reset();
        }
        self.domid = self.read_number("domid").unwrap_or(0);
        self.watch_orders();
    }

    pub(super) fn domid(&self) -> u16 {
        self.domid
    }

    pub(super) fn set_state(&mut self, state: &str) {
        self.ask(|store| store.write(path::STATE, state.as_bytes()));
    }

    /// Answers the question in [`path::COUNT`], if there is one.
    pub(super) fn tell_acquisitions(&mut self, acquisitions: u64) {
        // A watch fires once when it is set: then there is no question.
        let Some(number) = self.read(path::COUNT) else { return };
        let answer = format!("{number} {acquisitions}");
        self.ask(|store| store.write(path::COUNTED, answer.as_bytes()));
    }

    pub(super) fn set_error(&mut self, why: &str) {
        self.ask(|store| store.write(path::ERROR, why.as_bytes()));
    }

    pub(super) fn publish(&mut self, document: &str) {
        self.ask(|store| report::to_xenstore(document, store));
    }

    /// Sleeps until the host has written into [`path::GO`] when to start. Asked for the time (`clock`), it answers
    /// with Xen's, in [`path::CLOCK`]: the host has no other way to know it.
    pub(super) fn wait_for_go(&mut self) -> Result<Go, String> {
        let Some(store) = &mut self.store else {
            return Err(format!(
                "{key}={}: this domain has no xenstore; accepted: {key}={}",
                Start::Wait,
                Start::Now,
                key = Key::start,
            ));
        };
        let mut wait = || -> Result<Go, Error> {
            // The watch fires once at once, so a host that was faster is not missed.
            store.watch(path::GO, "go")?;
            loop {
                let Some(_) = store.next_event(u64::MAX)? else { continue };
                let Ok(word) = store.read(path::GO) else { continue };
                let go = match core::str::from_utf8(&word) {
                    Ok("clock") => {
                        store.write(path::CLOCK, Machine::get().now().to_string().as_bytes())?;
                        continue;
                    }
                    Ok("1") => Go::Now,
                    Ok(text) => match text.parse() {
                        Ok(at) => Go::At(at),
                        Err(_) => continue,
                    },
                    Err(_) => continue,
                };
                store.unwatch(path::GO, "go")?;
                return Ok(go);
            }
        };
        wait().map_err(|error| format!("{}={}: {error}", Key::start, Start::Wait))
    }

    /// Asks xenstored; a refusal is worth a line and no more.
    fn ask<T>(
        &mut self,
        request: impl FnOnce(&mut Client<'static, StorePort>) -> Result<T, Error>,
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
