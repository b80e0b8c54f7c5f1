//! `kavern`: the command beside the library.
//!
//! It uses the library through its C ABI alone, as any other program would; abi.rs is the one file that does so. A verb
//! is one file. Results go to stdout, everything else to stderr.
#![deny(unsafe_code)]
mod failure;
mod generate;
mod keys;
mod prefix_tree;
mod screen;
mod trace;
mod workload;
mod zstd;
fn main() {}
