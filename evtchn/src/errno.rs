//! Error numbers of hypercalls.
//!
//! This file owns the translation of a hypercall's return value into a `Result`. It must never
//! decide what an error means for an operation: that stands at the operation.

use core::fmt;

/// An error number a hypercall returned, positive (`22` is `EINVAL`).
///
/// Xen's numbers are its own (Xen public/errno.h); on x86 and Arm they equal Linux's.
///
/// ```
/// use evtchn::Errno;
///
/// assert_eq!(Errno::check(0), Ok(()));
/// assert_eq!(Errno::check(-22), Err(Errno::EINVAL));
/// assert_eq!(Errno::EINVAL.to_string(), "EINVAL (22)");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

macro_rules! errno {
    ($($(#[$doc:meta])* $name:ident = $number:literal;)*) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self($number);)*

            /// The name in Xen public/errno.h, if it is one of those this crate meets.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errno! {
    /// The domain may not do this.
    EPERM = 1;
    /// No such vCPU.
    ENOENT = 2;
    /// No such domain.
    ESRCH = 3;
    /// Xen is out of memory.
    ENOMEM = 12;
    /// The port is closed (`EVTCHNOP_set_priority`).
    EACCES = 13;
    /// A pointer Xen could not read or write.
    EFAULT = 14;
    /// The virtual interrupt is bound already.
    EEXIST = 17;
    /// An argument is out of range, or a port is not bound.
    EINVAL = 22;
    /// No free port is left.
    ENOSPC = 28;
    /// This Xen, or this domain, does not offer the operation.
    ENOSYS = 38;
    /// The domain does not use the ABI that the operation belongs to.
    EOPNOTSUPP = 95;
}

impl Errno {
    /// Turns a hypercall's return value into a result: negative is an error, the rest success.
    ///
    /// # Errors
    ///
    /// The error number, positive, if `returned` is negative.
    pub const fn check(returned: i64) -> Result<(), Self> {
        if returned < 0 { Err(Self(-returned as i32)) } else { Ok(()) }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.0),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl core::error::Error for Errno {}
