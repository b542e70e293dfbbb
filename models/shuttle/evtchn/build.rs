//! Compiles this crate, which is evtchn's sources, with the threads of shuttle.

fn main() {
    println!("cargo::rustc-cfg=shuttle");
    println!("cargo::rerun-if-changed=build.rs");
}
