//! Looks for locks that are used wrongly, while they are used. Feature `checker`; without it there
//! is no code and no storage.
//!
//! Owns the search. What a CPU holds and waits for is kept by `held`, what can be found is named by
//! `trouble`. Never takes a lock and never changes what a lock does: it tells
//! [`Platform::report`](crate::Platform::report).

/// How a lock is taken.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    Exclusive,
    Shared,
}

#[cfg(not(feature = "checker"))]
#[allow(clippy::extra_unused_type_parameters)]
mod off {
    use super::How;
    use crate::Platform;

    pub(crate) type Checked<P> = P;

    pub(crate) struct Wanted;

    #[inline(always)]
    pub(crate) fn want<P: Platform>(_lock: usize, _how: How) -> Wanted {
        Wanted
    }

    #[inline(always)]
    pub(crate) fn blocked<P: Platform>(_lock: usize) {}

    #[inline(always)]
    pub(crate) fn got<P: Platform>(_wanted: Wanted) {}

    #[inline(always)]
    pub(crate) fn leave<P: Platform>(_lock: usize) {}

    #[inline(always)]
    pub(crate) fn share<P: Platform>(_lock: usize) {}
}
#[cfg(not(feature = "checker"))]
pub(crate) use off::{Checked, blocked, got, leave, share, want};

#[cfg(feature = "checker")]
mod on;
#[cfg(feature = "checker")]
pub(crate) use on::{Checked, blocked, got, leave, share, want};
