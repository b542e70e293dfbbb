//! A published ArceOS application, [`arceos-fairsched`](https://crates.io/crates/arceos-fairsched), on Xen.
//!
//! Its source is included as it is. What stands here is all that an application adds to run on this
//! platform: it names the platform.
#![no_std]
#![no_main]

// The platform: nothing here names it, and the image needs it.
extern crate axplat_x86_xen;

include!(concat!(env!("OUT_DIR"), "/application.rs"));
