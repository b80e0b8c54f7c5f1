//! The KV cache's life cycle, description, statistics and maintenance. The calls of a step are in `step`.

use std::sync::Arc;

use super::config::{self, Out, OutArray, OutStruct};
use super::guard::{guard, guard_on};
use super::handle::{self, Handle, Kind};
use super::kv_config;
use super::kv_group;
use super::kv_types::*;
use super::stream;
use super::types::{kavern_kv_cache, kavern_manager, kavern_status};
use crate::cache::{Append, CacheEvent, CacheStatistics, Content, KvCache, ResetScope};
use crate::device::DeviceSlice;
use crate::error::{Error, Result, Status};
use crate::manager::{CacheNote, Manager};
use crate::types::Dtype;
use std::ffi::c_void;

/// A cache with what it keeps alive.
pub struct CacheObject {
    pub(super) cache: KvCache,
    note: CacheNote,
}

impl CacheObject {
    pub(super) fn manager(&self) -> &Arc<Manager> {
        self.note.manager()
    }
}

impl Handle for kavern_kv_cache {
    const KIND: Kind = Kind::KvCache;
    type Object = CacheObject;
}

/// Fills a configuration with its defaults; groups and a capacity are still to be set.
///
/// `size` is sizeof(kavern_kv_cache_config) in the caller's header, which may be older or newer than the library.
/// Errors: KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE if `size` is below that of version 0.1 or above 65,536.
/// Since: 0.1
///
/// # Safety
/// `config` must be null or point to `size` writable bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_cache_config_init(
    config: *mut kavern_kv_cache_config,
    size: usize,
) -> kavern_status {
    guard("kavern_kv_cache_config_init", || {
        // SAFETY: the header asks for `size` bytes or null.
        unsafe { config::init_struct(config, size, "config") }
    })
}

/// Makes a KV cache and allocates everything that it will ever need.
///
/// Errors: KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_UNSUPPORTED for what later versions serve,
/// KAVERN_ERR_OUT_OF_MEMORY, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
/// Threads: any; blocks while memory is allocated.
/// Owner: destroy with kavern_kv_cache_destroy; it keeps its manager alive. A region stays yours and must outlive it.
/// Since: 0.1
///
/// # Safety
/// `config` and what it points to must be as its fields say; `out` must be null or point to a writable handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_cache_create(
    manager: *mut kavern_manager,
    config: *const kavern_kv_cache_config,
    out: *mut *mut kavern_kv_cache,
) -> kavern_status {
    guard_on("kavern_kv_cache_create", manager, |manager| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let settings = unsafe { config::read_struct(config, "config") }?;
        // SAFETY: the header asks for a writable handle or null.
        let out = unsafe { Out::new(out, "out") }?;
        // SAFETY: the header asks for pointers as the fields say.
        let config = unsafe { kv_config::cache_config(&settings, manager.device().as_ref()) }?;
        let cache = KvCache::new(manager.memory(), &config)?;
        let note = manager.attach_cache(&config.name);
        out.write(handle::insert(Arc::new(CacheObject { cache, note }))?);
        Ok(Status::Ok)
    })
}

/// Destroys a cache and nulls the handle; null is fine.
///
/// Errors: KAVERN_ERR_INVALID_HANDLE; the handle then stays as it is.
/// Threads: any, also while others are inside a call on it; blocks until the device has stopped using its memory.
/// Since: 0.1
///
/// # Safety
/// `cache` must be null or point to a writable handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_cache_destroy(cache: *mut *mut kavern_kv_cache) -> kavern_status {
    guard("kavern_kv_cache_destroy", || {
        // SAFETY: the header asks for a writable handle or null.
        unsafe { config::destroy(cache, "cache") }
    })
}

/// Tells where and how the blocks of a group lie, so that an engine can write its slots itself.
///
/// Errors: KAVERN_ERR_INVALID_ARGUMENT (no such group), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER,
/// KAVERN_ERR_STRUCT_SIZE.
/// Threads: any; does not block.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to as many writable bytes as its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_describe(
    cache: *const kavern_kv_cache,
    group: u32,
    out: *mut kavern_kv_description,
) -> kavern_status {
    guard_on("kavern_kv_describe", cache, |object| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let out = unsafe { OutStruct::new(out, "out") }?;
        let description = kv_group::describe(&object.cache.describe(group)?);
        out.write(&description);
        Ok(Status::Ok)
    })
}

impl From<CacheStatistics> for kavern_kv_statistics {
    fn from(s: CacheStatistics) -> Self {
        Self {
            struct_size: 0,
            steps_in_flight: s.steps_in_flight,
            free_blocks: s.free_blocks,
            used_blocks: s.used_blocks,
            inactive_blocks: s.inactive_blocks,
            deferred_blocks: s.deferred_blocks,
            indexed_blocks: s.indexed_blocks,
            sequences: s.sequences,
            leases: s.leases,
            namespaces: s.namespaces,
            lookups: s.lookups,
            lookup_blocks: s.lookup_blocks,
            hit_blocks: s.hit_blocks,
            hit_tokens: s.hit_tokens,
            allocated_blocks: s.allocated_blocks,
            committed_blocks: s.committed_blocks,
            duplicate_blocks: s.duplicate_blocks,
            evicted_blocks: s.evicted_blocks,
            collisions: s.collisions,
            refused_ops: s.refused_ops,
            used_tokens: s.used_tokens,
            used_slots: s.used_slots,
            last_event: s.last_event,
            metadata_bytes: s.metadata_bytes,
            pool_bytes: s.pool_bytes,
            last_step: s.last_step,
            held_tokens: s.held_tokens,
            device_index_cells_sent: s.device_index_cells_sent,
            copied_tokens: s.copied_tokens,
            hit_blocks_ram: 0,
            hit_blocks_disk: 0,
            hit_blocks_remote: 0,
            missed_blocks: s.missed_blocks,
            skipped_blocks: s.skipped_blocks,
            pinned_blocks: s.pinned_blocks,
            capacity_blocks: s.capacity_blocks,
            promised_blocks: s.promised_blocks,
            moved_blocks: s.moved_blocks,
        }
    }
}

/// Reads what a cache holds and did.
///
/// Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
/// Threads: any; takes the cache's lock for a moment.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to as many writable bytes as its struct_size says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_stats(
    cache: *const kavern_kv_cache,
    out: *mut kavern_kv_statistics,
) -> kavern_status {
    guard_on("kavern_kv_stats", cache, |object| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let out = unsafe { OutStruct::new(out, "out") }?;
        out.write(&object.cache.statistics().into());
        Ok(Status::Ok)
    })
}

/// Proves every invariant of the cache by walking all of it.
///
/// Errors: KAVERN_ERR_INTERNAL with the broken invariant in the text: a bug of the library. KAVERN_ERR_INVALID_HANDLE.
/// Threads: any; holds the cache's lock meanwhile, in proportion to the blocks; before, waits for a kavern_kv_resize
/// that is getting memory.
/// Since: 0.1
///
/// # Safety
/// None beyond a handle or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_validate(cache: *const kavern_kv_cache) -> kavern_status {
    guard_on("kavern_kv_validate", cache, |object| object.cache.validate().map(|()| Status::Ok))
}

/// Makes everything in scope unfindable; blocks that sequences or leases hold stay with them until they are freed.
///
/// Sequences and leases in scope publish nothing more, so that nothing computed before the call is found after it.
///
/// `scope` is a KAVERN_RESET_ value; `namespace_id` is read for KAVERN_RESET_NAMESPACE and must be 0 otherwise;
/// `removed` (may be null) receives how many blocks it were.
/// Errors: KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_INVALID_HANDLE.
/// Threads: any; lets others in after every 32 blocks. A namespace costs in proportion to what it has findable.
/// Since: 0.1
///
/// # Safety
/// `removed` must be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_reset(
    cache: *mut kavern_kv_cache,
    scope: u32,
    namespace_id: u64,
    removed: *mut u64,
) -> kavern_status {
    guard_on("kavern_kv_reset", cache, |object| {
        // SAFETY: the header asks for a writable value or null.
        let removed = unsafe { Out::optional(removed, "removed") }?;
        let scope = match (scope, namespace_id) {
            (1, 0) => ResetScope::All,
            (2, id) => ResetScope::Namespace(id),
            _ => {
                return Err(Error::argument(format!(
                    "scope {scope} with namespace {namespace_id}; use a KAVERN_RESET_ value"
                )));
            }
        };
        let count = object.cache.reset(scope)?;
        if let Some(removed) = removed {
            removed.write(count);
        }
        Ok(Status::Ok)
    })
}

/// Evicts up to `count` blocks of a group that nobody holds, in the policy's order.
///
/// `evicted` (may be null) receives how many it were.
/// Errors: KAVERN_ERR_INVALID_ARGUMENT (no such group), KAVERN_ERR_UNSUPPORTED (a worker's cache),
/// KAVERN_ERR_INVALID_HANDLE.
/// Threads: any; takes the cache's lock for 64 blocks at a time, so that steps go on between.
/// Since: 0.1
///
/// # Safety
/// `evicted` must be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_evict(
    cache: *mut kavern_kv_cache,
    group: u32,
    count: u64,
    evicted: *mut u64,
) -> kavern_status {
    guard_on("kavern_kv_evict", cache, |object| {
        // SAFETY: the header asks for a writable value or null.
        let evicted = unsafe { Out::optional(evicted, "evicted") }?;
        let count = object.cache.evict(group, count)?;
        if let Some(evicted) = evicted {
            evicted.write(count);
        }
        Ok(Status::Ok)
    })
}

impl From<&CacheEvent> for kavern_kv_event {
    fn from(event: &CacheEvent) -> Self {
        Self {
            number: event.number,
            kind: event.kind as u32,
            reason: event.reason as u32,
            group: event.group,
            block: event.block,
            namespace_id: event.namespace_id,
            token_offset: event.token_offset,
            key: event.key.to_bytes(),
            parent_key: event.parent_key.to_bytes(),
        }
    }
}

/// Reads numbered events after `*cursor` and moves it on; start with 0.
///
/// Shapes: `events` [max]; `count` receives how many were written.
/// Errors: KAVERN_PARTIAL if events were overwritten before they were read, or if `*cursor` is above the latest number,
/// as that of a cache before this one may be: the first of `events` comes after the gap; mend the picture with
/// kavern_kv_events_snapshot. Whoever knows that the cache is another one starts with 0: numbers begin at 1 in each.
/// KAVERN_ERR_UNSUPPORTED for a cache without event_capacity, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_HANDLE.
/// Threads: any; takes the cache's lock for 128 events at a time.
/// Since: 0.1
///
/// # Safety
/// `cursor` and `count` must be null or point to writable values, `events` to `max` writable elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_events_read(
    cache: *mut kavern_kv_cache,
    cursor: *mut u64,
    max: usize,
    events: *mut kavern_kv_event,
    count: *mut usize,
) -> kavern_status {
    guard_on("kavern_kv_events_read", cache, |object| {
        // SAFETY: the header asks for a writable value or null.
        let cursor = unsafe { Out::new(cursor, "cursor") }?;
        // SAFETY: the header asks for `max` writable elements.
        let mut events = unsafe { OutArray::new(events, max, "events") }?;
        // SAFETY: the header asks for a writable value or null.
        let count = unsafe { Out::new(count, "count") }?;
        if !object.cache.keeps_events() {
            return Err(Error::new(Status::Unsupported, "the cache keeps no events; set event_capacity"));
        }
        let mut written = 0;
        let (next, lost) = object.cache.read_events(cursor.read(), max, |index, event| {
            events.write(index, event.into());
            written = index + 1;
        });
        cursor.write(next);
        count.write(written);
        Ok(if lost { Status::Partial } else { Status::Ok })
    })
}

/// Reads what is findable, piece by piece; start with `*position` 0 and go on until the answer is KAVERN_OK.
///
/// Shapes: `events` [max] of kind KAVERN_EVENT_STORED; `count` receives how many were written. Their `number` is the
/// latest event that they include. While others go on, take last_event of kavern_kv_stats before the first piece,
/// read the events from there on after the last one, and leave out each whose number is not above that of the
/// snapshot's event about the same block; a removal of what is not there says nothing.
/// Errors: KAVERN_PARTIAL if there is more; KAVERN_ERR_INVALID_ARGUMENT if `max` is 0, KAVERN_ERR_NULL_POINTER,
/// KAVERN_ERR_INVALID_HANDLE. Parent keys and offsets are zero in a cache without event_capacity.
/// Threads: any; takes the cache's lock for at most 128 events or 1,024 blocks at a time.
/// Since: 0.1
///
/// # Safety
/// `position` and `count` must be null or point to writable values, `events` to `max` writable elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_events_snapshot(
    cache: *mut kavern_kv_cache,
    position: *mut u64,
    max: usize,
    events: *mut kavern_kv_event,
    count: *mut usize,
) -> kavern_status {
    guard_on("kavern_kv_events_snapshot", cache, |object| {
        // SAFETY: the header asks for a writable value or null.
        let position = unsafe { Out::new(position, "position") }?;
        // SAFETY: the header asks for `max` writable elements.
        let mut events = unsafe { OutArray::new(events, max, "events") }?;
        // SAFETY: the header asks for a writable value or null.
        let count = unsafe { Out::new(count, "count") }?;
        if max == 0 {
            return Err(Error::argument("max is 0; give room for at least one event"));
        }
        let mut written = 0;
        let (next, is_all) = object.cache.snapshot(position.read(), max, |index, event| {
            events.write(index, event.into());
            written = index + 1;
        });
        position.write(next);
        count.write(written);
        Ok(if is_all { Status::Ok } else { Status::Partial })
    })
}

pub(super) fn foreign(object: &CacheObject, address: u64, bytes: u64) -> Result<DeviceSlice> {
    // SAFETY: the header makes the caller vouch for memory of the cache's device that lives until the work is done.
    unsafe { DeviceSlice::from_foreign(object.manager().device().key(), address, bytes) }
}

/// Writes keys and values of new tokens of one layer into their slots, rounding once to the cache's type.
///
/// Stream: enqueues on `stream` and returns; the memory must live until the work is done. Keys, values and slots are
/// aligned to the size of their elements. It is work of a step: call it before the kavern_kv_step_done of a step whose
/// tables name the slots. Only blocks of a step that is not over are kept from others and from kavern_kv_resize.
/// Errors: KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_UNSUPPORTED (opaque group, metadata-only cache, a pair of types
/// that is not converted), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE. A slot beyond
/// the pool is an error of the device.
/// Threads: any.
/// Since: 0.1
///
/// # Safety
/// `args` must be null or point to a struct whose addresses are device memory of the shapes that its fields say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_append(
    cache: *mut kavern_kv_cache,
    stream: *mut c_void,
    args: *const kavern_kv_append_args,
) -> kavern_status {
    guard_on("kavern_kv_append", cache, |object| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let args = unsafe { config::read_struct(args, "args") }?;
        config::check_reserved(&[args.reserved.into()], "kavern_kv_append_args")?;
        let stream = stream::resolve(object.manager(), stream)?;
        let dtype = Dtype::try_from(args.dtype)?;
        let bytes = object.cache.append_bytes(args.group, dtype, args.tokens)?;
        let keys = foreign(object, args.keys, bytes)?;
        let is_latent = matches!(object.cache.describe(args.group)?.content, Content::Latent(_));
        if is_latent && args.values != 0 {
            return Err(Error::argument("latent rows are all in keys; leave values 0"));
        }
        let append = Append {
            group: args.group,
            layer: args.layer,
            dtype,
            tokens: args.tokens,
            keys,
            values: if is_latent { keys } else { foreign(object, args.values, bytes)? },
            slots: foreign(object, args.slot_mapping, 8 * u64::from(args.tokens))?,
        };
        object.cache.append(*stream, &append)?;
        Ok(Status::Ok)
    })
}
