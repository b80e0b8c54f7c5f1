//! Namespaces of a KV cache: what each holds and did, which there are, and how much each may hold.

use super::config::{Out, OutArray, OutStruct};
use super::guard::guard_on;
use super::types::{kavern_kv_cache, kavern_status};
use crate::cache::NamespaceStatistics;
use crate::error::{Error, Status};

/// What a namespace holds, may hold and did, under all its salts and adapters, all groups together.
///
/// Counts begin when the namespace comes into use or gets a limit, and end when neither is left. A block is counted
/// once, however many sequences of the namespace share it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_namespace_statistics {
    /// sizeof(kavern_kv_namespace_statistics).
    pub struct_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Blocks that its sequences and leases hold.
    pub held_blocks: u64,
    /// Findable blocks that nobody holds and no step in flight may read.
    pub cached_blocks: u64,
    /// Findable blocks, held or not.
    pub findable_blocks: u64,
    /// Limit of held_blocks; UINT64_MAX if none.
    pub max_held_blocks: u64,
    /// Limit of cached_blocks; UINT64_MAX if none.
    pub max_cached_blocks: u64,
    /// Requests that were looked up.
    pub lookups: u64,
    /// Full blocks of those requests.
    pub lookup_blocks: u64,
    /// Of those, found.
    pub hit_blocks: u64,
    /// Tokens of those requests.
    pub lookup_tokens: u64,
    /// Of those, found.
    pub hit_tokens: u64,
    /// Blocks that became findable.
    pub stored_blocks: u64,
    /// Blocks evicted to make room, and those that went because of max_cached_blocks.
    pub evicted_blocks: u64,
    /// Operations refused because of max_held_blocks.
    pub refused_ops: u64,
    /// Blocks promised to its sequences by expected_tokens; they count against max_held_blocks.
    pub promised_blocks: u64,
}

impl From<NamespaceStatistics> for kavern_kv_namespace_statistics {
    fn from(s: NamespaceStatistics) -> Self {
        Self {
            struct_size: 0,
            reserved: 0,
            held_blocks: s.held_blocks,
            cached_blocks: s.cached_blocks,
            findable_blocks: s.findable_blocks,
            max_held_blocks: s.max_held_blocks,
            max_cached_blocks: s.max_cached_blocks,
            lookups: s.lookups,
            lookup_blocks: s.lookup_blocks,
            hit_blocks: s.hit_blocks,
            lookup_tokens: s.lookup_tokens,
            hit_tokens: s.hit_tokens,
            stored_blocks: s.stored_blocks,
            evicted_blocks: s.evicted_blocks,
            refused_ops: s.refused_ops,
            promised_blocks: s.promised_blocks,
        }
    }
}

/// Reads what a namespace holds and did; zeros without limits for one that is neither in use nor limited.
///
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
/// Threads: any; takes the cache's lock for a moment.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to as many writable bytes as its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_namespace_stats(
    cache: *const kavern_kv_cache,
    namespace_id: u64,
    out: *mut kavern_kv_namespace_statistics,
) -> kavern_status {
    guard_on("kavern_kv_namespace_stats", cache, |object| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let out = unsafe { OutStruct::new(out, "out") }?;
        out.write(&object.cache.namespace_statistics(namespace_id).into());
        Ok(Status::Ok)
    })
}

/// Lists the namespaces that are in use or limited, piece by piece; start with `*position` 0 and go on until the answer
/// is KAVERN_OK.
///
/// Shapes: `namespace_ids` [max]; `count` receives how many were written. One that comes or goes meanwhile may be
/// missing; none is listed twice unless it went and came again.
/// Errors: KAVERN_PARTIAL if there is more; KAVERN_ERR_INVALID_ARGUMENT if `max` is 0, KAVERN_ERR_NULL_POINTER,
/// KAVERN_ERR_INVALID_HANDLE.
/// Threads: any; takes the cache's lock for a few hundred ids at a time.
/// Since: 0.1
///
/// # Safety
/// `position` and `count` must be null or point to writable values, `namespace_ids` to `max` writable elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_namespace_list(
    cache: *const kavern_kv_cache,
    position: *mut u64,
    max: usize,
    namespace_ids: *mut u64,
    count: *mut usize,
) -> kavern_status {
    guard_on("kavern_kv_namespace_list", cache, |object| {
        // SAFETY: the header asks for a writable value or null.
        let position = unsafe { Out::new(position, "position") }?;
        // SAFETY: the header asks for `max` writable elements.
        let mut ids = unsafe { OutArray::new(namespace_ids, max, "namespace_ids") }?;
        // SAFETY: the header asks for a writable value or null.
        let count = unsafe { Out::new(count, "count") }?;
        if max == 0 {
            return Err(Error::argument("max is 0; give room for at least one id"));
        }
        let mut written = 0;
        let (next, is_all) = object.cache.namespace_ids(position.read(), max, |index, id| {
            ids.write(index, id);
            written = index + 1;
        });
        position.write(next);
        count.write(written);
        Ok(if is_all { Status::Ok } else { Status::Partial })
    })
}

/// Sets how many blocks a namespace may hold and how many it may keep cached; UINT64_MAX lifts a limit.
///
/// Held blocks: an ADMIT, APPEND, RESUME or EDIT after which the namespace would hold more, or a FORK while it does,
/// answers KAVERN_ERR_LIMIT_REACHED with the excess in blocks_missing; what is promised to its sequences counts as
/// held. A lookup is never refused, but what it found counts until its lease is released. Cached
/// blocks: when more come, the namespace's own oldest go, with KAVERN_REMOVE_LIMIT as their reason; blocks of others
/// stay. Oldest is what nobody has held for longest; before the first limit, what was published first.
/// Errors: KAVERN_ERR_LIMIT_REACHED if max_namespaces namespaces have limits, KAVERN_ERR_UNSUPPORTED for a worker's
/// cache, KAVERN_ERR_INVALID_HANDLE.
/// Threads: any; looks at what a namespace holds and keeps that had no limit of cached blocks, 256 at a time under the
/// cache's lock, and makes what is cached beyond the limit go, 32 blocks at a time.
/// Since: 0.1
///
/// # Safety
/// None beyond a handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_namespace_limit(
    cache: *mut kavern_kv_cache,
    namespace_id: u64,
    max_held_blocks: u64,
    max_cached_blocks: u64,
) -> kavern_status {
    guard_on("kavern_kv_namespace_limit", cache, |object| {
        object.cache.limit_namespace(namespace_id, max_held_blocks, max_cached_blocks)?;
        Ok(Status::Ok)
    })
}
