//! Sets `cfg(loom)` for this crate alone, so that nothing else has to be built twice.

fn main() {
    println!("cargo::rustc-cfg=loom");
    println!("cargo::rerun-if-changed=build.rs");
}
