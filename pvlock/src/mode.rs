//! Which lock runs behind every [`RawPvLock`](crate::RawPvLock) of a platform, chosen once.
//!
//! Owns the choice and the rule that it is made before the first use. Never acts on it.

use crate::sync::{AtomicU8, Ordering::Relaxed, const_fn};

/// Which lock to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Mode {
    /// Queue lock; waiters block in the hypervisor and are kicked awake.
    Pv = 1,
    /// Queue lock; waiters spin, unlock is a store. For bare metal, one vCPU, or pinned vCPUs.
    Native = 2,
    /// One word, whoever comes first. For a hypervisor that offers neither blocking nor pinning.
    TestAndSet = 3,
}

/// The mode of a platform: one store at boot, one load at every lock and unlock.
///
/// The first [`get`](ModeCell::get), which the first lock that is waited for does, settles the
/// default if nobody chose before, so that no two locks and no two CPUs ever wait in different
/// modes. A lock that nobody waits for looks the same in all modes, and may be taken and released
/// before.
///
/// ```
/// # #[cfg(not(loom))] {
/// use pvlock::{Mode, ModeCell};
///
/// static MODE: ModeCell = ModeCell::new(Mode::Native);
///
/// // At boot, when the hypervisor is known, before the second CPU starts:
/// MODE.init(Mode::Pv).expect("no lock was used yet");
/// // In `Platform::mode`, and in `Platform::plain_unlock`:
/// assert_eq!(MODE.get(), Mode::Pv);
/// assert!(!MODE.plain_unlock());
/// assert!(MODE.init(Mode::Native).is_err());
/// # }
/// ```
pub struct ModeCell {
    /// A [`Mode`], or 0 while it is open.
    settled: AtomicU8,
    default: Mode,
}

/// The mode is settled already: it was chosen, or a lock was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeSettled {
    /// The mode that all locks are in, and stay in.
    pub mode: Mode,
}

impl core::fmt::Display for ModeSettled {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(
            f,
            "the lock mode is {:?} already: choose it once, before the first lock is waited for",
            self.mode
        )
    }
}

impl core::error::Error for ModeSettled {}

impl ModeCell {
    const_fn! {
        /// A mode that is `default` unless [`init`](ModeCell::init) says otherwise in time.
        pub fn new(default: Mode) -> Self {
            Self { settled: AtomicU8::new(0), default }
        }
    }

    /// Chooses the mode.
    ///
    /// # Errors
    ///
    /// When a mode was chosen before, or a lock was waited for.
    pub fn init(&self, mode: Mode) -> Result<(), ModeSettled> {
        match self.settle(mode) {
            Ok(_) => Ok(()),
            Err(mode) => Err(ModeSettled { mode }),
        }
    }

    /// The mode; from now on it stays.
    #[inline]
    pub fn get(&self) -> Mode {
        // Relaxed: the value is written once and says everything by itself.
        match self.settled.load(Relaxed) {
            0 => self.settle(self.default).unwrap_or_else(|settled| settled),
            settled => from_bits(settled),
        }
    }

    /// Whether an unlock may be a plain store: the mode is settled, and nobody sleeps in it.
    /// Settles nothing: what [`RawPvLock`](crate::RawPvLock) does otherwise is right in every mode.
    #[inline]
    pub fn plain_unlock(&self) -> bool {
        // Relaxed: as in `get`.
        self.settled.load(Relaxed) > Mode::Pv as u8
    }

    /// `mode`, if nobody settled another before.
    #[cold]
    fn settle(&self, mode: Mode) -> Result<Mode, Mode> {
        match self.settled.compare_exchange(0, mode as u8, Relaxed, Relaxed) {
            Ok(_) => Ok(mode),
            Err(settled) => Err(from_bits(settled)),
        }
    }
}

#[inline]
fn from_bits(settled: u8) -> Mode {
    match settled {
        1 => Mode::Pv,
        2 => Mode::Native,
        _ => Mode::TestAndSet,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_chosen_mode_stays() {
        for mode in [Mode::Native, Mode::Pv, Mode::TestAndSet] {
            let cell = ModeCell::new(Mode::Pv);
            assert!(!cell.plain_unlock(), "open: the unlock that is right in every mode");
            assert_eq!(cell.init(mode), Ok(()));
            assert_eq!(cell.plain_unlock(), mode != Mode::Pv);
            assert_eq!(cell.get(), mode);
            assert_eq!(cell.init(Mode::Pv), Err(ModeSettled { mode }));
        }
    }

    #[test]
    fn a_choice_after_the_first_use_is_an_error() {
        let cell = ModeCell::new(Mode::Native);
        assert_eq!(cell.get(), Mode::Native);
        let error = cell.init(Mode::Pv).unwrap_err();
        assert_eq!(error.mode, Mode::Native);
        assert!(error.to_string().starts_with("the lock mode is Native already"));
        assert_eq!(cell.get(), Mode::Native);
    }
}
