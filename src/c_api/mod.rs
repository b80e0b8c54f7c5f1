//! The C ABI: one noun a file, each function about 15 lines.
#![expect(non_camel_case_types, reason = "these names are the C header's")]

pub mod kv_enums;
mod config;
mod guard;
mod handle;
pub mod kv_types;
pub mod log;
pub mod types;
