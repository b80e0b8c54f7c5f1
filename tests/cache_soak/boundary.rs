//! The C functions as the soaks call them: handles, structs and pointers on one side, plain values on the other.
//!
//! It adds nothing but asserts: a call that must go well does, and a list of operations answers `KAVERN_PARTIAL` if and
//! only if one of them was refused.

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};

use kavern::c_api::cache::*;
use kavern::c_api::kv_ops::kavern_kv_token_copy;
use kavern::c_api::kv_resize::*;
use kavern::c_api::kv_types::*;
use kavern::c_api::lookup::*;
use kavern::c_api::lookup_types::*;
use kavern::c_api::manager::*;
use kavern::c_api::namespace::*;
use kavern::c_api::step::*;
use kavern::c_api::stream::*;
use kavern::c_api::types::*;
use kavern::cache::TokenCopy;
use kavern::error::Status;

const OK: i32 = Status::Ok as i32;
const PARTIAL: i32 = Status::Partial as i32;
/// KAVERN_SEQ_OF_OP of the header, which is a macro there.
pub(crate) const SEQ_OF_OP: u64 = 0x5f << 56;

pub(crate) fn zeroed<T: Copy>() -> T {
    // SAFETY: used for the header's structs only, in which all zeros are values.
    unsafe { std::mem::zeroed() }
}

#[track_caller]
fn good(status: kavern_status) {
    assert_eq!(status, OK);
}

/// What a cache of the soaks is made of.
pub(crate) struct Shape<'a> {
    pub(crate) device: &'a str,
    pub(crate) groups: Vec<kavern_kv_group>,
    pub(crate) blocks: u64,
    pub(crate) max_blocks: u64,
    pub(crate) max_sequences: u32,
    pub(crate) max_tokens: u64,
    pub(crate) max_batch_tokens: u32,
    pub(crate) max_leases: u32,
    pub(crate) hash: kavern_kv_hash,
    pub(crate) flags: u32,
    pub(crate) policy: &'a str,
    pub(crate) event_capacity: u32,
}

pub(crate) fn group(kind: kavern_kv_group_kind, block_tokens: u32) -> kavern_kv_group {
    let struct_size = size_of::<kavern_kv_group>() as u32;
    kavern_kv_group { struct_size, kind: kind as u32, block_tokens, ..zeroed() }
}

/// A cache with its manager and a stream.
pub(crate) struct Cache {
    raw: *mut kavern_kv_cache,
    manager: *mut kavern_manager,
    stream: *mut kavern_stream,
    results: Vec<kavern_kv_op_result>,
    hits: Vec<i32>,
    groups: Vec<kavern_kv_group_tables>,
    events: Vec<kavern_kv_event>,
}

/// A lookup's answer; its blocks stand in the cache's buffer until the next one.
pub(crate) struct Found<'a> {
    pub(crate) lease: u64,
    pub(crate) hit_tokens: usize,
    pub(crate) blocks: &'a [i32],
}

/// What one group's tables hold in a step.
pub(crate) struct Tables<'a> {
    pub(crate) cells: usize,
    pub(crate) block_table: &'a [i32],
    pub(crate) slots: &'a [i64],
}

/// What all groups share.
pub(crate) struct Batch<'a> {
    pub(crate) rows: &'a [i32],
    pub(crate) starts: &'a [i32],
    pub(crate) lengths: &'a [i32],
    pub(crate) copies: &'a [TokenCopy],
}

pub(crate) fn request(namespace: u64, tokens: &[i32], flags: u32) -> kavern_kv_request {
    kavern_kv_request {
        struct_size: size_of::<kavern_kv_request>() as u32,
        flags,
        namespace_id: namespace,
        tokens: tokens.as_ptr(),
        token_count: tokens.len() as u64,
        ..zeroed()
    }
}

/// The same with 32 bytes of key for each link.
pub(crate) fn request_keys(namespace: u64, keys: &[u8], token_count: u64, flags: u32) -> kavern_kv_request {
    let (key_bytes, key_count) = (32, keys.len() as u64 / 32);
    kavern_kv_request {
        tokens: null(),
        token_count,
        key_bytes,
        keys: keys.as_ptr(),
        key_count,
        ..request(namespace, &[], flags)
    }
}

pub(crate) fn op(kind: kavern_kv_op_kind, target: u64) -> kavern_kv_op {
    let struct_size = size_of::<kavern_kv_op>() as u32;
    kavern_kv_op { struct_size, kind: kind as u32, target, ..zeroed() }
}

impl Cache {
    pub(crate) fn new(shape: &Shape<'_>) -> Self {
        let (device, policy) = (CString::new(shape.device).unwrap(), CString::new(shape.policy).unwrap());
        let (mut manager, mut stream, mut raw) = (null_mut(), null_mut(), null_mut());
        let mut about: kavern_manager_config = zeroed();
        // SAFETY: a struct of the size that is given.
        good(unsafe { kavern_manager_config_init(&mut about, size_of_val(&about)) });
        about.device = device.as_ptr();
        // SAFETY: filled above; the text lives through the call.
        good(unsafe { kavern_manager_create(&about, &mut manager) });
        // SAFETY: a live handle and a place for another.
        good(unsafe { kavern_stream_create(manager, &mut stream) });
        let mut config: kavern_kv_cache_config = zeroed();
        // SAFETY: a struct of the size that is given.
        good(unsafe { kavern_kv_cache_config_init(&mut config, size_of_val(&config)) });
        let secret = [5u8; 32];
        (config.groups, config.group_count) = (shape.groups.as_ptr(), shape.groups.len() as u32);
        (config.capacity_blocks, config.max_blocks) = (shape.blocks, shape.max_blocks);
        (config.max_sequences, config.max_leases) = (shape.max_sequences, shape.max_leases);
        (config.max_sequence_tokens, config.max_batch_tokens) = (shape.max_tokens, shape.max_batch_tokens);
        (config.max_namespaces, config.steps_in_flight) = (16, super::STEPS_IN_FLIGHT);
        (config.hash, config.flags) = (shape.hash as u32, shape.flags);
        (config.event_capacity, config.policy) = (shape.event_capacity, policy.as_ptr());
        config.hash_secret = secret.as_ptr();
        // SAFETY: the configuration and what it points to live through the call.
        good(unsafe { kavern_kv_cache_create(manager, &config, &mut raw) });
        let groups = vec![zeroed(); shape.groups.len()];
        let hits = vec![0; shape.groups.len() * shape.max_tokens as usize];
        let events = vec![zeroed(); 256];
        Self { raw, manager, stream, results: Vec::with_capacity(16), hits, groups, events }
    }

    fn stream(&self) -> *mut c_void {
        self.stream.cast()
    }

    /// Looks one prompt up; or why not.
    pub(crate) fn find(&mut self, mut request: kavern_kv_request) -> Result<Found<'_>, i32> {
        (request.block_ids, request.block_capacity) = (self.hits.as_mut_ptr(), self.hits.len() as u64);
        let mut result = kavern_kv_match_result::default();
        // SAFETY: one request whose pointers live through the call, and one result.
        let status = unsafe { kavern_kv_match(self.raw, 1, &request, &mut result) };
        assert_eq!(status == OK, result.status == OK, "{status} {result:?}");
        if result.status != OK {
            return Err(result.status);
        }
        let blocks = &self.hits[..result.block_count as usize];
        Ok(Found { lease: result.lease, hit_tokens: result.hit_tokens as usize, blocks })
    }

    /// Looks keys of passages up: the lease, and the block of each key in the one group.
    pub(crate) fn find_chunks(&mut self, request: kavern_kv_request) -> Result<(u64, Vec<i32>), i32> {
        let mut hits = vec![kavern_kv_chunk_hit::default(); request.key_count as usize];
        let mut result = kavern_kv_match_result::default();
        // SAFETY: the request's pointers live through the call; no offsets; as many hits as are said.
        let status = unsafe {
            kavern_kv_match_chunks(
                self.raw,
                &request,
                null(),
                hits.as_mut_ptr(),
                request.key_count,
                &mut result,
            )
        };
        if status != OK {
            Err(status)
        } else {
            Ok((result.lease, hits.iter().map(|hit| hit.block).collect()))
        }
    }

    pub(crate) fn probe(&self, request: &kavern_kv_request) -> i64 {
        let mut tokens = 0;
        // SAFETY: one request whose pointers live through the call, and one number.
        good(unsafe { kavern_kv_probe(self.raw, 1, request, &mut tokens) });
        tokens
    }

    /// The key of each full link of a prompt.
    pub(crate) fn keys(&self, request: &kavern_kv_request, keys: &mut Vec<[u8; 32]>) {
        keys.resize(request.token_count as usize, [0; 32]);
        let mut count = 0;
        let capacity = keys.len() as u64;
        // SAFETY: the request's pointers live through the call; room for as many keys as are said.
        good(unsafe {
            kavern_kv_block_keys(self.raw, request, keys.as_mut_ptr().cast(), capacity, &mut count)
        });
        keys.truncate(count as usize);
    }

    /// Applies a list of operations in one call.
    pub(crate) fn apply(&mut self, step: u64, ops: &[kavern_kv_op]) -> &[kavern_kv_op_result] {
        self.results.clear();
        self.results.resize(ops.len(), kavern_kv_op_result::default());
        // SAFETY: as many operations, with pointers that live through the call, as results.
        let status =
            unsafe { kavern_kv_step(self.raw, step, ops.len(), ops.as_ptr(), self.results.as_mut_ptr()) };
        let is_all = self.results.iter().all(|result| result.status == OK);
        assert_eq!(status, if is_all { OK } else { PARTIAL }, "{ops:?}");
        &self.results
    }

    pub(crate) fn statistics(&self) -> kavern_kv_statistics {
        let struct_size = size_of::<kavern_kv_statistics>() as u32;
        let mut totals = kavern_kv_statistics { struct_size, ..zeroed() };
        // SAFETY: a struct that says its size.
        good(unsafe { kavern_kv_stats(self.raw, &mut totals) });
        totals
    }

    pub(crate) fn describe(&self, group: u32) -> kavern_kv_description {
        let struct_size = size_of::<kavern_kv_description>() as u32;
        let mut about = kavern_kv_description { struct_size, ..zeroed() };
        // SAFETY: a struct that says its size.
        good(unsafe { kavern_kv_describe(self.raw, group, &mut about) });
        about
    }

    /// Enqueues the tables of the step and shows them.
    pub(crate) fn tables<R>(
        &mut self,
        step: u64,
        max_sequences: usize,
        body: impl FnOnce(Batch<'_>, Vec<Tables<'_>>) -> R,
    ) -> R {
        let struct_size = size_of::<kavern_kv_step_tables>() as u32;
        let (groups, group_capacity) = (self.groups.as_mut_ptr(), self.groups.len() as u32);
        let mut out = kavern_kv_step_tables { struct_size, groups, group_capacity, ..zeroed() };
        // SAFETY: a struct that says its size and that of its groups; the stream is the manager's.
        good(unsafe { kavern_kv_tables(self.raw, step, self.stream(), &mut out) });
        /// What the library says lies there until the next step.
        fn slice<'a, T>(values: *const T, count: usize) -> &'a [T] {
            if values.is_null() || count == 0 {
                return &[];
            }
            // SAFETY: so many values, which no call touches while the body looks at them.
            unsafe { std::slice::from_raw_parts(values, count) }
        }
        let copy = |copy: &kavern_kv_token_copy| {
            let kavern_kv_token_copy { group, row, source_slot, target_slot, tokens, shift } = *copy;
            TokenCopy { group, row, source_slot, target_slot, tokens, shift }
        };
        let copies: Vec<_> = slice(out.copies_host, out.copy_count as usize).iter().map(copy).collect();
        let batch = out.batch_count as usize;
        let shared = Batch {
            rows: slice(out.batch_rows_host, batch),
            starts: slice(out.batch_starts_host, batch + 1),
            lengths: slice(out.sequence_lengths_host, max_sequences),
            copies: &copies,
        };
        let view = |group: &kavern_kv_group_tables| Tables {
            cells: group.row_cells as usize,
            block_table: slice(group.block_table_host, group.row_cells as usize * max_sequences),
            slots: slice(group.slot_mapping_host, out.token_count as usize),
        };
        body(shared, self.groups.iter().map(view).collect())
    }

    /// Waits for what the step has enqueued.
    pub(crate) fn synchronize(&self) {
        // SAFETY: both handles are alive.
        good(unsafe { kavern_stream_synchronize(self.manager, self.stream()) });
    }

    /// Says that a step and those before it are over: now, or when the stream is past this point, for which it waits.
    pub(crate) fn step_done(&self, step: u64, on_stream: bool) {
        let stream = if on_stream { self.stream() } else { null_mut() };
        // SAFETY: both handles are alive, or none is given.
        good(unsafe { kavern_kv_step_done(self.raw, step, stream) });
        if on_stream {
            self.synchronize();
            let mut count = 0;
            // SAFETY: no completion is wanted, and the number may be written.
            good(unsafe { kavern_kv_poll(self.raw, 0, null_mut(), &mut count) });
            assert_eq!(count, 0);
        }
    }

    pub(crate) fn evict(&self, group: u32, count: u64) -> u64 {
        let mut evicted = 0;
        // SAFETY: the number may be written.
        good(unsafe { kavern_kv_evict(self.raw, group, count, &mut evicted) });
        evicted
    }

    /// Makes one namespace unfindable, or all.
    pub(crate) fn reset(&self, namespace: Option<u64>) -> u64 {
        let mut removed = 0;
        let scope = match namespace {
            None => kavern_kv_reset_scope::KAVERN_RESET_ALL,
            Some(_) => kavern_kv_reset_scope::KAVERN_RESET_NAMESPACE,
        };
        // SAFETY: the number may be written.
        good(unsafe { kavern_kv_reset(self.raw, scope as u32, namespace.unwrap_or(0), &mut removed) });
        removed
    }

    pub(crate) fn limit(&self, namespace: u64, held: u64, cached: u64) {
        // SAFETY: a live handle.
        good(unsafe { kavern_kv_namespace_limit(self.raw, namespace, held, cached) });
    }

    /// Gives a group so many blocks; whether all that is above went.
    pub(crate) fn resize(&self, group: u32, blocks: u64) -> bool {
        let mut result: kavern_kv_resize_result = zeroed();
        // SAFETY: the struct may be written.
        let status = unsafe { kavern_kv_resize(self.raw, group, blocks, &mut result) };
        assert!(status == OK || status == PARTIAL, "{status}");
        assert_eq!(result.blocks, blocks);
        status == OK
    }

    pub(crate) fn validate(&self) {
        // SAFETY: a live handle.
        good(unsafe { kavern_kv_validate(self.raw) });
    }

    /// Reads the events after a cursor; whether none was lost.
    pub(crate) fn events(&mut self, cursor: &mut u64, mut each: impl FnMut(&kavern_kv_event)) -> bool {
        loop {
            let mut count = 0;
            let (events, max) = (self.events.as_mut_ptr(), self.events.len());
            // SAFETY: as many events as are said; the numbers may be written.
            let status = unsafe { kavern_kv_events_read(self.raw, cursor, max, events, &mut count) };
            if status == PARTIAL {
                return false;
            }
            good(status);
            self.events[..count].iter().for_each(&mut each);
            if count < max {
                return true;
            }
        }
    }

    /// Reads all that is findable.
    pub(crate) fn snapshot(&mut self, mut each: impl FnMut(&kavern_kv_event)) {
        let mut position = 0;
        loop {
            let mut count = 0;
            let events = self.events.as_mut_ptr();
            // SAFETY: room for 100 events; the numbers may be written.
            let status =
                unsafe { kavern_kv_events_snapshot(self.raw, &mut position, 100, events, &mut count) };
            self.events[..count].iter().for_each(&mut each);
            if status != PARTIAL {
                return good(status);
            }
        }
    }

    /// Destroys cache, stream and manager, and proves that nothing is left.
    pub(crate) fn end(mut self) {
        self.validate();
        // SAFETY: a live handle, not used again.
        good(unsafe { kavern_kv_cache_destroy(&mut self.raw) });
        // SAFETY: as above.
        good(unsafe { kavern_stream_destroy(&mut self.stream) });
        let struct_size = size_of::<kavern_manager_statistics>() as u32;
        let mut totals = kavern_manager_statistics { struct_size, ..zeroed() };
        // SAFETY: a struct that says its size.
        good(unsafe { kavern_manager_stats(self.manager, &mut totals) });
        let left = [totals.caches, totals.own_streams, totals.device_bytes, totals.races];
        assert_eq!(left, [0; 4], "caches, streams, bytes, races");
        // SAFETY: a live handle, not used again.
        good(unsafe { kavern_manager_destroy(&mut self.manager) });
    }
}
