//! Reads xentrace files and reconstructs who kicked whom, and what it cost.
//!
//! A paravirtual lock sleeps in `SCHEDOP_poll` and is woken by `EVTCHNOP_send`. Xen's own trace
//! buffer shows both, but no record says "kick". This crate puts the records of all pCPUs in order
//! and decides, for every vCPU, which polls slept, which operation woke them, and how many waking
//! kicks one acquisition of a lock took.
//!
//! ```no_run
//! let file = std::fs::File::open("trace.bin")?;
//! let summary = kicktrace::summarise(file, &kicktrace::Options::default())?;
//! for domain in &summary.domains {
//!     println!("d{}: {} waits", domain.id, domain.counts.waits.value);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Rooms: [`reader`] knows the format and the order, [`event`] and [`markers`] the numbers,
//! [`analysis`] what they mean, [`summary`] what is told.

pub mod analysis;
pub mod cli;
pub mod compare;
mod error;
pub mod event;
pub mod markers;
pub mod output;
pub mod reader;
pub mod summary;
pub mod synth;

pub use analysis::{Options, calibrate, fix_skew, summarise};
pub use error::{Error, ErrorKind};
pub use summary::{Certainty, Clock, Count, Summary};
