//! What the model suite reads out of a run: the steps that led to a failure.
//!
//! Exists in model builds only. The trace is kept outside the model's memory, so that it neither
//! orders nor delays anything that is checked.

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
