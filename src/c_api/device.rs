//! Devices of this machine: how many, and what they are.
//!
//! What it does not: open them for work; that is the manager's. Invariant: nothing stays behind after a call.

use std::ffi::c_char;

use super::config::{self, CStruct, CValue, Out, OutStruct};
use super::guard::guard;
use super::text;
use super::types::kavern_status;
use crate::device::{Capabilities, registry};
use crate::error::Status;

/// Bits of kavern_device_description.capabilities.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_device_capability {
    /// Reserve, map and remap addresses.
    KAVERN_DEVICE_VIRTUAL_MEMORY = 1,
    /// Allocate and free in stream order.
    KAVERN_DEVICE_STREAM_ORDERED = 2,
    /// The host may read and write device addresses.
    KAVERN_DEVICE_HOST_ADDRESSABLE = 4,
    /// Streams can be captured into graphs.
    KAVERN_DEVICE_CAPTURE = 8,
    /// The device reports races between streams.
    KAVERN_DEVICE_RACE_DETECTION = 16,
    /// The CPU and the device may touch memory at the same time under one address; for KAVERN_POOL_MANAGED.
    KAVERN_DEVICE_MANAGED_MEMORY = 32,
}

/// What a device is. You set struct_size; the call fills the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_device_description {
    /// sizeof(kavern_device_description).
    pub struct_size: u32,
    /// KAVERN_DEVICE_ bits.
    pub capabilities: u32,
    /// Physical memory.
    pub total_bytes: u64,
    /// Size and alignment of the smallest mapping of virtual memory.
    pub page_bytes: u64,
    /// Which device of its backend.
    pub ordinal: u32,
    /// Zero.
    pub reserved: u32,
    /// The text that opens it, for example "cuda:0"; ends with a zero.
    pub name: [c_char; 64],
    /// The model, for people; ends with a zero.
    pub model: [c_char; 128],
    /// The backend, for example "cuda"; ends with a zero.
    pub backend: [c_char; 32],
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_device_description {}
// SAFETY: begins with struct_size.
unsafe impl CStruct for kavern_device_description {
    const NAME: &'static str = "kavern_device_description";
    const FIRST_BYTES: usize = 256;

    fn defaults() -> Self {
        config::zeroed()
    }
}

fn capability_bits(has: Capabilities) -> u32 {
    use kavern_device_capability::*;
    let bit = |is_there: bool, bit: kavern_device_capability| if is_there { bit as u32 } else { 0 };
    bit(has.virtual_memory, KAVERN_DEVICE_VIRTUAL_MEMORY)
        | bit(has.stream_ordered, KAVERN_DEVICE_STREAM_ORDERED)
        | bit(has.host_addressable, KAVERN_DEVICE_HOST_ADDRESSABLE)
        | bit(has.capture, KAVERN_DEVICE_CAPTURE)
        | bit(has.race_detection, KAVERN_DEVICE_RACE_DETECTION)
        | bit(has.managed_memory, KAVERN_DEVICE_MANAGED_MEMORY)
}

/// Counts the devices of a backend ("host", "cuda") on this machine; 0 if its driver is missing.
///
/// Errors: KAVERN_ERR_INVALID_ARGUMENT for an unknown backend, KAVERN_ERR_NULL_POINTER.
/// Threads: any; may block while a driver starts.
/// Since: 0.1
///
/// # Safety
/// `backend` must be null or a text that ends with a zero, `count` be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_device_count(backend: *const c_char, count: *mut u32) -> kavern_status {
    guard("kavern_device_count", || {
        // SAFETY: the header asks for a text or null.
        let backend = unsafe { text::read(backend, "backend") }?;
        // SAFETY: the header asks for a writable value or null.
        let count = unsafe { Out::new(count, "count") }?;
        count.write(registry::count(backend)?);
        Ok(Status::Ok)
    })
}

/// Describes a device ("host", "cuda:0") without opening it for work.
///
/// Errors: KAVERN_ERR_INVALID_ARGUMENT for an unknown name, KAVERN_ERR_NO_DEVICE, KAVERN_ERR_NULL_POINTER,
/// KAVERN_ERR_STRUCT_SIZE.
/// Threads: any; may block while a driver starts.
/// Since: 0.1
///
/// # Safety
/// `device` must be null or a text that ends with a zero; `out` be null or point to as many writable bytes as its
/// struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_device_describe(
    device: *const c_char,
    out: *mut kavern_device_description,
) -> kavern_status {
    guard("kavern_device_describe", || {
        // SAFETY: the header asks for a text or null.
        let device = unsafe { text::read(device, "device") }?;
        // SAFETY: the header asks for a struct that says its size, or null.
        let out = unsafe { OutStruct::new(out, "out") }?;
        let found = registry::describe(device)?;
        out.write(&kavern_device_description {
            struct_size: 0,
            capabilities: capability_bits(found.capabilities),
            total_bytes: found.total_bytes,
            page_bytes: found.page_bytes,
            ordinal: found.ordinal,
            reserved: 0,
            name: text::fixed(&found.name),
            model: text::fixed(&found.model),
            backend: text::fixed(found.backend),
        });
        Ok(Status::Ok)
    })
}
