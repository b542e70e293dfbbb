//! The only switch between the processor's atomics and those of loom and shuttle.
//!
//! Owns which atomic types the crate uses and how an ordering is named, so that the model suite can
//! weaken one ordering at a time. Never holds lock logic.

#[cfg(loom)]
pub(crate) use crate::model::atomic::{AtomicU8, AtomicU32, AtomicUsize};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{Ordering, fence};

#[cfg(shuttle)]
pub(crate) use shuttle::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering, fence};

#[cfg(not(any(loom, shuttle)))]
pub(crate) use core::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering, fence};

/// An ordering with a name: `ord!("handover-store", Release)`.
///
/// It is the plain ordering in every build but the model's, where [`weakened`] may take it down.
#[cfg(not(loom))]
macro_rules! ord {
    ($site:literal, $ordering:ident) => {
        $crate::sync::Ordering::$ordering
    };
}
#[cfg(loom)]
macro_rules! ord {
    ($site:literal, $ordering:ident) => {
        $crate::sync::weakening::ordering($site, $crate::sync::Ordering::$ordering)
    };
}
pub(crate) use ord;

/// A step of the protocol, for the trace that the model suite prints: `step!(cpu, "halts")`. No
/// code in every build but the model's.
macro_rules! step {
    ($cpu:expr, $($text:tt)*) => {
        #[cfg(loom)]
        $crate::model::step($cpu, std::format!($($text)*));
    };
}
pub(crate) use step;

/// A function that is `const`, but in model builds, whose atomics cannot be made at compile time.
macro_rules! const_fn {
    ($(#[$attr:meta])* $vis:vis fn $($rest:tt)*) => {
        #[cfg(not(loom))]
        $(#[$attr])*
        $vis const fn $($rest)*
        #[cfg(loom)]
        $(#[$attr])*
        $vis fn $($rest)*
    };
}
pub(crate) use const_fn;

/// The full barrier between a store and a later load of another location (store-buffer pattern).
#[inline]
pub(crate) fn full_fence(site: &'static str) {
    #[cfg(loom)]
    match weakening::part_of(site) {
        None => {}
        Some("none") => return,
        Some(_) => return fence(Ordering::AcqRel),
    }
    let _ = site;
    fence(Ordering::SeqCst);
}

/// An acquire fence, after a read-modify-write that failed.
#[inline]
pub(crate) fn acquire_fence(site: &'static str) {
    #[cfg(loom)]
    if weakening::part_of(site).is_some() {
        return;
    }
    let _ = site;
    fence(Ordering::Acquire);
}

/// The full barrier where a read-modify-write of another location follows at once.
///
/// On x86-64 every locked instruction is a full barrier by itself, successful or not, so that only
/// the compiler has to be held back; elsewhere, and in the model, it is a real fence.
#[inline]
pub(crate) fn full_fence_before_rmw(site: &'static str) {
    if cfg!(all(target_arch = "x86_64", not(loom), not(miri))) {
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
    } else {
        full_fence(site);
    }
}

/// Weakens named orderings, for the suite that shows every ordering is needed.
#[cfg(loom)]
pub(crate) mod weakening {
    use super::Ordering;
    use std::sync::OnceLock;

    /// What to take from `site` in this process; empty if it is one step of whatever it is.
    ///
    /// The environment variable `PVLOCK_WEAKEN` has the names, with commas between them:
    /// `NAME/acquire` and `NAME/release` for one half of an `AcqRel`, `NAME/none` for a full fence
    /// that is to be none.
    pub(crate) fn part_of(site: &str) -> Option<&'static str> {
        static TARGETS: OnceLock<Option<String>> = OnceLock::new();
        TARGETS
            .get_or_init(|| std::env::var("PVLOCK_WEAKEN").ok())
            .as_deref()?
            .split(',')
            .map(|target| target.split_once('/').unwrap_or((target, "")))
            .find_map(|(name, part)| (name == site).then_some(part))
    }

    /// One step down if `site` is to be weakened.
    pub(crate) fn ordering(site: &str, ordering: Ordering) -> Ordering {
        match (ordering, part_of(site)) {
            (_, None) => ordering,
            (Ordering::AcqRel, Some("acquire")) => Ordering::Release,
            (Ordering::AcqRel, Some("release")) => Ordering::Acquire,
            (Ordering::SeqCst, _) => Ordering::AcqRel,
            _ => Ordering::Relaxed,
        }
    }
}
