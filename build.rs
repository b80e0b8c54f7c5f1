//! Gives the shared library its soname. Calls no compiler and never touches the header.
#![expect(clippy::disallowed_macros, reason = "cargo reads its instructions from the output")]

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // 0 = the ABI's major number, which docs/abi.md says when to raise.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libkavern.so.0");
        // Never unloaded: threads of the host backend and thread-local destructors outlive a dlclose.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
}
