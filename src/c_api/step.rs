//! The five calls of a scheduler step, and the proof of placement. Their rules stand in docs/abi.md.

use std::ffi::c_void;

use super::cache::CacheObject;
use super::config::{self, Out, OutArray, StructArray};
use super::guard::guard_on;
use super::kv_config;
use super::kv_ops;
use super::kv_retain;
use super::kv_types::*;
use super::stream;
use super::tables::fill_tables;
use super::types::{kavern_kv_cache, kavern_status};
use crate::cache::{Op, OpResult, StepSession, Target};
use crate::error::{Error, Result, Status};
use crate::types::Id;

/// Top byte of KAVERN_SEQ_OF_OP(i).
const SEQ_OF_OP: u64 = 0x5F;
/// Operations of a list that is too short for looking ahead: there is nothing to do meanwhile.
const FEW: usize = 4;

/// Looks prompts up and keeps what it finds alive by leases.
///
/// Shapes: `requests` [n], `results` [n]; block ids of request i go to its own block_ids, group after group.
/// Errors: KAVERN_PARTIAL if a request was refused, with the reason in its result (KAVERN_ERR_INVALID_ARGUMENT,
/// KAVERN_ERR_KEY_MODE, KAVERN_ERR_LIMIT_REACHED for leases or namespaces, KAVERN_ERR_UNSUPPORTED in a worker's cache,
/// KAVERN_ERR_BUFFER_TOO_SMALL: lease and counts are given, block ids are not); KAVERN_ERR_NULL_POINTER,
/// KAVERN_ERR_STRUCT_SIZE, KAVERN_ERR_INVALID_HANDLE.
/// In a full table of namespaces a new one takes the place of one that idles, whose blocks are evicted.
/// Threads: any; host only, never waits for the device; hashes tokens without the cache's lock, which it takes for
/// each request, and for each 64 blocks that are evicted.
/// Owner: each lease is to be given to ADMIT or RELEASE.
/// Since: 0.1
///
/// # Safety
/// `requests` must point to `n` structs whose pointers are as their fields say, `results` to `n` writable elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_match(
    cache: *mut kavern_kv_cache,
    n: usize,
    requests: *const kavern_kv_request,
    results: *mut kavern_kv_match_result,
) -> kavern_status {
    guard_on("kavern_kv_match", cache, |object| {
        // SAFETY: the header asks for `n` structs.
        let requests = unsafe { StructArray::new(requests, n, "requests") }?;
        // SAFETY: the header asks for `n` writable elements.
        let mut results = unsafe { OutArray::new(results, n, "results") }?;
        let mut lookups = object.cache.lookups();
        let mut status = Status::Ok;
        for (index, request) in requests.iter().enumerate() {
            let mut result = kavern_kv_match_result::default();
            // SAFETY: the header asks for pointers as the fields say.
            let outcome = unsafe { match_one(object, &mut lookups, &request, &mut result) };
            if let Err(error) = outcome {
                result.status = error.status as i32;
                status = Status::Partial;
            }
            results.write(index, result);
        }
        Ok(status)
    })
}

/// # Safety
/// The pointers of `request` are as its fields say.
unsafe fn match_one(
    object: &CacheObject,
    lookups: &mut crate::cache::MatchSession<'_>,
    request: &kavern_kv_request,
    result: &mut kavern_kv_match_result,
) -> Result<()> {
    // SAFETY: the caller's promise.
    let wanted = unsafe { kv_config::request(request, object.cache.hash_block_tokens()) }?;
    let room = if request.block_ids.is_null() { 0 } else { request.block_capacity as usize };
    // SAFETY: the caller's promise; checked before the lookup, so that a refusal takes no lease.
    let mut ids = unsafe { OutArray::new(request.block_ids, room, "block_ids") }?;
    let found = lookups.find(&wanted)?;
    result.lease = found.lease.0;
    result.hit_tokens = found.hit_tokens;
    result.block_count = found.block_count;
    result.cross_groups = found.group.map_or(found.cross_groups, |group| 1 << group);
    if request.block_ids.is_null() {
        return Ok(());
    }
    if found.block_count > room as u64 {
        return Err(Error::new(Status::BufferTooSmall, "block_count tells the room that block_ids needs"));
    }
    lookups.blocks(found.lease)?.enumerate().for_each(|(at, block)| ids.write(at, block));
    Ok(())
}

fn target(op: &kavern_kv_op, index: usize, done: &OutArray<kavern_kv_op_result>) -> Result<Target> {
    if op.target >> 56 != SEQ_OF_OP {
        return Ok(Target::Id(Id(op.target)));
    }
    let admitted = (op.target & !(SEQ_OF_OP << 56)) as usize;
    if admitted >= index {
        return Err(Error::new(Status::InvalidArgument, "KAVERN_SEQ_OF_OP names no earlier operation"));
    }
    let result = done.read_back(admitted);
    Ok(Target::Admitted(if result.status == 0 { Ok(Id(result.sequence)) } else { Err(Status::Dependency) }))
}

/// # Safety
/// The pointers of `op` are as its fields say.
unsafe fn read_op<'a>(
    op: &kavern_kv_op,
    index: usize,
    done: &OutArray<kavern_kv_op_result>,
    link_tokens: u32,
) -> Result<Op<'a>> {
    if op.reserved != 0 {
        return Err(Error::new(Status::InvalidArgument, "a reserved word of the operation is not 0"));
    }
    kv_ops::check_unused(op)?;
    Ok(match op.kind {
        1 => Op::Admit {
            lease: Id(op.target),
            tokens: op.tokens,
            lookahead: op.lookahead,
            row: op.row,
            expected_tokens: op.expected_tokens,
        },
        2 => Op::Append { target: target(op, index, done)?, tokens: op.tokens, lookahead: op.lookahead },
        3 => {
            let target = target(op, index, done)?;
            // SAFETY: the caller's promise.
            Op::Commit { target, tokens: op.tokens, naming: unsafe { kv_ops::commit_naming(op) }? }
        }
        4 => Op::Free { target: target(op, index, done)? },
        5 => Op::Release { lease: Id(op.target) },
        8 => Op::Trim { target: target(op, index, done)?, offset: op.offset },
        6 | 7 | 9..=12 | 18 => {
            let target = target(op, index, done)?;
            // SAFETY: the caller's promise.
            Op::Change { target, change: unsafe { kv_ops::change(op, link_tokens) }? }
        }
        13 => Op::Pin { stretch: kv_retain::stretch(op, target(op, index, done)?) },
        14 => Op::Unpin { stretch: kv_retain::stretch(op, target(op, index, done)?) },
        15 => kv_retain::retain(op, target(op, index, done)?)?,
        16 | 17 => {
            return Err(Error::new(Status::Unsupported, "this kind of operation comes with a later version"));
        }
        _ => return Err(Error::new(Status::InvalidArgument, "an unknown kind of operation")),
    })
}

/// Applies an operation of any kind, writes its result, and notes in `status` if it was refused.
///
/// # Safety
/// The pointers of `op` are as its fields say.
#[inline(never)]
unsafe fn apply_op(
    step: &mut StepSession<'_>,
    op: &kavern_kv_op,
    index: usize,
    results: &mut OutArray<kavern_kv_op_result>,
    link_tokens: u32,
    status: &mut Status,
) {
    // SAFETY: the caller's promise.
    let result = match unsafe { read_op(op, index, results, link_tokens) } {
        Ok(op) => step.apply_unready(&op),
        Err(error) => {
            let target = target(op, index, results).ok().filter(|_| kv_ops::has_dependants(op.kind));
            step.refuse(error.status, target)
        }
    };
    if result.status != Status::Ok {
        *status = Status::Partial;
    }
    results.write(index, result.into());
}

impl From<OpResult> for kavern_kv_op_result {
    #[inline]
    fn from(result: OpResult) -> Self {
        Self {
            status: result.status as i32,
            row: result.row,
            sequence: result.sequence,
            blocks_added: result.blocks_added,
            blocks_missing: result.blocks_missing,
            group: result.group,
            blocks_committed: result.blocks_committed,
        }
    }
}

/// Applies a list of operations in order, each all or nothing.
///
/// Shapes: `ops` [n], `results` [n]. `step_id` rises from step to step; the newest one may be used again until its
/// kavern_kv_step_done. An operation may name the sequence that an earlier ADMIT or FORK of the list makes by
/// KAVERN_SEQ_OF_OP(i). A field that a kind of operation does not use is 0.
/// Errors: KAVERN_PARTIAL if an operation was refused, with the reason in its result: KAVERN_ERR_OUT_OF_BLOCKS with
/// what is missing, KAVERN_ERR_LIMIT_REACHED (rows, batch), KAVERN_ERR_STALE_ID, KAVERN_ERR_DEPENDENCY,
/// KAVERN_ERR_KEY_MODE, KAVERN_ERR_IN_USE (the row; or what would be taken back was found), KAVERN_ERR_WRONG_STATE (the
/// sequence is preempted, or the open step is yet to write what is needed), KAVERN_ERR_UNSUPPORTED,
/// KAVERN_ERR_INVALID_ARGUMENT. The call itself: KAVERN_ERR_WRONG_STATE (step_id), KAVERN_ERR_TOO_MANY_STEPS,
/// KAVERN_ERR_UNSUPPORTED (a worker's cache), KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE,
/// KAVERN_ERR_INVALID_HANDLE; then nothing was applied.
/// Threads: any; host only, never waits for the device, grows no memory; takes the cache's lock for the list.
/// Since: 0.1
///
/// # Safety
/// `ops` must point to `n` structs whose pointers are as their fields say, `results` to `n` writable elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_step(
    cache: *mut kavern_kv_cache,
    step_id: u64,
    n: usize,
    ops: *const kavern_kv_op,
    results: *mut kavern_kv_op_result,
) -> kavern_status {
    guard_on("kavern_kv_step", cache, |object| {
        // SAFETY: the header asks for `n` structs.
        let ops = unsafe { StructArray::new(ops, n, "ops") }?;
        // SAFETY: the header asks for `n` writable elements.
        let mut results = unsafe { OutArray::new(results, n, "results") }?;
        let link_tokens = object.cache.hash_block_tokens();
        let mut step = object.cache.step(step_id)?;
        let mut status = Status::Ok;
        let Some(list) = ops.whole() else {
            for (index, op) in ops.iter().enumerate() {
                // SAFETY: the header asks for pointers as the fields say.
                unsafe { apply_op(&mut step, &op, index, &mut results, link_tokens, &mut status) };
            }
            return Ok(status);
        };
        // A long list is gone through in runs; each is met three times: far ahead, near, and when its turn comes.
        const RUN: usize = StepSession::RUN;
        let run = |from: usize| &list[from.min(n)..(from + RUN).min(n)];
        // SAFETY: the header asks for pointers as the fields say.
        let prepare = |step: &mut _, from| unsafe { kv_ops::prepare(step, run(from)) };
        if n >= FEW {
            kv_ops::expect(&step, &list[..n.min(2 * RUN)]);
            prepare(&mut step, 0);
        }
        for from in (0..n).step_by(RUN) {
            kv_ops::expect(&step, run(from + 2 * RUN));
            prepare(&mut step, from + RUN);
            let (mut index, ops) = (from, run(from));
            let end = from + ops.len();
            while index < end {
                let (left, places) = (&ops[index - from..], results.part(index..end));
                index += kv_ops::append_ready(&mut step, left, places.iter_mut(), |place, result| {
                    place.write(result.into());
                });
                if let Some(op) = list[..end].get(index) {
                    // SAFETY: the header asks for pointers as the fields say.
                    unsafe { apply_op(&mut step, op, index, &mut results, link_tokens, &mut status) };
                    index += 1;
                }
            }
        }
        Ok(status)
    })
}

/// Brings the device tables up to date with a step and tells where they are.
///
/// Shapes: `out->groups` [at least the groups of the cache], or null.
/// Stream: enqueues zero fills, copies of tokens, one copy of what changed and its spreading on `stream`, after the
/// steps before it; enqueue the step's work on the same stream. Addresses never change. Host pointers may be read
/// until the next kavern_kv_step, those of the batch until steps_in_flight further steps.
/// Errors: KAVERN_ERR_WRONG_STATE if the step is not the open one, or if an earlier one runs on another stream without
/// its kavern_kv_step_done; KAVERN_ERR_BUFFER_TOO_SMALL with group_count set; KAVERN_ERR_IN_USE if another thread is
/// inside this call; KAVERN_ERR_DEVICE, after which the call may be repeated; KAVERN_ERR_INVALID_HANDLE,
/// KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
/// Threads: any; waits for the device only if a step changes more cells than the staging holds.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to as many writable bytes as its struct_size says, `out->groups` to group_capacity
/// writable elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_tables(
    cache: *mut kavern_kv_cache,
    step_id: u64,
    stream: *mut c_void,
    out: *mut kavern_kv_step_tables,
) -> kavern_status {
    guard_on("kavern_kv_tables", cache, |object| {
        // SAFETY: the header's demands are passed on.
        unsafe {
            fill_tables(object, out, |read| {
                let stream = stream::resolve(object.manager(), stream)?;
                object.cache.tables(step_id, *stream, |tables| read(tables))
            })
        }
    })
}

/// Collects finished loads and stores of other tiers, and the blocks of steps whose work is over.
///
/// Shapes: `completions` [max]; `count` receives how many were written. Without other tiers it is always 0.
/// Errors: KAVERN_ERR_DEVICE (also while it keeps a mapping where memory is to be), KAVERN_ERR_DEVICE_LOST,
/// KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
/// Threads: any; asks the device for the state of events, does not wait, unless memory moves between the size classes
/// of KAVERN_KV_ADAPTIVE_BLOCKS: then it maps a step of it. The calls of a step never wait for that.
/// Since: 0.1
///
/// # Safety
/// `completions` must point to `max` writable elements, `count` be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_poll(
    cache: *mut kavern_kv_cache,
    max: usize,
    completions: *mut kavern_kv_completion,
    count: *mut usize,
) -> kavern_status {
    guard_on("kavern_kv_poll", cache, |object| {
        // SAFETY: the header asks for `max` writable elements.
        let _completions = unsafe { OutArray::new(completions, max, "completions") }?;
        // SAFETY: the header asks for a writable value or null.
        let count = unsafe { Out::new(count, "count") }?;
        object.cache.poll()?;
        count.write(0);
        Ok(Status::Ok)
    })
}

/// Says that all work of the steps up to `step_id` is enqueued on `stream`.
///
/// Blocks that these steps may read return when the stream is past this point.
/// Stream: records an event; null says that the work is already over, so name the default stream by
/// KAVERN_STREAM_DEFAULT.
/// Errors: KAVERN_ERR_WRONG_STATE (step not begun, done before while its work is not over yet, or with copies that
/// kavern_kv_tables has not enqueued), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_DEVICE. Of a step that is known to be
/// over, and of 0, nothing is left to say: KAVERN_OK.
/// Threads: any; does not wait.
/// Since: 0.1
///
/// # Safety
/// None beyond handles or null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_step_done(
    cache: *mut kavern_kv_cache,
    step_id: u64,
    stream: *mut c_void,
) -> kavern_status {
    guard_on("kavern_kv_step_done", cache, |object| {
        if stream.is_null() {
            object.cache.step_done(step_id, None)?;
        } else {
            let stream = stream::resolve(object.manager(), stream)?;
            object.cache.step_done(step_id, Some(*stream))?;
        }
        Ok(Status::Ok)
    })
}

/// Computes the keys under which the full links of a prompt are found, for routers and tests.
///
/// Shapes: `keys` [capacity][32]; `count` receives how many there are.
/// Errors: KAVERN_ERR_BUFFER_TOO_SMALL with `count` set and `keys` untouched; as kavern_kv_match for the request.
/// Threads: any; hashes without the cache's lock.
/// Since: 0.1
///
/// # Safety
/// `request` must be null or point to a struct whose pointers are as its fields say, `keys` to capacity x 32 writable
/// bytes, `count` be null or point to a writable value.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_block_keys(
    cache: *mut kavern_kv_cache,
    request: *const kavern_kv_request,
    keys: *mut u8,
    capacity: u64,
    count: *mut u64,
) -> kavern_status {
    guard_on("kavern_kv_block_keys", cache, |object| {
        // SAFETY: the header asks for a struct that says its size, or null.
        let request = unsafe { config::read_struct(request, "request") }?;
        // SAFETY: the header asks for pointers as the fields say.
        let request = unsafe { kv_config::request(&request, object.cache.hash_block_tokens()) }?;
        let bytes = capacity.checked_mul(32).ok_or_else(|| Error::argument("capacity overflows"))?;
        // SAFETY: the header asks for capacity x 32 writable bytes.
        let mut keys = unsafe { OutArray::new(keys.cast::<[u8; 32]>(), (bytes / 32) as usize, "keys") }?;
        // SAFETY: the header asks for a writable value or null.
        let count = unsafe { Out::new(count, "count") }?;
        let links = request.token_count / u64::from(object.cache.hash_block_tokens());
        if links > capacity {
            count.write(links);
            return Err(Error::new(
                Status::BufferTooSmall,
                format!("room for {capacity} keys, there are {links}"),
            ));
        }
        count.write(object.cache.keys(&request, |index, key| keys.write(index, key.to_bytes()))?);
        Ok(Status::Ok)
    })
}

/// # Safety
/// As the functions below say of their pointers.
unsafe fn blocks_and_seeds<'a>(
    n: usize,
    block_ids: *const i32,
    seeds: *const u64,
) -> Result<(&'a [i32], &'a [u64])> {
    // SAFETY: the caller's promise.
    let block_ids = unsafe { config::array(block_ids, n, "block_ids") }?;
    // SAFETY: the caller's promise.
    Ok((block_ids, unsafe { config::array(seeds, n, "seeds") }?))
}

/// Writes a recognisable pattern into blocks, one seed for each, for replays and for proofs of placement.
///
/// Shapes: `block_ids` [n], `seeds` [n]; both are read before the call returns. A block may be listed once.
/// Stream: enqueues on `stream`. It belongs to no step: blocks that nobody holds may be named too, and kavern_kv_resize
/// takes no memory away from a block before the work of these calls that names it is over.
/// Errors: KAVERN_ERR_INVALID_ARGUMENT (group or block), KAVERN_ERR_UNSUPPORTED (metadata-only cache),
/// KAVERN_ERR_IN_USE, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_DEVICE.
/// Threads: any, eight at a time; may wait for earlier calls of its kind.
/// Since: 0.1
///
/// # Safety
/// `block_ids` and `seeds` must point to `n` values each.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_fill_pattern(
    cache: *mut kavern_kv_cache,
    stream: *mut c_void,
    group: u32,
    n: usize,
    block_ids: *const i32,
    seeds: *const u64,
) -> kavern_status {
    guard_on("kavern_kv_fill_pattern", cache, |object| {
        // SAFETY: the header asks for `n` values each.
        let (blocks, seeds) = unsafe { blocks_and_seeds(n, block_ids, seeds) }?;
        let stream = stream::resolve(object.manager(), stream)?;
        object.cache.fill_pattern(*stream, group, blocks, seeds)?;
        Ok(Status::Ok)
    })
}

/// Compares blocks with the patterns of their seeds; what differs is counted for kavern_kv_pattern_result.
///
/// Shapes, Stream, Errors, Threads: as kavern_kv_fill_pattern.
/// Since: 0.1
///
/// # Safety
/// `block_ids` and `seeds` must point to `n` values each.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_check_pattern(
    cache: *mut kavern_kv_cache,
    stream: *mut c_void,
    group: u32,
    n: usize,
    block_ids: *const i32,
    seeds: *const u64,
) -> kavern_status {
    guard_on("kavern_kv_check_pattern", cache, |object| {
        // SAFETY: the header asks for `n` values each.
        let (blocks, seeds) = unsafe { blocks_and_seeds(n, block_ids, seeds) }?;
        let stream = stream::resolve(object.manager(), stream)?;
        object.cache.check_pattern(*stream, group, blocks, seeds)?;
        Ok(Status::Ok)
    })
}

/// Waits for all checks begun so far, tells what they found and starts again from zero.
///
/// Errors: KAVERN_ERR_UNSUPPORTED (metadata-only cache), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER,
/// KAVERN_ERR_DEVICE_LOST.
/// Threads: any; blocks until the checks are done.
/// Since: 0.1
///
/// # Safety
/// `out` must be null or point to a writable struct.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kavern_kv_pattern_result(
    cache: *mut kavern_kv_cache,
    out: *mut kavern_kv_check_result,
) -> kavern_status {
    guard_on("kavern_kv_pattern_result", cache, |object| {
        // SAFETY: the header asks for a writable struct or null.
        let out = unsafe { Out::new(out, "out") }?;
        let result = object.cache.take_check_result()?;
        out.write(kavern_kv_check_result {
            checked_blocks: result.checked,
            mismatched_blocks: result.mismatched,
            first_mismatch: result.mismatch.map_or(-1, i64::from),
        });
        Ok(Status::Ok)
    })
}

#[cfg(test)]
mod tests;
