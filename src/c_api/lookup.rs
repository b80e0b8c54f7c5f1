//! Lookups beside kavern_kv_match: probes and hashes for routers, chunks, batches on the device.

use std::ffi::c_void;

use super::cache::{CacheObject, foreign};
use super::config::{self, CValue, Out, OutArray, StructArray};
use super::guard::guard_on;
use super::kv_config;
use super::kv_types::*;
use super::lookup_types::*;
use super::stream;
use super::types::{kavern_kv_cache, kavern_status};
use crate::cache::{ChunkHit, DeviceLookup, LookupMode, Naming};
use crate::error::{Error, Result, Status};

// SAFETY: numbers only.
unsafe impl CValue for kavern_kv_chunk_hit {}
// SAFETY: numbers only.
unsafe impl CValue for [u64; 2] {}

impl From<ChunkHit> for kavern_kv_chunk_hit {
    fn from(hit: ChunkHit) -> Self {
        Self { shift: hit.shift, block: hit.block, reserved: 0 }
    }
}

/// Tells for each prompt how many tokens kavern_kv_match would find now, without a lease, for routers.
///
/// The answer is that of the same walk over every link, with as much left to the promises of ADMIT; it may be outdated
/// when it arrives. Counts as no lookup and makes no block newer.
/// Shapes: `requests` [n]; `hit_tokens` [n] receives the tokens, or the negative status of a request that is refused.
/// Errors: KAVERN_PARTIAL if a request was refused (KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_KEY_MODE,
/// KAVERN_ERR_UNSUPPORTED in a worker's cache, which does not know what is cached); KAVERN_ERR_NULL_POINTER,
/// KAVERN_ERR_STRUCT_SIZE, KAVERN_ERR_INVALID_HANDLE.
/// Threads: any; host only, never waits for the device; hashes tokens without the cache's lock, which it takes for
/// each request.
/// Since: 0.1
///
/// # Safety
/// `requests` must point to `n` structs whose pointers are as their fields say, `hit_tokens` to `n` writable values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_probe(
    cache: *mut kavern_kv_cache,
    n: usize,
    requests: *const kavern_kv_request,
    hit_tokens: *mut i64,
) -> kavern_status {
    guard_on("kavern_kv_probe", cache, |object| {
        // SAFETY: the header asks for `n` structs.
        let requests = unsafe { StructArray::new(requests, n, "requests") }?;
        // SAFETY: the header asks for `n` writable values.
        let mut hit_tokens = unsafe { OutArray::new(hit_tokens, n, "hit_tokens") }?;
        let mut status = Status::Ok;
        for (index, request) in requests.iter().enumerate() {
            // SAFETY: the header asks for pointers as the fields say.
            let request = unsafe { kv_config::request(&request, object.cache.hash_block_tokens()) };
            match request.and_then(|request| object.cache.probe(&request)) {
                Ok(tokens) => hit_tokens.write(index, tokens as i64),
                Err(error) => {
                    hit_tokens.write(index, i64::from(error.status as i32));
                    status = Status::Partial;
                }
            }
        }
        Ok(status)
    })
}

/// Computes the hashes under which the full blocks of a prompt are found by kavern_kv_lookup_device.
///
/// A hash names a block together with its namespace, salt and adapter; it is 128 bits of the key of
/// kavern_kv_block_keys, or of a keyed hash of a key that you chained.
/// Shapes: `hashes` [capacity][2]; `count` receives how many blocks there are.
/// Errors: KAVERN_ERR_BUFFER_TOO_SMALL with `count` set and `hashes` untouched; KAVERN_ERR_INVALID_ARGUMENT (group);
/// as kavern_kv_match for the request.
/// Threads: any; hashes without the cache's lock.
/// Since: 0.1
///
/// # Safety
/// `request` must be null or point to a struct whose pointers are as its fields say, `hashes` to capacity x 2 writable
/// values, `count` be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_block_hashes(
    cache: *mut kavern_kv_cache,
    request: *const kavern_kv_request,
    group: u32,
    hashes: *mut u64,
    capacity: u64,
    count: *mut u64,
) -> kavern_status {
    guard_on("kavern_kv_block_hashes", cache, |object| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let request = unsafe { config::read_struct(request, "request") }?;
        // SAFETY: the header asks for pointers as the fields say.
        let request = unsafe { kv_config::request(&request, object.cache.hash_block_tokens()) }?;
        let bytes = capacity.checked_mul(16).ok_or_else(|| Error::argument("capacity overflows"))?;
        // SAFETY: the header asks for capacity x 2 writable values.
        let mut hashes =
            unsafe { OutArray::new(hashes.cast::<[u64; 2]>(), (bytes / 16) as usize, "hashes") }?;
        // SAFETY: the header asks for a writable value or null.
        let count = unsafe { Out::new(count, "count") }?;
        let named = match request.naming {
            Naming::Tokens(tokens, _) => tokens.len() as u64,
            Naming::Keys { bytes, key_bytes } | Naming::Chunks { bytes, key_bytes } => {
                bytes.len() as u64 / u64::from(key_bytes) * u64::from(object.cache.hash_block_tokens())
            }
        };
        let blocks = named / u64::from(object.cache.describe(group)?.block_tokens);
        if blocks > capacity {
            count.write(blocks);
            return Err(Error::new(
                Status::BufferTooSmall,
                format!("room for {capacity} hashes, there are {blocks}"),
            ));
        }
        let written = object.cache.block_hashes(&request, group, |index, hash| hashes.write(index, hash))?;
        count.write(written);
        Ok(Status::Ok)
    })
}

/// Looks blocks up by their own keys, whatever came before them, in a cache made with KAVERN_KV_CHUNK_INDEX.
///
/// For passages that stand at other places in other prompts. The namespace takes chunks only: ADMIT a sequence under
/// the lease of a kavern_kv_match with KAVERN_REQUEST_CHUNKS, which finds nothing, and COMMIT one key for each block,
/// for example a digest of its tokens; equal passages then have equal keys. What is found here is read where it lies:
/// copy it into slots of your sequence, rotating keys by `shift`, on the stream of a step that is not done, then
/// RELEASE the lease in that step or later; ADMIT refuses it with KAVERN_ERR_WRONG_STATE. Keys and values of a passage
/// depend on what came before it where it was stored: whether that is good enough is for you to know. A passage whose
/// step is not done is not found yet.
/// Shapes: `token_offsets` [key_count]: where in the new prompt each key's block will lie; null: one after the other
/// from 0. `hits` [groups of the cache][key_count], at least; a key that some group lacks is a miss in all.
/// `result->block_count` tells the hits, all groups together; their tokens are `result->hit_tokens`.
/// Errors: KAVERN_ERR_UNSUPPORTED (no such index), KAVERN_ERR_INVALID_ARGUMENT (no keys, no KAVERN_REQUEST_CHUNKS,
/// flags of a prefix, more keys than a sequence has blocks), KAVERN_ERR_BUFFER_TOO_SMALL (`capacity`),
/// KAVERN_ERR_KEY_MODE, KAVERN_ERR_LIMIT_REACHED, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE,
/// KAVERN_ERR_INVALID_HANDLE; then no lease is held.
/// In a full table of namespaces a new one takes the place of one that idles, whose blocks are evicted.
/// Threads: any; host only, never waits for the device; takes the cache's lock once, and for each 32 blocks that are
/// evicted.
/// Owner: the lease is to be given to RELEASE.
/// Since: 0.1
///
/// # Safety
/// `request` must be null or point to a struct whose pointers are as its fields say, `token_offsets` be null or point
/// to key_count values, `hits` point to `capacity` writable elements, `result` be null or point to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_match_chunks(
    cache: *mut kavern_kv_cache,
    request: *const kavern_kv_request,
    token_offsets: *const u64,
    hits: *mut kavern_kv_chunk_hit,
    capacity: u64,
    result: *mut kavern_kv_match_result,
) -> kavern_status {
    guard_on("kavern_kv_match_chunks", cache, |object| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let given = unsafe { config::read_struct(request, "request") }?;
        // SAFETY: the header asks for pointers as the fields say.
        let request = unsafe { kv_config::request(&given, object.cache.hash_block_tokens()) }?;
        let keys = given.key_count as usize;
        let offsets = if token_offsets.is_null() { 0 } else { keys };
        // SAFETY: the header asks for key_count values or null.
        let offsets = unsafe { config::array(token_offsets, offsets, "token_offsets") }?;
        // SAFETY: the header asks for `capacity` writable elements.
        let mut hits = unsafe { OutArray::new(hits, capacity as usize, "hits") }?;
        // SAFETY: the header asks for a writable struct or null.
        let result = unsafe { Out::new(result, "result") }?;
        if !given.block_ids.is_null() {
            return Err(Error::argument("block_ids of the request are not used here; leave them null"));
        }
        let needed = given.key_count.saturating_mul(object.cache.group_count().into());
        if needed > capacity {
            let text = format!("room for {capacity} hits, there are {needed}");
            return Err(Error::new(Status::BufferTooSmall, text));
        }
        let take = |group: usize, key: usize, hit: ChunkHit| hits.write(group * keys + key, hit.into());
        let found = object.cache.lookups().find_chunks(&request, offsets, take)?;
        result.write(kavern_kv_match_result {
            lease: found.lease.0,
            hit_tokens: found.hit_tokens,
            block_count: found.block_count,
            ..kavern_kv_match_result::default()
        });
        Ok(Status::Ok)
    })
}

fn lookup(object: &CacheObject, args: &kavern_kv_lookup_args) -> Result<DeviceLookup> {
    config::check_reserved(&[args.reserved.into()], "kavern_kv_lookup_args")?;
    let mode = match args.mode {
        1 => LookupMode::Independent,
        2 => LookupMode::Prefix,
        mode => return Err(Error::argument(format!("mode {mode} is unknown; use a KAVERN_LOOKUP_ value"))),
    };
    let total = u64::from(args.rows) * u64::from(args.row_hashes);
    let counts = match args.counts {
        0 => None,
        address => Some(foreign(object, address, 4 * u64::from(args.rows))?),
    };
    Ok(DeviceLookup {
        group: args.group,
        mode,
        rows: args.rows,
        row_hashes: args.row_hashes,
        hashes: foreign(object, args.hashes, total.saturating_mul(16))?,
        counts,
        blocks: foreign(object, args.block_ids, total.saturating_mul(4))?,
    })
}

/// Looks rows of block hashes up on the device, in a cache made with KAVERN_KV_DEVICE_INDEX.
///
/// The answers are those of the host's index as of the latest kavern_kv_tables before this call, block for block. They
/// hold nothing: a block that is not held otherwise may be evicted by a later step, and one that is held may be moved
/// by the tables of a later step. KAVERN_LOOKUP_INDEPENDENT answers the block of the group that is findable under the
/// key of each hash, whatever became of those before it. KAVERN_LOOKUP_PREFIX answers -1 to all that follows the first
/// miss of a row: in a group that needs every block that is what kavern_kv_match finds of it, unless another group, a
/// flag or a promise ends the match earlier. A hash that was never stored is answered with a block with a chance of at
/// most blocks / 2^96. With KAVERN_HASH_XXH3 prompts whose keys collide are one to the device; a match compares tokens.
/// Stream: enqueues on `stream` and returns; another stream than that of the step is ordered by itself. The memory must
/// live until the work is done. Not to be captured into a graph.
/// Errors: KAVERN_ERR_UNSUPPORTED (no such index), KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_INVALID_HANDLE,
/// KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE, KAVERN_ERR_DEVICE.
/// Threads: any, also while another is inside this call or kavern_kv_tables.
/// Since: 0.1
///
/// # Safety
/// `args` must be null or point to a struct whose addresses are device memory of the shapes that its fields say.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_lookup_device(
    cache: *mut kavern_kv_cache,
    stream: *mut c_void,
    args: *const kavern_kv_lookup_args,
) -> kavern_status {
    guard_on("kavern_kv_lookup_device", cache, |object| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let args = unsafe { config::read_struct(args, "args") }?;
        let stream = stream::resolve(object.manager(), stream)?;
        object.cache.lookup_device(*stream, &lookup(object, &args)?)?;
        Ok(Status::Ok)
    })
}
