//! The fake Xen's system time: the host's, or one that moves only when everybody sleeps.

use std::time::{Duration, Instant};

/// Where time comes from.
#[derive(Debug)]
pub(super) enum Clock {
    /// The host's monotonic clock, since this moment.
    Host(Instant),
    /// This many nanoseconds; moves to the next deadline when no vCPU runs.
    Virtual(u64),
}

impl Clock {
    /// Nanoseconds, never 0.
    pub(super) fn now_ns(&self) -> u64 {
        match self {
            Self::Host(start) => start.elapsed().as_nanos() as u64 + 1,
            Self::Virtual(now) => *now,
        }
    }

    /// How long until `deadline_ns` (0 = none) on the host's clock; `None` for virtual time, which
    /// a sleeper cannot wait for.
    pub(super) fn host_time_until(&self, deadline_ns: u64) -> Option<Duration> {
        match self {
            Self::Host(_) if deadline_ns != 0 => {
                Some(Duration::from_nanos(deadline_ns.saturating_sub(self.now_ns())))
            }
            _ => None,
        }
    }
}
