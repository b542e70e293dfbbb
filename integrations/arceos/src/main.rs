//! An application on ArceOS on Xen: tasks on every vCPU count under one lock, allocate, and sleep.
//!
//! It uses ArceOS as any application does (`axstd`), and one thing beside it: the counts that
//! `xen_guest::glue` keeps of the waits of the lock under everything. What the tasks do is in
//! [`work`]; how every vCPU comes to sleep, in [`drill`].
//!
//! The domain's configuration may say how much (`extra = "rounds=100 tasks=16"`), see [`Plan`].
#![no_std]
#![no_main]

#[macro_use]
extern crate axstd as std;
extern crate alloc;
// The platform: nothing here names it, and the image needs it.
extern crate axplat_x86_xen as platform;

mod drill;
mod plan;
mod team;
mod work;

use alloc::string::String;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;
use std::io::Read;
use std::os::arceos::api::modules::axhal::time;
use std::os::arceos::api::modules::axipi;
use std::thread;
use std::time::Instant;

use pvlock::Counter;
use xen_guest::glue::{self, XenPlatform};
use xen_guest::markers;

use plan::Plan;
use team::Place;
use work::{COUNTER, Done};

/// ArceOS calls it on vCPU 0, when all vCPUs run its scheduler; the domain ends when it returns.
#[unsafe(no_mangle)]
fn main() {
    let vcpus = xen_guest::vcpu::start::count().expect("no more than 128 vCPUs");
    println!("Hello, ArceOS on Xen! {vcpus} vCPUs");
    println!("arceos: {} s since 1970", time::wall_time().as_secs());
    let plan = Plan::from_words(platform::cmdline(), vcpus).unwrap_or_else(|why| panic!("{why}"));
    markers::enable(plan.markers);
    interrupt_all(vcpus);
    if plan.ask {
        ask();
    }
    let begin = Instant::now();
    let done = team::run(plan.tasks, Place::Anywhere, move |task| work::run(task, plan));
    let ns = begin.elapsed().as_nanos() as u64;
    // The original lock never sleeps.
    let sleeps = !cfg!(feature = "original-kspin");
    if plan.drill && sleeps {
        drill::run(vcpus);
    }
    if plan.stall && sleeps {
        drill::outlast_polls(vcpus);
    }
    report(vcpus, &done, ns);
}

/// Lets every vCPU run a function by an interrupt from this one.
fn interrupt_all(vcpus: u32) {
    static REACHED: AtomicU32 = AtomicU32::new(0);
    let reached = || {
        // Relaxed: a count.
        REACHED.fetch_add(1, Relaxed);
    };
    (0..vcpus).for_each(|vcpu| axipi::run_on_cpu(vcpu as usize, reached));
    while REACHED.load(Relaxed) < vcpus {
        thread::yield_now();
    }
    println!("arceos: IPIs reached {vcpus} of {vcpus} vCPUs");
}

/// Reads a line from the console, and says it back.
fn ask() {
    println!("arceos: who are you?");
    let (mut line, mut byte) = (String::new(), [0]);
    // By bytes: `read_line` of a console where nothing has been typed yet is the end of the file.
    while byte != *b"\n" {
        std::io::stdin().read(&mut byte).expect("a console can be read");
        line.push(char::from(byte[0]));
    }
    println!("arceos: hello, {}", line.trim_end());
}

/// What came of it, line by line. The last one is the verdict.
fn report(vcpus: u32, done: &[Done], ns: u64) {
    let taken: u64 = done.iter().map(|done| done.taken).sum();
    let longest = done.iter().map(|done| done.longest_wait_ns).max().unwrap_or(0);
    let ran = (0..vcpus).filter(|vcpu| done.iter().any(|done| done.ran_on.get(*vcpu)));
    let mut lost = 0;
    for vcpu in 0..vcpus {
        let counts = glue::wait_counts(vcpu as usize);
        let late = pvlock::counters::<XenPlatform>(vcpu as usize)[Counter::PollTimeout as usize];
        lost += late + counts.timed_out_unblocked;
        println!(
            "vCPU {vcpu}: {} polls, {} kicks, {} timeouts",
            counts.polls, counts.kicked, counts.timed_out
        );
    }
    println!(
        "arceos: {} acquisitions/s; longest wait {} us; {} us",
        taken * 1_000_000_000 / ns.max(1),
        longest / 1000,
        ns / 1000
    );
    println!("arceos: tasks ran on {} of {vcpus} vCPUs", ran.count());
    println!(
        "arceos: counter {} of {taken}; {} of {vcpus} vCPUs slept and were kicked awake; {lost} lost",
        *COUNTER.lock(),
        drill::sleepers(vcpus)
    );
}
