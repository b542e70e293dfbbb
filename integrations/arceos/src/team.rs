//! Tasks that begin together and are waited for together.
//!
//! Owns the waiting. ArceOS' own `join` looks whether the task has ended and *then* leaves word that it
//! waits (axtask 0.3.0-preview.3, `TaskInner::join`): a task that ends in between wakes nobody, and
//! the joiner sleeps for ever. Its wait queues look again after they have left word.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::{Acquire, Release};
use std::os::arceos::api::config::TASK_STACK_SIZE;
use std::os::arceos::modules::axtask::{self, AxCpuMask, TaskInner, WaitQueue};

use kspin::SpinNoIrq;

/// Where a task may run.
#[derive(Clone, Copy)]
pub(crate) enum Place {
    /// Where the scheduler puts it.
    Anywhere,
    /// On the vCPU of its own number.
    OwnVcpu,
}

/// Runs `task(0)` to `task(tasks - 1)`, each as a task of its own, until all have ended: what they
/// returned, as they ended.
pub(crate) fn run<R: Send + 'static>(
    tasks: u32,
    place: Place,
    task: impl Fn(u32) -> R + Copy + Send + 'static,
) -> Vec<R> {
    struct Team<R> {
        results: SpinNoIrq<Vec<R>>,
        ended: AtomicU32,
        queue: WaitQueue,
    }
    let team = Arc::new(Team {
        results: SpinNoIrq::new(Vec::with_capacity(tasks as usize)),
        ended: AtomicU32::new(0),
        queue: WaitQueue::new(),
    });
    for number in 0..tasks {
        let team = team.clone();
        let run = move || {
            let result = task(number);
            team.results.lock().push(result);
            // Release: pairs with the acquire below.
            team.ended.fetch_add(1, Release);
            team.queue.notify_all(false);
        };
        let spawned = TaskInner::new(run, format!("task {number}"), TASK_STACK_SIZE);
        if let Place::OwnVcpu = place {
            spawned.set_cpumask(AxCpuMask::one_shot(number as usize));
        }
        axtask::spawn_task(spawned);
    }
    team.queue.wait_until(|| team.ended.load(Acquire) == tasks);
    core::mem::take(&mut *team.results.lock())
}
