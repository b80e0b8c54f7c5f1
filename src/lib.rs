//! Kavern: GPU memory and a KV cache for inference engines, behind one C ABI.
#![deny(unsafe_code)]

pub mod error;
pub mod event;
pub mod format;
pub mod sync;
pub mod types;

#[expect(unsafe_code, reason = "the machine's door")]
pub mod sys;

#[expect(unsafe_code, reason = "device memory is raw memory; this room turns it into checked slices")]
pub mod device;

pub mod memory;

pub mod cache;

pub mod manager;

#[expect(unsafe_code, reason = "the C boundary: raw pointers come in here and nowhere else")]
pub mod c_api;
