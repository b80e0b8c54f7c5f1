//! The only file that calls the library, and so the only one with `unsafe`: the C ABI as safe types.
//!
//! It adds nothing to the library: each method is one C call, its arguments checked only where memory safety hangs on
//! them. Invariant: a handle is destroyed once, by Drop, and every pointer handed to a call outlives that call; the
//! library copies what it needs later.

use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};

use kavern::c_api::cache::*;
use kavern::c_api::kv_enums::*;
use kavern::c_api::kv_types::*;
use kavern::c_api::manager::*;
use kavern::c_api::memory::*;
use kavern::c_api::memory_types::*;
use kavern::c_api::step::*;
use kavern::c_api::stream::*;
use kavern::c_api::types::*;
use kavern::c_api::upkeep::*;
use kavern::c_api::version::*;

use crate::keys::KEY_BYTES;

/// A C call that was refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    call: &'static str,
    pub(crate) status: kavern_status,
    text: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = constant(kavern_status_name(self.status));
        // The library's own text begins with the name of the function.
        let text = self.text.strip_prefix(self.call).unwrap_or(&self.text).trim_start_matches([':', ' ']);
        write!(f, "{} answers {name}: {text}", self.call)
    }
}

type Result<T> = std::result::Result<T, Refusal>;

/// A string that the library never frees.
fn constant(text: *const c_char) -> &'static str {
    if text.is_null() {
        return "";
    }
    // SAFETY: the library answers with constants that end with a zero.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap_or("")
}

/// What the library says about itself.
pub(crate) fn version() -> (&'static str, &'static str) {
    (constant(kavern_version_string()), constant(kavern_build_info()))
}

fn last_error() -> String {
    let mut buffer = [0u8; 1024];
    let mut needed = 0;
    // SAFETY: the buffer is as long as said, and `needed` may be written.
    unsafe { kavern_last_error(buffer.as_mut_ptr().cast(), buffer.len(), &mut needed) };
    CStr::from_bytes_until_nul(&buffer).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default()
}

fn check(call: &'static str, status: kavern_status) -> Result<()> {
    if status >= 0 { Ok(()) } else { Err(Refusal { call, status, text: last_error() }) }
}

/// An element of a batch that was refused while the call itself was not, which leaves no text.
fn check_element(call: &'static str, status: kavern_status, text: impl FnOnce() -> String) -> Result<()> {
    if status >= 0 { Ok(()) } else { Err(Refusal { call, status, text: text() }) }
}

/// Structs of numbers and nullable pointers only: all zeros is a value of each.
trait Plain: Copy {}
impl Plain for kavern_manager_config {}
impl Plain for kavern_manager_statistics {}
impl Plain for kavern_memory_statistics {}
impl Plain for kavern_kv_group {}
impl Plain for kavern_kv_cache_config {}
impl Plain for kavern_kv_request {}
impl Plain for kavern_kv_group_tables {}
impl Plain for kavern_kv_step_tables {}
impl Plain for kavern_kv_statistics {}

fn zeroed<T: Plain>() -> T {
    let value = MaybeUninit::zeroed();
    // SAFETY: all zeros is a value of every Plain type.
    unsafe { value.assume_init() }
}

/// A device with its memory.
pub(crate) struct Manager {
    raw: *mut kavern_manager,
}

impl Manager {
    pub(crate) fn create(device: &str) -> Result<Manager> {
        Manager::create_limited(device, 0)
    }

    /// With at most so many bytes of device memory; 0 is no limit.
    pub(crate) fn create_limited(device: &str, limit_bytes: u64) -> Result<Manager> {
        let device = c_string("kavern_manager_create", device)?;
        let mut config: kavern_manager_config = zeroed();
        // SAFETY: the struct may be written and has that size.
        let status = unsafe { kavern_manager_config_init(&mut config, size_of_val(&config)) };
        check("kavern_manager_config_init", status)?;
        config.device = device.as_ptr();
        config.device_limit_bytes = limit_bytes;
        let mut raw = null_mut();
        // SAFETY: the configuration and the name in it live through the call; `raw` may be written.
        let status = unsafe { kavern_manager_create(&config, &mut raw) };
        check("kavern_manager_create", status).map(|()| Manager { raw })
    }

    /// Uses of memory that the device saw while another stream still wrote there.
    pub(crate) fn races(&self) -> Result<u64> {
        let mut statistics: kavern_manager_statistics = zeroed();
        statistics.struct_size = size_of_val(&statistics) as u32;
        // SAFETY: the handle is ours, the struct may be written and says its size.
        let status = unsafe { kavern_manager_stats(self.raw, &mut statistics) };
        check("kavern_manager_stats", status).map(|()| statistics.races)
    }

    pub(crate) fn create_stream(&self) -> Result<Stream> {
        let mut raw = null_mut();
        // SAFETY: the handle is ours; `raw` may be written.
        let status = unsafe { kavern_stream_create(self.raw, &mut raw) };
        check("kavern_stream_create", status).map(|()| Stream { raw })
    }

    /// Waits until all work of the stream is done.
    pub(crate) fn synchronize(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both handles are ours.
        let status = unsafe { kavern_stream_synchronize(self.raw, stream.raw.cast()) };
        check("kavern_stream_synchronize", status)
    }

    /// An address for so many bytes, or none where memory is too short for them.
    pub(crate) fn allocate(&self, bytes: u64, stream: &Stream) -> Result<Option<u64>> {
        let mut address = 0;
        // SAFETY: manager and stream are ours; the address may be written.
        let status = unsafe { kavern_alloc(self.raw, bytes, 0, stream.raw.cast(), 0, &mut address) };
        if status == kavern_status_code::KAVERN_ERR_OUT_OF_MEMORY as kavern_status {
            return Ok(None);
        }
        check("kavern_alloc", status).map(|()| Some(address))
    }

    pub(crate) fn free(&self, address: u64, stream: &Stream) -> Result<()> {
        // SAFETY: manager and stream are ours; a wrong address is refused, and nothing here reads or writes there.
        let status = unsafe { kavern_free(self.raw, address, stream.raw.cast()) };
        check("kavern_free", status)
    }

    /// What the allocator holds.
    pub(crate) fn memory(&self) -> Result<kavern_memory_statistics> {
        let mut statistics: kavern_memory_statistics = zeroed();
        statistics.struct_size = size_of_val(&statistics) as u32;
        // SAFETY: the handle is ours, the struct may be written and says its size.
        let status = unsafe { kavern_memory_stats(self.raw, &mut statistics) };
        check("kavern_memory_stats", status).map(|()| statistics)
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and not used again.
        unsafe { kavern_manager_destroy(&mut self.raw) };
    }
}

/// A queue of work of a device.
pub(crate) struct Stream {
    raw: *mut kavern_stream,
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and not used again.
        unsafe { kavern_stream_destroy(&mut self.raw) };
    }
}

/// What a replay asks of a cache: one group of opaque blocks.
pub(crate) struct Shape<'a> {
    pub(crate) policy: &'a str,
    pub(crate) blocks: u64,
    pub(crate) block_bytes: u64,
    pub(crate) block_tokens: u32,
    pub(crate) longest_blocks: usize,
    /// Sequences, and leases, at a time.
    pub(crate) sequences: u32,
    pub(crate) namespaces: usize,
    pub(crate) has_bytes: bool,
    pub(crate) secret: [u8; 32],
}

/// A prompt, or the part of it that is new.
#[derive(Clone, Copy)]
pub(crate) enum Content<'a> {
    /// Keys of KEY_BYTES each.
    Keys(&'a [u8]),
    Tokens(&'a [i32]),
}

/// KAVERN_SEQ_OF_OP of the header, which is a macro there, without the index of the operation.
const SEQ_OF_OP: u64 = 0x5f << 56;

/// One operation of a step.
#[derive(Clone, Copy)]
pub(crate) enum Op<'a> {
    /// Ends a sequence.
    Free(u64),
    /// Drops a lease.
    Release(u64),
    /// Turns a lease into a sequence with so many new tokens and room for more.
    Admit { lease: u64, tokens: u64, lookahead: u32 },
    /// Makes tokens of the sequence that operation `admit` of the list admits final.
    Commit { admit: usize, tokens: u64, content: Content<'a> },
}

/// What became of an operation.
#[derive(Clone, Copy)]
pub(crate) struct Outcome {
    status: kavern_status,
    pub(crate) admitted: Admitted,
    blocks_missing: u32,
}

impl Outcome {
    /// Whether it was refused because blocks are missing.
    pub(crate) fn is_short(&self) -> bool {
        self.status == kavern_status_code::KAVERN_ERR_OUT_OF_BLOCKS as kavern_status
    }

    /// Fails if it was refused.
    pub(crate) fn check(&self) -> Result<Admitted> {
        check_element("kavern_kv_step", self.status, || {
            format!("an operation was refused, {} blocks are missing", self.blocks_missing)
        })?;
        Ok(self.admitted)
    }
}

/// A sequence and its row of the tables.
#[derive(Clone, Copy)]
pub(crate) struct Admitted {
    pub(crate) sequence: u64,
    row: i32,
}

/// A paged cache.
pub(crate) struct Cache {
    raw: *mut kavern_kv_cache,
    /// Of the latest list, so that a step allocates nothing.
    ops: Vec<kavern_kv_op>,
    results: Vec<kavern_kv_op_result>,
}

impl Cache {
    pub(crate) fn create(manager: &Manager, shape: &Shape<'_>) -> Result<Cache> {
        let policy = c_string("kavern_kv_cache_create", shape.policy)?;
        let mut group: kavern_kv_group = zeroed();
        group.struct_size = size_of_val(&group) as u32;
        group.kind = kavern_kv_group_kind::KAVERN_GROUP_OPAQUE as u32;
        group.block_tokens = shape.block_tokens;
        group.block_bytes = shape.block_bytes;
        let mut config: kavern_kv_cache_config = zeroed();
        // SAFETY: the struct may be written and has that size.
        let status = unsafe { kavern_kv_cache_config_init(&mut config, size_of_val(&config)) };
        check("kavern_kv_cache_config_init", status)?;
        let longest_tokens = shape.longest_blocks.max(1) as u64 * u64::from(shape.block_tokens);
        config.groups = &group;
        config.group_count = 1;
        config.capacity_blocks = shape.blocks;
        config.max_sequences = shape.sequences;
        config.max_leases = shape.sequences;
        config.max_sequence_tokens = longest_tokens;
        // All that may be admitted in one step; the cache has an upper bound of its own.
        config.max_batch_tokens = longest_tokens.saturating_mul(shape.sequences.into()).min(1 << 28) as u32;
        config.max_namespaces = u32::try_from(shape.namespaces.max(1)).unwrap_or(u32::MAX);
        config.policy = policy.as_ptr();
        config.hash_secret = shape.secret.as_ptr();
        if !shape.has_bytes {
            config.flags |= kavern_kv_cache_flag::KAVERN_KV_METADATA_ONLY as u32;
        }
        let mut raw = null_mut();
        // SAFETY: the handle is ours; the configuration and what it points to live through the call.
        let status = unsafe { kavern_kv_cache_create(manager.raw, &config, &mut raw) };
        check("kavern_kv_cache_create", status).map(|()| Cache { raw, ops: Vec::new(), results: Vec::new() })
    }

    /// Looks a prompt up; `hits` receives the ids of the blocks found, if it is not empty. With `prompt_tokens` at
    /// least one of so many tokens is left to compute. Answers the lease and the tokens found.
    pub(crate) fn lookup(
        &mut self,
        namespace: u64,
        content: Content<'_>,
        prompt_tokens: Option<u64>,
        hits: &mut [i32],
    ) -> Result<(u64, u64)> {
        let mut request: kavern_kv_request = zeroed();
        request.struct_size = size_of_val(&request) as u32;
        request.namespace_id = namespace;
        if let Some(tokens) = prompt_tokens {
            request.flags = kavern_kv_request_flag::KAVERN_REQUEST_KEEP_ONE_TOKEN as u32;
            request.token_count = tokens;
        }
        match content {
            Content::Keys(keys) => {
                request.key_bytes = KEY_BYTES as u32;
                request.keys = keys.as_ptr();
                request.key_count = (keys.len() / KEY_BYTES) as u64;
            }
            Content::Tokens(tokens) => {
                request.tokens = tokens.as_ptr();
                request.token_count = tokens.len() as u64;
            }
        }
        if !hits.is_empty() {
            request.block_ids = hits.as_mut_ptr();
            request.block_capacity = hits.len() as u64;
        }
        let mut result = kavern_kv_match_result::default();
        // SAFETY: the handle is ours; the request points to slices of the lengths that it says.
        let status = unsafe { kavern_kv_match(self.raw, 1, &request, &mut result) };
        check("kavern_kv_match", status)?;
        check_element("kavern_kv_match", result.status, || "the request was refused".into())?;
        Ok((result.lease, result.hit_tokens))
    }

    /// Applies operations as one list of a step; `outcomes` receives what became of each.
    pub(crate) fn step(&mut self, step: u64, list: &[Op<'_>], outcomes: &mut Vec<Outcome>) -> Result<()> {
        self.ops.clear();
        self.ops.extend(list.iter().map(Op::raw));
        self.results.clear();
        self.results.resize(list.len(), kavern_kv_op_result::default());
        let (count, ops, results) = (list.len(), self.ops.as_ptr(), self.results.as_mut_ptr());
        // SAFETY: the handle is ours; both arrays hold `count` elements, whose pointers are slices that outlive it.
        let status = unsafe { kavern_kv_step(self.raw, step, count, ops, results) };
        check("kavern_kv_step", status)?;
        outcomes.clear();
        outcomes.extend(self.results.iter().map(|result| Outcome {
            status: result.status,
            admitted: Admitted { sequence: result.sequence, row: result.row },
            blocks_missing: result.blocks_missing,
        }));
        Ok(())
    }

    /// Uploads the tables and copies block ids of the sequence's row, from cell `from` on, as many as `target` takes.
    pub(crate) fn tables(
        &mut self,
        step: u64,
        stream: Option<&Stream>,
        admitted: Admitted,
        from: usize,
        target: &mut [i32],
    ) -> Result<()> {
        let mut group: kavern_kv_group_tables = zeroed();
        let mut tables: kavern_kv_step_tables = zeroed();
        tables.struct_size = size_of_val(&tables) as u32;
        tables.groups = &mut group;
        tables.group_capacity = 1;
        // SAFETY: handle and stream are ours; `tables` has room for the one group that it says.
        let status = unsafe { kavern_kv_tables(self.raw, step, raw_stream(stream), &mut tables) };
        check("kavern_kv_tables", status)?;
        if target.is_empty() {
            return Ok(());
        }
        let cells = group.row_cells as usize;
        let row = usize::try_from(admitted.row).expect("an admitted sequence has a row");
        assert!(from + target.len() <= cells && !group.block_table_host.is_null(), "a row has {cells} cells");
        // SAFETY: the host's table has max_sequences rows of `cells`, and `row` is one of them.
        let start = unsafe { group.block_table_host.add(row * cells + from) };
        // SAFETY: the cells lie within the row, as asserted; nothing writes the table before the next call.
        target.copy_from_slice(unsafe { std::slice::from_raw_parts(start, target.len()) });
        Ok(())
    }

    /// Says that the work of a step is enqueued; without a stream, that it is over.
    pub(crate) fn step_done(&mut self, step: u64, stream: Option<&Stream>) -> Result<()> {
        // SAFETY: handle and stream are ours.
        let status = unsafe { kavern_kv_step_done(self.raw, step, raw_stream(stream)) };
        check("kavern_kv_step_done", status)
    }

    /// Writes the pattern of each block into its slot.
    pub(crate) fn fill(&self, stream: &Stream, blocks: &[i32], seeds: &[u64]) -> Result<()> {
        assert_eq!(blocks.len(), seeds.len(), "one pattern for each block");
        let (count, ids, seeds) = (blocks.len(), blocks.as_ptr(), seeds.as_ptr());
        // SAFETY: handle and stream are ours; both arrays hold `count` elements.
        let status = unsafe { kavern_kv_fill_pattern(self.raw, stream.raw.cast(), 0, count, ids, seeds) };
        check("kavern_kv_fill_pattern", status)
    }

    /// Compares the bytes of each block with its pattern; `pattern_result` counts.
    pub(crate) fn check(&self, stream: &Stream, blocks: &[i32], seeds: &[u64]) -> Result<()> {
        assert_eq!(blocks.len(), seeds.len(), "one pattern for each block");
        let (count, ids, seeds) = (blocks.len(), blocks.as_ptr(), seeds.as_ptr());
        // SAFETY: handle and stream are ours; both arrays hold `count` elements.
        let status = unsafe { kavern_kv_check_pattern(self.raw, stream.raw.cast(), 0, count, ids, seeds) };
        check("kavern_kv_check_pattern", status)
    }

    /// Waits for the checks so far and answers what they found.
    pub(crate) fn pattern_result(&self) -> Result<kavern_kv_check_result> {
        let mut result = kavern_kv_check_result::default();
        // SAFETY: the handle is ours; the result may be written.
        let status = unsafe { kavern_kv_pattern_result(self.raw, &mut result) };
        check("kavern_kv_pattern_result", status).map(|()| result)
    }

    pub(crate) fn statistics(&self) -> Result<kavern_kv_statistics> {
        let mut statistics: kavern_kv_statistics = zeroed();
        statistics.struct_size = size_of_val(&statistics) as u32;
        // SAFETY: the handle is ours, the struct may be written and says its size.
        let status = unsafe { kavern_kv_stats(self.raw, &mut statistics) };
        check("kavern_kv_stats", status).map(|()| statistics)
    }

    /// Lets the library check its own invariants.
    pub(crate) fn validate(&self) -> Result<()> {
        // SAFETY: the handle is ours.
        check("kavern_kv_validate", unsafe { kavern_kv_validate(self.raw) })
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        // SAFETY: the handle is ours and not used again.
        unsafe { kavern_kv_cache_destroy(&mut self.raw) };
    }
}

fn raw_stream(stream: Option<&Stream>) -> *mut c_void {
    stream.map_or(null_mut(), |stream| stream.raw.cast())
}

fn c_string(call: &'static str, text: &str) -> Result<CString> {
    let status = kavern_status_code::KAVERN_ERR_INVALID_ARGUMENT as kavern_status;
    CString::new(text).map_err(|_| Refusal { call, status, text: "a name holds a zero byte".into() })
}

fn operation(kind: kavern_kv_op_kind, target: u64) -> kavern_kv_op {
    kavern_kv_op {
        struct_size: size_of::<kavern_kv_op>() as u32,
        kind: kind as u32,
        target,
        tokens: 0,
        lookahead: 0,
        row: -1,
        token_ids: null(),
        keys: null(),
        key_count: 0,
        extras: null(),
        extra_count: 0,
        key_bytes: 0,
        reserved: 0,
        offset: 0,
        ttl_ms: 0,
        expected_tokens: 0,
        lease: 0,
        priority: 0,
        mode: 0,
    }
}

impl Op<'_> {
    fn raw(&self) -> kavern_kv_op {
        match *self {
            Op::Free(sequence) => operation(kavern_kv_op_kind::KAVERN_OP_FREE, sequence),
            Op::Release(lease) => operation(kavern_kv_op_kind::KAVERN_OP_RELEASE, lease),
            Op::Admit { lease, tokens, lookahead } => {
                let admit = operation(kavern_kv_op_kind::KAVERN_OP_ADMIT, lease);
                kavern_kv_op { tokens, lookahead, ..admit }
            }
            Op::Commit { admit, tokens, content } => {
                let mut op = operation(kavern_kv_op_kind::KAVERN_OP_COMMIT, SEQ_OF_OP | admit as u64);
                op.tokens = tokens;
                match content {
                    Content::Keys(keys) => {
                        op.key_bytes = KEY_BYTES as u32;
                        op.keys = keys.as_ptr();
                        op.key_count = (keys.len() / KEY_BYTES) as u64;
                    }
                    // The library reads as many ids as the operation commits.
                    Content::Tokens(ids) => {
                        assert_eq!(ids.len() as u64, tokens, "the ids of exactly the new tokens");
                        op.token_ids = ids.as_ptr();
                    }
                }
                op
            }
        }
    }
}
