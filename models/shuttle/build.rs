//! Compiles this crate, which is pvlock's sources and the suite, with the atomics of shuttle.

fn main() {
    println!("cargo::rustc-cfg=shuttle");
    println!("cargo::rerun-if-changed=build.rs");
}
