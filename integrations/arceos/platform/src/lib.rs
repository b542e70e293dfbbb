//! Xen PVH as a platform of ArceOS: the joint between `axplat`'s interfaces and `xen-guest`.
//!
//! | file | what ArceOS asks for |
//! |---|---|
//! | `boot.rs` | the first instruction, page tables |
//! | `init.rs` | the order in which each vCPU is made ready |
//! | `cpu.rs` | which vCPU is this, starting others, power-off |
//! | `irq.rs` | interrupts: Xen's events as ArceOS' IRQs, and IPIs |
//! | `time.rs` | clocks and the timer |
//! | `mem.rs` | where the memory is |
//! | `console.rs` | text, out and in |
//!
//! This crate owns how the two fit, and nothing that either has: no hypercall, no ring, no ABI of
//! events. It knows nothing of locks but that each vCPU needs a port to be kicked on.
//!
//! An application names it (`extern crate axplat_x86_xen`), with axstd's feature `myplat`.
#![no_std]

#[macro_use]
extern crate axplat;

mod boot;
mod console;
mod cpu;
mod init;
mod irq;
mod mem;
mod time;

pub use mem::cmdline;

/// What `axconfig.toml` says, which `AX_CONFIG_PATH` names.
#[allow(missing_docs, unused, reason = "made of the file, whose comments say it")]
pub mod config {
    axconfig_macros::include_configs!(path_env = "AX_CONFIG_PATH", fallback = "axconfig.toml");
    assert_str_eq!(
        PACKAGE,
        env!("CARGO_PKG_NAME"),
        "`package` in the file that AX_CONFIG_PATH names is not this package"
    );
}
