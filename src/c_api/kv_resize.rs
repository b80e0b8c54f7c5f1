//! How many blocks a group has, changed while it serves.

use super::config::{CValue, Out};
use super::guard::guard_on;
use super::kv_types::kavern_kv_resize_result;
use super::types::{kavern_kv_cache, kavern_status};
use crate::cache::Resized;
use crate::error::Status;

// SAFETY: numbers only.
unsafe impl CValue for kavern_kv_resize_result {}

impl From<Resized> for kavern_kv_resize_result {
    fn from(resized: Resized) -> Self {
        Self {
            blocks: resized.blocks.into(),
            max_blocks: resized.max_blocks.into(),
            held_blocks: resized.held_blocks.into(),
            committed_bytes: resized.committed_bytes,
        }
    }
}

/// Changes how many blocks a group has while sequences run, 1 to the most that the cache was made for.
///
/// Growing gets memory first, all or nothing, then hands the new blocks out. Shrinking evicts the blocks above the new
/// count that nobody holds. Those that are held or pinned move below it with the first kavern_kv_tables, or plan, of
/// the steps that follow, at most 64 of a group and 128 MiB a step, as far as there is room: each is one of the step's
/// copies, the tables show the new place, and everything known of the block goes along. A block under a lease whose
/// block_ids were asked for, or of chunks, stays until the lease ends; other ids hold until the next tables. The memory
/// of the highest blocks goes back in whole pages when no step in flight and no work of kavern_kv_fill_pattern and
/// kavern_kv_check_pattern can reach them, if the cache was made with max_blocks; addresses stay.
/// In a metadata-only cache with size classes the memory is that of the workers: sizes from before the first plan reach
/// them with it, later ones count as done when a step is over whose plan told them.
/// Errors: KAVERN_PARTIAL if blocks above are still in use or memory still waits for work: kavern_kv_poll, or the same
/// call again, goes on; that the device cannot say whether work is over is told by kavern_kv_poll, mappings that it did
/// not remove by `failed_unmaps` of kavern_manager_stats. KAVERN_ERR_INVALID_ARGUMENT (no such group, a count out of
/// range), KAVERN_ERR_UNSUPPORTED (a worker's cache), KAVERN_ERR_OUT_OF_MEMORY, KAVERN_ERR_DEVICE (also while it keeps
/// a mapping where memory is to be), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER; then nothing has changed.
/// Threads: any; may wait for the device to map memory. The calls of a step never wait for it: it takes the cache's
/// lock for at most 256 blocks at a time.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_resize(
    cache: *mut kavern_kv_cache,
    group: u32,
    blocks: u64,
    out: *mut kavern_kv_resize_result,
) -> kavern_status {
    guard_on("kavern_kv_resize", cache, |object| {
        // SAFETY: the header asks for a writable value or null.
        let out = unsafe { Out::new(out, "out") }?;
        let resized = object.cache.resize(group, blocks)?;
        out.write(resized.into());
        Ok(if resized.is_done { Status::Ok } else { Status::Partial })
    })
}
