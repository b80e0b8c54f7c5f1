//! Structs of the KV cache's C functions; their numbers are in `kv_enums`.
//!
//! Arrays of structs step by the `struct_size` of their first element; all elements carry the same. Reserved words
//! must be zero. Results have a fixed size for ever.

pub use super::kv_enums::*;
pub use super::kv_event::*;
pub use super::kv_group::{kavern_kv_description, kavern_kv_group};

/// How a KV cache is made; fill with kavern_kv_cache_config_init, then set groups and sizes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_cache_config {
    /// sizeof(kavern_kv_cache_config).
    pub struct_size: u32,
    /// KAVERN_KV_ bits.
    pub flags: u32,
    /// The groups.
    pub groups: *const kavern_kv_group,
    /// 1 to 16.
    pub group_count: u32,
    /// Rows of the tables: sequences at a time, 1 to 2^20. Default 256.
    pub max_sequences: u32,
    /// Blocks of each group that names none; 0 divides capacity_bytes over the groups.
    pub capacity_blocks: u64,
    /// Bytes of all pools together, used where capacity_blocks is 0. Size classes begin with equal shares.
    pub capacity_bytes: u64,
    /// Longest sequence; 0 takes as many as the smallest pool holds.
    pub max_sequence_tokens: u64,
    /// Tokens scheduled in one step. Default 8192.
    pub max_batch_tokens: u32,
    /// Leases at a time. Default 64.
    pub max_leases: u32,
    /// Namespaces (with salt and adapter) that hold blocks at a time. A lookup for one more evicts what the least
    /// recently used one has cached, of those in which nothing runs or is pinned and that have at most 256 blocks; if
    /// there is none, what a larger one has, at most 2,048 blocks of it. If some is left then, or there is none either,
    /// it is refused with KAVERN_ERR_LIMIT_REACHED, and the next one goes on there; of many that are larger or have
    /// pins one lookup sees only a part, and the next one others. Default 4096.
    pub max_namespaces: u32,
    /// Steps between kavern_kv_step and the completion of kavern_kv_step_done, 1 to 64. Default 4.
    pub steps_in_flight: u32,
    /// Tokens of one link of the hash chain; 0 takes the greatest common divisor of the groups' block_tokens.
    pub hash_block_tokens: u32,
    /// A KAVERN_HASH_ value. Default KAVERN_HASH_BLAKE3.
    pub hash: u32,
    /// A KAVERN_SCRUB_ value. Default KAVERN_SCRUB_TENANT_CHANGE.
    pub scrub: u32,
    /// Events kept for kavern_kv_events_read; 0 keeps none. Default 0.
    pub event_capacity: u32,
    /// What is evicted first: "adaptive" (learns what comes back; the default, which null takes), "lru", "fifo",
    /// "lfu" (with ageing), "s3fifo", "cost" (keeps what is dear to compute again), "runs-lru" (lru that prefers
    /// neighbours). Priorities, pins and expiry rule above every policy.
    pub policy: *const core::ffi::c_char,
    /// 32 bytes that key the hash chain; null takes random ones. Give the same to share keys between processes.
    pub hash_secret: *const u8,
    /// Name in reports; null takes "kv".
    pub name: *const core::ffi::c_char,
    /// Later: identity of model and weights for stored blocks. Null.
    pub fingerprint: *const core::ffi::c_char,
    /// Later: codec of blocks in device memory. Null.
    pub codec_vram: *const core::ffi::c_char,
    /// Later: codec of blocks in pinned memory. Null.
    pub codec_ram: *const core::ffi::c_char,
    /// Later: codec of blocks on disk. Null.
    pub codec_disk: *const core::ffi::c_char,
    /// Later: codec of blocks in the remote tier. Null.
    pub codec_remote: *const core::ffi::c_char,
    /// KAVERN_KV_ADAPTIVE_BLOCKS: who chooses the size of blocks: "predictive" (by the lengths that prompts of like
    /// size reached; the default, which null takes), "reactive" (by what blocks turned out to waste).
    pub block_advisor: *const core::ffi::c_char,
    /// KAVERN_KV_ADAPTIVE_BLOCKS: of a thousand slots held, those that may be without a token; 0 takes 50.
    pub waste_permille: u32,
    /// KAVERN_KV_ADAPTIVE_BLOCKS: cells of tables for a thousand tokens above which larger blocks are wanted; 0 takes
    /// 20.
    pub table_permille: u32,
    /// Zero.
    pub reserved: [u64; 2],
    /// Blocks of each group to which kavern_kv_resize may grow it: bookkeeping and tables are made for them, addresses
    /// are reserved, and memory comes and goes with the blocks; a region must hold them all. 0 takes the capacity, in
    /// memory that stays. With KAVERN_KV_ADAPTIVE_BLOCKS it counts the smallest blocks, larger ones as many tokens, and
    /// kavern_kv_poll moves memory to the class that lacks some; a worker's follows the plans. A worker's other groups
    /// have memory for all of these blocks from the beginning.
    pub max_blocks: u64,
}

/// Something beside the tokens that the content of a block depends on: an image, an embedding.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_extra {
    /// Identity of the thing, for example a hash of the image.
    pub id: [u8; 32],
    /// First token that depends on it, counted from the start of the sequence.
    pub token_offset: u64,
}

/// One prompt to look up.
///
/// Either `tokens`, which the library chains into keys, or `keys` that you chained yourself, one for each full link
/// of hash_block_tokens; a namespace takes one of the two, never both.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_request {
    /// sizeof(kavern_kv_request).
    pub struct_size: u32,
    /// KAVERN_REQUEST_ bits.
    pub flags: u32,
    /// Tenant; requests of two namespaces never share a block.
    pub namespace_id: u64,
    /// LoRA or other adapter that all keys and values depend on; 0 for none.
    pub adapter_id: u64,
    /// Secret of the tenant, mixed into every key; null for none.
    pub salt: *const u8,
    /// Bytes there, at most 64.
    pub salt_bytes: u32,
    /// Bytes of one key, 1 to 32; 0 means that tokens are given.
    pub key_bytes: u32,
    /// Token ids of the prompt.
    pub tokens: *const i32,
    /// How many tokens the prompt has, also where keys are given (0 there: key_count x hash_block_tokens).
    pub token_count: u64,
    /// Keys, key_bytes each.
    pub keys: *const u8,
    /// How many.
    pub key_count: u64,
    /// In rising order of token_offset; only with tokens. A prompt embedding is an extra whose id is a digest of its
    /// values, at its first token; the token ids in its place may be anything that does not change.
    pub extras: *const kavern_kv_extra,
    /// How many.
    pub extra_count: u64,
    /// Receives the ids of the hit blocks, group after group; null if not wanted. If wanted, the blocks stay where they
    /// are until the lease ends, also while kavern_kv_resize moves others.
    pub block_ids: *mut i32,
    /// Room there.
    pub block_capacity: u64,
    /// Tokens that the sequence is expected to reach; 0 unknown. Tells the advisor of KAVERN_KV_ADAPTIVE_BLOCKS, and
    /// does nothing else.
    pub expected_tokens: u64,
    /// KAVERN_KV_ADAPTIVE_BLOCKS: the size class that the sequence must have; 0 leaves it to the advisor, and in other
    /// caches.
    pub size_class: u32,
    /// Zero.
    pub reserved: u32,
}

/// What a lookup found.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct kavern_kv_match_result {
    /// KAVERN_OK, or why this request was refused; KAVERN_ERR_BUFFER_TOO_SMALL still gives lease and counts.
    pub status: i32,
    /// Bits, 1 << group: groups of cross-attention whose whole input was found, so that its encoder need not run. With
    /// KAVERN_KV_ADAPTIVE_BLOCKS, which has no such groups: the group of the size class.
    pub cross_groups: u32,
    /// Holds the hits until ADMIT or RELEASE; 0 if refused.
    pub lease: u64,
    /// Tokens whose blocks are in device memory, in every group. With KAVERN_KV_PARTIAL_HITS they may end inside the
    /// last block, of which ADMIT gives the sequence a copy.
    pub hit_tokens: u64,
    /// Tokens found in pinned memory beyond those. 0 until tiers exist.
    pub hit_tokens_ram: u64,
    /// Tokens found on disk beyond those. 0 until tiers exist.
    pub hit_tokens_disk: u64,
    /// Tokens found in the remote tier beyond those. 0 until tiers exist.
    pub hit_tokens_remote: u64,
    /// Block ids that belong into block_ids, all groups together.
    pub block_count: u64,
}

/// One operation of a step. What its kind does not use is 0, `row` 0 or -1; anything else is refused with
/// KAVERN_ERR_INVALID_ARGUMENT, as is a row below -1.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_op {
    /// sizeof(kavern_kv_op).
    pub struct_size: u32,
    /// A KAVERN_OP_ value.
    pub kind: u32,
    /// Sequence id, KAVERN_SEQ_OF_OP(i), or lease.
    pub target: u64,
    /// ADMIT, APPEND, RESUME: tokens to schedule. COMMIT: tokens that are final. ROLLBACK: those that stay. FORK:
    /// those of the child, 0 for all. EDIT: those that go.
    pub tokens: u64,
    /// ADMIT, APPEND, RESUME, ROLLBACK: tokens beyond those for which blocks are held ready; they stay from step to
    /// step. In APPEND and RESUME it also keeps the state that the step starts from, to which ROLLBACK can go back.
    pub lookahead: u32,
    /// ADMIT, FORK: row of the tables, or -1 to let the library choose.
    pub row: i32,
    /// COMMIT in a token namespace: the `tokens` ids. ROLLBACK: null, or the ids of its last `tokens` %
    /// hash_block_tokens.
    pub token_ids: *const i32,
    /// COMMIT in a key namespace: one key for each link that these tokens complete.
    pub keys: *const u8,
    /// How many.
    pub key_count: u64,
    /// COMMIT, ROLLBACK: extras whose token_offset lies in these tokens.
    pub extras: *const kavern_kv_extra,
    /// How many.
    pub extra_count: u64,
    /// COMMIT in a key namespace: bytes of one key, as in the request.
    pub key_bytes: u32,
    /// Zero.
    pub reserved: u32,
    /// Operations on a range of tokens: the first of them, counted from the start of the sequence; TRIM: the first
    /// token that is still needed; 0 in all others.
    pub offset: u64,
    /// RETAIN: milliseconds for which the range is retained, 0 for as long as it is findable; 0 in all others.
    pub ttl_ms: u64,
    /// ADMIT: tokens that the sequence will reach at most, for which blocks are promised: an APPEND up to there is not
    /// refused for want of blocks. Of a window, what it touches at a time is promised, for APPENDs of few tokens and
    /// while nobody shares its blocks. 0 promises none. 0 in all others.
    pub expected_tokens: u64,
    /// RESUME of a sequence that was preempted with KAVERN_PREEMPT_DROP: the lease of a lookup of its tokens; 0 in all
    /// others.
    pub lease: u64,
    /// RETAIN: 0 to 100, higher stays longer; 0 in all others.
    pub priority: u32,
    /// PREEMPT: a KAVERN_PREEMPT_ value; 0 in all others.
    pub mode: u32,
}

/// What became of an operation.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct kavern_kv_op_result {
    /// KAVERN_OK or why it was refused; a refused operation changed nothing.
    pub status: i32,
    /// Row of the tables, -1 if none.
    pub row: i32,
    /// The sequence; the child of FORK, the parent of ACCEPT.
    pub sequence: u64,
    /// Blocks that the sequence got, all groups together.
    pub blocks_added: u32,
    /// KAVERN_ERR_OUT_OF_BLOCKS: blocks missing in the group named below.
    pub blocks_missing: u32,
    /// The group that was short; of KAVERN_ERR_WRONG_STATE and KAVERN_ERR_UNSUPPORTED by FORK, ROLLBACK and EDIT, the
    /// one that does not have what is needed there. With KAVERN_KV_ADAPTIVE_BLOCKS, if it was not refused: that of the
    /// sequence.
    pub group: u32,
    /// COMMIT: blocks that became findable.
    pub blocks_committed: u32,
}

/// Tables of one group. Addresses are of the device and never change; host pointers see the same cells.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_group_tables {
    /// i32 [max_sequences][row_cells]: block ids by row. Cells past a sequence's blocks hold older ids; those of blocks
    /// that were let go hold null_block. A row of states is the current one and the one to start from, -1 for none.
    pub block_table: u64,
    /// i64 [max_batch_tokens]: block x block_tokens + offset of each scheduled token, -1 past the last; 0 if opaque.
    pub slot_mapping: u64,
    /// Ragged: i32 [batch_count + 1], 0 if not asked for.
    pub page_indptr: u64,
    /// Ragged: i32 [page_indptr[batch_count]] block ids in batch order.
    pub page_indices: u64,
    /// Ragged: i32 [batch_count] tokens in the last block.
    pub last_page_tokens: u64,
    /// block_table as the host sees it, as of the latest step.
    pub block_table_host: *const i32,
    /// slot_mapping of this step.
    pub slot_mapping_host: *const i64,
    /// page_indptr of this step.
    pub page_indptr_host: *const i32,
    /// page_indices of this step.
    pub page_indices_host: *const i32,
    /// last_page_tokens of this step.
    pub last_page_tokens_host: *const i32,
    /// Cells in a row.
    pub row_cells: u64,
    /// Cells of the block table that this call uploaded.
    pub cells_uploaded: u64,
    /// Blocks that this call fills with zeros before the step's work; 0 without memory, see `zeros_host`.
    pub blocks_zeroed: u64,
}

/// Tables of a step. You set struct_size, groups and group_capacity; the call fills the rest.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_step_tables {
    /// sizeof(kavern_kv_step_tables).
    pub struct_size: u32,
    /// Elements in `groups`.
    pub group_capacity: u32,
    /// Receives one element for each group; null if not wanted.
    pub groups: *mut kavern_kv_group_tables,
    /// Groups of the cache.
    pub group_count: u32,
    /// Sequences scheduled in this step.
    pub batch_count: u32,
    /// Tokens scheduled in this step.
    pub token_count: u32,
    /// Zero.
    pub reserved: u32,
    /// i32 [batch_count]: row of each batch position, in the order of the operations.
    pub batch_rows: u64,
    /// i32 [batch_count + 1]: first token of each batch position.
    pub batch_starts: u64,
    /// i32 [max_sequences]: tokens of each row's sequence, with those of this step; 0 for a free row.
    pub sequence_lengths: u64,
    /// batch_rows as the host sees it; valid until steps_in_flight further steps began.
    pub batch_rows_host: *const i32,
    /// batch_starts as the host sees it.
    pub batch_starts_host: *const i32,
    /// sequence_lengths as the host sees it, as of the latest step.
    pub sequence_lengths_host: *const i32,
    /// kavern_kv_token_copy [copy_count]: what this call enqueued before the step's work, group after group.
    pub copies: u64,
    /// copies as the host sees it; valid until the next kavern_kv_tables or the next step.
    pub copies_host: *const super::kv_ops::kavern_kv_token_copy,
    /// How many.
    pub copy_count: u32,
    /// Zero.
    pub reserved2: u32,
    /// kavern_kv_zero_block [zero_count], group after group: blocks of a cache without memory in which another tenant's
    /// bytes lie, or any with KAVERN_SCRUB_ALWAYS. Fill them with zeros before you carry out `copies_host`, and before
    /// the step's work. Each is told once, by the first call after it was handed out; the step's plan tells them too. A
    /// cache with memory fills them itself, and `blocks_zeroed` says how many. Null if there is none; valid as long as
    /// `copies_host`.
    pub zeros_host: *const super::kv_ops::kavern_kv_zero_block,
    /// How many.
    pub zero_count: u64,
}

/// A finished load or store of another tier.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct kavern_kv_completion {
    /// The work.
    pub ticket: u64,
    /// KAVERN_OK or why it failed.
    pub status: i32,
    /// First block that failed, -1 if none.
    pub failed_block: i32,
    /// The sequence or lease that it was for.
    pub target: u64,
    /// Bytes moved.
    pub bytes: u64,
}

/// What a KV cache holds and did. free + used + inactive + deferred equals the blocks of all
/// groups, those above a lowered capacity included that are still held.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_statistics {
    /// sizeof(kavern_kv_statistics).
    pub struct_size: u32,
    /// Steps begun whose work is not known to be complete.
    pub steps_in_flight: u32,
    /// Blocks that hold nothing.
    pub free_blocks: u64,
    /// Blocks held by sequences or leases.
    pub used_blocks: u64,
    /// Findable blocks that nobody holds; evictable.
    pub inactive_blocks: u64,
    /// Blocks that nobody holds, but which a step in flight may still read.
    pub deferred_blocks: u64,
    /// Findable blocks, held or not.
    pub indexed_blocks: u64,
    /// Sequences now.
    pub sequences: u64,
    /// Leases now.
    pub leases: u64,
    /// Namespaces that hold something now.
    pub namespaces: u64,
    /// Requests that were looked up.
    pub lookups: u64,
    /// Full blocks of those requests; each has one outcome: lookup_blocks equals hit_blocks + hit_blocks_ram +
    /// hit_blocks_disk + hit_blocks_remote + missed_blocks + skipped_blocks.
    pub lookup_blocks: u64,
    /// Of those, found in device memory.
    pub hit_blocks: u64,
    /// Tokens found.
    pub hit_tokens: u64,
    /// Blocks taken from the free list or by eviction.
    pub allocated_blocks: u64,
    /// Blocks that became findable.
    pub committed_blocks: u64,
    /// Full blocks that stayed private because the same content was already findable.
    pub duplicate_blocks: u64,
    /// Blocks evicted to make room.
    pub evicted_blocks: u64,
    /// Lookups that ended at a key whose tokens differ: a hash collision, answered as a miss.
    pub collisions: u64,
    /// Operations refused.
    pub refused_ops: u64,
    /// Tokens held by sequences.
    pub used_tokens: u64,
    /// Slots held by sequences, a shared block counted for each; used_tokens / used_slots tells the waste.
    pub used_slots: u64,
    /// Number of the latest event.
    pub last_event: u64,
    /// Bytes of bookkeeping on the host.
    pub metadata_bytes: u64,
    /// Bytes of the pools.
    pub pool_bytes: u64,
    /// Highest step id used so far, 0 before the first: an engine that takes a cache over goes on above it.
    pub last_step: u64,
    /// Tokens that sequences hold in slots, summed over the groups: held_tokens / used_slots tells how full their
    /// blocks are, windows and TRIM included.
    pub held_tokens: u64,
    /// Cells of the index on the device that kavern_kv_tables has sent.
    pub device_index_cells_sent: u64,
    /// Tokens that operations had copied: open blocks of forks, moved tails, hits that end inside a block; 0
    /// in a worker's cache, whose scheduler counts them.
    pub copied_tokens: u64,
    /// Blocks found in pinned memory. 0 until tiers exist.
    pub hit_blocks_ram: u64,
    /// Blocks found on disk. 0 until tiers exist.
    pub hit_blocks_disk: u64,
    /// Blocks found in the remote tier. 0 until tiers exist.
    pub hit_blocks_remote: u64,
    /// Blocks that were looked for and not found, or found where another group lacks them.
    pub missed_blocks: u64,
    /// Blocks that were found but left out at the request's wish (drop last, keep one token) or for blocks promised to
    /// others, or not looked for (no read, beyond the keys, beyond the longest sequence, an input without a name).
    pub skipped_blocks: u64,
    /// Blocks that are pinned, by operations or names.
    pub pinned_blocks: u64,
    /// Blocks that may be handed out, all groups together; see kavern_kv_resize.
    pub capacity_blocks: u64,
    /// Free or evictable blocks that are promised to sequences by expected_tokens of their ADMIT.
    pub promised_blocks: u64,
    /// Blocks that kavern_kv_resize moved below the new count, each with a copy of its bytes; since the start.
    pub moved_blocks: u64,
}

/// What kavern_kv_resize has led to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct kavern_kv_resize_result {
    /// Blocks of the group from now on.
    pub blocks: u64,
    /// The most that can be asked for.
    pub max_blocks: u64,
    /// Blocks above that which are still in use: held by sequences or leases, or waiting for a step. 0 when done.
    pub held_blocks: u64,
    /// Bytes of memory behind the group's blocks; 0 in a metadata-only cache.
    pub committed_bytes: u64,
}

/// A named prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_prefix {
    /// Its name.
    pub name: [core::ffi::c_char; 64],
    /// Whose it is.
    pub namespace_id: u64,
    /// Tokens from the start of the prompt.
    pub tokens: u64,
    /// Blocks that it pins, all groups together.
    pub blocks: u64,
}

/// Result of kavern_kv_check_pattern, accumulated since it was last read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct kavern_kv_check_result {
    /// Blocks checked.
    pub checked_blocks: u64,
    /// Blocks whose bytes are not those that the seed gives.
    pub mismatched_blocks: u64,
    /// One of them, -1 if none.
    pub first_mismatch: i64,
}

/// Keys and values of new tokens of one layer, for kavern_kv_append.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct kavern_kv_append_args {
    /// sizeof(kavern_kv_append_args).
    pub struct_size: u32,
    /// Group of the layer.
    pub group: u32,
    /// Layer, counted inside the group.
    pub layer: u32,
    /// Type of the given elements: the cache's own, or KAVERN_F32, KAVERN_F16, KAVERN_BF16 rounded to one of them;
    /// KAVERN_I8 for latent rows, whose bytes are written as they are.
    pub dtype: u32,
    /// Tokens.
    pub tokens: u32,
    /// Zero.
    pub reserved: u32,
    /// Device address of the keys, [tokens][kv_heads][head_dim]; of latent rows, [tokens][token_bytes].
    pub keys: u64,
    /// Device address of the values, [tokens][kv_heads][head_dim]; 0 for latent rows.
    pub values: u64,
    /// Device address of the slots, i64 [tokens]; a slot below 0 is skipped.
    pub slot_mapping: u64,
}
