//! What the host side tells whoever watches: one line of JSON an event.
//!
//! Owns the line format on the lab's console. It is a report of what happened, never a command.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What an event line begins with; the console carries other lines too.
const PREFIX: &str = "@pvlab ";

/// Something happened on the Xen host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The domains of this policy are being created.
    PolicyStarted {
        /// The policy.
        policy: String,
    },
    /// `xl create` has made a domain.
    DomainCreated {
        /// The domain's name.
        domain: String,
        /// Its number.
        domid: u32,
    },
    /// The guest's state in xenstore changed (`ready`, `running`, `done`, ...).
    DomainState {
        /// The domain's name.
        domain: String,
        /// The state.
        state: String,
    },
    /// A domain did not come to a good end; the run goes on.
    Problem {
        /// The policy.
        policy: String,
        /// What happened, with the last lines of the console.
        message: String,
    },
    /// A domain was told of its start line too late, so that this policy runs again.
    StartMissed {
        /// The policy.
        policy: String,
        /// How long after a domain was asked for the time its start line is now, at least.
        start_after: Duration,
    },
    /// All domains of this policy are gone and what they left is collected.
    PolicyDone {
        /// The policy.
        policy: String,
    },
    /// The run cannot go on.
    Error {
        /// Why.
        message: String,
    },
    /// The last event: everything is collected.
    Finished,
}

/// What a person is told of [`Event::StartMissed`].
pub fn start_missed(policy: &str, start_after: Duration) -> String {
    let seconds = start_after.as_secs_f64();
    format!(
        "{policy}: this host was too slow for the start line, so it runs again, with the line \
         {seconds} s away"
    )
}

impl Event {
    /// The event as a line without its end.
    pub fn line(&self) -> String {
        let json = serde_json::to_string(self).expect("an event has only strings and numbers");
        format!("{PREFIX}{json}")
    }

    /// The event in a console line, if there is one. A serial console may have put characters before it.
    ///
    /// ```
    /// use pvlab::host::Event;
    ///
    /// let line = Event::Finished.line();
    /// assert_eq!(Event::in_line(&format!("{line}\r")), Some(Event::Finished));
    /// assert_eq!(Event::in_line("(XEN) Brought up 2 CPUs"), None);
    /// ```
    pub fn in_line(line: &str) -> Option<Event> {
        let at = line.find(PREFIX)?;
        serde_json::from_str(line[at + PREFIX.len()..].trim_end()).ok()
    }
}
