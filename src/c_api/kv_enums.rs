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
    /// Keep a copy of each group's index on the device, for kavern_kv_lookup_device: 32 to 64 bytes a block there, and
    /// somewhat more on the host. kavern_kv_tables sends what changed. Not for metadata-only caches.
    KAVERN_KV_DEVICE_INDEX = 8,
    /// Serve namespaces in which a key names a block whatever comes before it: kavern_kv_match_chunks. All groups have
    /// blocks of hash_block_tokens then.
    KAVERN_KV_CHUNK_INDEX = 16,
    /// Hits may end inside a block, of which ADMIT gives the sequence a copy. In caches of KAVERN_GROUP_FULL and _MLA
    /// alone: after the tokens that it shares with the prompt, in token namespaces; keeps the tokens of all blocks, 4
    /// bytes each. With other kinds, or KAVERN_GROUP_TRIMMABLE: at any multiple of hash_block_tokens inside a block all
    /// of whose tokens are the prompt's, and at a snapshot of each state. Not with opaque groups other than states.
    /// Keeps what events keep, about 100 bytes a block. Without it a hit ends where blocks of all groups end, a common
    /// multiple of their block_tokens: a larger block is named by all of its tokens, so that only its kept tokens can
    /// tell which of them a prompt shares.
    KAVERN_KV_PARTIAL_HITS = 64,
    /// The cache of a worker: it owns memory and applies the plans of a scheduler's cache, and decides nothing itself.
    KAVERN_KV_WORKER = 256,
    /// The groups, two or three, are size classes: the same layers in blocks of different sizes, of which each
    /// sequence gets one when it is looked up; docs/abi.md. Each names its size_class, and larger blocks are multiples
    /// of smaller.
    KAVERN_KV_ADAPTIVE_BLOCKS = 128,
    /// Free blocks are handed out in the order in which they were freed, the latest first. Without it a request gets
    /// runs of ascending block ids where that can be, which copies and transfers like; and where too few are free,
    /// some more than it needs are evicted: as many, at least 31, at most one block in 64, and none of a high priority.
    KAVERN_KV_EXACT_ORDER = 32,
}

/// Bits of kavern_kv_request.flags.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_request_flag {
    /// Match nothing: the sequence starts cold.
    KAVERN_REQUEST_NO_READ = 1,
    /// The sequence publishes nothing: its blocks stay private, also those of its children and after a RESUME from
    /// another lookup.
    KAVERN_REQUEST_NO_STORE = 2,
    /// Leave out the last hit block, for draft models that need its hidden state.
    KAVERN_REQUEST_DROP_LAST = 4,
    /// Hits cover at most all tokens but one, so that the model has one to compute.
    KAVERN_REQUEST_KEEP_ONE_TOKEN = 8,
    /// The keys name blocks whatever comes before them, and the namespace takes nothing else: kavern_kv_match then
    /// gives a lease without hits, under which a sequence stores blocks for kavern_kv_match_chunks.
    KAVERN_REQUEST_CHUNKS = 16,
}

/// What kavern_kv_lookup_device does after a miss.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_lookup_mode {
    /// Every hash is looked up by itself.
    KAVERN_LOOKUP_INDEPENDENT = 1,
    /// Everything after the first miss of a row is a miss.
    KAVERN_LOOKUP_PREFIX = 2,
}

/// Kinds of kavern_kv_op. Those marked "later" answer KAVERN_ERR_UNSUPPORTED.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_op_kind {
    /// Turns the lease `target` into a sequence, with its hits and `tokens` new ones scheduled.
    KAVERN_OP_ADMIT = 1,
    /// Schedules `tokens` more for sequence `target`. KAVERN_ERR_WRONG_STATE, with the group, if that would copy an
    /// open block which was found in the open step while another sequence of that step is yet to write it.
    KAVERN_OP_APPEND = 2,
    /// The next `tokens` of sequence `target` are final, with these token ids or keys; their writes follow before
    /// kavern_kv_step_done, whatever comes between.
    KAVERN_OP_COMMIT = 3,
    /// Ends sequence `target`; its committed blocks stay findable. It leaves the batch of the open step: if that step
    /// committed tokens of it which are not written yet, free it in the next step instead.
    KAVERN_OP_FREE = 4,
    /// Drops the lease `target`.
    KAVERN_OP_RELEASE = 5,
    /// Sequence `target` keeps its first `tokens` tokens, and blocks for `lookahead` more as far as they are its own.
    /// Below its committed tokens it goes on publishing if the last complete link (hash_block_tokens) is known; where
    /// `tokens` lies inside a link, `token_ids` gives the ids behind that link's start (with `extras`). Published
    /// blocks stay findable; an append into one, or into one that others share, copies it first. What the open step
    /// has published of the dropped tokens is taken back until its tables are made; KAVERN_ERR_IN_USE if a lookup has
    /// found it. KAVERN_ERR_WRONG_STATE, with the group, where a window has let go of what token `tokens` reaches, or
    /// the state after `tokens` tokens is gone; docs/abi.md says which are kept.
    KAVERN_OP_ROLLBACK = 6,
    /// Makes a child of sequence `target` with its first `tokens` tokens (0: all) in `row` (-1: any). They share all
    /// blocks; the first that appends into the shared open block copies it. `sequence` of the result is the child. Only
    /// tokens from before the open step: KAVERN_ERR_WRONG_STATE if that has scheduled some, so list forks first. Of a
    /// window the child holds what its next token reaches; a state is shared, and who goes on writes to a new block.
    /// Where ROLLBACK to `tokens` would lack something, KAVERN_ERR_WRONG_STATE with the group.
    KAVERN_OP_FORK = 7,
    /// Lets go of the blocks of sequence `target` that lie wholly before token `offset`, in windows and in groups with
    /// KAVERN_GROUP_TRIMMABLE; their cells show the null block. Again with the same offset it does nothing.
    KAVERN_OP_TRIM = 8,
    /// Removes the `tokens` tokens from `offset` on of sequence `target`; what follows moves up. The tail, from the
    /// block of `offset` on, is copied into blocks of its own before the step's work, and the tables tell each run
    /// with the shift of its positions. The sequence publishes nothing more. KAVERN_ERR_WRONG_STATE if the open step
    /// has scheduled tokens of it, or, with the group, where a window has let go of what its next token reaches then,
    /// or a block to be copied was found in the open step while another sequence of that step is yet to write it;
    /// KAVERN_ERR_UNSUPPORTED, with the group, where that would split a block of an opaque group, and in a cache with
    /// states, which cannot forget.
    KAVERN_OP_EDIT = 9,
    /// Stops sequence `target` until RESUME, as `mode` says; its id stays. With KAVERN_PREEMPT_DROP it leaves the
    /// batch, and what the open step has published for it is taken back as by CANCEL; with KAVERN_PREEMPT_KEEP the
    /// open step still runs what it has scheduled. Operations on it other than RESUME, FREE and CANCEL answer
    /// KAVERN_ERR_WRONG_STATE.
    KAVERN_OP_PREEMPT = 10,
    /// Lets the preempted sequence `target` run again and schedules `tokens`: as APPEND if it kept its blocks, else as
    /// ADMIT of `lease`, the lease of a new lookup of its tokens in the same namespace.
    KAVERN_OP_RESUME = 11,
    /// Ends sequence `target` as FREE does, and takes back what the open step has published for it of tokens that
    /// no tables and no plan of the step have told; from the first plan on plans alone count. KAVERN_ERR_IN_USE if a
    /// lookup has found some of that or a pin keeps it: free it in the next step.
    KAVERN_OP_CANCEL = 12,
    /// Keeps the findable blocks of `tokens` tokens from `offset` on (0: of all) of the sequence or lease `target` from
    /// eviction, once more each, until as many KAVERN_OP_UNPIN or a reset; at most half of a group's blocks. A block
    /// that is not yet committed, or private because its content is findable elsewhere, is passed over.
    KAVERN_OP_PIN = 13,
    /// Takes one pin of each of these blocks away; those without are passed over.
    KAVERN_OP_UNPIN = 14,
    /// Gives the blocks of `tokens` tokens from `offset` on (0: of all) of the sequence or lease `target` a `priority`:
    /// below 50 they go before all others, above 50 after all others, 50 is ordinary. After `ttl_ms`, if that is not
    /// 0, they are ordinary again. Blocks that are not yet committed keep it when they are. The last word about a block
    /// counts, also where several sequences share it.
    KAVERN_OP_RETAIN = 15,
    /// Later.
    KAVERN_OP_LOAD = 16,
    /// Later.
    KAVERN_OP_STORE = 17,
    /// The content of sequence `target`, a child of FORK, becomes that of its parent, which keeps id and row. The
    /// child, the parent's other children and all that was forked from those end; children of `target` become the
    /// parent's. KAVERN_ERR_WRONG_STATE if the parent has ended or the open step has scheduled tokens of either.
    KAVERN_OP_ACCEPT = 18,
}

/// What KAVERN_OP_PREEMPT does with the blocks, in kavern_kv_op.mode.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum kavern_kv_preempt_mode {
    /// The sequence keeps its blocks, its row and its id, and is in no batch until RESUME.
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
    /// Its namespace had more cached blocks than kavern_kv_namespace_limit allows.
    KAVERN_REMOVE_LIMIT = 6,
    /// The sequence that was to write it was cancelled or rolled back before.
    KAVERN_REMOVE_CANCELLED = 7,
    /// Its slot was needed, and the priority that had kept it had expired.
    KAVERN_REMOVE_EXPIRED = 5,
    /// It still is: kavern_kv_resize moved it, and the next event says where it is now.
    KAVERN_REMOVE_MOVED = 8,
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
