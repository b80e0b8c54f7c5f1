//! Structs and the callback of shared pools.
//!
//! What it does not: anything else. Invariant: a struct begins with its size and grows at its end only.

use std::ffi::{c_char, c_void};

use super::config::{self, CStruct, CValue};
use crate::memory::{ModelStatistics, SharedStatistics};

/// Asks the owner of a model to give up so many bytes: your userdata, the model's name, the bytes. It may use the pool
/// and gives by kavern_shared_pool_decommit, at once or later.
pub type kavern_reclaim_fn =
    Option<unsafe extern "C" fn(userdata: *mut c_void, model: *const c_char, bytes: u64)>;

/// How a shared pool is made; fill with kavern_shared_pool_config_init.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_shared_pool_config {
    /// sizeof(kavern_shared_pool_config).
    pub struct_size: u32,
    /// KAVERN_ELASTIC_ bits.
    pub flags: u32,
    /// Most physical memory of all models together, rounded down to pages of the device.
    pub physical_limit_bytes: u64,
    /// What is committed and decommitted at least, a multiple of the device's page; 0 takes that page.
    pub page_bytes: u64,
    /// A budget that all processes of this user on this machine share by this name, besides the pool's own limit; null
    /// for none. Letters, digits, '-', '_' and '.'. A process that dies gives its part back.
    pub machine_name: *const c_char,
    /// The limit of that budget; 0 takes the one that another process has set.
    pub machine_limit_bytes: u64,
    /// Zero.
    pub reserved: [u64; 4],
    /// As kavern_manager_config.ready_low_bytes, of the pool's own pages.
    pub ready_low_bytes: u64,
    /// As kavern_manager_config.ready_high_bytes; at most physical_limit_bytes.
    pub ready_high_bytes: u64,
}

// SAFETY: numbers and a pointer that is read with checks.
unsafe impl CValue for kavern_shared_pool_config {}
// SAFETY: begins with struct_size.
unsafe impl CStruct for kavern_shared_pool_config {
    const NAME: &'static str = "kavern_shared_pool_config";
    const FIRST_BYTES: usize = 72;

    fn defaults() -> Self {
        config::zeroed()
    }
}

/// What a model of a shared pool has. You set struct_size; the call fills the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_model_statistics {
    /// sizeof(kavern_model_statistics).
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Addresses.
    pub capacity_bytes: u64,
    /// What is committed and decommitted at least.
    pub page_bytes: u64,
    /// Committed.
    pub committed_bytes: u64,
    /// Memory behind the model's range: committed, retained or leaving.
    pub physical_bytes: u64,
    /// Decommitted, but part of a slab that is still in use.
    pub retained_bytes: u64,
    /// Decommitted, and on its way back once its stream is past.
    pub leaving_bytes: u64,
    /// Most physical memory at one time.
    pub peak_bytes: u64,
    /// It can always have so much.
    pub min_bytes: u64,
    /// Its part of what is over the minimums, next to the others' weights.
    pub weight: u64,
    /// It never has more.
    pub cap_bytes: u64,
    /// Asked of its owner and not given up yet: the twin of the callback, for programs that would rather look.
    pub wanted_bytes: u64,
    /// How often its owner was asked.
    pub requests: u64,
    /// Pins that keep parts committed.
    pub pins: u64,
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_model_statistics {}
// SAFETY: begins with struct_size.
unsafe impl CStruct for kavern_model_statistics {
    const NAME: &'static str = "kavern_model_statistics";
    const FIRST_BYTES: usize = 112;

    fn defaults() -> Self {
        config::zeroed()
    }
}

impl From<ModelStatistics> for kavern_model_statistics {
    fn from(found: ModelStatistics) -> Self {
        Self {
            struct_size: 0,
            reserved: 0,
            capacity_bytes: found.range.capacity_bytes,
            page_bytes: found.range.page_bytes,
            committed_bytes: found.range.committed_bytes,
            physical_bytes: found.range.physical_bytes,
            retained_bytes: found.range.retained_bytes,
            leaving_bytes: found.range.leaving_bytes,
            peak_bytes: found.peak_bytes,
            min_bytes: found.terms.min_bytes,
            weight: found.terms.weight,
            cap_bytes: found.terms.cap_bytes,
            wanted_bytes: found.wanted_bytes,
            requests: found.requests,
            pins: found.range.pins,
        }
    }
}

/// What a shared pool has and did. You set struct_size; the call fills the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_shared_pool_statistics {
    /// sizeof(kavern_shared_pool_statistics).
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Most physical memory.
    pub limit_bytes: u64,
    /// Physical memory of all models.
    pub used_bytes: u64,
    /// Physical memory that waits for use; used and pooled together are never more than the limit.
    pub pooled_bytes: u64,
    /// Models.
    pub models: u64,
    /// How often an owner was asked to give.
    pub requests: u64,
    /// Commits that were refused for lack of memory.
    pub refusals: u64,
    /// Bytes cleared because they came from another model or from the device.
    pub scrubbed_bytes: u64,
    /// Charged to the machine's budget by all processes; 0 without one.
    pub machine_used_bytes: u64,
}

// SAFETY: numbers only.
unsafe impl CValue for kavern_shared_pool_statistics {}
// SAFETY: begins with struct_size.
unsafe impl CStruct for kavern_shared_pool_statistics {
    const NAME: &'static str = "kavern_shared_pool_statistics";
    const FIRST_BYTES: usize = 72;

    fn defaults() -> Self {
        config::zeroed()
    }
}

impl From<SharedStatistics> for kavern_shared_pool_statistics {
    fn from(found: SharedStatistics) -> Self {
        Self {
            struct_size: 0,
            reserved: 0,
            limit_bytes: found.limit_bytes,
            used_bytes: found.used_bytes,
            pooled_bytes: found.pooled_bytes,
            models: found.models,
            requests: found.requests,
            refusals: found.refusals,
            scrubbed_bytes: found.scrubbed_bytes,
            machine_used_bytes: found.machine_used_bytes,
        }
    }
}
