//! The experiment: every lock in every topology with every section, so that anybody can repeat it.
//!
//! ```text
//! matrix --> run --> boot --> dom0       many cells in one boot
//!             '--> figures --> folder    each kept when it is done
//! folder, simulated --> report --> page, compare
//! ```
//!
//! A *cell* is one lock in one topology with one section and one seed. Owns which cells there are, how they
//! run, what is counted of each, and the one report of all. A single run and its table are
//! [`run`](crate::run)'s and [`report`](mod@crate::report)'s business; what a domain does is the guest's.

pub mod boot;
pub mod cli;
pub mod compare;
pub mod dom0;
pub mod figures;
pub mod folder;
pub mod matrix;
pub mod page;
mod pause;
pub mod plot;
pub mod report;
pub mod run;
mod simulated;
mod standing;
pub mod stats;

pub use self::matrix::{Cell, Matrix, Section, Selection};
pub use self::report::Report;
