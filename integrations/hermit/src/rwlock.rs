//! The readers-writer lock: the published one, because Hermit wants upgradable readers of it.

#[cfg(feature = "all-one-shot")]
pub use one_shot_mutex::sync::{
    OneShotRwLock as RwSpinLock, OneShotRwLockReadGuard as RwSpinLockReadGuard,
    OneShotRwLockUpgradableReadGuard as RwSpinLockUpgradableReadGuard,
    OneShotRwLockWriteGuard as RwSpinLockWriteGuard, RawOneShotRwLock as RawRwSpinLock,
};

#[cfg(not(feature = "all-one-shot"))]
pub use self::spinning::*;

#[cfg(not(feature = "all-one-shot"))]
mod spinning {
    /// Readers or one writer, who spin. Readers come first.
    pub type RawRwSpinLock = spinning_top::RawRwSpinlock<spinning_top::relax::Backoff>;

    /// Data behind a [`RawRwSpinLock`].
    pub type RwSpinLock<T> = lock_api::RwLock<RawRwSpinLock, T>;

    /// What a reader of a [`RwSpinLock`] has.
    pub type RwSpinLockReadGuard<'a, T> = lock_api::RwLockReadGuard<'a, RawRwSpinLock, T>;

    /// What a reader of a [`RwSpinLock`] has who may become its writer.
    pub type RwSpinLockUpgradableReadGuard<'a, T> =
        lock_api::RwLockUpgradableReadGuard<'a, RawRwSpinLock, T>;

    /// What a writer of a [`RwSpinLock`] has.
    pub type RwSpinLockWriteGuard<'a, T> = lock_api::RwLockWriteGuard<'a, RawRwSpinLock, T>;
}
