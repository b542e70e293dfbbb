//! ArceOS' own lock under the names of this crate.
//!
//! Owns the step from the guards of `kernel_guard` 0.1, which ArceOS uses, to those of 0.2, which the
//! published lock of that version asks for.

use core::marker::PhantomData;

/// The guard `G` as `kernel_guard` 0.2 wants it.
#[derive(Debug)]
pub struct Around<G>(PhantomData<G>);

impl<G: kernel_guard::BaseGuard> original_guard::BaseGuard for Around<G> {
    type State = G::State;

    #[inline(always)]
    fn acquire() -> G::State {
        G::acquire()
    }

    #[inline(always)]
    fn release(state: G::State) {
        G::release(state);
    }
}

/// The published lock.
pub type BaseSpinLock<G, T> = original::BaseSpinLock<Around<G>, T>;

/// The published lock's guard.
pub type BaseSpinLockGuard<'a, G, T> = original::BaseSpinLockGuard<'a, Around<G>, T>;
