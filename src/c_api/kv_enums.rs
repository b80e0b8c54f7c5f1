//! Numbers of the KV cache's C functions.
//!
//! They go outward only: structs and functions carry `uint32_t`, checked on entry. A number is never reused.

/// What the blocks of a group hold.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_group_kind {
    /// Keys and values of full attention.
    KAVERN_GROUP_FULL = 1,
    /// Sliding-window attention: window_tokens latest tokens.
    KAVERN_GROUP_SLIDING = 2,
    /// Chunked attention: the tokens of the same chunk of window_tokens.
    KAVERN_GROUP_CHUNKED = 3,
    /// Recurrent state: block_bytes a state, one running state a sequence, and snapshots.
    KAVERN_GROUP_STATE = 4,
    /// Cross-attention: cross_tokens of another input, taken whole at ADMIT.
    KAVERN_GROUP_CROSS = 5,
    /// Multi-head latent attention: token_bytes a token and layer, of everything before.
    KAVERN_GROUP_MLA = 6,
    /// Bytes that only the engine understands: block_bytes a block, no slots per token.
    KAVERN_GROUP_OPAQUE = 7,
}

/// Bits of kavern_kv_group.flags.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_group_flag {
    /// KAVERN_GROUP_FULL, _MLA, _OPAQUE: TRIM may let go of its blocks. Windows always may.
    KAVERN_GROUP_TRIMMABLE = 1,
}

/// Element type of keys and values.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_dtype {
    /// IEEE 754 binary32.
    KAVERN_F32 = 1,
    /// IEEE 754 binary16.
    KAVERN_F16 = 2,
    /// bfloat16.
    KAVERN_BF16 = 3,
    /// 8-bit float, 4 exponent bits.
    KAVERN_F8_E4M3 = 4,
    /// 8-bit float, 5 exponent bits.
    KAVERN_F8_E5M2 = 5,
    /// Signed byte.
    KAVERN_I8 = 6,
}

/// Order of the elements inside one layer of a block.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_layout {
    /// [token][head][channel].
    KAVERN_NHD = 1,
    /// [head][token][channel].
    KAVERN_HND = 2,
}

/// Which hash chains the blocks of a token namespace.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_hash {
    /// Keyed BLAKE3, 256 bits: nobody can make two prefixes collide. The default.
    KAVERN_HASH_BLAKE3 = 1,
    /// XXH3, 128 bits, and the tokens of each block are kept and compared: faster, 4 bytes a token.
    KAVERN_HASH_XXH3 = 2,
}

/// When a slot is overwritten with zeros before it is handed out.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_scrub {
    /// Never.
    KAVERN_SCRUB_NONE = 1,
    /// When it held another namespace's bytes. The default.
    KAVERN_SCRUB_TENANT_CHANGE = 2,
    /// Always, for kernels that read past the written tokens.
    KAVERN_SCRUB_ALWAYS = 3,
}

/// Bits of kavern_kv_cache_config.flags.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_cache_flag {
    /// No pool and no device tables: only the bookkeeping and its host mirrors.
    KAVERN_KV_METADATA_ONLY = 1,
    /// Also build the ragged form of the tables (page_indptr, page_indices, last_page_tokens) each step.
    KAVERN_KV_RAGGED_TABLES = 2,
    /// A namespace without a salt is refused.
    KAVERN_KV_REQUIRE_SALT = 4,
    /// Hits may end inside a block: the tokens that it shares with the prompt are copied at ADMIT. Keeps the tokens of
    /// all blocks, 4 bytes each; for token namespaces in caches of KAVERN_GROUP_FULL and _MLA alone.
    KAVERN_KV_PARTIAL_HITS = 64,
}

/// Bits of kavern_kv_request.flags.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_request_flag {
    /// Match nothing: the sequence starts cold.
    KAVERN_REQUEST_NO_READ = 1,
    /// The sequence publishes nothing: its blocks stay private.
    KAVERN_REQUEST_NO_STORE = 2,
    /// Leave out the last hit block, for draft models that need its hidden state.
    KAVERN_REQUEST_DROP_LAST = 4,
    /// Hits cover at most all tokens but one, so that the model has one to compute.
    KAVERN_REQUEST_KEEP_ONE_TOKEN = 8,
}

/// Kinds of kavern_kv_op. Those marked "later" answer KAVERN_ERR_UNSUPPORTED.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_op_kind {
    /// Turns the lease `target` into a sequence, with its hits and `tokens` new ones scheduled.
    KAVERN_OP_ADMIT = 1,
    /// Schedules `tokens` more for sequence `target`.
    KAVERN_OP_APPEND = 2,
    /// The next `tokens` of sequence `target` are final, with these token ids or keys; their writes follow before
    /// kavern_kv_step_done, whatever comes between.
    KAVERN_OP_COMMIT = 3,
    /// Ends sequence `target`; its committed blocks stay findable. It leaves the batch of the open step: if that step
    /// committed tokens of it which are not written yet, free it in the next step instead.
    KAVERN_OP_FREE = 4,
    /// Drops the lease `target`.
    KAVERN_OP_RELEASE = 5,
    /// Later.
    KAVERN_OP_ROLLBACK = 6,
    /// Later.
    KAVERN_OP_FORK = 7,
    /// Lets go of the blocks of sequence `target` that lie wholly before token `offset`, in windows and in groups with
    /// KAVERN_GROUP_TRIMMABLE; their cells show the null block. Again with the same offset it does nothing.
    KAVERN_OP_TRIM = 8,
    /// Later.
    KAVERN_OP_EDIT = 9,
    /// Later.
    KAVERN_OP_PREEMPT = 10,
    /// Later.
    KAVERN_OP_RESUME = 11,
    /// Later.
    KAVERN_OP_CANCEL = 12,
    /// Later.
    KAVERN_OP_PIN = 13,
    /// Later.
    KAVERN_OP_UNPIN = 14,
    /// Later.
    KAVERN_OP_RETAIN = 15,
    /// Later.
    KAVERN_OP_LOAD = 16,
    /// Later.
    KAVERN_OP_STORE = 17,
    /// Later.
    KAVERN_OP_ACCEPT = 18,
}

/// What KAVERN_OP_PREEMPT does with the blocks, in kavern_kv_op.mode.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_preempt_mode {
    /// The sequence keeps its blocks and its id, but leaves the row of the tables' batch.
    KAVERN_PREEMPT_KEEP = 1,
    /// Its blocks are let go; committed ones stay findable until they are evicted.
    KAVERN_PREEMPT_DROP = 2,
    /// Later: its blocks go to another tier.
    KAVERN_PREEMPT_SWAP = 3,
}

/// Kinds of kavern_kv_event.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_event_kind {
    /// A block became findable.
    KAVERN_EVENT_STORED = 1,
    /// A block is no longer findable; `reason` says why.
    KAVERN_EVENT_REMOVED = 2,
    /// A reset is over. Its removals were told block by block before; a mirror needs nothing from this.
    KAVERN_EVENT_CLEARED = 3,
}

/// Why a block is no longer findable.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_remove_reason {
    /// Not removed.
    KAVERN_REMOVE_NONE = 0,
    /// Its slot was needed.
    KAVERN_REMOVE_EVICTED = 1,
    /// kavern_kv_evict asked for it, or it lay above what kavern_kv_resize left.
    KAVERN_REMOVE_REQUESTED = 2,
    /// kavern_kv_reset asked for it.
    KAVERN_REMOVE_RESET = 3,
    /// Newer content with the same key took its place.
    KAVERN_REMOVE_REPLACED = 4,
    /// The sequence that was to write it was cancelled or rolled back before.
    KAVERN_REMOVE_CANCELLED = 7,
}

/// What kavern_kv_reset forgets.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_reset_scope {
    /// Everything findable.
    KAVERN_RESET_ALL = 1,
    /// Everything findable of one namespace, under any salt and adapter.
    KAVERN_RESET_NAMESPACE = 2,
}
