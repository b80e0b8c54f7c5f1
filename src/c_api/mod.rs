//! The C ABI: one noun a file, each function about 15 lines.
//!
//! `handle` gives objects handles and finds them again, `guard` stands around each exported function, `config` is the
//! one home of reading and writing through a caller's pointers. Everything else is borrow, call the room, map the
//! result.
#![expect(non_camel_case_types, reason = "these names are the C header's")]
#![allow(
    rustdoc::broken_intra_doc_links,
    reason = "docs are written for C readers, to whom [n] is a shape and not a link"
)]

pub mod address;
pub mod cache;
mod config;
pub mod copies;
pub mod device;
pub mod elastic;
mod guard;
mod handle;
pub mod kv_class;
mod kv_config;
pub mod kv_enums;
pub mod kv_event;
pub mod kv_group;
pub mod kv_ops;
pub mod kv_prefix;
pub mod kv_resize;
mod kv_retain;
pub mod kv_types;
pub mod log;
pub mod lookup;
pub mod lookup_types;
pub mod manager;
pub mod memory;
pub mod memory_types;
pub mod namespace;
pub mod pinned;
pub mod plan;
pub mod pool;
pub mod pool_types;
pub mod shared;
pub mod shared_types;
pub mod sim;
pub mod step;
pub mod stream;
mod tables;
mod text;
pub mod types;
pub mod upkeep;
pub mod version;
