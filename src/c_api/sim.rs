//! The simulated device: say what an engine's kernels touch, and ask what had no order.
//!
//! What it does not: run the engine's kernels. Invariant: on another backend all functions answer UNSUPPORTED.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use super::config::{self, CValue};
use super::guard::guard_on;
use super::stream;
use super::text;
use super::types::{kavern_manager, kavern_status};
use crate::device::{Device, DeviceSlice, Simulator};
use crate::error::{Error, Result, Status};
use crate::manager::Manager;

/// A range of device memory. It will never grow, so it carries no size.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_sim_range {
    /// First byte.
    pub address: u64,
    /// Length.
    pub bytes: u64,
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_sim_range {}

fn simulator(manager: &Arc<Manager>) -> Result<&dyn Simulator> {
    manager.device().simulator().ok_or_else(|| {
        let name = &manager.device().description().name;
        let text = format!("{name} is a real device; open \"sim\" to look for races");
        Error::new(Status::Unsupported, text)
    })
}

fn slices(device: &dyn Device, ranges: &[kavern_sim_range]) -> Result<Vec<DeviceSlice>> {
    // SAFETY: the simulator looks addresses up and follows none; what is no memory of it is refused or reported.
    let slice = |range: &kavern_sim_range| unsafe {
        DeviceSlice::from_foreign(device.key(), range.address, range.bytes)
    };
    ranges.iter().map(slice).collect()
}

/// Enqueues, on a simulated device, an operation that reads and writes these ranges, in place of a kernel of yours.
///
/// Nothing is computed. A written range of 16 bytes or more gets a mark in its first 16 bytes, and a later read of a
/// range that begins there checks it. What has no order with what is counted and told by kavern_sim_report.
/// Shapes: `reads` [n_reads], `writes` [n_writes].
/// Stream: as for kavern_stream_synchronize. The default stream has no implicit order with others here.
/// Errors: KAVERN_ERR_UNSUPPORTED on a device that is not simulated, KAVERN_ERR_INVALID_ARGUMENT for addresses that no
/// simulated device has, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any; enqueues and returns. Threads count as ordered by their calls, unless the device was opened with
/// threads=separate.
/// Since: 0.1
///
/// # Safety
/// `reads` must point to `n_reads` values and `writes` to `n_writes`; null is fine where the count is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_sim_launch(
    manager: *mut kavern_manager,
    stream: *mut c_void,
    reads: *const kavern_sim_range,
    n_reads: usize,
    writes: *const kavern_sim_range,
    n_writes: usize,
) -> kavern_status {
    guard_on("kavern_sim_launch", manager, |manager| {
        // SAFETY: the header asks for `n_reads` values.
        let reads = unsafe { config::array(reads, n_reads, "reads") }?;
        // SAFETY: the header asks for `n_writes` values.
        let writes = unsafe { config::array(writes, n_writes, "writes") }?;
        let simulator = simulator(manager)?;
        let stream = stream::resolve(manager, stream)?;
        let device = &**manager.device();
        simulator.declare(*stream, &slices(device, reads)?, &slices(device, writes)?)?;
        Ok(Status::Ok)
    })
}

/// Writes what a simulated device has found so far as JSON.
///
/// Counts by kind, the first findings in full, and a hash of what ran.
///
/// Only work that has run was looked at: synchronise first. `races` is the sum of the counts but for unrecorded_wait
/// and stale_handle, which are hints. `needed` (may be null) receives the size with the terminating zero; `buf` null
/// with `cap` 0 asks for that size alone.
/// Errors: KAVERN_ERR_UNSUPPORTED on a device that is not simulated, KAVERN_ERR_BUFFER_TOO_SMALL with `needed` set and
/// `buf` untouched, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any; does not wait.
/// Since: 0.1
///
/// # Safety
/// `buf` must be null or point to `cap` writable bytes, `needed` be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_sim_report(
    manager: *const kavern_manager,
    buf: *mut c_char,
    cap: usize,
    needed: *mut usize,
) -> kavern_status {
    guard_on("kavern_sim_report", manager, |manager| {
        let report = simulator(manager)?.report()?;
        // SAFETY: the header asks for what the doc above says.
        unsafe { text::write(&report.to_json(), buf, cap, needed) }
    })
}

/// Lets a simulated device pick from another seed from here on, so that one program tries many orders.
///
/// What was found so far stays in the report. The same seed after the same calls gives the same order.
/// Errors: KAVERN_ERR_UNSUPPORTED on a device that is not simulated, KAVERN_ERR_INVALID_HANDLE,
/// KAVERN_ERR_NULL_POINTER.
/// Threads: any; does not wait.
/// Since: 0.1
///
/// # Safety
/// None beyond a handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_sim_seed(manager: *mut kavern_manager, seed: u64) -> kavern_status {
    guard_on("kavern_sim_seed", manager, |manager| {
        simulator(manager)?.reseed(seed)?;
        Ok(Status::Ok)
    })
}
