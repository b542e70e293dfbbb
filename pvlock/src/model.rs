//! What the model suite reads out of a run: the steps that led to a failure. And where it can act:
//! before every access to shared memory.
//!
//! Exists in model builds only. The trace is kept outside the model's memory, so that it neither
//! orders nor delays anything that is checked.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::string::String;
use std::vec::Vec;

std::thread_local! {
    static TRACE: RefCell<Vec<(usize, String)>> = const { RefCell::new(Vec::new()) };
    static REACHED: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

pub(crate) fn step(cpu: usize, text: String) {
    REACHED.with_borrow_mut(|reached| {
        if !reached.contains(&text) {
            reached.insert(text.clone());
        }
    });
    TRACE.with_borrow_mut(|trace| trace.push((cpu, text)));
}

/// A step of the machine under the lock.
pub fn note(text: &str) {
    step(usize::MAX, text.into());
}

/// Forgets the steps so far; call at the beginning of each execution.
pub fn begin() {
    TRACE.with_borrow_mut(Vec::clear);
}

/// (CPU, step) since [`begin`], in the order they were done.
pub fn trace() -> Vec<(usize, String)> {
    TRACE.with_borrow(Vec::clone)
}

/// The different steps done since the last call, in all executions: what an exploration covered.
pub fn take_reached() -> BTreeSet<String> {
    REACHED.with_borrow_mut(std::mem::take)
}

std::thread_local! {
    static BEFORE_ACCESS: Cell<Option<fn()>> = const { Cell::new(None) };
}

/// Calls `act` before every access to shared memory that the lock makes from now on, on any CPU.
pub fn before_every_access(act: Option<fn()>) {
    BEFORE_ACCESS.set(act);
}

std::thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the rule of one entry a lock counts as a thing that CPUs share. If it does, a model goes
/// through the orders in which entries come and go even where the lock sees no difference; on this
/// thread, until it says otherwise.
pub fn watch_table(on: bool) {
    WATCHED.set(on);
}

pub(crate) fn table_is_watched() -> bool {
    WATCHED.get()
}

/// loom's atomics, with a call before each access.
pub(crate) mod atomic {
    use super::BEFORE_ACCESS;
    use loom::sync::atomic::Ordering;

    fn before() {
        if let Some(act) = BEFORE_ACCESS.get() {
            act();
        }
    }

    macro_rules! atomics {
        ($($name:ident $value:ident;)*) => {$(
            pub(crate) struct $name(loom::sync::atomic::$name);

            #[allow(dead_code)] // Not each of them is used with each size.
            impl $name {
                #[track_caller]
                pub(crate) fn new(value: $value) -> Self {
                    Self(loom::sync::atomic::$name::new(value))
                }

                #[track_caller]
                pub(crate) fn load(&self, order: Ordering) -> $value {
                    before();
                    self.0.load(order)
                }

                #[track_caller]
                pub(crate) fn store(&self, value: $value, order: Ordering) {
                    before();
                    self.0.store(value, order);
                }

                atomics! { swap fetch_add fetch_sub fetch_and fetch_or: $value }
                atomics! { compare_exchange compare_exchange_weak; $value }
            }
        )*};
        ($($change:ident)*: $value:ident) => {$(
            #[track_caller]
            pub(crate) fn $change(&self, value: $value, order: Ordering) -> $value {
                before();
                self.0.$change(value, order)
            }
        )*};
        ($($change:ident)*; $value:ident) => {$(
            #[track_caller]
            pub(crate) fn $change(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                before();
                self.0.$change(current, new, success, failure)
            }
        )*};
    }

    atomics! {
        AtomicU8 u8;
        AtomicU32 u32;
        AtomicUsize usize;
    }
}
