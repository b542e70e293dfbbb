//! The only switch between std's threads and shuttle's.

#[cfg(shuttle)]
pub(super) use shuttle::{
    sync::{Condvar, Mutex, MutexGuard},
    thread::yield_now,
};
#[cfg(not(shuttle))]
pub(super) use std::{
    sync::{Condvar, Mutex, MutexGuard},
    thread::yield_now,
};
