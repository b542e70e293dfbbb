//! Compiles this crate, which is pvlock's sources and the models, with the atomics of loom.

fn main() {
    println!("cargo::rustc-cfg=loom");
    println!("cargo::rerun-if-changed=build.rs");
}
