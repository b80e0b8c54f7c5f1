/**
 * @file kavern.h
 * GPU memory and a KV cache for inference engines.
 *
 * Handles    kavern_manager, kavern_kv_cache and kavern_stream are made by _create and ended by _destroy, which takes
 *            a pointer to the handle, accepts NULL and leaves NULL behind. A handle is a number that the library looks
 *            up, never an address that it follows: a forged, destroyed or wrong handle answers
 *            KAVERN_ERR_INVALID_HANDLE. A child keeps its parent alive, so any order of destroy is safe.
 * Ids        Sequences, leases and tickets are uint64_t that carry their kind and generation; one whose time is over
 *            answers KAVERN_ERR_STALE_ID. 0 is never an id.
 * Status     kavern_status: 0 done; > 0 done with news (partial, pending); -1..-99 your argument; -100..-199
 *            resources: free something and retry; -200..-299 device or operating system; -300 and below a bug of the
 *            library. kavern_last_error gives the sentence that belongs to the latest failure of this thread.
 * Structs    Where the first field is struct_size, set it to sizeof. Configurations get it and their defaults from
 *            _config_init(&config, sizeof config). Structs grow only at their end; a smaller size means defaults for
 *            the rest; a larger one is refused unless what the library does not know is zero. Reserved words are zero.
 * Numbers    Enums go into functions and structs as uint32_t; an unknown value answers KAVERN_ERR_INVALID_ARGUMENT.
 * Streams    void *stream is the value of a CUstream, or a kavern_stream. Work is enqueued and the call returns; a
 *            function that may block says so. Register a foreign stream before its first use and unregister it before
 *            you destroy it.
 * Outputs    They come last and are written only on success. Batches take arrays and give a status for each element.
 *            Texts go into your buffer: capacity in, needed bytes (with the closing zero) out.
 * Threads    Every function may be called from any thread on any handle. After fork, the child gets KAVERN_ERR_FORKED.
 * Callbacks  Called with your userdata and never under a lock of the library.
 */

#ifndef KAVERN_H
#define KAVERN_H

/* Generated from src/c_api by `make header`; do not edit. */

#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>

/** Version that this header belongs to; major << 16 | minor is what kavern_abi_version() answers. */
#define KAVERN_VERSION_MAJOR (0)
#define KAVERN_VERSION_MINOR (1)
#define KAVERN_VERSION_PATCH (0)
#define KAVERN_ABI_VERSION (((uint32_t)KAVERN_VERSION_MAJOR << 16) | (uint32_t)KAVERN_VERSION_MINOR)

/** The device's default stream, where NULL would mean that no stream is given. */
#define KAVERN_STREAM_DEFAULT ((void *)1)

/** The margin in percent that suits most for kavern_can_allocate. */
#define KAVERN_MARGIN_DEFAULT ((uint32_t)10)

/** In a list of operations: the sequence that operation i of the same list admits. */
#define KAVERN_SEQ_OF_OP(i) (((uint64_t)0x5F << 56) | (uint64_t)(i))

/** Bits of kavern_device_description.capabilities. */
enum kavern_device_capability
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** Reserve, map and remap addresses. */
    KAVERN_DEVICE_VIRTUAL_MEMORY = 1,
    /** Allocate and free in stream order. */
    KAVERN_DEVICE_STREAM_ORDERED = 2,
    /** The host may read and write device addresses. */
    KAVERN_DEVICE_HOST_ADDRESSABLE = 4,
    /** Streams can be captured into graphs. */
    KAVERN_DEVICE_CAPTURE = 8,
    /** The device reports races between streams. */
    KAVERN_DEVICE_RACE_DETECTION = 16,
    /** The CPU and the device may touch memory at the same time under one address; for KAVERN_POOL_MANAGED. */
    KAVERN_DEVICE_MANAGED_MEMORY = 32,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_device_capability kavern_device_capability;
#else
typedef uint32_t kavern_device_capability;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** Bits of kavern_elastic_config.flags and kavern_shared_pool_config.flags. */
enum kavern_elastic_flags
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Take memory in single pages of the device: a decommit of any page gives its memory back, and changes of large
     * parts take up to 30 times as long.
     */
    KAVERN_ELASTIC_SINGLE_PAGES = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_elastic_flags kavern_elastic_flags;
#else
typedef uint32_t kavern_elastic_flags;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** What the blocks of a group hold. */
enum kavern_kv_group_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** Keys and values of full attention. */
    KAVERN_GROUP_FULL = 1,
    /** Sliding-window attention: window_tokens latest tokens. */
    KAVERN_GROUP_SLIDING = 2,
    /** Chunked attention: the tokens of the same chunk of window_tokens. */
    KAVERN_GROUP_CHUNKED = 3,
    /** Recurrent state: block_bytes a state, one running state a sequence, and snapshots. */
    KAVERN_GROUP_STATE = 4,
    /** Cross-attention: cross_tokens of another input, taken whole at ADMIT. */
    KAVERN_GROUP_CROSS = 5,
    /** Multi-head latent attention: token_bytes a token and layer, of everything before. */
    KAVERN_GROUP_MLA = 6,
    /** Bytes that only the engine understands: block_bytes a block, no slots per token. */
    KAVERN_GROUP_OPAQUE = 7,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_kv_group_kind kavern_kv_group_kind;
#else
typedef uint32_t kavern_kv_group_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** Bits of kavern_kv_group.flags. */
enum kavern_kv_group_flag
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** KAVERN_GROUP_FULL, _MLA, _OPAQUE: TRIM may let go of its blocks. Windows always may. */
    KAVERN_GROUP_TRIMMABLE = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_kv_group_flag kavern_kv_group_flag;
#else
typedef uint32_t kavern_kv_group_flag;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** Element type of keys and values. */
enum kavern_dtype
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** IEEE 754 binary32. */
    KAVERN_F32 = 1,
    /** IEEE 754 binary16. */
    KAVERN_F16 = 2,
    /** bfloat16. */
    KAVERN_BF16 = 3,
    /** 8-bit float, 4 exponent bits. */
    KAVERN_F8_E4M3 = 4,
    /** 8-bit float, 5 exponent bits. */
    KAVERN_F8_E5M2 = 5,
    /** Signed byte. */
    KAVERN_I8 = 6,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_dtype kavern_dtype;
#else
typedef uint32_t kavern_dtype;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** Order of the elements inside one layer of a block. */
enum kavern_kv_layout
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** [token][head][channel]. */
    KAVERN_NHD = 1,
    /** [head][token][channel]. */
    KAVERN_HND = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_kv_layout kavern_kv_layout;
#else
typedef uint32_t kavern_kv_layout;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** Which hash chains the blocks of a token namespace. */
enum kavern_kv_hash
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** Keyed BLAKE3, 256 bits: nobody can make two prefixes collide. The default. */
    KAVERN_HASH_BLAKE3 = 1,
    /** XXH3, 128 bits, and the tokens of each block are kept and compared: faster, 4 bytes a token. */
    KAVERN_HASH_XXH3 = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_kv_hash kavern_kv_hash;
#else
typedef uint32_t kavern_kv_hash;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** When a slot is overwritten with zeros before it is handed out. */
enum kavern_kv_scrub
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** Never. */
    KAVERN_SCRUB_NONE = 1,
    /** When it held another namespace's bytes. The default. */
    KAVERN_SCRUB_TENANT_CHANGE = 2,
    /** Always, for kernels that read past the written tokens. */
    KAVERN_SCRUB_ALWAYS = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_kv_scrub kavern_kv_scrub;
#else
typedef uint32_t kavern_kv_scrub;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** Bits of kavern_kv_cache_config.flags. */
enum kavern_kv_cache_flag
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** No pool and no device tables: only the bookkeeping and its host mirrors. */
    KAVERN_KV_METADATA_ONLY = 1,
    /** Also build the ragged form of the tables (page_indptr, page_indices, last_page_tokens) each step. */
    KAVERN_KV_RAGGED_TABLES = 2,
    /** A namespace without a salt is refused. */
    KAVERN_KV_REQUIRE_SALT = 4,
    /**
     * Keep a copy of each group's index on the device, for kavern_kv_lookup_device: 32 to 64 bytes a block there, and
     * somewhat more on the host. kavern_kv_tables sends what changed. Not for metadata-only caches.
     */
    KAVERN_KV_DEVICE_INDEX = 8,
    /**
     * Serve namespaces in which a key names a block whatever comes before it: kavern_kv_match_chunks. All groups have
     * blocks of hash_block_tokens then.
     */
    KAVERN_KV_CHUNK_INDEX = 16,
    /**
     * Hits may end inside a block, of which ADMIT gives the sequence a copy. In caches of KAVERN_GROUP_FULL and _MLA
     * alone: after the tokens that it shares with the prompt, in token namespaces; keeps the tokens of all blocks, 4
     * bytes each. With other kinds, or KAVERN_GROUP_TRIMMABLE: at any multiple of hash_block_tokens inside a block all
     * of whose tokens are the prompt's, and at a snapshot of each state. Not with opaque groups other than states.
     * Keeps what events keep, about 100 bytes a block. Without it a hit ends where blocks of all groups end, a common
     * multiple of their block_tokens: a larger block is named by all of its tokens, so that only its kept tokens can
     * tell which of them a prompt shares.
     */
    KAVERN_KV_PARTIAL_HITS = 64,
    /** The cache of a worker: it owns memory and applies the plans of a scheduler's cache, and decides nothing itself. */
    KAVERN_KV_WORKER = 256,
    /**
     * The groups, two or three, are size classes: the same layers in blocks of different sizes, of which each
     * sequence gets one when it is looked up; docs/abi.md. Each names its size_class, and larger blocks are multiples
     * of smaller.
     */
    KAVERN_KV_ADAPTIVE_BLOCKS = 128,
    /**
     * Free blocks are handed out in the order in which they were freed, the latest first. Without it a request gets
     * runs of ascending block ids where that can be, which copies and transfers like; and where too few are free,
     * some more than it needs are evicted: as many, at least 31, at most one block in 64, and none of a high priority.
     */
    KAVERN_KV_EXACT_ORDER = 32,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_kv_cache_flag kavern_kv_cache_flag;
#else
typedef uint32_t kavern_kv_cache_flag;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** Bits of kavern_kv_request.flags. */
enum kavern_kv_request_flag
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** Match nothing: the sequence starts cold. */
    KAVERN_REQUEST_NO_READ = 1,
    /**
     * The sequence publishes nothing: its blocks stay private, also those of its children and after a RESUME from
     * another lookup.
     */
    KAVERN_REQUEST_NO_STORE = 2,
    /** Leave out the last hit block, for draft models that need its hidden state. */
    KAVERN_REQUEST_DROP_LAST = 4,
    /** Hits cover at most all tokens but one, so that the model has one to compute. */
    KAVERN_REQUEST_KEEP_ONE_TOKEN = 8,
    /**
     * The keys name blocks whatever comes before them, and the namespace takes nothing else: kavern_kv_match then
     * gives a lease without hits, under which a sequence stores blocks for kavern_kv_match_chunks.
     */
    KAVERN_REQUEST_CHUNKS = 16,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_kv_request_flag kavern_kv_request_flag;
#else
typedef uint32_t kavern_kv_request_flag;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** What kavern_kv_lookup_device does after a miss. */
enum kavern_kv_lookup_mode
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** Every hash is looked up by itself. */
    KAVERN_LOOKUP_INDEPENDENT = 1,
    /** Everything after the first miss of a row is a miss. */
    KAVERN_LOOKUP_PREFIX = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_kv_lookup_mode kavern_kv_lookup_mode;
#else
typedef uint32_t kavern_kv_lookup_mode;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** Kinds of kavern_kv_op. Those marked "later" answer KAVERN_ERR_UNSUPPORTED. */
enum kavern_kv_op_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** Turns the lease `target` into a sequence, with its hits and `tokens` new ones scheduled. */
    KAVERN_OP_ADMIT = 1,
    /**
     * Schedules `tokens` more for sequence `target`. KAVERN_ERR_WRONG_STATE, with the group, if that would copy an
     * open block which was found in the open step while another sequence of that step is yet to write it.
     */
    KAVERN_OP_APPEND = 2,
    /**
     * The next `tokens` of sequence `target` are final, with these token ids or keys; their writes follow before
     * kavern_kv_step_done, whatever comes between.
     */
    KAVERN_OP_COMMIT = 3,
    /**
     * Ends sequence `target`; its committed blocks stay findable. It leaves the batch of the open step: if that step
     * committed tokens of it which are not written yet, free it in the next step instead.
     */
    KAVERN_OP_FREE = 4,
    /** Drops the lease `target`. */
    KAVERN_OP_RELEASE = 5,
    /**
     * Sequence `target` keeps its first `tokens` tokens, and blocks for `lookahead` more as far as they are its own.
     * Below its committed tokens it goes on publishing if the last complete link (hash_block_tokens) is known; where
     * `tokens` lies inside a link, `token_ids` gives the ids behind that link's start (with `extras`). Published
     * blocks stay findable; an append into one, or into one that others share, copies it first. What the open step
     * has published of the dropped tokens is taken back until its tables are made; KAVERN_ERR_IN_USE if a lookup has
     * found it. KAVERN_ERR_WRONG_STATE, with the group, where a window has let go of what token `tokens` reaches, or
     * the state after `tokens` tokens is gone; docs/abi.md says which are kept.
     */
    KAVERN_OP_ROLLBACK = 6,
    /**
     * Makes a child of sequence `target` with its first `tokens` tokens (0: all) in `row` (-1: any). They share all
     * blocks; the first that appends into the shared open block copies it. `sequence` of the result is the child. Only
     * tokens from before the open step: KAVERN_ERR_WRONG_STATE if that has scheduled some, so list forks first. Of a
     * window the child holds what its next token reaches; a state is shared, and who goes on writes to a new block.
     * Where ROLLBACK to `tokens` would lack something, KAVERN_ERR_WRONG_STATE with the group.
     */
    KAVERN_OP_FORK = 7,
    /**
     * Lets go of the blocks of sequence `target` that lie wholly before token `offset`, in windows and in groups with
     * KAVERN_GROUP_TRIMMABLE; their cells show the null block. Again with the same offset it does nothing.
     */
    KAVERN_OP_TRIM = 8,
    /**
     * Removes the `tokens` tokens from `offset` on of sequence `target`; what follows moves up. The tail, from the
     * block of `offset` on, is copied into blocks of its own before the step's work, and the tables tell each run
     * with the shift of its positions. The sequence publishes nothing more. KAVERN_ERR_WRONG_STATE if the open step
     * has scheduled tokens of it, or, with the group, where a window has let go of what its next token reaches then,
     * or a block to be copied was found in the open step while another sequence of that step is yet to write it;
     * KAVERN_ERR_UNSUPPORTED, with the group, where that would split a block of an opaque group, and in a cache with
     * states, which cannot forget.
     */
    KAVERN_OP_EDIT = 9,
    /**
     * Stops sequence `target` until RESUME, as `mode` says; its id stays. With KAVERN_PREEMPT_DROP it leaves the
     * batch, and what the open step has published for it is taken back as by CANCEL; with KAVERN_PREEMPT_KEEP the
     * open step still runs what it has scheduled. Operations on it other than RESUME, FREE and CANCEL answer
     * KAVERN_ERR_WRONG_STATE.
     */
    KAVERN_OP_PREEMPT = 10,
    /**
     * Lets the preempted sequence `target` run again and schedules `tokens`: as APPEND if it kept its blocks, else as
     * ADMIT of `lease`, the lease of a new lookup of its tokens in the same namespace.
     */
    KAVERN_OP_RESUME = 11,
    /**
     * Ends sequence `target` as FREE does, and takes back what the open step has published for it of tokens that
     * no tables and no plan of the step have told; from the first plan on plans alone count. KAVERN_ERR_IN_USE if a
     * lookup has found some of that or a pin keeps it: free it in the next step.
     */
    KAVERN_OP_CANCEL = 12,
    /**
     * Keeps the findable blocks of `tokens` tokens from `offset` on (0: of all) of the sequence or lease `target` from
     * eviction, once more each, until as many KAVERN_OP_UNPIN or a reset; at most half of a group's blocks. A block
     * that is not yet committed, or private because its content is findable elsewhere, is passed over.
     */
    KAVERN_OP_PIN = 13,
    /** Takes one pin of each of these blocks away; those without are passed over. */
    KAVERN_OP_UNPIN = 14,
    /**
     * Gives the blocks of `tokens` tokens from `offset` on (0: of all) of the sequence or lease `target` a `priority`:
     * below 50 they go before all others, above 50 after all others, 50 is ordinary. After `ttl_ms`, if that is not
     * 0, they are ordinary again. Blocks that are not yet committed keep it when they are. The last word about a block
     * counts, also where several sequences share it.
     */
    KAVERN_OP_RETAIN = 15,
    /** Later. */
    KAVERN_OP_LOAD = 16,
    /** Later. */
    KAVERN_OP_STORE = 17,
    /**
     * The content of sequence `target`, a child of FORK, becomes that of its parent, which keeps id and row. The
     * child, the parent's other children and all that was forked from those end; children of `target` become the
     * parent's. KAVERN_ERR_WRONG_STATE if the parent has ended or the open step has scheduled tokens of either.
     */
    KAVERN_OP_ACCEPT = 18,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_kv_op_kind kavern_kv_op_kind;
#else
typedef uint32_t kavern_kv_op_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** What KAVERN_OP_PREEMPT does with the blocks, in kavern_kv_op.mode. */
enum kavern_kv_preempt_mode
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** The sequence keeps its blocks, its row and its id, and is in no batch until RESUME. */
    KAVERN_PREEMPT_KEEP = 1,
    /** Its blocks are let go; committed ones stay findable until they are evicted. */
    KAVERN_PREEMPT_DROP = 2,
    /** Later: its blocks go to another tier. */
    KAVERN_PREEMPT_SWAP = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_kv_preempt_mode kavern_kv_preempt_mode;
#else
typedef uint32_t kavern_kv_preempt_mode;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** Kinds of kavern_kv_event. */
enum kavern_kv_event_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** A block became findable. */
    KAVERN_EVENT_STORED = 1,
    /** A block is no longer findable; `reason` says why. */
    KAVERN_EVENT_REMOVED = 2,
    /** A reset is over. Its removals were told block by block before; a mirror needs nothing from this. */
    KAVERN_EVENT_CLEARED = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_kv_event_kind kavern_kv_event_kind;
#else
typedef uint32_t kavern_kv_event_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** Why a block is no longer findable. */
enum kavern_kv_remove_reason
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** Not removed. */
    KAVERN_REMOVE_NONE = 0,
    /** Its slot was needed. */
    KAVERN_REMOVE_EVICTED = 1,
    /** kavern_kv_evict asked for it, or it lay above what kavern_kv_resize left. */
    KAVERN_REMOVE_REQUESTED = 2,
    /** kavern_kv_reset asked for it. */
    KAVERN_REMOVE_RESET = 3,
    /** Newer content with the same key took its place. */
    KAVERN_REMOVE_REPLACED = 4,
    /** Its namespace had more cached blocks than kavern_kv_namespace_limit allows. */
    KAVERN_REMOVE_LIMIT = 6,
    /** The sequence that was to write it was cancelled or rolled back before. */
    KAVERN_REMOVE_CANCELLED = 7,
    /** Its slot was needed, and the priority that had kept it had expired. */
    KAVERN_REMOVE_EXPIRED = 5,
    /** It still is: kavern_kv_resize moved it, and the next event says where it is now. */
    KAVERN_REMOVE_MOVED = 8,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_kv_remove_reason kavern_kv_remove_reason;
#else
typedef uint32_t kavern_kv_remove_reason;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** What kavern_kv_reset forgets. */
enum kavern_kv_reset_scope
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** Everything findable. */
    KAVERN_RESET_ALL = 1,
    /** Everything findable of one namespace, under any salt and adapter. */
    KAVERN_RESET_NAMESPACE = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_kv_reset_scope kavern_kv_reset_scope;
#else
typedef uint32_t kavern_kv_reset_scope;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** Bits of kavern_manager_config.flags. */
enum kavern_manager_flag
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /**
     * Before kavern_alloc refuses a request it does what kavern_manager_defragment does, without a limit, and tries
     * once more. With this flag the program promises that, while an allocation runs, no other thread enqueues work on
     * the device, launches a graph or captures one. Not done while a stream that has allocated is being captured.
     */
    KAVERN_MANAGER_MESH_ON_SHORTAGE = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_manager_flag kavern_manager_flag;
#else
typedef uint32_t kavern_manager_flag;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** Bits of the flags of kavern_kv_plan_export and kavern_kv_plan_info. */
enum kavern_kv_plan_flag
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** Everything and not only what changed: for a worker that is new or missed a plan. */
    KAVERN_PLAN_FULL = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_kv_plan_flag kavern_kv_plan_flag;
#else
typedef uint32_t kavern_kv_plan_flag;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** How a pool finds the block for a request; for kavern_pool_config.rounding. */
enum kavern_pool_rounding
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** The smallest of the size classes that holds it. */
    KAVERN_POOL_CLASSES = 0,
    /** Every block has block_bytes. */
    KAVERN_POOL_FIXED = 1,
    /** Decimal megabytes: below 1 up to 0.1, below 10 to 1, below 100 to 10, above to 50; then up to 256 bytes. */
    KAVERN_POOL_LADDER = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_pool_rounding kavern_pool_rounding;
#else
typedef uint32_t kavern_pool_rounding;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** Where the blocks of a pool lie; for kavern_pool_config.memory_kind. */
enum kavern_pool_memory
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** Memory of the device. */
    KAVERN_POOL_DEVICE = 0,
    /**
     * Managed memory: the CPU and the device use a block's address, each where the other's work on it is known to be
     * done. For blocks of at most 1 MiB; counted and limited as other device memory, and never more than is free. What
     * was touched is missing from the free bytes and counts beside them again, so that about half of a device can be
     * managed memory in use.
     */
    KAVERN_POOL_MANAGED = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_pool_memory kavern_pool_memory;
#else
typedef uint32_t kavern_pool_memory;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Values of kavern_status. Bands: -1..-99 your argument, -100..-199 resources (free something and retry),
 * -200..-299 device or operating system, -300.. a bug of the library. Numbers are never reused.
 */
enum kavern_status_code
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** Done. */
    KAVERN_OK = 0,
    /** Some elements of the batch were refused; their own status says why. */
    KAVERN_PARTIAL = 1,
    /** Still running. */
    KAVERN_PENDING = 2,
    /** A value is outside what the function accepts. */
    KAVERN_ERR_INVALID_ARGUMENT = -1,
    /** A pointer that must not be null is null. */
    KAVERN_ERR_NULL_POINTER = -2,
    /** The handle is forged, destroyed or of another kind. */
    KAVERN_ERR_INVALID_HANDLE = -3,
    /** The id was valid once, or belongs to something else. */
    KAVERN_ERR_STALE_ID = -4,
    /** struct_size is not one that this library knows, or a field that it does not know is not zero. */
    KAVERN_ERR_STRUCT_SIZE = -5,
    /** Exists in the interface, but not in this version or for this object. */
    KAVERN_ERR_UNSUPPORTED = -6,
    /** An operation of the same list, on which this one depends, was refused. */
    KAVERN_ERR_DEPENDENCY = -7,
    /** The call comes at the wrong time. */
    KAVERN_ERR_WRONG_STATE = -8,
    /** Your buffer is too small; the needed size is told. */
    KAVERN_ERR_BUFFER_TOO_SMALL = -9,
    /** Tokens where the namespace takes keys, or the other way round. */
    KAVERN_ERR_KEY_MODE = -10,
    /** The object is still in use. */
    KAVERN_ERR_IN_USE = -11,
    /** The name is already taken. */
    KAVERN_ERR_ALREADY_EXISTS = -12,
    /** Nothing has that name. */
    KAVERN_ERR_NOT_FOUND = -13,
    /** Device memory is exhausted. */
    KAVERN_ERR_OUT_OF_MEMORY = -100,
    /** No free or evictable block is left. */
    KAVERN_ERR_OUT_OF_BLOCKS = -101,
    /** A table of fixed size (sequences, leases, namespaces, handles) is full. */
    KAVERN_ERR_LIMIT_REACHED = -102,
    /** More steps in flight than the configuration allows. */
    KAVERN_ERR_TOO_MANY_STEPS = -103,
    /** Host memory is exhausted. */
    KAVERN_ERR_OUT_OF_HOST_MEMORY = -104,
    /** There is no such device on this machine. */
    KAVERN_ERR_NO_DEVICE = -200,
    /** The device or its driver refused a call. */
    KAVERN_ERR_DEVICE = -201,
    /** The device is lost; restart the process. */
    KAVERN_ERR_DEVICE_LOST = -202,
    /** The operating system refused a call. */
    KAVERN_ERR_OS = -203,
    /** The process was forked; the child cannot use the parent's devices. */
    KAVERN_ERR_FORKED = -204,
    /** A panic was caught at the boundary: a bug of the library. */
    KAVERN_ERR_PANIC = -300,
    /** The object saw a panic before and refuses further work; destroy it. */
    KAVERN_ERR_POISONED = -301,
    /** An invariant of the library does not hold: a bug. */
    KAVERN_ERR_INTERNAL = -302,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_status_code kavern_status_code;
#else
typedef int32_t kavern_status_code;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/** How much a reader of the log needs to care. */
enum kavern_log_level
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
    /** Silent. */
    KAVERN_LOG_OFF = 0,
    /** Something failed. */
    KAVERN_LOG_ERROR = 1,
    /** Something works otherwise than you may expect. */
    KAVERN_LOG_WARN = 2,
    /** Life cycle of long-lived objects. */
    KAVERN_LOG_INFO = 3,
    /** Details for a person who looks for a fault. */
    KAVERN_LOG_DEBUG = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum kavern_log_level kavern_log_level;
#else
typedef uint32_t kavern_log_level;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Addresses for as much as there may ever be, with memory behind the parts in use. Thread-safe; keeps its manager
 * alive.
 */
typedef struct kavern_elastic kavern_elastic;

/** A paged, prefix-sharing KV cache. Thread-safe; keeps its manager alive. */
typedef struct kavern_kv_cache kavern_kv_cache;

/** One device with its memory, streams and caches. Thread-safe. */
typedef struct kavern_manager kavern_manager;

/** Blocks of device memory of a few sizes, handed out in stream order. Thread-safe; keeps its manager alive. */
typedef struct kavern_pool kavern_pool;

/** Several models under one limit of physical memory. Thread-safe; keeps its manager alive. */
typedef struct kavern_shared_pool kavern_shared_pool;

/** A stream made by the library; pass it wherever a `void *stream` is taken. */
typedef struct kavern_stream kavern_stream;

/** Result of every function: 0 done, > 0 done with news, < 0 refused (a KAVERN_ERR_ value). */
typedef int32_t kavern_status;

/** What an address belongs to. */
typedef struct kavern_address_description {
    /** sizeof(kavern_address_description). */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved;
    /** First byte of the allocation. */
    uint64_t address;
    /** Bytes that were asked for. */
    uint64_t bytes;
    /**
     * Bytes of the block, with what rounding adds. Only `bytes` of them are yours: once memory is short, the rest is
     * taken back while the block lives.
     */
    uint64_t block_bytes;
    /** The device's value of the stream of the allocation. */
    uint64_t stream;
    /** How long it has been there, in milliseconds, a few of them inexact. */
    uint64_t age_ms;
    /** What it is for, cut to what fits, with a zero at its end. */
    char tag[64];
} kavern_address_description;

/**
 * One group of layers that share block size and layout.
 *
 * A block holds `block_tokens` tokens of all its layers: [layer][key or value][...layout...], or latent rows
 * [layer][token][token_bytes] in a group of kind KAVERN_GROUP_MLA, which has layers and token_bytes. Groups of kind
 * KAVERN_GROUP_OPAQUE and KAVERN_GROUP_STATE have block_bytes instead of layers, heads and dtype; windows and
 * cross-attention may have any of the three. docs/abi.md says what each kind holds, finds and shows in its table.
 */
typedef struct kavern_kv_group {
    /** sizeof(kavern_kv_group). */
    uint32_t struct_size;
    /** A KAVERN_GROUP_ value. */
    uint32_t kind;
    /** Layers, 1 to 1024. */
    uint32_t layers;
    /** Heads of keys and values, 1 to 1024. */
    uint32_t kv_heads;
    /** Channels of a key head and of a value head, 1 to 4096. */
    uint32_t head_dim;
    /** A KAVERN_DTYPE value: KAVERN_F32, KAVERN_F16, ... */
    uint32_t dtype;
    /** Tokens in a block, 1 to 65536, a multiple of hash_block_tokens. */
    uint32_t block_tokens;
    /** KAVERN_NHD or KAVERN_HND. */
    uint32_t layout;
    /**
     * Bytes of a block of an opaque group or of a state, a multiple of 16; 0 where layers, heads and dtype or
     * token_bytes say it.
     */
    uint64_t block_bytes;
    /** Blocks of this group; 0 takes the cache's capacity_blocks. */
    uint64_t capacity_blocks;
    /** Device address of memory of yours that holds the blocks, aligned to 256; 0 lets the library allocate. */
    uint64_t region_address;
    /**
     * Bytes there, at least capacity_blocks (or max_blocks, if that is more) x bytes of a block, and one block more
     * where null_block is not -1.
     */
    uint64_t region_bytes;
    /**
     * KAVERN_GROUP_SLIDING: tokens that one attends to, itself among them. KAVERN_GROUP_CHUNKED: tokens of a chunk. 0
     * in all others.
     */
    uint32_t window_tokens;
    /** Later: formats of slots beside raw ones. 0. */
    uint32_t slot_classes;
    /** In a cache with KAVERN_KV_ADAPTIVE_BLOCKS: 1 small, 2 primary, 3 large blocks, no two groups the same; else 0. */
    uint32_t size_class;
    /** Zero. */
    uint32_t reserved[3];
    /** KAVERN_GROUP_MLA, and windows over such rows: bytes of one token in one layer, 1 to 65536; 0 in all others. */
    uint32_t token_bytes;
    /** KAVERN_GROUP_CROSS: tokens of the other input, the same for each sequence; 0 in all others. */
    uint32_t cross_tokens;
    /**
     * KAVERN_GROUP_STATE: a snapshot may be kept at multiples of so many blocks; 0 takes the lengths at which hits of
     * all groups can end, with KAVERN_KV_PARTIAL_HITS those at which blocks of all states end. 0 in all others.
     */
    uint32_t snapshot_blocks;
    /** KAVERN_GROUP_ bits of kavern_kv_group_flag. */
    uint32_t flags;
} kavern_kv_group;

/** How a KV cache is made; fill with kavern_kv_cache_config_init, then set groups and sizes. */
typedef struct kavern_kv_cache_config {
    /** sizeof(kavern_kv_cache_config). */
    uint32_t struct_size;
    /** KAVERN_KV_ bits. */
    uint32_t flags;
    /** The groups. */
    const kavern_kv_group *groups;
    /** 1 to 16. */
    uint32_t group_count;
    /** Rows of the tables: sequences at a time, 1 to 2^20. Default 256. */
    uint32_t max_sequences;
    /** Blocks of each group that names none; 0 divides capacity_bytes over the groups. */
    uint64_t capacity_blocks;
    /** Bytes of all pools together, used where capacity_blocks is 0. Size classes begin with equal shares. */
    uint64_t capacity_bytes;
    /** Longest sequence; 0 takes as many as the smallest pool holds. */
    uint64_t max_sequence_tokens;
    /** Tokens scheduled in one step. Default 8192. */
    uint32_t max_batch_tokens;
    /** Leases at a time. Default 64. */
    uint32_t max_leases;
    /**
     * Namespaces (with salt and adapter) that hold blocks at a time. A lookup for one more evicts what the least
     * recently used one has cached, of those in which nothing runs or is pinned and that have at most 256 blocks; if
     * there is none, what a larger one has, at most 2,048 blocks of it. If some is left then, or there is none either,
     * it is refused with KAVERN_ERR_LIMIT_REACHED, and the next one goes on there; of many that are larger or have
     * pins one lookup sees only a part, and the next one others. Default 4096.
     */
    uint32_t max_namespaces;
    /** Steps between kavern_kv_step and the completion of kavern_kv_step_done, 1 to 64. Default 4. */
    uint32_t steps_in_flight;
    /** Tokens of one link of the hash chain; 0 takes the greatest common divisor of the groups' block_tokens. */
    uint32_t hash_block_tokens;
    /** A KAVERN_HASH_ value. Default KAVERN_HASH_BLAKE3. */
    uint32_t hash;
    /** A KAVERN_SCRUB_ value. Default KAVERN_SCRUB_TENANT_CHANGE. */
    uint32_t scrub;
    /** Events kept for kavern_kv_events_read; 0 keeps none. Default 0. */
    uint32_t event_capacity;
    /**
     * What is evicted first: "adaptive" (learns what comes back; the default, which null takes), "lru", "fifo",
     * "lfu" (with ageing), "s3fifo", "cost" (keeps what is dear to compute again), "runs-lru" (lru that prefers
     * neighbours). Priorities, pins and expiry rule above every policy.
     */
    const char *policy;
    /** 32 bytes that key the hash chain; null takes random ones. Give the same to share keys between processes. */
    const uint8_t *hash_secret;
    /** Name in reports; null takes "kv". */
    const char *name;
    /** Later: identity of model and weights for stored blocks. Null. */
    const char *fingerprint;
    /** Later: codec of blocks in device memory. Null. */
    const char *codec_vram;
    /** Later: codec of blocks in pinned memory. Null. */
    const char *codec_ram;
    /** Later: codec of blocks on disk. Null. */
    const char *codec_disk;
    /** Later: codec of blocks in the remote tier. Null. */
    const char *codec_remote;
    /**
     * KAVERN_KV_ADAPTIVE_BLOCKS: who chooses the size of blocks: "predictive" (by the lengths that prompts of like
     * size reached; the default, which null takes), "reactive" (by what blocks turned out to waste).
     */
    const char *block_advisor;
    /** KAVERN_KV_ADAPTIVE_BLOCKS: of a thousand slots held, those that may be without a token; 0 takes 50. */
    uint32_t waste_permille;
    /**
     * KAVERN_KV_ADAPTIVE_BLOCKS: cells of tables for a thousand tokens above which larger blocks are wanted; 0 takes
     * 20.
     */
    uint32_t table_permille;
    /** Zero. */
    uint64_t reserved[2];
    /**
     * Blocks of each group to which kavern_kv_resize may grow it: bookkeeping and tables are made for them, addresses
     * are reserved, and memory comes and goes with the blocks; a region must hold them all. 0 takes the capacity, in
     * memory that stays. With KAVERN_KV_ADAPTIVE_BLOCKS it counts the smallest blocks, larger ones as many tokens, and
     * kavern_kv_poll moves memory to the class that lacks some; a worker's follows the plans. A worker's other groups
     * have memory for all of these blocks from the beginning.
     */
    uint64_t max_blocks;
} kavern_kv_cache_config;

/**
 * Where and how the blocks of a group lie; all an engine needs to write its slots itself.
 *
 * Element address: base_address + block x block_stride + layer x layer_stride + (value ? kv_stride : 0) +
 * token x token_stride + head x head_stride + channel x bytes of the dtype. Strides are in bytes.
 */
typedef struct kavern_kv_description {
    /** sizeof(kavern_kv_description). */
    uint32_t struct_size;
    /** A KAVERN_GROUP_ value. */
    uint32_t kind;
    /** Layers; 0 if opaque. */
    uint32_t layers;
    /** Heads; 0 if opaque. */
    uint32_t kv_heads;
    /** Channels of a head; 0 if opaque. */
    uint32_t head_dim;
    /** Element type; 0 if opaque. */
    uint32_t dtype;
    /** Tokens in a block. */
    uint32_t block_tokens;
    /** KAVERN_NHD or KAVERN_HND; 0 if opaque. */
    uint32_t layout;
    /** Device address of block 0; 0 in a metadata-only cache. */
    uint64_t base_address;
    /** Blocks that may be handed out. */
    uint64_t block_count;
    /** Bytes of a block. */
    uint64_t block_bytes;
    /** From a block to the next. */
    uint64_t block_stride;
    /** From a layer to the next. */
    uint64_t layer_stride;
    /** From the keys to the values of a layer. */
    uint64_t kv_stride;
    /** From a token to the next. */
    uint64_t token_stride;
    /** From a head to the next. */
    uint64_t head_stride;
    /** Cells in a row of the block table. */
    uint64_t row_cells;
    /** The block that cells show whose block was let go: zeros, never handed out; -1 where nothing is let go early. */
    int32_t null_block;
    /** Tokens of the window or chunk; 0 if there is none. */
    uint32_t window_tokens;
    /** Blocks to which the group may grow; the addresses of all are taken. */
    uint64_t max_blocks;
} kavern_kv_description;

/**
 * What a KV cache holds and did. free + used + inactive + deferred equals the blocks of all
 * groups, those above a lowered capacity included that are still held.
 */
typedef struct kavern_kv_statistics {
    /** sizeof(kavern_kv_statistics). */
    uint32_t struct_size;
    /** Steps begun whose work is not known to be complete. */
    uint32_t steps_in_flight;
    /** Blocks that hold nothing. */
    uint64_t free_blocks;
    /** Blocks held by sequences or leases. */
    uint64_t used_blocks;
    /** Findable blocks that nobody holds; evictable. */
    uint64_t inactive_blocks;
    /** Blocks that nobody holds, but which a step in flight may still read. */
    uint64_t deferred_blocks;
    /** Findable blocks, held or not. */
    uint64_t indexed_blocks;
    /** Sequences now. */
    uint64_t sequences;
    /** Leases now. */
    uint64_t leases;
    /** Namespaces that hold something now. */
    uint64_t namespaces;
    /** Requests that were looked up. */
    uint64_t lookups;
    /**
     * Full blocks of those requests; each has one outcome: lookup_blocks equals hit_blocks + hit_blocks_ram +
     * hit_blocks_disk + hit_blocks_remote + missed_blocks + skipped_blocks.
     */
    uint64_t lookup_blocks;
    /** Of those, found in device memory. */
    uint64_t hit_blocks;
    /** Tokens found. */
    uint64_t hit_tokens;
    /** Blocks taken from the free list or by eviction. */
    uint64_t allocated_blocks;
    /** Blocks that became findable. */
    uint64_t committed_blocks;
    /** Full blocks that stayed private because the same content was already findable. */
    uint64_t duplicate_blocks;
    /** Blocks evicted to make room. */
    uint64_t evicted_blocks;
    /** Lookups that ended at a key whose tokens differ: a hash collision, answered as a miss. */
    uint64_t collisions;
    /** Operations refused. */
    uint64_t refused_ops;
    /** Tokens held by sequences. */
    uint64_t used_tokens;
    /** Slots held by sequences, a shared block counted for each; used_tokens / used_slots tells the waste. */
    uint64_t used_slots;
    /** Number of the latest event. */
    uint64_t last_event;
    /** Bytes of bookkeeping on the host. */
    uint64_t metadata_bytes;
    /** Bytes of the pools. */
    uint64_t pool_bytes;
    /** Highest step id used so far, 0 before the first: an engine that takes a cache over goes on above it. */
    uint64_t last_step;
    /**
     * Tokens that sequences hold in slots, summed over the groups: held_tokens / used_slots tells how full their
     * blocks are, windows and TRIM included.
     */
    uint64_t held_tokens;
    /** Cells of the index on the device that kavern_kv_tables has sent. */
    uint64_t device_index_cells_sent;
    /**
     * Tokens that operations had copied: open blocks of forks, moved tails, hits that end inside a block; 0
     * in a worker's cache, whose scheduler counts them.
     */
    uint64_t copied_tokens;
    /** Blocks found in pinned memory. 0 until tiers exist. */
    uint64_t hit_blocks_ram;
    /** Blocks found on disk. 0 until tiers exist. */
    uint64_t hit_blocks_disk;
    /** Blocks found in the remote tier. 0 until tiers exist. */
    uint64_t hit_blocks_remote;
    /** Blocks that were looked for and not found, or found where another group lacks them. */
    uint64_t missed_blocks;
    /**
     * Blocks that were found but left out at the request's wish (drop last, keep one token) or for blocks promised to
     * others, or not looked for (no read, beyond the keys, beyond the longest sequence, an input without a name).
     */
    uint64_t skipped_blocks;
    /** Blocks that are pinned, by operations or names. */
    uint64_t pinned_blocks;
    /** Blocks that may be handed out, all groups together; see kavern_kv_resize. */
    uint64_t capacity_blocks;
    /** Free or evictable blocks that are promised to sequences by expected_tokens of their ADMIT. */
    uint64_t promised_blocks;
    /** Blocks that kavern_kv_resize moved below the new count, each with a copy of its bytes; since the start. */
    uint64_t moved_blocks;
} kavern_kv_statistics;

/** One numbered change of what is findable. */
typedef struct kavern_kv_event {
    /** Rises by one with each event of the cache. */
    uint64_t number;
    /** A KAVERN_EVENT_ value. */
    uint32_t kind;
    /** A KAVERN_REMOVE_ value. */
    uint32_t reason;
    /** Group of the block; the KAVERN_RESET_ scope for KAVERN_EVENT_CLEARED. */
    uint32_t group;
    /** The block, -1 for KAVERN_EVENT_CLEARED. */
    int32_t block;
    /** Its namespace. */
    uint64_t namespace_id;
    /** First token of the block, counted from the start of its sequence. */
    uint64_t token_offset;
    /** Its key, zero-padded. */
    uint8_t key[32];
    /** Key of the block before it, zero for the first. */
    uint8_t parent_key[32];
} kavern_kv_event;

/** Keys and values of new tokens of one layer, for kavern_kv_append. */
typedef struct kavern_kv_append_args {
    /** sizeof(kavern_kv_append_args). */
    uint32_t struct_size;
    /** Group of the layer. */
    uint32_t group;
    /** Layer, counted inside the group. */
    uint32_t layer;
    /**
     * Type of the given elements: the cache's own, or KAVERN_F32, KAVERN_F16, KAVERN_BF16 rounded to one of them;
     * KAVERN_I8 for latent rows, whose bytes are written as they are.
     */
    uint32_t dtype;
    /** Tokens. */
    uint32_t tokens;
    /** Zero. */
    uint32_t reserved;
    /** Device address of the keys, [tokens][kv_heads][head_dim]; of latent rows, [tokens][token_bytes]. */
    uint64_t keys;
    /** Device address of the values, [tokens][kv_heads][head_dim]; 0 for latent rows. */
    uint64_t values;
    /** Device address of the slots, i64 [tokens]; a slot below 0 is skipped. */
    uint64_t slot_mapping;
} kavern_kv_append_args;

/** What a device is. You set struct_size; the call fills the rest. */
typedef struct kavern_device_description {
    /** sizeof(kavern_device_description). */
    uint32_t struct_size;
    /** KAVERN_DEVICE_ bits. */
    uint32_t capabilities;
    /** Physical memory. */
    uint64_t total_bytes;
    /** Size and alignment of the smallest mapping of virtual memory. */
    uint64_t page_bytes;
    /** Which device of its backend. */
    uint32_t ordinal;
    /** Zero. */
    uint32_t reserved;
    /** The text that opens it, for example "cuda:0"; ends with a zero. */
    char name[64];
    /** The model, for people; ends with a zero. */
    char model[128];
    /** The backend, for example "cuda"; ends with a zero. */
    char backend[32];
} kavern_device_description;

/** How an elastic range is made; fill with kavern_elastic_config_init. */
typedef struct kavern_elastic_config {
    /** sizeof(kavern_elastic_config). */
    uint32_t struct_size;
    /** KAVERN_ELASTIC_ bits. */
    uint32_t flags;
    /** Bytes of addresses, rounded up to whole pages; tens of TiB are fine, they cost no memory. */
    uint64_t capacity_bytes;
    /** What is committed and decommitted at least, a multiple of the device's page; 0 takes that page. */
    uint64_t page_bytes;
    /** Zero. */
    uint64_t reserved[4];
} kavern_elastic_config;

/**
 * A part of a range, widened to whole pages, and what a call has changed there. It will never grow, so it carries no
 * size.
 */
typedef struct kavern_elastic_extent {
    /** First byte, from the base. */
    uint64_t offset;
    /** Length. */
    uint64_t bytes;
    /** Bytes of it that were not as the call has left them; 0 where all of it was. */
    uint64_t changed_bytes;
} kavern_elastic_extent;

/** What an elastic range has. You set struct_size; the call fills the rest. */
typedef struct kavern_elastic_statistics {
    /** sizeof(kavern_elastic_statistics). */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved;
    /** Addresses. */
    uint64_t capacity_bytes;
    /** What is committed and decommitted at least. */
    uint64_t page_bytes;
    /** Committed. */
    uint64_t committed_bytes;
    /** Memory behind the range: committed, retained or leaving. */
    uint64_t physical_bytes;
    /** Decommitted, but part of a slab that is still in use. */
    uint64_t retained_bytes;
    /** Decommitted, and on its way back once its stream is past. */
    uint64_t leaving_bytes;
    /** Committed pages. */
    uint64_t mapped_pages;
    /** Pieces of memory; changes take time in proportion to them. */
    uint64_t handles;
    /** Pins that keep parts committed. */
    uint64_t pins;
} kavern_elastic_statistics;

/** The size class that suits a sequence. */
typedef struct kavern_kv_advice {
    /** 1 small, 2 primary, 3 large. */
    uint32_t size_class;
    /** Its group. */
    uint32_t group;
    /** Tokens of a block there. */
    uint32_t block_tokens;
    /** Zero. */
    uint32_t reserved;
    /** Tokens that the sequence is taken to reach; no more than max_sequence_tokens of the cache. */
    uint64_t predicted_tokens;
} kavern_kv_advice;

/** What a size class holds and did. 1 - tokens / slots is its waste, cells / tokens the cost of its tables. */
typedef struct kavern_kv_class_statistics {
    /** sizeof(kavern_kv_class_statistics). */
    uint32_t struct_size;
    /** 1 small, 2 primary, 3 large. */
    uint32_t size_class;
    /** Tokens of a block. */
    uint32_t block_tokens;
    /** Zero. */
    uint32_t reserved;
    /** Sequences now. */
    uint64_t sequences;
    /** Tokens that they have. */
    uint64_t tokens;
    /** Slots that they hold, a shared block counted for each. */
    uint64_t slots;
    /** Cells of their rows. */
    uint64_t cells;
    /** Sequences that began here by ADMIT. */
    uint64_t begun_sequences;
    /** Of those, how many ended with blocks; what they had then follows. */
    uint64_t ended_sequences;
    /** Tokens. */
    uint64_t ended_tokens;
    /** Slots. */
    uint64_t ended_slots;
    /** Cells. */
    uint64_t ended_cells;
    /** Lookups that would have begun here, but there was no room. */
    uint64_t passed_over;
    /** Operations refused for want of blocks here. */
    uint64_t refused_ops;
    /** Bytes of blocks that came from other classes. */
    uint64_t gained_bytes;
    /** Bytes of blocks that went to other classes, or are on their way. */
    uint64_t given_bytes;
} kavern_kv_class_statistics;

/** A named prefix. */
typedef struct kavern_kv_prefix {
    /** Its name. */
    char name[64];
    /** Whose it is. */
    uint64_t namespace_id;
    /** Tokens from the start of the prompt. */
    uint64_t tokens;
    /** Blocks that it pins, all groups together. */
    uint64_t blocks;
} kavern_kv_prefix;

/** What kavern_kv_resize has led to. */
typedef struct kavern_kv_resize_result {
    /** Blocks of the group from now on. */
    uint64_t blocks;
    /** The most that can be asked for. */
    uint64_t max_blocks;
    /** Blocks above that which are still in use: held by sequences or leases, or waiting for a step. 0 when done. */
    uint64_t held_blocks;
    /** Bytes of memory behind the group's blocks; 0 in a metadata-only cache. */
    uint64_t committed_bytes;
} kavern_kv_resize_result;

/** Receives what the library says: your userdata, a KAVERN_LOG_ level, the room that speaks, a sentence. */
typedef void (*kavern_log_fn)(void *userdata, uint32_t level, const char *room, const char *text);

/** Something beside the tokens that the content of a block depends on: an image, an embedding. */
typedef struct kavern_kv_extra {
    /** Identity of the thing, for example a hash of the image. */
    uint8_t id[32];
    /** First token that depends on it, counted from the start of the sequence. */
    uint64_t token_offset;
} kavern_kv_extra;

/**
 * One prompt to look up.
 *
 * Either `tokens`, which the library chains into keys, or `keys` that you chained yourself, one for each full link
 * of hash_block_tokens; a namespace takes one of the two, never both.
 */
typedef struct kavern_kv_request {
    /** sizeof(kavern_kv_request). */
    uint32_t struct_size;
    /** KAVERN_REQUEST_ bits. */
    uint32_t flags;
    /** Tenant; requests of two namespaces never share a block. */
    uint64_t namespace_id;
    /** LoRA or other adapter that all keys and values depend on; 0 for none. */
    uint64_t adapter_id;
    /** Secret of the tenant, mixed into every key; null for none. */
    const uint8_t *salt;
    /** Bytes there, at most 64. */
    uint32_t salt_bytes;
    /** Bytes of one key, 1 to 32; 0 means that tokens are given. */
    uint32_t key_bytes;
    /** Token ids of the prompt. */
    const int32_t *tokens;
    /** How many tokens the prompt has, also where keys are given (0 there: key_count x hash_block_tokens). */
    uint64_t token_count;
    /** Keys, key_bytes each. */
    const uint8_t *keys;
    /** How many. */
    uint64_t key_count;
    /**
     * In rising order of token_offset; only with tokens. A prompt embedding is an extra whose id is a digest of its
     * values, at its first token; the token ids in its place may be anything that does not change.
     */
    const kavern_kv_extra *extras;
    /** How many. */
    uint64_t extra_count;
    /**
     * Receives the ids of the hit blocks, group after group; null if not wanted. If wanted, the blocks stay where they
     * are until the lease ends, also while kavern_kv_resize moves others.
     */
    int32_t *block_ids;
    /** Room there. */
    uint64_t block_capacity;
    /**
     * Tokens that the sequence is expected to reach; 0 unknown. Tells the advisor of KAVERN_KV_ADAPTIVE_BLOCKS, and
     * does nothing else.
     */
    uint64_t expected_tokens;
    /**
     * KAVERN_KV_ADAPTIVE_BLOCKS: the size class that the sequence must have; 0 leaves it to the advisor, and in other
     * caches.
     */
    uint32_t size_class;
    /** Zero. */
    uint32_t reserved;
} kavern_kv_request;

/** What kavern_kv_match_chunks says of one key in one group. */
typedef struct kavern_kv_chunk_hit {
    /**
     * Tokens by which the block's place in the new prompt lies behind the one where it was stored: rotate its keys by
     * this much. 0 if nothing was found.
     */
    int64_t shift;
    /** The block, -1 if nothing was found. */
    int32_t block;
    /** Zero. */
    uint32_t reserved;
} kavern_kv_chunk_hit;

/** What a lookup found. */
typedef struct kavern_kv_match_result {
    /** KAVERN_OK, or why this request was refused; KAVERN_ERR_BUFFER_TOO_SMALL still gives lease and counts. */
    int32_t status;
    /**
     * Bits, 1 << group: groups of cross-attention whose whole input was found, so that its encoder need not run. With
     * KAVERN_KV_ADAPTIVE_BLOCKS, which has no such groups: the group of the size class.
     */
    uint32_t cross_groups;
    /** Holds the hits until ADMIT or RELEASE; 0 if refused. */
    uint64_t lease;
    /**
     * Tokens whose blocks are in device memory, in every group. With KAVERN_KV_PARTIAL_HITS they may end inside the
     * last block, of which ADMIT gives the sequence a copy.
     */
    uint64_t hit_tokens;
    /** Tokens found in pinned memory beyond those. 0 until tiers exist. */
    uint64_t hit_tokens_ram;
    /** Tokens found on disk beyond those. 0 until tiers exist. */
    uint64_t hit_tokens_disk;
    /** Tokens found in the remote tier beyond those. 0 until tiers exist. */
    uint64_t hit_tokens_remote;
    /** Block ids that belong into block_ids, all groups together. */
    uint64_t block_count;
} kavern_kv_match_result;

/** A batch of lookups by hashes that are in device memory. */
typedef struct kavern_kv_lookup_args {
    /** sizeof(kavern_kv_lookup_args). */
    uint32_t struct_size;
    /** Whose blocks. */
    uint32_t group;
    /** A KAVERN_LOOKUP_ value. */
    uint32_t mode;
    /** Rows, one for each prompt. */
    uint32_t rows;
    /** Hashes of a row. */
    uint32_t row_hashes;
    /** Zero. */
    uint32_t reserved;
    /** Device address of the hashes, u64 [rows][row_hashes][2] as kavern_kv_block_hashes gives them; aligned to 16. */
    uint64_t hashes;
    /** Device address of how many hashes of each row count, i32 [rows]; 0: all. The others are misses. */
    uint64_t counts;
    /** Device address that receives the block ids, i32 [rows][row_hashes]; -1 is a miss. */
    uint64_t block_ids;
} kavern_kv_lookup_args;

/** How a manager is made; fill with kavern_manager_config_init. */
typedef struct kavern_manager_config {
    /** sizeof(kavern_manager_config). */
    uint32_t struct_size;
    /** KAVERN_MANAGER_ bits. */
    uint32_t flags;
    /** The device: "host", "cuda:0", with parameters "host?memory_bytes=1048576"; null takes "host". */
    const char *device;
    /**
     * Most device memory of this manager; 0 for no limit but the device's own. Another manager has its own limit, in
     * the same process too; what bounds several is a budget of the machine.
     */
    uint64_t device_limit_bytes;
    /** Most pinned host memory; 0 for no limit. */
    uint64_t pinned_limit_bytes;
    /** Zero. */
    uint64_t reserved[4];
    /**
     * Device memory above which nothing is kept that nobody uses, and pools, idle models and the callback of
     * kavern_manager_on_reclaim are asked to give; allocations succeed all the same. 0 for none.
     */
    uint64_t device_soft_limit_bytes;
    /**
     * Name of a budget that managers share, of one process or of several of this user: 1 to 128 letters, digits, '-',
     * '_' and '.'; null for none. All device memory of the manager is charged to it before the device is asked, that
     * of its shared pools too, which need no name of their own then. A process that ends, however it ends, gives its
     * part back.
     */
    const char *machine_budget_name;
    /** Limit of that budget: the first process sets it, the others name the same; 0 takes the one that is there. */
    uint64_t machine_budget_bytes;
    /**
     * Physical pages are made ahead by a thread, so that a commit or an allocation finds them there: once less than
     * this waits for use in pages of all sizes, up to `ready_high_bytes`, most of it in the largest pages. They count
     * as held, within all limits, the soft one too. Whoever needs the bytes otherwise gets them, also by
     * kavern_manager_trim; they are made again when pages are next asked for, at least a second later. 0 for none.
     * Nothing on a simulated device.
     */
    uint64_t ready_low_bytes;
    /** Up to so much. What lies above the low mark and nobody has wanted for ten seconds goes. 0 takes the low mark. */
    uint64_t ready_high_bytes;
} kavern_manager_config;

/** What a manager has and did. You set struct_size; the call fills the rest. */
typedef struct kavern_manager_statistics {
    /** sizeof(kavern_manager_statistics). */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved;
    /**
     * Device memory that is asked for and not given up, by every way, to the byte: allocations straight from the
     * device (KV caches that cannot grow, batches of pools), `allocator_bytes`, `elastic_bytes`, `shared_bytes`. 0
     * when all was given up.
     */
    uint64_t device_bytes;
    /**
     * Most device memory that was held at one time, in use or kept for use, as `device_held_bytes` counts it; with
     * what other threads were asking for at that moment.
     */
    uint64_t device_peak_bytes;
    /** Live allocations of device memory: straight from the device, and of kavern_alloc. Ranges are not counted. */
    uint64_t device_allocations;
    /** As device_allocations, ever made. */
    uint64_t device_total_allocations;
    /** Limit of device memory, 0 for none. */
    uint64_t device_limit_bytes;
    /** Pinned host memory allocated now. */
    uint64_t pinned_bytes;
    /** Most that was allocated at one time. */
    uint64_t pinned_peak_bytes;
    /** Live allocations of pinned host memory. */
    uint64_t pinned_allocations;
    /** Allocations of pinned host memory ever made. */
    uint64_t pinned_total_allocations;
    /** Limit of pinned host memory, 0 for none. */
    uint64_t pinned_limit_bytes;
    /** Streams made by the manager. */
    uint64_t own_streams;
    /** Streams registered with it. */
    uint64_t registered_streams;
    /** Tickets not known to be done. */
    uint64_t pending_tickets;
    /** KV caches. */
    uint64_t caches;
    /** Calls of the device that a fault parameter of the device's name has counted; 0 without one. */
    uint64_t device_calls;
    /** Races between streams that the device has found; 0 where it does not look. */
    uint64_t races;
    /** Asked of kavern_alloc and not freed. */
    uint64_t allocator_bytes;
    /** Committed in elastic ranges, those of KV caches with max_blocks too. */
    uint64_t elastic_bytes;
    /** Committed by the models of shared pools. */
    uint64_t shared_bytes;
    /** Device memory held now, as limits count it: whole pages, with what is kept for use. */
    uint64_t device_held_bytes;
    /** Soft limit of device memory, 0 for none. */
    uint64_t device_soft_limit_bytes;
    /** Copies to the host that are running, as kavern_copies_begin and kavern_copies_end tell. */
    uint64_t running_copies;
    /** Calls of the device that changed page tables. */
    uint64_t table_changes;
    /** Those of them that could not wait for the end of a copy to the host. */
    uint64_t loud_table_changes;
    /** Physical pages that wait for use, those made ahead too; they count as held. */
    uint64_t pooled_page_bytes;
    /** Pages that a commit or an allocation found waiting. */
    uint64_t page_hits;
    /** Pages that it had to have made by the device. */
    uint64_t page_misses;
    /** Pages that were made before anybody asked for them. */
    uint64_t pages_made_ahead;
    /** Mappings whose pages went to somebody else before they were unmapped. */
    uint64_t passed_on_mappings;
    /** Those of them that are still to be unmapped; nobody's memory. */
    uint64_t stale_mappings;
    /**
     * Calls by which the device was to remove mappings and did not. They are tried again, before their addresses get
     * memory at the latest; until then their pages are nobody's and count as held, and then go to the device.
     */
    uint64_t failed_unmaps;
} kavern_manager_statistics;

/**
 * What a namespace holds, may hold and did, under all its salts and adapters, all groups together.
 *
 * Counts begin when the namespace comes into use or gets a limit, and end when neither is left. A block is counted
 * once, however many sequences of the namespace share it.
 */
typedef struct kavern_kv_namespace_statistics {
    /** sizeof(kavern_kv_namespace_statistics). */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved;
    /** Blocks that its sequences and leases hold. */
    uint64_t held_blocks;
    /** Findable blocks that nobody holds and no step in flight may read. */
    uint64_t cached_blocks;
    /** Findable blocks, held or not. */
    uint64_t findable_blocks;
    /** Limit of held_blocks; UINT64_MAX if none. */
    uint64_t max_held_blocks;
    /** Limit of cached_blocks; UINT64_MAX if none. */
    uint64_t max_cached_blocks;
    /** Requests that were looked up. */
    uint64_t lookups;
    /** Full blocks of those requests. */
    uint64_t lookup_blocks;
    /** Of those, found. */
    uint64_t hit_blocks;
    /** Tokens of those requests. */
    uint64_t lookup_tokens;
    /** Of those, found. */
    uint64_t hit_tokens;
    /** Blocks that became findable. */
    uint64_t stored_blocks;
    /** Blocks evicted to make room, and those that went because of max_cached_blocks. */
    uint64_t evicted_blocks;
    /** Operations refused because of max_held_blocks. */
    uint64_t refused_ops;
    /** Blocks promised to its sequences by expected_tokens; they count against max_held_blocks. */
    uint64_t promised_blocks;
} kavern_kv_namespace_statistics;

/** What the pool of pinned host memory has and did. You set struct_size; the call fills the rest. */
typedef struct kavern_pinned_statistics {
    /** sizeof(kavern_pinned_statistics). */
    uint32_t struct_size;
    /** NUMA node that memory is asked to lie on, UINT32_MAX for none. */
    uint32_t node;
    /** Bytes of all chunks that are held. */
    uint64_t held_bytes;
    /** Chunks. */
    uint64_t chunks;
    /** Bytes that were asked for and not freed. */
    uint64_t live_bytes;
    /** Ranges of them. */
    uint64_t live_ranges;
    /** Bytes that live ranges have above what was asked for. */
    uint64_t slack_bytes;
    /** Bytes of freed ranges whose stream may still copy. */
    uint64_t leaving_bytes;
    /** Bytes that are free. */
    uint64_t free_bytes;
    /** The most of them in a row. */
    uint64_t largest_free_bytes;
    /** Bytes of yours that are pinned. */
    uint64_t registered_bytes;
    /** Pieces of them. */
    uint64_t registered_pieces;
    /** Bytes that are still to be pinned ahead. */
    uint64_t ahead_bytes;
    /** Requests that what was held served. */
    uint64_t hits;
    /** Requests that needed a new chunk. */
    uint64_t misses;
} kavern_pinned_statistics;

/** What a plan is about. */
typedef struct kavern_kv_plan_info {
    /** sizeof(kavern_kv_plan_info). */
    uint32_t struct_size;
    /** KAVERN_PLAN_ bits. */
    uint32_t flags;
    /** The step. */
    uint64_t step_id;
    /** Rises by one from plan to plan of a scheduler. */
    uint64_t number;
    /** The plan that a worker must have applied before; 0 for a full one and for the first. */
    uint64_t follows;
    /** Names the scheduler's cache; drawn at random when that was made. */
    uint64_t scheduler;
    /** Digest of the geometry that scheduler and worker share. */
    uint64_t geometry;
    /** Bytes of the message. */
    uint64_t bytes;
} kavern_kv_plan_info;

/** Tables of one group. Addresses are of the device and never change; host pointers see the same cells. */
typedef struct kavern_kv_group_tables {
    /**
     * i32 [max_sequences][row_cells]: block ids by row. Cells past a sequence's blocks hold older ids; those of blocks
     * that were let go hold null_block. A row of states is the current one and the one to start from, -1 for none.
     */
    uint64_t block_table;
    /** i64 [max_batch_tokens]: block x block_tokens + offset of each scheduled token, -1 past the last; 0 if opaque. */
    uint64_t slot_mapping;
    /** Ragged: i32 [batch_count + 1], 0 if not asked for. */
    uint64_t page_indptr;
    /** Ragged: i32 [page_indptr[batch_count]] block ids in batch order. */
    uint64_t page_indices;
    /** Ragged: i32 [batch_count] tokens in the last block. */
    uint64_t last_page_tokens;
    /** block_table as the host sees it, as of the latest step. */
    const int32_t *block_table_host;
    /** slot_mapping of this step. */
    const int64_t *slot_mapping_host;
    /** page_indptr of this step. */
    const int32_t *page_indptr_host;
    /** page_indices of this step. */
    const int32_t *page_indices_host;
    /** last_page_tokens of this step. */
    const int32_t *last_page_tokens_host;
    /** Cells in a row. */
    uint64_t row_cells;
    /** Cells of the block table that this call uploaded. */
    uint64_t cells_uploaded;
    /** Blocks that this call fills with zeros before the step's work; 0 without memory, see `zeros_host`. */
    uint64_t blocks_zeroed;
} kavern_kv_group_tables;

/**
 * A run of tokens that a step copies from slots to slots before its work. All of a block's tokens are the whole block.
 *
 * A slot is block x block_tokens + offset, also in opaque groups. A run lies in one block on either side.
 */
typedef struct kavern_kv_token_copy {
    /** The group. */
    uint32_t group;
    /** Row of the sequence that it is for; -1 for a pinned block that nobody holds. */
    int32_t row;
    /** First slot that is read. */
    int64_t source_slot;
    /** First slot that is written. */
    int64_t target_slot;
    /** Tokens. */
    uint32_t tokens;
    /**
     * What is added to the positions of these tokens, 0 or negative: where keys carry their position (RoPE), rotate
     * those in the target slots by it when all copies of the list are made, and before attention or the next
     * kavern_kv_tables reads them. A run that reads what another one of the list wrote is told with the shifts of
     * both.
     */
    int32_t shift;
} kavern_kv_token_copy;

/** A block that the engine fills with zeros before a step's work, because the cache has no memory of its own. */
typedef struct kavern_kv_zero_block {
    /** The group. */
    uint32_t group;
    /** The block. */
    int32_t block;
} kavern_kv_zero_block;

/** Tables of a step. You set struct_size, groups and group_capacity; the call fills the rest. */
typedef struct kavern_kv_step_tables {
    /** sizeof(kavern_kv_step_tables). */
    uint32_t struct_size;
    /** Elements in `groups`. */
    uint32_t group_capacity;
    /** Receives one element for each group; null if not wanted. */
    kavern_kv_group_tables *groups;
    /** Groups of the cache. */
    uint32_t group_count;
    /** Sequences scheduled in this step. */
    uint32_t batch_count;
    /** Tokens scheduled in this step. */
    uint32_t token_count;
    /** Zero. */
    uint32_t reserved;
    /** i32 [batch_count]: row of each batch position, in the order of the operations. */
    uint64_t batch_rows;
    /** i32 [batch_count + 1]: first token of each batch position. */
    uint64_t batch_starts;
    /** i32 [max_sequences]: tokens of each row's sequence, with those of this step; 0 for a free row. */
    uint64_t sequence_lengths;
    /** batch_rows as the host sees it; valid until steps_in_flight further steps began. */
    const int32_t *batch_rows_host;
    /** batch_starts as the host sees it. */
    const int32_t *batch_starts_host;
    /** sequence_lengths as the host sees it, as of the latest step. */
    const int32_t *sequence_lengths_host;
    /** kavern_kv_token_copy [copy_count]: what this call enqueued before the step's work, group after group. */
    uint64_t copies;
    /** copies as the host sees it; valid until the next kavern_kv_tables or the next step. */
    const kavern_kv_token_copy *copies_host;
    /** How many. */
    uint32_t copy_count;
    /** Zero. */
    uint32_t reserved2;
    /**
     * kavern_kv_zero_block [zero_count], group after group: blocks of a cache without memory in which another tenant's
     * bytes lie, or any with KAVERN_SCRUB_ALWAYS. Fill them with zeros before you carry out `copies_host`, and before
     * the step's work. Each is told once, by the first call after it was handed out; the step's plan tells them too. A
     * cache with memory fills them itself, and `blocks_zeroed` says how many. Null if there is none; valid as long as
     * `copies_host`.
     */
    const kavern_kv_zero_block *zeros_host;
    /** How many. */
    uint64_t zero_count;
} kavern_kv_step_tables;

/** A size class of a pool. It will never grow, so it carries no size. */
typedef struct kavern_pool_class {
    /** Size of a block; goes up to a multiple of 256. */
    uint64_t block_bytes;
    /** Blocks that are made at once. */
    uint32_t initial_blocks;
    /** Blocks by which the class grows; 0 takes the pool's growth_blocks. */
    uint32_t growth_blocks;
} kavern_pool_class;

/** How a pool is made; fill with kavern_pool_config_init. */
typedef struct kavern_pool_config {
    /** sizeof(kavern_pool_config). */
    uint32_t struct_size;
    /** Zero. */
    uint32_t flags;
    /** A KAVERN_POOL_ value. */
    uint32_t rounding;
    /** Blocks by which a class grows; 0 for 4, on the ladder 1. */
    uint32_t growth_blocks;
    /** Of KAVERN_POOL_FIXED: size of a block. */
    uint64_t block_bytes;
    /** Of KAVERN_POOL_FIXED: blocks that are made at once. */
    uint64_t initial_blocks;
    /** Of KAVERN_POOL_CLASSES: the classes by rising size; null for 1 KiB x 32, 64 KiB x 16, 1 MiB x 8. */
    const kavern_pool_class *classes;
    /** Of KAVERN_POOL_CLASSES: how many. */
    uint64_t class_count;
    /**
     * Most bytes that the pool holds; 0 for no limit but the manager's, on the ladder for 2,048,000,000.
     * UINT64_MAX is no limit there either.
     */
    uint64_t max_bytes;
    /**
     * Batches of blocks that nobody used for so long go back, also while nobody calls the pool: a thread of the
     * library looks for them, every 0.1 s at most. Where there is none, on a simulated device and on one that cannot
     * map memory, they go at the pool's next call. UINT64_MAX keeps them until kavern_pool_trim.
     */
    uint64_t idle_ns;
    /** Its name in reports; null for "pool". */
    const char *name;
    /** Zero. */
    uint64_t reserved[4];
    /** KAVERN_POOL_DEVICE or KAVERN_POOL_MANAGED. */
    uint32_t memory_kind;
    /** Zero. */
    uint32_t reserved_tail;
} kavern_pool_config;

/** What was handed out. It will never grow, so it carries no size. */
typedef struct kavern_pool_block {
    /** First byte on the device, a multiple of 256. */
    uint64_t address;
    /** Length, at least what was asked. */
    uint64_t bytes;
} kavern_pool_block;

/** What a pool has and did. You set struct_size; the call fills the rest. */
typedef struct kavern_pool_statistics {
    /** sizeof(kavern_pool_statistics). */
    uint32_t struct_size;
    /** Size classes, or rungs of the ladder that were asked for. */
    uint32_t class_count;
    /** Requests that a held block served. */
    uint64_t hits;
    /** Requests that made the pool grow. */
    uint64_t misses;
    /** Requests that were refused for lack of memory or by max_bytes. */
    uint64_t refusals;
    /** Hits for which a stream was made to wait for another. */
    uint64_t stream_waits;
    /** Times that the whole device was waited for, because a stream was gone with blocks behind it. */
    uint64_t device_waits;
    /** Bytes held. */
    uint64_t held_bytes;
    /** Most that was held at one time. */
    uint64_t peak_held_bytes;
    /** Limit, 0 for none. */
    uint64_t max_bytes;
    /** Bytes of the blocks in use. */
    uint64_t in_use_bytes;
    /** Bytes that were asked for, of the blocks in use. */
    uint64_t requested_bytes;
    /** Blocks held. */
    uint64_t blocks;
    /** Blocks in use. */
    uint64_t blocks_in_use;
    /** Released blocks whose stream is not known to be done with them. */
    uint64_t blocks_waiting;
    /** Batches of blocks that were made. */
    uint64_t expansions;
    /** Batches of blocks that went back. */
    uint64_t evictions;
    /** Hits of all requests that were served, 0 to 1. */
    double hit_rate;
    /** Bytes in use of those held, 0 to 1. */
    double utilisation;
    /** Share of the held bytes that are free and cannot serve a request, the mean over the requests so far. */
    double fragmentation;
    /** Those of the bytes held that lie in managed memory: all or none. */
    uint64_t managed_bytes;
} kavern_pool_statistics;

/** What one class of a pool has and did. It will never grow, so it carries no size. */
typedef struct kavern_pool_class_statistics {
    /** Size of a block. */
    uint64_t block_bytes;
    /** Blocks held. */
    uint64_t blocks;
    /** Blocks in use. */
    uint64_t blocks_in_use;
    /** Released blocks whose stream is not known to be done with them. */
    uint64_t blocks_waiting;
    /** Requests that a held block served. */
    uint64_t hits;
    /** Requests that made the class grow. */
    uint64_t misses;
    /** Batches of blocks that were made. */
    uint64_t expansions;
    /** Batches of blocks that went back. */
    uint64_t evictions;
    /** Share of the pool's bytes that are free and cannot serve this class. */
    double fragmentation;
    /** Zero. */
    uint64_t reserved[3];
} kavern_pool_class_statistics;

/** How a shared pool is made; fill with kavern_shared_pool_config_init. */
typedef struct kavern_shared_pool_config {
    /** sizeof(kavern_shared_pool_config). */
    uint32_t struct_size;
    /** KAVERN_ELASTIC_ bits. */
    uint32_t flags;
    /** Most physical memory of all models together, rounded down to pages of the device. */
    uint64_t physical_limit_bytes;
    /** What is committed and decommitted at least, a multiple of the device's page; 0 takes that page. */
    uint64_t page_bytes;
    /**
     * A budget that all processes of this user on this machine share by this name, besides the pool's own limit; null
     * for none. Letters, digits, '-', '_' and '.'. A process that dies gives its part back.
     */
    const char *machine_name;
    /** The limit of that budget; 0 takes the one that another process has set. */
    uint64_t machine_limit_bytes;
    /** Zero. */
    uint64_t reserved[4];
    /** As kavern_manager_config.ready_low_bytes, of the pool's own pages. */
    uint64_t ready_low_bytes;
    /** As kavern_manager_config.ready_high_bytes; at most physical_limit_bytes. */
    uint64_t ready_high_bytes;
} kavern_shared_pool_config;

/** What a model of a shared pool has. You set struct_size; the call fills the rest. */
typedef struct kavern_model_statistics {
    /** sizeof(kavern_model_statistics). */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved;
    /** Addresses. */
    uint64_t capacity_bytes;
    /** What is committed and decommitted at least. */
    uint64_t page_bytes;
    /** Committed. */
    uint64_t committed_bytes;
    /** Memory behind the model's range: committed, retained or leaving. */
    uint64_t physical_bytes;
    /** Decommitted, but part of a slab that is still in use. */
    uint64_t retained_bytes;
    /** Decommitted, and on its way back once its stream is past. */
    uint64_t leaving_bytes;
    /** Most physical memory at one time. */
    uint64_t peak_bytes;
    /** It can always have so much. */
    uint64_t min_bytes;
    /** Its part of what is over the minimums, next to the others' weights. */
    uint64_t weight;
    /** It never has more. */
    uint64_t cap_bytes;
    /** Asked of its owner and not given up yet: the twin of the callback, for programs that would rather look. */
    uint64_t wanted_bytes;
    /** How often its owner was asked. */
    uint64_t requests;
    /** Pins that keep parts committed. */
    uint64_t pins;
} kavern_model_statistics;

/** What a shared pool has and did. You set struct_size; the call fills the rest. */
typedef struct kavern_shared_pool_statistics {
    /** sizeof(kavern_shared_pool_statistics). */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved;
    /** Most physical memory. */
    uint64_t limit_bytes;
    /** Physical memory of all models. */
    uint64_t used_bytes;
    /** Physical memory that waits for use; used and pooled together are never more than the limit. */
    uint64_t pooled_bytes;
    /** Models. */
    uint64_t models;
    /** How often an owner was asked to give. */
    uint64_t requests;
    /** Commits that were refused for lack of memory. */
    uint64_t refusals;
    /** Bytes cleared because they came from another model or from the device. */
    uint64_t scrubbed_bytes;
    /** Charged to the machine's budget by all processes; 0 without one. */
    uint64_t machine_used_bytes;
} kavern_shared_pool_statistics;

/**
 * Asks the owner of a model to give up so many bytes: your userdata, the model's name, the bytes. It may use the pool
 * and gives by kavern_shared_pool_decommit, at once or later.
 */
typedef void (*kavern_reclaim_fn)(void *userdata, const char *model, uint64_t bytes);

/** A range of device memory. It will never grow, so it carries no size. */
typedef struct kavern_sim_range {
    /** First byte. */
    uint64_t address;
    /** Length. */
    uint64_t bytes;
} kavern_sim_range;

/**
 * One operation of a step. What its kind does not use is 0, `row` 0 or -1; anything else is refused with
 * KAVERN_ERR_INVALID_ARGUMENT, as is a row below -1.
 */
typedef struct kavern_kv_op {
    /** sizeof(kavern_kv_op). */
    uint32_t struct_size;
    /** A KAVERN_OP_ value. */
    uint32_t kind;
    /** Sequence id, KAVERN_SEQ_OF_OP(i), or lease. */
    uint64_t target;
    /**
     * ADMIT, APPEND, RESUME: tokens to schedule. COMMIT: tokens that are final. ROLLBACK: those that stay. FORK:
     * those of the child, 0 for all. EDIT: those that go.
     */
    uint64_t tokens;
    /**
     * ADMIT, APPEND, RESUME, ROLLBACK: tokens beyond those for which blocks are held ready; they stay from step to
     * step. In APPEND and RESUME it also keeps the state that the step starts from, to which ROLLBACK can go back.
     */
    uint32_t lookahead;
    /** ADMIT, FORK: row of the tables, or -1 to let the library choose. */
    int32_t row;
    /**
     * COMMIT in a token namespace: the `tokens` ids. ROLLBACK: null, or the ids of its last `tokens` %
     * hash_block_tokens.
     */
    const int32_t *token_ids;
    /** COMMIT in a key namespace: one key for each link that these tokens complete. */
    const uint8_t *keys;
    /** How many. */
    uint64_t key_count;
    /** COMMIT, ROLLBACK: extras whose token_offset lies in these tokens. */
    const kavern_kv_extra *extras;
    /** How many. */
    uint64_t extra_count;
    /** COMMIT in a key namespace: bytes of one key, as in the request. */
    uint32_t key_bytes;
    /** Zero. */
    uint32_t reserved;
    /**
     * Operations on a range of tokens: the first of them, counted from the start of the sequence; TRIM: the first
     * token that is still needed; 0 in all others.
     */
    uint64_t offset;
    /** RETAIN: milliseconds for which the range is retained, 0 for as long as it is findable; 0 in all others. */
    uint64_t ttl_ms;
    /**
     * ADMIT: tokens that the sequence will reach at most, for which blocks are promised: an APPEND up to there is not
     * refused for want of blocks. Of a window, what it touches at a time is promised, for APPENDs of few tokens and
     * while nobody shares its blocks. 0 promises none. 0 in all others.
     */
    uint64_t expected_tokens;
    /**
     * RESUME of a sequence that was preempted with KAVERN_PREEMPT_DROP: the lease of a lookup of its tokens; 0 in all
     * others.
     */
    uint64_t lease;
    /** RETAIN: 0 to 100, higher stays longer; 0 in all others. */
    uint32_t priority;
    /** PREEMPT: a KAVERN_PREEMPT_ value; 0 in all others. */
    uint32_t mode;
} kavern_kv_op;

/** What became of an operation. */
typedef struct kavern_kv_op_result {
    /** KAVERN_OK or why it was refused; a refused operation changed nothing. */
    int32_t status;
    /** Row of the tables, -1 if none. */
    int32_t row;
    /** The sequence; the child of FORK, the parent of ACCEPT. */
    uint64_t sequence;
    /** Blocks that the sequence got, all groups together. */
    uint32_t blocks_added;
    /** KAVERN_ERR_OUT_OF_BLOCKS: blocks missing in the group named below. */
    uint32_t blocks_missing;
    /**
     * The group that was short; of KAVERN_ERR_WRONG_STATE and KAVERN_ERR_UNSUPPORTED by FORK, ROLLBACK and EDIT, the
     * one that does not have what is needed there. With KAVERN_KV_ADAPTIVE_BLOCKS, if it was not refused: that of the
     * sequence.
     */
    uint32_t group;
    /** COMMIT: blocks that became findable. */
    uint32_t blocks_committed;
} kavern_kv_op_result;

/** A finished load or store of another tier. */
typedef struct kavern_kv_completion {
    /** The work. */
    uint64_t ticket;
    /** KAVERN_OK or why it failed. */
    int32_t status;
    /** First block that failed, -1 if none. */
    int32_t failed_block;
    /** The sequence or lease that it was for. */
    uint64_t target;
    /** Bytes moved. */
    uint64_t bytes;
} kavern_kv_completion;

/** Result of kavern_kv_check_pattern, accumulated since it was last read. */
typedef struct kavern_kv_check_result {
    /** Blocks checked. */
    uint64_t checked_blocks;
    /** Blocks whose bytes are not those that the seed gives. */
    uint64_t mismatched_blocks;
    /** One of them, -1 if none. */
    int64_t first_mismatch;
} kavern_kv_check_result;

/** What the general allocator of a manager holds and did. */
typedef struct kavern_memory_statistics {
    /** sizeof(kavern_memory_statistics). */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved;
    /** Asked for and not yet freed. */
    uint64_t live_bytes;
    /** Live allocations. */
    uint64_t live_count;
    /** Allocations ever. */
    uint64_t allocations;
    /** Frees ever. */
    uint64_t frees;
    /** Physical memory behind the allocator's addresses. */
    uint64_t backed_bytes;
    /** Freed blocks in the caches of threads. */
    uint64_t front_cache_bytes;
    /** Freed blocks that so far only the stream of their free may have. */
    uint64_t ordered_bytes;
    /** Largest piece that is free for every stream. */
    uint64_t largest_free_bytes;
    /** When memory was short: caches emptied. */
    uint64_t ladder_own_caches;
    /** Finished work looked for. */
    uint64_t ladder_fences;
    /** Empty pages taken from behind their addresses. */
    uint64_t ladder_trims;
    /** Streams made to wait for others. */
    uint64_t ladder_stream_waits;
    /** Pools, idle models and callbacks asked. */
    uint64_t ladder_rooms;
    /** Waits of the host for work in flight. */
    uint64_t ladder_host_waits;
    /** Requests refused after all of it. */
    uint64_t ladder_refusals;
    /** Allocations ever that came straight from the device one by one, because it cannot map memory; 0 where it can. */
    uint64_t plain_allocations;
    /** When memory was short: half-empty pages meshed; 0 without KAVERN_MANAGER_MESH_ON_SHORTAGE. */
    uint64_t ladder_meshes;
    /** Of the physical memory, what is nobody's and lies in pages of the device of which something else is in use. */
    uint64_t retained_bytes;
    /** When memory was short: pages of the device that went from free blocks to a large one as they were. */
    uint64_t ladder_moved_pages;
    /** Looks through all that is held, before more was taken: such an allocation takes as long as hundreds of others. */
    uint64_t looks;
    /** Mappings that the device did not remove and is asked to again; their memory then goes back to it. */
    uint64_t failed_unmaps;
    /** How often something was given back because nobody had allocated or freed for ten seconds. */
    uint64_t idle_flushes;
} kavern_memory_statistics;

/** What kavern_manager_defragment did. */
typedef struct kavern_defragment_result {
    /** sizeof(kavern_defragment_result). */
    uint32_t struct_size;
    /** Zero. */
    uint32_t reserved;
    /** Physical memory behind the allocator before. */
    uint64_t before_bytes;
    /** And after. */
    uint64_t after_bytes;
    /** Pages of small blocks that share the memory of others now. */
    uint64_t meshed_pages;
    /** Live bytes that were copied for that. */
    uint64_t copied_bytes;
} kavern_defragment_result;

/** Asked when memory is short: gives back what it can, at best `bytes`, and answers how much it gave. */
typedef uint64_t (*kavern_give_back_fn)(void *userdata, uint64_t bytes);

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Tells what an address belongs to.
 *
 * Errors: KAVERN_ERR_INVALID_ARGUMENT (no live allocation begins there), KAVERN_ERR_INVALID_HANDLE,
 * KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
 * Threads: any; does not block.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to as many writable bytes as its struct_size says.
 */
kavern_status kavern_address_info(const kavern_manager *manager,
                                  uint64_t address,
                                  kavern_address_description *out);

/**
 * Says that work on another stream uses an allocation too, so that its free waits for what is enqueued there by then.
 *
 * Errors: KAVERN_ERR_INVALID_ARGUMENT (no live allocation begins there), KAVERN_ERR_INVALID_HANDLE,
 * KAVERN_ERR_NULL_POINTER.
 * Threads: any; does not block.
 * Since: 0.1
 *
 * Safety: A registered stream must be alive, and stay so until the allocation is freed.
 */
kavern_status kavern_record_use(kavern_manager *manager,
                                uint64_t address,
                                void *stream);

/**
 * Keeps the physical memory of an allocation in place: it is registered with NCCL, RDMA or another process.
 *
 * Unpin it as often as it was pinned, before you free it.
 * Errors: KAVERN_ERR_INVALID_ARGUMENT (no live allocation begins there), KAVERN_ERR_INVALID_HANDLE,
 * KAVERN_ERR_NULL_POINTER.
 * Threads: any; does not block.
 * Since: 0.1
 *
 * Safety: None beyond a handle or null.
 */
kavern_status kavern_address_pin(kavern_manager *manager, uint64_t address);

/**
 * Undoes one kavern_address_pin.
 *
 * Errors: KAVERN_ERR_INVALID_ARGUMENT (no live allocation begins there), KAVERN_ERR_NOT_FOUND (not pinned),
 * KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any; does not block.
 * Since: 0.1
 *
 * Safety: None beyond a handle or null.
 */
kavern_status kavern_address_unpin(kavern_manager *manager, uint64_t address);

/**
 * Gives the id of a name that allocations carry in reports; the same name gives the same id.
 *
 * Errors: KAVERN_ERR_LIMIT_REACHED (65,536 names), KAVERN_ERR_INVALID_ARGUMENT (no UTF-8 or too long),
 * KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any.
 * Since: 0.1
 *
 * Safety: `name` must be null or a text with a zero at its end, `out` be null or point to a writable value.
 */
kavern_status kavern_tag(kavern_manager *manager, const char *name, uint64_t *out);

/**
 * Prepares a stream for the capture of a graph; call it before the capture begins.
 *
 * What is allocated on the stream while it is captured belongs to the graph: freed during or after the capture, it is
 * given to nobody but later allocations of a capture of the same stream, until kavern_capture_release.
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any.
 * Since: 0.1
 *
 * Safety: A registered stream must be alive.
 */
kavern_status kavern_capture_begin(kavern_manager *manager,
                                   void *stream);

/**
 * Gives up what was allocated and freed in the captures of a stream: their graphs are not launched any more.
 *
 * Stream: the memory is free once `stream` is past this point; all launches of the graphs come before it.
 * The captured stream has to live until then: what its captures hold when it goes stays theirs until the manager goes.
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any.
 * Since: 0.1
 *
 * Safety: Registered streams must be alive.
 */
kavern_status kavern_capture_release(kavern_manager *manager,
                                     void *captured_stream,
                                     void *stream);

/**
 * Fills a configuration with its defaults; groups and a capacity are still to be set.
 *
 * `size` is sizeof(kavern_kv_cache_config) in the caller's header, which may be older or newer than the library.
 * Errors: KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE if `size` is below that of version 0.1 or above 65,536.
 * Since: 0.1
 *
 * Safety: `config` must be null or point to `size` writable bytes.
 */
kavern_status kavern_kv_cache_config_init(kavern_kv_cache_config *config,
                                          size_t size);

/**
 * Makes a KV cache and allocates everything that it will ever need.
 *
 * Errors: KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_UNSUPPORTED for what later versions serve,
 * KAVERN_ERR_OUT_OF_MEMORY, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
 * Threads: any; blocks while memory is allocated.
 * Owner: destroy with kavern_kv_cache_destroy; it keeps its manager alive. A region stays yours and must outlive it.
 * Since: 0.1
 *
 * Safety: `config` and what it points to must be as its fields say; `out` must be null or point to a writable handle.
 */
kavern_status kavern_kv_cache_create(kavern_manager *manager,
                                     const kavern_kv_cache_config *config,
                                     kavern_kv_cache **out);

/**
 * Destroys a cache and nulls the handle; null is fine.
 *
 * Errors: KAVERN_ERR_INVALID_HANDLE; the handle then stays as it is.
 * Threads: any, also while others are inside a call on it; blocks until the device has stopped using its memory.
 * Since: 0.1
 *
 * Safety: `cache` must be null or point to a writable handle.
 */
kavern_status kavern_kv_cache_destroy(kavern_kv_cache **cache);

/**
 * Tells where and how the blocks of a group lie, so that an engine can write its slots itself.
 *
 * Errors: KAVERN_ERR_INVALID_ARGUMENT (no such group), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER,
 * KAVERN_ERR_STRUCT_SIZE.
 * Threads: any; does not block.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to as many writable bytes as its struct_size says.
 */
kavern_status kavern_kv_describe(const kavern_kv_cache *cache,
                                 uint32_t group,
                                 kavern_kv_description *out);

/**
 * Reads what a cache holds and did.
 *
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
 * Threads: any; takes the cache's lock for a moment.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to as many writable bytes as its struct_size says.
 */
kavern_status kavern_kv_stats(const kavern_kv_cache *cache, kavern_kv_statistics *out);

/**
 * Proves every invariant of the cache by walking all of it.
 *
 * Errors: KAVERN_ERR_INTERNAL with the broken invariant in the text: a bug of the library. KAVERN_ERR_INVALID_HANDLE.
 * Threads: any; holds the cache's lock meanwhile, in proportion to the blocks; before, waits for a kavern_kv_resize
 * that is getting memory.
 * Since: 0.1
 *
 * Safety: None beyond a handle or null.
 */
kavern_status kavern_kv_validate(const kavern_kv_cache *cache);

/**
 * Makes everything in scope unfindable; blocks that sequences or leases hold stay with them until they are freed.
 *
 * Sequences and leases in scope publish nothing more, so that nothing computed before the call is found after it.
 *
 * `scope` is a KAVERN_RESET_ value; `namespace_id` is read for KAVERN_RESET_NAMESPACE and must be 0 otherwise;
 * `removed` (may be null) receives how many blocks it were.
 * Errors: KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_INVALID_HANDLE.
 * Threads: any; lets others in after every 32 blocks. A namespace costs in proportion to what it has findable.
 * Since: 0.1
 *
 * Safety: `removed` must be null or point to a writable value.
 */
kavern_status kavern_kv_reset(kavern_kv_cache *cache,
                              uint32_t scope,
                              uint64_t namespace_id,
                              uint64_t *removed);

/**
 * Evicts up to `count` blocks of a group that nobody holds, in the policy's order.
 *
 * `evicted` (may be null) receives how many it were.
 * Errors: KAVERN_ERR_INVALID_ARGUMENT (no such group), KAVERN_ERR_UNSUPPORTED (a worker's cache),
 * KAVERN_ERR_INVALID_HANDLE.
 * Threads: any; takes the cache's lock for 64 blocks at a time, so that steps go on between.
 * Since: 0.1
 *
 * Safety: `evicted` must be null or point to a writable value.
 */
kavern_status kavern_kv_evict(kavern_kv_cache *cache,
                              uint32_t group,
                              uint64_t count,
                              uint64_t *evicted);

/**
 * Reads numbered events after `*cursor` and moves it on; start with 0.
 *
 * Shapes: `events` [max]; `count` receives how many were written.
 * Errors: KAVERN_PARTIAL if events were overwritten before they were read, or if `*cursor` is above the latest number,
 * as that of a cache before this one may be: the first of `events` comes after the gap; mend the picture with
 * kavern_kv_events_snapshot. Whoever knows that the cache is another one starts with 0: numbers begin at 1 in each.
 * KAVERN_ERR_UNSUPPORTED for a cache without event_capacity, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_HANDLE.
 * Threads: any; takes the cache's lock for 128 events at a time.
 * Since: 0.1
 *
 * Safety: `cursor` and `count` must be null or point to writable values, `events` to `max` writable elements.
 */
kavern_status kavern_kv_events_read(kavern_kv_cache *cache,
                                    uint64_t *cursor,
                                    size_t max,
                                    kavern_kv_event *events,
                                    size_t *count);

/**
 * Reads what is findable, piece by piece; start with `*position` 0 and go on until the answer is KAVERN_OK.
 *
 * Shapes: `events` [max] of kind KAVERN_EVENT_STORED; `count` receives how many were written. Their `number` is the
 * latest event that they include. While others go on, take last_event of kavern_kv_stats before the first piece,
 * read the events from there on after the last one, and leave out each whose number is not above that of the
 * snapshot's event about the same block; a removal of what is not there says nothing.
 * Errors: KAVERN_PARTIAL if there is more; KAVERN_ERR_INVALID_ARGUMENT if `max` is 0, KAVERN_ERR_NULL_POINTER,
 * KAVERN_ERR_INVALID_HANDLE. Parent keys and offsets are zero in a cache without event_capacity.
 * Threads: any; takes the cache's lock for at most 128 events or 1,024 blocks at a time.
 * Since: 0.1
 *
 * Safety: `position` and `count` must be null or point to writable values, `events` to `max` writable elements.
 */
kavern_status kavern_kv_events_snapshot(kavern_kv_cache *cache,
                                        uint64_t *position,
                                        size_t max,
                                        kavern_kv_event *events,
                                        size_t *count);

/**
 * Writes keys and values of new tokens of one layer into their slots, rounding once to the cache's type.
 *
 * Stream: enqueues on `stream` and returns; the memory must live until the work is done. Keys, values and slots are
 * aligned to the size of their elements. It is work of a step: call it before the kavern_kv_step_done of a step whose
 * tables name the slots. Only blocks of a step that is not over are kept from others and from kavern_kv_resize.
 * Errors: KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_UNSUPPORTED (opaque group, metadata-only cache, a pair of types
 * that is not converted), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE. A slot beyond
 * the pool is an error of the device.
 * Threads: any.
 * Since: 0.1
 *
 * Safety: `args` must be null or point to a struct whose addresses are device memory of the shapes that its fields say.
 */
kavern_status kavern_kv_append(kavern_kv_cache *cache,
                               void *stream,
                               const kavern_kv_append_args *args);

/**
 * Says that you are about to copy from the device to the host, by means of your own.
 *
 * Changes of page tables and such a copy slow each other down. While one runs, the upkeep of the library's pages
 * waits: pages are unmapped and given back later, after 100 ms at most. What an allocation or a commit
 * needs is mapped all the same and counted in loud_table_changes of kavern_manager_stats. Copies of a few kilobytes
 * are not worth the call.
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any; does not block and does not call the device.
 * Owner: end each with kavern_copies_end.
 * Since: 0.1
 *
 * Safety: None beyond a handle or null.
 */
kavern_status kavern_copies_begin(kavern_manager *manager);

/**
 * Says that one copy is over once the stream is past this point; NULL says that it is over now.
 *
 * Which of the copies under way it was does not matter: they are counted.
 * Stream: as for kavern_stream_synchronize, but for NULL; the default stream is KAVERN_STREAM_DEFAULT.
 * Errors: KAVERN_ERR_WRONG_STATE if no copy is under way, or if the stream is being captured, or is the default stream
 * and waits for one that is; then end it by NULL when the graph is done. KAVERN_ERR_INVALID_HANDLE,
 * KAVERN_ERR_NULL_POINTER, KAVERN_ERR_DEVICE. The count then stays.
 * Threads: any, also another than that of the begin; enqueues and returns.
 * Since: 0.1
 *
 * Safety: None beyond handles or null.
 */
kavern_status kavern_copies_end(kavern_manager *manager,
                                void *stream);

/**
 * Counts the devices of a backend ("host", "cuda") on this machine; 0 if its driver is missing.
 *
 * Errors: KAVERN_ERR_INVALID_ARGUMENT for an unknown backend, KAVERN_ERR_NULL_POINTER.
 * Threads: any; may block while a driver starts.
 * Since: 0.1
 *
 * Safety: `backend` must be null or a text that ends with a zero, `count` be null or point to a writable value.
 */
kavern_status kavern_device_count(const char *backend, uint32_t *count);

/**
 * Describes a device ("host", "cuda:0") without opening it for work.
 *
 * Errors: KAVERN_ERR_INVALID_ARGUMENT for an unknown name, KAVERN_ERR_NO_DEVICE, KAVERN_ERR_NULL_POINTER,
 * KAVERN_ERR_STRUCT_SIZE.
 * Threads: any; may block while a driver starts.
 * Since: 0.1
 *
 * Safety: `device` must be null or a text that ends with a zero; `out` be null or point to as many writable bytes as its
 * struct_size says.
 */
kavern_status kavern_device_describe(const char *device,
                                     kavern_device_description *out);

/**
 * Fills a configuration with its defaults: pages of the device, in slabs where they fit; capacity_bytes is yours.
 *
 * `size` is sizeof(kavern_elastic_config) in the caller's header, which may be older or newer than the library.
 * Errors: KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE if `size` is below that of version 0.1 or above 65,536.
 * Since: 0.1
 *
 * Safety: `config` must be null or point to `size` writable bytes.
 */
kavern_status kavern_elastic_config_init(kavern_elastic_config *config,
                                         size_t size);

/**
 * Reserves addresses on the manager's device; nothing is committed yet, and access faults.
 *
 * Errors: KAVERN_ERR_INVALID_ARGUMENT (no capacity, or more than there are addresses; page_bytes is no multiple of the
 * device's page), KAVERN_ERR_UNSUPPORTED (the device cannot map memory), KAVERN_ERR_INVALID_HANDLE,
 * KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE, KAVERN_ERR_OUT_OF_MEMORY, KAVERN_ERR_OUT_OF_HOST_MEMORY (the system
 * gives the device "host" no such range), KAVERN_ERR_DEVICE.
 * Threads: any.
 * Owner: destroy with kavern_elastic_destroy; it keeps its manager alive.
 * Since: 0.1
 *
 * Safety: `config` must be null or point to as many bytes as its struct_size says, `out` be null or point to a writable
 * handle.
 */
kavern_status kavern_elastic_create(kavern_manager *manager,
                                    const kavern_elastic_config *config,
                                    kavern_elastic **out);

/**
 * Gives memory and addresses back and nulls the handle; null is fine.
 *
 * Waits for the streams of decommits. What is still committed is taken at once: no work may use it any more.
 * Errors: KAVERN_ERR_INVALID_HANDLE; the handle then stays as it is.
 * Threads: any, also while others are inside a call on it; blocks.
 * Since: 0.1
 *
 * Safety: `elastic` must be null or point to a writable handle.
 */
kavern_status kavern_elastic_destroy(kavern_elastic **elastic);

/**
 * Puts memory behind a part, widened to whole pages, all or nothing.
 *
 * What is committed already stays as it is and counts as 0 changed bytes. The content of what is committed anew is
 * anything. `out` may be null.
 * Errors: KAVERN_ERR_OUT_OF_MEMORY with the bytes requested and available in the text, KAVERN_ERR_INVALID_ARGUMENT
 * (0 bytes, outside of the capacity), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_DEVICE (also while it keeps a mapping that
 * it was to remove there), KAVERN_ERR_DEVICE_LOST.
 * Threads: any; blocks, and where a part was decommitted behind a stream, until that is past.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to a writable struct.
 */
kavern_status kavern_elastic_commit(kavern_elastic *elastic,
                                    uint64_t offset,
                                    uint64_t bytes,
                                    kavern_elastic_extent *out);

/**
 * Gives a part up, widened to whole pages: what shares a page with it goes too, so give whole pages.
 *
 * What is not committed stays so and counts as 0 changed bytes. Memory that came in a slab goes back when the whole
 * slab is given up; until then it counts as retained, and a later commit finds it there. Where somebody else needs the
 * memory it is theirs as soon as the stream is past, cleared if it changes its model, and these addresses are unmapped
 * a little later: an access to them is then a fault, and until then one to memory of others. `out` may be null.
 * Stream: the memory goes once the stream is past this point; NULL means that no work uses it any more, and
 * KAVERN_STREAM_DEFAULT is the default stream.
 * Errors: KAVERN_ERR_IN_USE (pinned), KAVERN_ERR_WRONG_STATE (the stream is being captured, or it is the default
 * stream and waits for one that is), KAVERN_ERR_INVALID_ARGUMENT (0 bytes, outside of the capacity),
 * KAVERN_ERR_INVALID_HANDLE.
 * Threads: any; does not wait for the stream.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to a writable struct.
 */
kavern_status kavern_elastic_decommit(kavern_elastic *elastic,
                                      uint64_t offset,
                                      uint64_t bytes,
                                      void *stream,
                                      kavern_elastic_extent *out);

/**
 * Writes 1 if every page that a part touches is committed, else 0.
 *
 * Errors: KAVERN_ERR_INVALID_ARGUMENT (0 bytes, outside of the capacity), KAVERN_ERR_INVALID_HANDLE,
 * KAVERN_ERR_NULL_POINTER.
 * Threads: any.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to a writable value.
 */
kavern_status kavern_elastic_is_committed(const kavern_elastic *elastic,
                                          uint64_t offset,
                                          uint64_t bytes,
                                          uint32_t *out);

/**
 * Writes the device address of the range's first byte, which never moves.
 *
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to a writable value.
 */
kavern_status kavern_elastic_base(const kavern_elastic *elastic, uint64_t *out);

/**
 * Commits the first `bytes`, rounded up to pages, and decommits all that follows; 0 decommits everything.
 *
 * The answer's `bytes` is the length in whole pages. `out` may be null.
 * Stream: as for kavern_elastic_decommit, for what is decommitted.
 * Errors: those of kavern_elastic_commit and kavern_elastic_decommit.
 * Threads: any; blocks as a commit does.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to a writable struct.
 */
kavern_status kavern_elastic_resize(kavern_elastic *elastic,
                                    uint64_t bytes,
                                    void *stream,
                                    kavern_elastic_extent *out);

/**
 * Reads what a range has.
 *
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
 * Threads: any.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to as many writable bytes as its struct_size says.
 */
kavern_status kavern_elastic_stats(const kavern_elastic *elastic,
                                   kavern_elastic_statistics *out);

/**
 * Tells which size class a sequence would get that hits nothing, by its length alone; changes nothing.
 *
 * `expected_tokens` is what the sequence is expected to reach, 0 if nobody knows.
 * Errors: KAVERN_ERR_UNSUPPORTED (no KAVERN_KV_ADAPTIVE_BLOCKS, or a worker's cache), KAVERN_ERR_INVALID_HANDLE,
 * KAVERN_ERR_NULL_POINTER.
 * Threads: any; takes the cache's lock for a moment.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to a writable value.
 */
kavern_status kavern_kv_advise(const kavern_kv_cache *cache,
                               uint64_t namespace_id,
                               uint64_t prompt_tokens,
                               uint64_t expected_tokens,
                               kavern_kv_advice *out);

/**
 * Reads what the size class of a group holds and did.
 *
 * Errors: KAVERN_ERR_UNSUPPORTED (no KAVERN_KV_ADAPTIVE_BLOCKS, or a worker's cache), KAVERN_ERR_INVALID_ARGUMENT (no
 * such group), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
 * Threads: any; takes the cache's lock for 1,024 rows at a time.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to as many writable bytes as its struct_size says.
 */
kavern_status kavern_kv_class_stats(const kavern_kv_cache *cache,
                                    uint32_t group,
                                    kavern_kv_class_statistics *out);

/**
 * Pins what a lease holds under a name: these blocks are not evicted, whoever uses them or nobody.
 *
 * They stay until kavern_kv_prefix_unpin or a kavern_kv_reset that takes in their namespace. At most half of a group's
 * blocks are pinned at a time, and 256 names.
 * Shapes: `name` has 1 to 63 bytes. The lease stays yours, for ADMIT or RELEASE.
 * Errors: KAVERN_ERR_LIMIT_REACHED, KAVERN_ERR_IN_USE (the name), KAVERN_ERR_STALE_ID (the lease),
 * KAVERN_ERR_INVALID_ARGUMENT (the name's length, or no UTF-8), KAVERN_ERR_UNSUPPORTED (a worker's cache),
 * KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_HANDLE.
 * Threads: any.
 * Since: 0.1
 *
 * Safety: `name` must be null or point to a text that ends with 0.
 */
kavern_status kavern_kv_prefix_pin(kavern_kv_cache *cache,
                                   const char *name,
                                   uint64_t lease);

/**
 * Gives a named prefix up: its blocks are evictable again when nobody holds or pins them.
 *
 * Errors: KAVERN_ERR_NOT_FOUND (no such name), KAVERN_ERR_INVALID_ARGUMENT (the name's length, or no UTF-8),
 * KAVERN_ERR_UNSUPPORTED (a worker's cache), KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_HANDLE.
 * Threads: any.
 * Since: 0.1
 *
 * Safety: `name` must be null or point to a text that ends with 0.
 */
kavern_status kavern_kv_prefix_unpin(kavern_kv_cache *cache, const char *name);

/**
 * Lists the named prefixes.
 *
 * Shapes: `prefixes` [max]; `count` receives how many there are.
 * Errors: KAVERN_PARTIAL if there are more than `max`: the first of them are given; KAVERN_ERR_NULL_POINTER,
 * KAVERN_ERR_INVALID_HANDLE.
 * Threads: any; takes the cache's lock for the list.
 * Since: 0.1
 *
 * Safety: `prefixes` must point to `max` writable elements, `count` be null or point to a writable value.
 */
kavern_status kavern_kv_prefix_list(kavern_kv_cache *cache,
                                    size_t max,
                                    kavern_kv_prefix *prefixes,
                                    size_t *count);

/**
 * Changes how many blocks a group has while sequences run, 1 to the most that the cache was made for.
 *
 * Growing gets memory first, all or nothing, then hands the new blocks out. Shrinking evicts the blocks above the new
 * count that nobody holds. Those that are held or pinned move below it with the first kavern_kv_tables, or plan, of
 * the steps that follow, at most 64 of a group and 128 MiB a step, as far as there is room: each is one of the step's
 * copies, the tables show the new place, and everything known of the block goes along. A block under a lease whose
 * block_ids were asked for, or of chunks, stays until the lease ends; other ids hold until the next tables. The memory
 * of the highest blocks goes back in whole pages when no step in flight and no work of kavern_kv_fill_pattern and
 * kavern_kv_check_pattern can reach them, if the cache was made with max_blocks; addresses stay.
 * In a metadata-only cache with size classes the memory is that of the workers: sizes from before the first plan reach
 * them with it, later ones count as done when a step is over whose plan told them.
 * Errors: KAVERN_PARTIAL if blocks above are still in use or memory still waits for work: kavern_kv_poll, or the same
 * call again, goes on; that the device cannot say whether work is over is told by kavern_kv_poll, mappings that it did
 * not remove by `failed_unmaps` of kavern_manager_stats. KAVERN_ERR_INVALID_ARGUMENT (no such group, a count out of
 * range), KAVERN_ERR_UNSUPPORTED (a worker's cache), KAVERN_ERR_OUT_OF_MEMORY, KAVERN_ERR_DEVICE (also while it keeps
 * a mapping where memory is to be), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER; then nothing has changed.
 * Threads: any; may wait for the device to map memory. The calls of a step never wait for it: it takes the cache's
 * lock for at most 256 blocks at a time.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to a writable value.
 */
kavern_status kavern_kv_resize(kavern_kv_cache *cache,
                               uint32_t group,
                               uint64_t blocks,
                               kavern_kv_resize_result *out);

/**
 * Sets the function that receives what the library says, up to `level` (a KAVERN_LOG_ value); null removes it.
 *
 * The function gets `userdata`, the level, the room of the library that speaks, and a sentence; both texts are valid
 * during the call only. It is called without a lock of the library, at the end of the call in which something was said
 * or on a thread of the library, and may call the library; what it causes there by its own calls is not passed on to
 * it. It must not throw. The variable KAVERN_LOG (off, error, warn, info, debug) writes to stderr independently of it.
 * Errors: KAVERN_ERR_INVALID_ARGUMENT for an unknown level.
 * Threads: blocks until no other thread is in the former function, which is never called again.
 * Owner: `userdata` stays yours and valid until the function has been replaced or removed.
 * Since: 0.1
 *
 * Safety: `function` must be null or such a function.
 */
kavern_status kavern_set_log_callback(uint32_t level,
                                      kavern_log_fn function,
                                      void *userdata);

/**
 * Tells for each prompt how many tokens kavern_kv_match would find now, without a lease, for routers.
 *
 * The answer is that of the same walk over every link, with as much left to the promises of ADMIT; it may be outdated
 * when it arrives. Counts as no lookup and makes no block newer.
 * Shapes: `requests` [n]; `hit_tokens` [n] receives the tokens, or the negative status of a request that is refused.
 * Errors: KAVERN_PARTIAL if a request was refused (KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_KEY_MODE,
 * KAVERN_ERR_UNSUPPORTED in a worker's cache, which does not know what is cached); KAVERN_ERR_NULL_POINTER,
 * KAVERN_ERR_STRUCT_SIZE, KAVERN_ERR_INVALID_HANDLE.
 * Threads: any; host only, never waits for the device; hashes tokens without the cache's lock, which it takes for
 * each request.
 * Since: 0.1
 *
 * Safety: `requests` must point to `n` structs whose pointers are as their fields say, `hit_tokens` to `n` writable values.
 */
kavern_status kavern_kv_probe(kavern_kv_cache *cache,
                              size_t n,
                              const kavern_kv_request *requests,
                              int64_t *hit_tokens);

/**
 * Computes the hashes under which the full blocks of a prompt are found by kavern_kv_lookup_device.
 *
 * A hash names a block together with its namespace, salt and adapter; it is 128 bits of the key of
 * kavern_kv_block_keys, or of a keyed hash of a key that you chained.
 * Shapes: `hashes` [capacity][2]; `count` receives how many blocks there are.
 * Errors: KAVERN_ERR_BUFFER_TOO_SMALL with `count` set and `hashes` untouched; KAVERN_ERR_INVALID_ARGUMENT (group);
 * as kavern_kv_match for the request.
 * Threads: any; hashes without the cache's lock.
 * Since: 0.1
 *
 * Safety: `request` must be null or point to a struct whose pointers are as its fields say, `hashes` to capacity x 2 writable
 * values, `count` be null or point to a writable value.
 */
kavern_status kavern_kv_block_hashes(kavern_kv_cache *cache,
                                     const kavern_kv_request *request,
                                     uint32_t group,
                                     uint64_t *hashes,
                                     uint64_t capacity,
                                     uint64_t *count);

/**
 * Looks blocks up by their own keys, whatever came before them, in a cache made with KAVERN_KV_CHUNK_INDEX.
 *
 * For passages that stand at other places in other prompts. The namespace takes chunks only: ADMIT a sequence under
 * the lease of a kavern_kv_match with KAVERN_REQUEST_CHUNKS, which finds nothing, and COMMIT one key for each block,
 * for example a digest of its tokens; equal passages then have equal keys. What is found here is read where it lies:
 * copy it into slots of your sequence, rotating keys by `shift`, on the stream of a step that is not done, then
 * RELEASE the lease in that step or later; ADMIT refuses it with KAVERN_ERR_WRONG_STATE. Keys and values of a passage
 * depend on what came before it where it was stored: whether that is good enough is for you to know. A passage whose
 * step is not done is not found yet.
 * Shapes: `token_offsets` [key_count]: where in the new prompt each key's block will lie; null: one after the other
 * from 0. `hits` [groups of the cache][key_count], at least; a key that some group lacks is a miss in all.
 * `result->block_count` tells the hits, all groups together; their tokens are `result->hit_tokens`.
 * Errors: KAVERN_ERR_UNSUPPORTED (no such index), KAVERN_ERR_INVALID_ARGUMENT (no keys, no KAVERN_REQUEST_CHUNKS,
 * flags of a prefix, more keys than a sequence has blocks), KAVERN_ERR_BUFFER_TOO_SMALL (`capacity`),
 * KAVERN_ERR_KEY_MODE, KAVERN_ERR_LIMIT_REACHED, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE,
 * KAVERN_ERR_INVALID_HANDLE; then no lease is held.
 * In a full table of namespaces a new one takes the place of one that idles, whose blocks are evicted.
 * Threads: any; host only, never waits for the device; takes the cache's lock once, and for each 32 blocks that are
 * evicted.
 * Owner: the lease is to be given to RELEASE.
 * Since: 0.1
 *
 * Safety: `request` must be null or point to a struct whose pointers are as its fields say, `token_offsets` be null or point
 * to key_count values, `hits` point to `capacity` writable elements, `result` be null or point to a writable struct.
 */
kavern_status kavern_kv_match_chunks(kavern_kv_cache *cache,
                                     const kavern_kv_request *request,
                                     const uint64_t *token_offsets,
                                     kavern_kv_chunk_hit *hits,
                                     uint64_t capacity,
                                     kavern_kv_match_result *result);

/**
 * Looks rows of block hashes up on the device, in a cache made with KAVERN_KV_DEVICE_INDEX.
 *
 * The answers are those of the host's index as of the latest kavern_kv_tables before this call, block for block. They
 * hold nothing: a block that is not held otherwise may be evicted by a later step, and one that is held may be moved
 * by the tables of a later step. KAVERN_LOOKUP_INDEPENDENT answers the block of the group that is findable under the
 * key of each hash, whatever became of those before it. KAVERN_LOOKUP_PREFIX answers -1 to all that follows the first
 * miss of a row: in a group that needs every block that is what kavern_kv_match finds of it, unless another group, a
 * flag or a promise ends the match earlier. A hash that was never stored is answered with a block with a chance of at
 * most blocks / 2^96. With KAVERN_HASH_XXH3 prompts whose keys collide are one to the device; a match compares tokens.
 * Stream: enqueues on `stream` and returns; another stream than that of the step is ordered by itself. The memory must
 * live until the work is done. Not to be captured into a graph.
 * Errors: KAVERN_ERR_UNSUPPORTED (no such index), KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_INVALID_HANDLE,
 * KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE, KAVERN_ERR_DEVICE.
 * Threads: any, also while another is inside this call or kavern_kv_tables.
 * Since: 0.1
 *
 * Safety: `args` must be null or point to a struct whose addresses are device memory of the shapes that its fields say.
 */
kavern_status kavern_kv_lookup_device(kavern_kv_cache *cache,
                                      void *stream,
                                      const kavern_kv_lookup_args *args);

/**
 * Fills a configuration with its defaults: device "host", no limits, no budget of the machine.
 *
 * `size` is sizeof(kavern_manager_config) in the caller's header, which may be older or newer than the library.
 * Errors: KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE if `size` is below that of version 0.1 or above 65,536.
 * Since: 0.1
 *
 * Safety: `config` must be null or point to `size` writable bytes.
 */
kavern_status kavern_manager_config_init(kavern_manager_config *config,
                                         size_t size);

/**
 * Opens a device.
 *
 * Errors: KAVERN_ERR_INVALID_ARGUMENT (unknown name or parameter of a device, a soft limit or more pages ahead above
 * the limit, a low mark above the high one, a bad name or another limit of the machine's budget),
 * KAVERN_ERR_NO_DEVICE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE, KAVERN_ERR_UNSUPPORTED (pages ahead on a
 * device that cannot map memory), KAVERN_ERR_LIMIT_REACHED (256 processes share the budget), KAVERN_ERR_DEVICE,
 * KAVERN_ERR_OS.
 * Threads: any; blocks while the device opens. After a fork the child gets KAVERN_ERR_FORKED from every call.
 * Owner: destroy with kavern_manager_destroy.
 * Since: 0.1
 *
 * Safety: `config` must be null or point to as many bytes as its struct_size says, `out` be null or point to a writable
 * handle.
 */
kavern_status kavern_manager_create(const kavern_manager_config *config,
                                    kavern_manager **out);

/**
 * Destroys a manager and nulls the handle; null is fine.
 *
 * The device closes when its streams and caches have been destroyed too, before or after. Tickets stay good.
 * Stream: closing waits for all work on the device. A capture of a graph that is under way there stays whole; what it
 * was given of this manager's memory is gone.
 * Errors: KAVERN_ERR_INVALID_HANDLE; the handle then stays as it is.
 * Threads: any, also while others are inside a call on it; may block until the device's work is done.
 * Since: 0.1
 *
 * Safety: `manager` must be null or point to a writable handle.
 */
kavern_status kavern_manager_destroy(kavern_manager **manager);

/**
 * Reads what a manager has and did.
 *
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
 * Threads: any; those that allocate at this moment wait for a few microseconds.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to as many writable bytes as its struct_size says.
 */
kavern_status kavern_manager_stats(const kavern_manager *manager,
                                   kavern_manager_statistics *out);

/**
 * Writes a report for people as JSON: device, live allocations with address, tag, size, stream and age, totals, pools
 * with their blocks in use, elastic ranges, shared pools with their models, pinned memory, streams, tickets, caches.
 *
 * What any stream may use from the beginning has no stream: memory straight from the device unless it was made in a
 * stream's order, pinned memory, elastic ranges, models, and blocks of pools, which are any stream's after the wait
 * of kavern_pool_acquire. A block of a pool goes by the pool's tag, a range by its address and a model by its name.
 * `needed` (may be null) receives the size with the terminating zero; `buf` null with `cap` 0 asks for that size
 * alone. The report may have grown by the next call.
 * Errors: KAVERN_ERR_BUFFER_TOO_SMALL with `needed` set and `buf` untouched; KAVERN_ERR_INVALID_HANDLE,
 * KAVERN_ERR_NULL_POINTER.
 * Threads: any; may block on the device.
 * Since: 0.1
 *
 * Safety: `buf` must be null or point to `cap` writable bytes, `needed` be null or point to a writable value.
 */
kavern_status kavern_manager_report_json(const kavern_manager *manager,
                                         char *buf,
                                         size_t cap,
                                         size_t *needed);

/**
 * Checks the invariants of all books of the manager: limits, allocator, elastic ranges, pools, pinned memory.
 *
 * Errors: KAVERN_ERR_INTERNAL with the broken invariant in the text: a bug of the library. KAVERN_ERR_INVALID_HANDLE.
 * Threads: any; takes time in proportion to all that is allocated or free, and allocations wait for it.
 * Since: 0.1
 *
 * Safety: None beyond a handle or null.
 */
kavern_status kavern_manager_validate(const kavern_manager *manager);

/**
 * Loads every kernel of the library on the manager's device, so that no later call loads one.
 *
 * Call it once before you capture a graph: a kernel that is first used inside a capture would be loaded there, which
 * the driver refuses. A cache with blocks in memory loads its own kernels when it is created. Done twice it does
 * nothing.
 * Errors: KAVERN_ERR_DEVICE, KAVERN_ERR_DEVICE_LOST, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_UNSUPPORTED (no kernel of
 * this library runs on the device).
 * Threads: any; blocks while the kernels are loaded, for seconds where the driver has to compile them.
 * Since: 0.1
 *
 * Safety: None beyond a handle or null.
 */
kavern_status kavern_warmup(const kavern_manager *manager);

/**
 * Lets a stream that the manager did not make be used with it.
 *
 * Stream: a CUstream value of the same device and context, or a kavern_stream of another manager of the same device.
 * Register it before its first use, unregister it before you destroy it. 0 and KAVERN_STREAM_DEFAULT need no
 * registration.
 * Errors: KAVERN_ERR_ALREADY_EXISTS, KAVERN_ERR_INVALID_ARGUMENT (not a stream of that device),
 * KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_LIMIT_REACHED.
 * Threads: any.
 * Owner: the stream stays yours; a kavern_stream keeps its own manager alive until it is unregistered here.
 * Since: 0.1
 *
 * Safety: `stream` must be a live stream of the device if it is a CUstream.
 */
kavern_status kavern_manager_stream_register(kavern_manager *manager,
                                             void *stream);

/**
 * Forgets a registered stream; do it before you destroy the stream.
 *
 * Errors: KAVERN_ERR_INVALID_HANDLE if it is not registered, KAVERN_ERR_IN_USE while another thread uses it in a call.
 * Threads: any; waits for the stream's work if memory was freed on it that is not known to be past it.
 * Since: 0.1
 *
 * Safety: None beyond a handle or null; `stream` is compared and not used.
 */
kavern_status kavern_manager_stream_unregister(kavern_manager *manager,
                                               void *stream);

/**
 * Allocates device memory for work that follows on a stream.
 *
 * The bytes are those that were there before. `alignment` is a power of two up to 2 MiB, 0 for 256; `tag` an id of
 * kavern_tag or 0. A thread that allocates and frees on the same stream is served from a cache of its own: no lock, no
 * call of the driver.
 * Stream: usable at once by work enqueued on `stream`; elsewhere after an order of yours, told by kavern_record_use.
 * Errors: KAVERN_ERR_INVALID_ARGUMENT (0 bytes, alignment), KAVERN_ERR_OUT_OF_MEMORY with a report in the text,
 * KAVERN_ERR_STALE_ID (tag), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_WRONG_STATE (during
 * a capture, on a device that cannot map memory: each allocation comes straight from it), KAVERN_ERR_LIMIT_REACHED
 * (65,536 streams are in use or have live blocks), KAVERN_ERR_DEVICE.
 * Threads: any; blocks only where memory is short or new pages are mapped.
 * Owner: free with kavern_free.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to a writable value; a registered stream must be alive.
 */
kavern_status kavern_alloc(kavern_manager *manager,
                           uint64_t bytes,
                           uint64_t alignment,
                           void *stream,
                           uint64_t tag,
                           uint64_t *out);

/**
 * Allocates as kavern_alloc and enqueues the filling with zeros on the stream.
 *
 * Errors: as kavern_alloc.
 * Threads: any; as kavern_alloc.
 * Owner: free with kavern_free.
 * Since: 0.1
 *
 * Safety: As kavern_alloc.
 */
kavern_status kavern_alloc_zeroed(kavern_manager *manager,
                                  uint64_t bytes,
                                  uint64_t alignment,
                                  void *stream,
                                  uint64_t tag,
                                  uint64_t *out);

/**
 * Frees memory once the work is done that was enqueued on the stream before this call.
 *
 * `address` 0 does nothing. The stream may be another than that of the allocation, if it is ordered after all use.
 * Errors: KAVERN_ERR_INVALID_ARGUMENT (freed before, never allocated, of another manager, not the first byte),
 * KAVERN_ERR_INVALID_HANDLE (manager, stream), KAVERN_ERR_IN_USE (pinned), KAVERN_ERR_NULL_POINTER; KAVERN_ERR_DEVICE
 * or KAVERN_ERR_OUT_OF_MEMORY where the device marks no point on a stream that used the block (kavern_record_use), and
 * KAVERN_ERR_WRONG_STATE beside a capture on a device that cannot map memory. With all of these it is live as before.
 * Two threads that free one address at the same instant may both hear that it was done.
 * Threads: any; does not block.
 * Since: 0.1
 *
 * Safety: No work that is not ordered before this point of the stream may use the memory any more.
 */
kavern_status kavern_free(kavern_manager *manager,
                          uint64_t address,
                          void *stream);

/**
 * Allocates several blocks, all or none.
 *
 * Shapes: `bytes` and `addresses` have `count` elements.
 * Errors: as kavern_alloc; then nothing was allocated and nothing written.
 * Threads: any; as kavern_alloc.
 * Owner: free each with kavern_free or kavern_free_batch.
 * Since: 0.1
 *
 * Safety: `bytes` must be null or point to `count` values, `addresses` to `count` writable ones.
 */
kavern_status kavern_alloc_batch(kavern_manager *manager,
                                 size_t count,
                                 const uint64_t *bytes,
                                 uint64_t alignment,
                                 void *stream,
                                 uint64_t tag,
                                 uint64_t *addresses);

/**
 * Frees several blocks as kavern_free does; one that is refused does not keep the others.
 *
 * Shapes: `addresses` and `statuses` (may be null) have `count` elements.
 * Errors: KAVERN_PARTIAL if some were refused, see `statuses`; KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any; does not block.
 * Since: 0.1
 *
 * Safety: As kavern_free; `addresses` must be null or point to `count` values, `statuses` be null or point to `count` writable
 * ones.
 */
kavern_status kavern_free_batch(kavern_manager *manager,
                                size_t count,
                                const uint64_t *addresses,
                                void *stream,
                                kavern_status *statuses);

/**
 * Reads what a namespace holds and did; zeros without limits for one that is neither in use nor limited.
 *
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
 * Threads: any; takes the cache's lock for a moment.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to as many writable bytes as its struct_size says.
 */
kavern_status kavern_kv_namespace_stats(const kavern_kv_cache *cache,
                                        uint64_t namespace_id,
                                        kavern_kv_namespace_statistics *out);

/**
 * Lists the namespaces that are in use or limited, piece by piece; start with `*position` 0 and go on until the answer
 * is KAVERN_OK.
 *
 * Shapes: `namespace_ids` [max]; `count` receives how many were written. One that comes or goes meanwhile may be
 * missing; none is listed twice unless it went and came again.
 * Errors: KAVERN_PARTIAL if there is more; KAVERN_ERR_INVALID_ARGUMENT if `max` is 0, KAVERN_ERR_NULL_POINTER,
 * KAVERN_ERR_INVALID_HANDLE.
 * Threads: any; takes the cache's lock for a few hundred ids at a time.
 * Since: 0.1
 *
 * Safety: `position` and `count` must be null or point to writable values, `namespace_ids` to `max` writable elements.
 */
kavern_status kavern_kv_namespace_list(const kavern_kv_cache *cache,
                                       uint64_t *position,
                                       size_t max,
                                       uint64_t *namespace_ids,
                                       size_t *count);

/**
 * Sets how many blocks a namespace may hold and how many it may keep cached; UINT64_MAX lifts a limit.
 *
 * Held blocks: an ADMIT, APPEND, RESUME or EDIT after which the namespace would hold more, or a FORK while it does,
 * answers KAVERN_ERR_LIMIT_REACHED with the excess in blocks_missing; what is promised to its sequences counts as
 * held. A lookup is never refused, but what it found counts until its lease is released. Cached
 * blocks: when more come, the namespace's own oldest go, with KAVERN_REMOVE_LIMIT as their reason; blocks of others
 * stay. Oldest is what nobody has held for longest; before the first limit, what was published first.
 * Errors: KAVERN_ERR_LIMIT_REACHED if max_namespaces namespaces have limits, KAVERN_ERR_UNSUPPORTED for a worker's
 * cache, KAVERN_ERR_INVALID_HANDLE.
 * Threads: any; looks at what a namespace holds and keeps that had no limit of cached blocks, 256 at a time under the
 * cache's lock, and makes what is cached beyond the limit go, 32 blocks at a time.
 * Since: 0.1
 *
 * Safety: None beyond a handle or null.
 */
kavern_status kavern_kv_namespace_limit(kavern_kv_cache *cache,
                                        uint64_t namespace_id,
                                        uint64_t max_held_blocks,
                                        uint64_t max_cached_blocks);

/**
 * Gives pinned host memory of exactly so many bytes, whose content is whatever was there before.
 *
 * Aligned to 256 bytes, from 64 KiB on to 4096. A range never reaches over two registrations, so one copy may touch
 * all of it. Memory is made in chunks of up to 1 GiB, near the device, by several threads; a chunk serves many ranges.
 * Errors: KAVERN_ERR_INVALID_ARGUMENT for 0 bytes, KAVERN_ERR_OUT_OF_HOST_MEMORY with what was asked and what is left,
 * KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_DEVICE.
 * Threads: any; blocks while a chunk is made, or is on its way after kavern_pinned_reserve.
 * Owner: free with kavern_pinned_free. `tag` says for what, in reports; null is fine.
 * Since: 0.1
 *
 * Safety: `tag` must be null or a text that ends with a zero; `out` must be null or point to a writable pointer.
 */
kavern_status kavern_pinned_alloc(kavern_manager *manager,
                                  uint64_t bytes,
                                  const char *tag,
                                  void **out);

/**
 * Takes pinned host memory back, at once or when a stream is past its copies.
 *
 * Stream: NULL says that no copy touches it any more; else it comes back when the stream is past all that it was given
 * so far. KAVERN_STREAM_DEFAULT is the default stream.
 * Errors: KAVERN_ERR_INVALID_ARGUMENT for what is no pinned memory of this manager, KAVERN_ERR_WRONG_STATE for what
 * was freed before and is still waiting, and for a stream that is being captured, or the default stream beside a
 * capture that it waits for, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_DEVICE; the memory then stays yours.
 * Threads: any; does not block.
 * Since: 0.1
 *
 * Safety: None beyond handles or null; the memory must not be touched afterwards.
 */
kavern_status kavern_pinned_free(kavern_manager *manager,
                                 void *address,
                                 void *stream);

/**
 * Pins host memory of yours, all of it or nothing.
 *
 * Units: `piece_bytes` is the most that is pinned at a time, 0 for all at once. A driver refuses a copy that reaches
 * from one piece into the next, so pieces suit only copies that stay inside one; 0 suits any.
 * Errors: KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_ALREADY_EXISTS for memory that is pinned already,
 * KAVERN_ERR_OUT_OF_HOST_MEMORY above the manager's limit, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_HANDLE,
 * KAVERN_ERR_DEVICE.
 * Threads: any; blocks while it is pinned.
 * Owner: it stays yours; unregister it before you free it.
 * Since: 0.1
 *
 * Safety: `bytes` bytes at `address` must be readable and writable until kavern_pinned_unregister.
 */
kavern_status kavern_pinned_register(kavern_manager *manager,
                                     void *address,
                                     uint64_t bytes,
                                     uint64_t piece_bytes);

/**
 * Unpins memory that was registered with this address.
 *
 * Errors: KAVERN_ERR_INVALID_ARGUMENT if none was, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_HANDLE,
 * KAVERN_ERR_DEVICE; what is still pinned can be tried again.
 * Threads: any; blocks while copies read it.
 * Since: 0.1
 *
 * Safety: None beyond a handle or null.
 */
kavern_status kavern_pinned_unregister(kavern_manager *manager, void *address);

/**
 * Has at least so many more bytes pinned ahead, in the background.
 *
 * Chunks of 1 GiB serve one by one, the first long before the last; kavern_pinned_alloc waits for the next chunk
 * instead of making one. What stops it is said in the log, and kavern_pinned_alloc then makes chunks of its own.
 * Errors: KAVERN_ERR_OUT_OF_HOST_MEMORY if that is more than the machine has beside what is pinned already,
 * KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_OS.
 * Threads: any; does not block, but on a simulated device.
 * Since: 0.1
 *
 * Safety: None beyond a handle or null.
 */
kavern_status kavern_pinned_reserve(kavern_manager *manager,
                                    uint64_t bytes);

/**
 * Gives back the chunks of pinned host memory of which nothing is in use.
 *
 * Units: `freed` receives bytes and may be null.
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_ARGUMENT.
 * Threads: any; blocks while the device lets go of them.
 * Since: 0.1
 *
 * Safety: `freed` must be null or point to a writable value.
 */
kavern_status kavern_pinned_trim(kavern_manager *manager, uint64_t *freed);

/**
 * Tells what the pool of pinned host memory has and did.
 *
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
 * Threads: any; does not block.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to as many writable bytes as its struct_size says.
 */
kavern_status kavern_pinned_stats(const kavern_manager *manager, kavern_pinned_statistics *out);

/**
 * Writes the plan of a step: what kavern_kv_tables would upload, as a message for caches that own the memory.
 *
 * The cache is metadata-only and makes the plan of its open step, after kavern_kv_step. The plan tells the batch and
 * what changed since the plan before; every worker gets the same message, over whatever you have. `flags`: 0 or
 * KAVERN_PLAN_FULL. A full plan right after the plan of the same step has the same number, so it brings one worker up
 * to the others; made instead of it, it goes to all of them.
 * Shapes: `buffer` [capacity] bytes; `needed` receives the bytes of the message, or, if they do not fit, bytes that
 * are enough. While a shrink by kavern_kv_resize is under way these are more than the message gets: blocks move only
 * with a plan whose buffer has room for the cells of every row, so they stay where they are if it is never as large.
 * Errors: KAVERN_ERR_BUFFER_TOO_SMALL: nothing was written, moved or told; KAVERN_ERR_WRONG_STATE if the step is not
 * the open one; KAVERN_ERR_UNSUPPORTED for a cache that owns memory; KAVERN_ERR_INVALID_ARGUMENT,
 * KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any; host only; takes the cache's lock while the message is written.
 * Since: 0.1
 *
 * Safety: `buffer` must be null with a capacity of 0 or point to `capacity` writable bytes, `needed` be null or point to a
 * writable value.
 */
kavern_status kavern_kv_plan_export(kavern_kv_cache *cache,
                                    uint64_t step_id,
                                    uint32_t flags,
                                    void *buffer,
                                    uint64_t capacity,
                                    uint64_t *needed);

/**
 * Reads what a plan is about, so that a worker knows its step; checks that the message is whole.
 *
 * Shapes: `message` [bytes].
 * Errors: KAVERN_ERR_INVALID_ARGUMENT for what is no whole and unchanged plan, KAVERN_ERR_UNSUPPORTED for one of
 * another version, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
 * Threads: any.
 * Since: 0.1
 *
 * Safety: `message` must point to `bytes` bytes, `out` be null or point to as many writable bytes as its struct_size says.
 */
kavern_status kavern_kv_plan_read(const void *message,
                                  uint64_t bytes,
                                  kavern_kv_plan_info *out);

/**
 * Applies a plan: uploads and fills what it tells and gives the tables of its step, as kavern_kv_tables does.
 *
 * The cache was made with KAVERN_KV_WORKER and with the groups, max_sequences, max_batch_tokens and scrubbing of its
 * scheduler; heads, types and bytes of a block may differ. Call kavern_kv_step_done with the plan's step on this cache
 * when its work is enqueued, and tell the scheduler, whose cache gets kavern_kv_step_done with a null stream when all
 * workers are done. With KAVERN_KV_ADAPTIVE_BLOCKS and max_blocks the memory of the size classes follows the plan, and
 * KAVERN_ERR_OUT_OF_MEMORY says that there is none for a class that grew: nothing was taken over but that others have
 * become smaller, and the same plan may be applied again when there is.
 * Shapes: `message` [bytes], read before the call returns; `out` as in kavern_kv_tables.
 * Stream: as kavern_kv_tables.
 * Errors: KAVERN_ERR_DEPENDENCY if a plan before it was missed, or if it is another scheduler's: ask for a full one.
 * KAVERN_ERR_INVALID_ARGUMENT for a message that was cut or changed, whose numbers are out of range, or whose geometry
 * is not this cache's; KAVERN_ERR_UNSUPPORTED for another version, for one that tells no sizes of classes where memory
 * follows them, and for a cache that is no worker's;
 * KAVERN_ERR_WRONG_STATE for a plan that was applied before and for a step that is over; KAVERN_ERR_TOO_MANY_STEPS;
 * with all of these nothing has changed. KAVERN_ERR_DEVICE, after which the same plan may be applied again; the others
 * of kavern_kv_tables.
 * Threads: any, one at a time; may wait for the device to map memory for a class that grew.
 * Since: 0.1
 *
 * Safety: `message` must point to `bytes` bytes; `out` as in kavern_kv_tables.
 */
kavern_status kavern_kv_plan_apply(kavern_kv_cache *worker,
                                   void *stream,
                                   const void *message,
                                   uint64_t bytes,
                                   kavern_kv_step_tables *out);

/**
 * Fills a configuration with its defaults: size classes 1 KiB x 32, 64 KiB x 16, 1 MiB x 8, growth by 4, no limit,
 * idle blocks go back after 5 minutes.
 *
 * `size` is sizeof(kavern_pool_config) in the caller's header, which may be older or newer than the library.
 * Errors: KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE if `size` is below that of version 0.1 or above 65,536.
 * Since: 0.1
 *
 * Safety: `config` must be null or point to `size` writable bytes.
 */
kavern_status kavern_pool_config_init(kavern_pool_config *config,
                                      size_t size);

/**
 * Makes a pool with its initial blocks.
 *
 * Errors: KAVERN_ERR_INVALID_ARGUMENT (classes of more than 1 MiB in managed memory too), KAVERN_ERR_UNSUPPORTED for
 * managed memory on a device without it (KAVERN_DEVICE_MANAGED_MEMORY), KAVERN_ERR_OUT_OF_MEMORY,
 * KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE, KAVERN_ERR_DEVICE.
 * Threads: any; blocks while memory is allocated.
 * Owner: destroy with kavern_pool_destroy; it keeps its manager alive.
 * Since: 0.1
 *
 * Safety: `config` and what it points to must be as its fields say; `out` must be null or point to a writable handle.
 */
kavern_status kavern_pool_create(kavern_manager *manager,
                                 const kavern_pool_config *config,
                                 kavern_pool **out);

/**
 * Destroys a pool and nulls the handle; null is fine. Blocks that are still in use go too, which is told as a warning
 * with their number and bytes.
 *
 * Errors: KAVERN_ERR_INVALID_HANDLE; the handle then stays as it is.
 * Threads: any, also while others are inside a call on it; blocks until the device has stopped using its memory.
 * Since: 0.1
 *
 * Safety: `pool` must be null or point to a writable handle.
 */
kavern_status kavern_pool_destroy(kavern_pool **pool);

/**
 * Hands out a block for work that follows on the stream; its bytes are whatever was there before.
 *
 * A block that the same stream released is handed out at once; one of another stream when its work is known to be
 * done, or, where the pool cannot grow, behind a wait that is put on this stream.
 * Stream: as for kavern_stream_synchronize. A stream that is being captured is never made to wait, and its blocks
 * serve no other stream while the capture lasts.
 * Errors: KAVERN_ERR_INVALID_ARGUMENT for 0 bytes and for more than the largest class, KAVERN_ERR_OUT_OF_MEMORY with
 * what was requested, what is held, and the limit; KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER,
 * KAVERN_ERR_DEVICE.
 * Threads: any; blocks only while the pool grows or gives idle blocks back.
 * Owner: release with kavern_pool_release.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to a writable block.
 */
kavern_status kavern_pool_acquire(kavern_pool *pool,
                                  uint64_t bytes,
                                  void *stream,
                                  kavern_pool_block *out);

/**
 * Takes a block back. All work on it must be on this stream, or come before it there.
 *
 * Stream: as for kavern_stream_synchronize.
 * Errors: KAVERN_ERR_INVALID_ARGUMENT for an address that is no block of this pool, KAVERN_ERR_WRONG_STATE for a block
 * that is not in use, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any; does not call the device, unless idle blocks are due to go back and no thread of the library looks.
 * Since: 0.1
 *
 * Safety: None beyond handles or null.
 */
kavern_status kavern_pool_release(kavern_pool *pool,
                                  uint64_t address,
                                  void *stream);

/**
 * Hands out a block for each request, or none at all.
 *
 * Shapes: `bytes` [n], `blocks` [n], `states` [n]. If a request is refused the call answers its error, its state is
 * that error, the others' is KAVERN_ERR_DEPENDENCY, and `blocks` stays as it was; else all states are KAVERN_OK.
 * Stream: as for kavern_pool_acquire.
 * Errors: those of kavern_pool_acquire.
 * Threads: any; blocks only while the pool grows or gives idle blocks back.
 * Owner: release each block.
 * Since: 0.1
 *
 * Safety: `bytes` must point to `n` values, `blocks` and `states` to `n` writable ones; null is fine where n is 0.
 */
kavern_status kavern_pool_acquire_batch(kavern_pool *pool,
                                        size_t n,
                                        const uint64_t *bytes,
                                        void *stream,
                                        kavern_pool_block *blocks,
                                        int32_t *states);

/**
 * Takes all of these blocks back, or none at all.
 *
 * Shapes: `addresses` [n], `states` [n]. If one is refused the call answers the first error, the states of those that
 * are wrong are their errors, the others' is KAVERN_ERR_DEPENDENCY; else all states are KAVERN_OK.
 * Stream: as for kavern_pool_release.
 * Errors: those of kavern_pool_release; an address that stands twice is not in use the second time.
 * Threads: any; does not call the device, unless idle blocks are due to go back and no thread of the library looks.
 * Since: 0.1
 *
 * Safety: `addresses` must point to `n` values, `states` to `n` writable ones; null is fine where n is 0.
 */
kavern_status kavern_pool_release_batch(kavern_pool *pool,
                                        size_t n,
                                        const uint64_t *addresses,
                                        void *stream,
                                        int32_t *states);

/**
 * Tells what a pool has and did, as a whole and by class.
 *
 * Shapes: `classes` [max], by rising size; as many are written as there are, at most `max`. `out.class_count` says how
 * many there are.
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
 * Threads: any; does not block.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to as many writable bytes as its struct_size says; `classes` must point to `max`
 * writable elements; null is fine where max is 0.
 */
kavern_status kavern_pool_stats(const kavern_pool *pool,
                                kavern_pool_statistics *out,
                                size_t max,
                                kavern_pool_class_statistics *classes);

/**
 * Gives back batches of blocks that nobody used for so long and whose streams are done with them.
 *
 * Units: nanoseconds; 0 gives all idle batches back. `freed` receives bytes and may be null.
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_ARGUMENT.
 * Threads: any; blocks while the device takes the memory back.
 * Since: 0.1
 *
 * Safety: `freed` must be null or point to a writable value.
 */
kavern_status kavern_pool_trim(kavern_pool *pool, uint64_t older_than_ns, uint64_t *freed);

/**
 * Checks the invariants of a pool.
 *
 * Errors: KAVERN_ERR_INTERNAL with what does not hold, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any; takes the pool's lock for a pass over its blocks.
 * Since: 0.1
 *
 * Safety: None beyond a handle or null.
 */
kavern_status kavern_pool_validate(const kavern_pool *pool);

/**
 * Fills a configuration with its defaults: pages of the device, in slabs where they fit, no budget of the machine;
 * physical_limit_bytes is yours.
 *
 * `size` is sizeof(kavern_shared_pool_config) in the caller's header, which may be older or newer than the library.
 * Errors: KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE if `size` is below that of version 0.1 or above 65,536.
 * Since: 0.1
 *
 * Safety: `config` must be null or point to `size` writable bytes.
 */
kavern_status kavern_shared_pool_config_init(kavern_shared_pool_config *config,
                                             size_t size);

/**
 * Makes a pool without models. What it holds is charged to the manager's limit of device memory too.
 *
 * Errors: KAVERN_ERR_INVALID_ARGUMENT (a limit of less than a page, more pages ahead than that, a low mark above the
 * high one, a bad name or another limit of the machine's budget), KAVERN_ERR_UNSUPPORTED (the device cannot map
 * memory), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE, KAVERN_ERR_LIMIT_REACHED (256
 * processes share the budget), KAVERN_ERR_OS, KAVERN_ERR_DEVICE.
 * Threads: any.
 * Owner: destroy with kavern_shared_pool_destroy; it keeps its manager alive.
 * Since: 0.1
 *
 * Safety: `config` must be null or point to as many bytes as its struct_size says, `out` be null or point to a writable
 * handle.
 */
kavern_status kavern_shared_pool_create(kavern_manager *manager,
                                        const kavern_shared_pool_config *config,
                                        kavern_shared_pool **out);

/**
 * Lets all models go and nulls the handle; null is fine.
 *
 * Waits for the streams of decommits. What is still committed is taken at once: no work may use it any more. Callbacks
 * and their userdata stay in use until no call on the pool is running.
 * Errors: KAVERN_ERR_INVALID_HANDLE; the handle then stays as it is.
 * Threads: any, also while others are inside a call on it; blocks.
 * Since: 0.1
 *
 * Safety: `pool` must be null or point to a writable handle.
 */
kavern_status kavern_shared_pool_destroy(kavern_shared_pool **pool);

/**
 * Takes a model in, with addresses of its own.
 *
 * `min_bytes` is always there for it, whatever others do; what is over all minimums goes by `weight` (at least 1)
 * when memory is short; it never has more than `cap_bytes` (0 for no cap but the pool's limit).
 * Errors: KAVERN_ERR_ALREADY_EXISTS, KAVERN_ERR_INVALID_ARGUMENT (no name or capacity, a weight of 0, minimums over
 * the limit or the cap), KAVERN_ERR_OUT_OF_MEMORY (others use what the minimum needs, and did not give it when asked),
 * KAVERN_ERR_OUT_OF_HOST_MEMORY (the system gives the device "host" no such range), KAVERN_ERR_INVALID_HANDLE,
 * KAVERN_ERR_NULL_POINTER.
 * Threads: any, while others work; may call callbacks of other models.
 * Since: 0.1
 *
 * Safety: `name` must be null or a text that ends with a zero.
 */
kavern_status kavern_shared_pool_register_model(kavern_shared_pool *pool,
                                                const char *name,
                                                uint64_t virtual_capacity,
                                                uint64_t min_bytes,
                                                uint64_t weight,
                                                uint64_t cap_bytes);

/**
 * Lets a model go with all its memory; its callback is not called any more when this returns.
 *
 * Waits for the streams of its decommits. What is still committed is taken at once: no work may use it any more.
 * Errors: KAVERN_ERR_NOT_FOUND, KAVERN_ERR_IN_USE (a range is pinned), KAVERN_ERR_INVALID_HANDLE,
 * KAVERN_ERR_NULL_POINTER.
 * Threads: any, while others work; blocks.
 * Since: 0.1
 *
 * Safety: `name` must be null or a text that ends with a zero.
 */
kavern_status kavern_shared_pool_unregister_model(kavern_shared_pool *pool,
                                                  const char *name);

/**
 * Puts memory behind a part of a model's range, widened to whole pages, all or nothing.
 *
 * New memory is zeroed if another model had it or the device has just made it; what comes back to the model that had
 * it last may hold its old bytes. When memory is short, models that have more than is due are asked by their
 * callbacks, the greediest first. `out` may be null.
 * Errors: KAVERN_ERR_OUT_OF_MEMORY with the bytes requested and available in the text, KAVERN_ERR_NOT_FOUND,
 * KAVERN_ERR_INVALID_ARGUMENT (0 bytes, outside of the capacity), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER,
 * KAVERN_ERR_DEVICE, KAVERN_ERR_DEVICE_LOST.
 * Threads: any; blocks until the memory is zeroed, may call callbacks of other models and wait for their streams.
 * Since: 0.1
 *
 * Safety: `name` must be null or a text that ends with a zero, `out` be null or point to a writable struct.
 */
kavern_status kavern_shared_pool_commit(kavern_shared_pool *pool,
                                        const char *name,
                                        uint64_t offset,
                                        uint64_t bytes,
                                        kavern_elastic_extent *out);

/**
 * Gives up a part of a model's range, as kavern_elastic_decommit does.
 *
 * Stream: as for kavern_elastic_decommit.
 * Errors: those of kavern_elastic_decommit, KAVERN_ERR_NOT_FOUND, KAVERN_ERR_NULL_POINTER.
 * Threads: any; does not wait for the stream.
 * Since: 0.1
 *
 * Safety: `name` must be null or a text that ends with a zero, `out` be null or point to a writable struct.
 */
kavern_status kavern_shared_pool_decommit(kavern_shared_pool *pool,
                                          const char *name,
                                          uint64_t offset,
                                          uint64_t bytes,
                                          void *stream,
                                          kavern_elastic_extent *out);

/**
 * Writes the device address of the first byte of a model's range, which never moves.
 *
 * Errors: KAVERN_ERR_NOT_FOUND, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any.
 * Since: 0.1
 *
 * Safety: `name` must be null or a text that ends with a zero, `out` be null or point to a writable value.
 */
kavern_status kavern_shared_pool_base(const kavern_shared_pool *pool, const char *name, uint64_t *out);

/**
 * Reads what a model has.
 *
 * Errors: KAVERN_ERR_NOT_FOUND, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
 * Threads: any.
 * Since: 0.1
 *
 * Safety: `name` must be null or a text that ends with a zero, `out` be null or point to as many writable bytes as its
 * struct_size says.
 */
kavern_status kavern_shared_pool_model_stats(const kavern_shared_pool *pool,
                                             const char *name,
                                             kavern_model_statistics *out);

/**
 * Reads what a pool has and did.
 *
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
 * Threads: any.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to as many writable bytes as its struct_size says.
 */
kavern_status kavern_shared_pool_stats(const kavern_shared_pool *pool,
                                       kavern_shared_pool_statistics *out);

/**
 * Keeps a committed part, widened to whole pages, committed until it is unpinned as often.
 *
 * Memory that you have registered with NCCL, RDMA or IPC must not move: pin it for that time.
 * Errors: KAVERN_ERR_WRONG_STATE (not committed), KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_NOT_FOUND,
 * KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any.
 * Since: 0.1
 *
 * Safety: `name` must be null or a text that ends with a zero.
 */
kavern_status kavern_shared_pool_pin_range(kavern_shared_pool *pool,
                                           const char *name,
                                           uint64_t offset,
                                           uint64_t bytes);

/**
 * Undoes one pin of the same part.
 *
 * Errors: KAVERN_ERR_NOT_FOUND (no such model, or no pin of this part), KAVERN_ERR_INVALID_ARGUMENT,
 * KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any.
 * Since: 0.1
 *
 * Safety: `name` must be null or a text that ends with a zero.
 */
kavern_status kavern_shared_pool_unpin_range(kavern_shared_pool *pool,
                                             const char *name,
                                             uint64_t offset,
                                             uint64_t bytes);

/**
 * Sets what is called when others need memory that a model has over its due; a null callback takes it away.
 *
 * The former callback is not running on any other thread when this returns, and is not called again. Instead of a
 * callback, kavern_model_statistics.wanted_bytes can be looked at.
 * Errors: KAVERN_ERR_NOT_FOUND, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any; blocks while the former callback runs. The callback runs on the thread that needs memory, without a
 * lock; what it commits in turn asks nobody.
 * Owner: callback and userdata stay yours, and valid until they are taken away or the model is unregistered.
 * Since: 0.1
 *
 * Safety: `name` must be null or a text that ends with a zero; `callback` must be null or a function of that type.
 */
kavern_status kavern_shared_pool_on_reclaim(kavern_shared_pool *pool,
                                            const char *name,
                                            kavern_reclaim_fn callback,
                                            void *userdata);

/**
 * Enqueues, on a simulated device, an operation that reads and writes these ranges, in place of a kernel of yours.
 *
 * Nothing is computed. A written range of 16 bytes or more gets a mark in its first 16 bytes, and a later read of a
 * range that begins there checks it. What has no order with what is counted and told by kavern_sim_report.
 * Shapes: `reads` [n_reads], `writes` [n_writes].
 * Stream: as for kavern_stream_synchronize. The default stream has no implicit order with others here.
 * Errors: KAVERN_ERR_UNSUPPORTED on a device that is not simulated, KAVERN_ERR_INVALID_ARGUMENT for addresses that no
 * simulated device has, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any; enqueues and returns. Threads count as ordered by their calls, unless the device was opened with
 * threads=separate.
 * Since: 0.1
 *
 * Safety: `reads` must point to `n_reads` values and `writes` to `n_writes`; null is fine where the count is 0.
 */
kavern_status kavern_sim_launch(kavern_manager *manager,
                                void *stream,
                                const kavern_sim_range *reads,
                                size_t n_reads,
                                const kavern_sim_range *writes,
                                size_t n_writes);

/**
 * Writes what a simulated device has found so far as JSON.
 *
 * Counts by kind, the first findings in full, and a hash of what ran.
 *
 * Only work that has run was looked at: synchronise first. `races` is the sum of the counts but for unrecorded_wait
 * and stale_handle, which are hints. `needed` (may be null) receives the size with the terminating zero; `buf` null
 * with `cap` 0 asks for that size alone.
 * Errors: KAVERN_ERR_UNSUPPORTED on a device that is not simulated, KAVERN_ERR_BUFFER_TOO_SMALL with `needed` set and
 * `buf` untouched, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any; does not wait.
 * Since: 0.1
 *
 * Safety: `buf` must be null or point to `cap` writable bytes, `needed` be null or point to a writable value.
 */
kavern_status kavern_sim_report(const kavern_manager *manager,
                                char *buf,
                                size_t cap,
                                size_t *needed);

/**
 * Lets a simulated device pick from another seed from here on, so that one program tries many orders.
 *
 * What was found so far stays in the report. The same seed after the same calls gives the same order.
 * Errors: KAVERN_ERR_UNSUPPORTED on a device that is not simulated, KAVERN_ERR_INVALID_HANDLE,
 * KAVERN_ERR_NULL_POINTER.
 * Threads: any; does not wait.
 * Since: 0.1
 *
 * Safety: None beyond a handle or null.
 */
kavern_status kavern_sim_seed(kavern_manager *manager, uint64_t seed);

/**
 * Looks prompts up and keeps what it finds alive by leases.
 *
 * Shapes: `requests` [n], `results` [n]; block ids of request i go to its own block_ids, group after group.
 * Errors: KAVERN_PARTIAL if a request was refused, with the reason in its result (KAVERN_ERR_INVALID_ARGUMENT,
 * KAVERN_ERR_KEY_MODE, KAVERN_ERR_LIMIT_REACHED for leases or namespaces, KAVERN_ERR_UNSUPPORTED in a worker's cache,
 * KAVERN_ERR_BUFFER_TOO_SMALL: lease and counts are given, block ids are not); KAVERN_ERR_NULL_POINTER,
 * KAVERN_ERR_STRUCT_SIZE, KAVERN_ERR_INVALID_HANDLE.
 * In a full table of namespaces a new one takes the place of one that idles, whose blocks are evicted.
 * Threads: any; host only, never waits for the device; hashes tokens without the cache's lock, which it takes for
 * each request, and for each 64 blocks that are evicted.
 * Owner: each lease is to be given to ADMIT or RELEASE.
 * Since: 0.1
 *
 * Safety: `requests` must point to `n` structs whose pointers are as their fields say, `results` to `n` writable elements.
 */
kavern_status kavern_kv_match(kavern_kv_cache *cache,
                              size_t n,
                              const kavern_kv_request *requests,
                              kavern_kv_match_result *results);

/**
 * Applies a list of operations in order, each all or nothing.
 *
 * Shapes: `ops` [n], `results` [n]. `step_id` rises from step to step; the newest one may be used again until its
 * kavern_kv_step_done. An operation may name the sequence that an earlier ADMIT or FORK of the list makes by
 * KAVERN_SEQ_OF_OP(i). A field that a kind of operation does not use is 0.
 * Errors: KAVERN_PARTIAL if an operation was refused, with the reason in its result: KAVERN_ERR_OUT_OF_BLOCKS with
 * what is missing, KAVERN_ERR_LIMIT_REACHED (rows, batch), KAVERN_ERR_STALE_ID, KAVERN_ERR_DEPENDENCY,
 * KAVERN_ERR_KEY_MODE, KAVERN_ERR_IN_USE (the row; or what would be taken back was found), KAVERN_ERR_WRONG_STATE (the
 * sequence is preempted, or the open step is yet to write what is needed), KAVERN_ERR_UNSUPPORTED,
 * KAVERN_ERR_INVALID_ARGUMENT. The call itself: KAVERN_ERR_WRONG_STATE (step_id), KAVERN_ERR_TOO_MANY_STEPS,
 * KAVERN_ERR_UNSUPPORTED (a worker's cache), KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE,
 * KAVERN_ERR_INVALID_HANDLE; then nothing was applied.
 * Threads: any; host only, never waits for the device, grows no memory; takes the cache's lock for the list.
 * Since: 0.1
 *
 * Safety: `ops` must point to `n` structs whose pointers are as their fields say, `results` to `n` writable elements.
 */
kavern_status kavern_kv_step(kavern_kv_cache *cache,
                             uint64_t step_id,
                             size_t n,
                             const kavern_kv_op *ops,
                             kavern_kv_op_result *results);

/**
 * Brings the device tables up to date with a step and tells where they are.
 *
 * Shapes: `out->groups` [at least the groups of the cache], or null.
 * Stream: enqueues zero fills, copies of tokens, one copy of what changed and its spreading on `stream`, after the
 * steps before it; enqueue the step's work on the same stream. Addresses never change. Host pointers may be read
 * until the next kavern_kv_step, those of the batch until steps_in_flight further steps.
 * Errors: KAVERN_ERR_WRONG_STATE if the step is not the open one, or if an earlier one runs on another stream without
 * its kavern_kv_step_done; KAVERN_ERR_BUFFER_TOO_SMALL with group_count set; KAVERN_ERR_IN_USE if another thread is
 * inside this call; KAVERN_ERR_DEVICE, after which the call may be repeated; KAVERN_ERR_INVALID_HANDLE,
 * KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
 * Threads: any; waits for the device only if a step changes more cells than the staging holds.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to as many writable bytes as its struct_size says, `out->groups` to group_capacity
 * writable elements.
 */
kavern_status kavern_kv_tables(kavern_kv_cache *cache,
                               uint64_t step_id,
                               void *stream,
                               kavern_kv_step_tables *out);

/**
 * Collects finished loads and stores of other tiers, and the blocks of steps whose work is over.
 *
 * Shapes: `completions` [max]; `count` receives how many were written. Without other tiers it is always 0.
 * Errors: KAVERN_ERR_DEVICE (also while it keeps a mapping where memory is to be), KAVERN_ERR_DEVICE_LOST,
 * KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any; asks the device for the state of events, does not wait, unless memory moves between the size classes
 * of KAVERN_KV_ADAPTIVE_BLOCKS: then it maps a step of it. The calls of a step never wait for that.
 * Since: 0.1
 *
 * Safety: `completions` must point to `max` writable elements, `count` be null or point to a writable value.
 */
kavern_status kavern_kv_poll(kavern_kv_cache *cache,
                             size_t max,
                             kavern_kv_completion *completions,
                             size_t *count);

/**
 * Says that all work of the steps up to `step_id` is enqueued on `stream`.
 *
 * Blocks that these steps may read return when the stream is past this point.
 * Stream: records an event; null says that the work is already over, so name the default stream by
 * KAVERN_STREAM_DEFAULT.
 * Errors: KAVERN_ERR_WRONG_STATE (step not begun, done before while its work is not over yet, or with copies that
 * kavern_kv_tables has not enqueued), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_DEVICE. Of a step that is known to be
 * over, and of 0, nothing is left to say: KAVERN_OK.
 * Threads: any; does not wait.
 * Since: 0.1
 *
 * Safety: None beyond handles or null.
 */
kavern_status kavern_kv_step_done(kavern_kv_cache *cache,
                                  uint64_t step_id,
                                  void *stream);

/**
 * Computes the keys under which the full links of a prompt are found, for routers and tests.
 *
 * Shapes: `keys` [capacity][32]; `count` receives how many there are.
 * Errors: KAVERN_ERR_BUFFER_TOO_SMALL with `count` set and `keys` untouched; as kavern_kv_match for the request.
 * Threads: any; hashes without the cache's lock.
 * Since: 0.1
 *
 * Safety: `request` must be null or point to a struct whose pointers are as its fields say, `keys` to capacity x 32 writable
 * bytes, `count` be null or point to a writable value.
 */
kavern_status kavern_kv_block_keys(kavern_kv_cache *cache,
                                   const kavern_kv_request *request,
                                   uint8_t *keys,
                                   uint64_t capacity,
                                   uint64_t *count);

/**
 * Writes a recognisable pattern into blocks, one seed for each, for replays and for proofs of placement.
 *
 * Shapes: `block_ids` [n], `seeds` [n]; both are read before the call returns. A block may be listed once.
 * Stream: enqueues on `stream`. It belongs to no step: blocks that nobody holds may be named too, and kavern_kv_resize
 * takes no memory away from a block before the work of these calls that names it is over.
 * Errors: KAVERN_ERR_INVALID_ARGUMENT (group or block), KAVERN_ERR_UNSUPPORTED (metadata-only cache),
 * KAVERN_ERR_IN_USE, KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_DEVICE.
 * Threads: any, eight at a time; may wait for earlier calls of its kind.
 * Since: 0.1
 *
 * Safety: `block_ids` and `seeds` must point to `n` values each.
 */
kavern_status kavern_kv_fill_pattern(kavern_kv_cache *cache,
                                     void *stream,
                                     uint32_t group,
                                     size_t n,
                                     const int32_t *block_ids,
                                     const uint64_t *seeds);

/**
 * Compares blocks with the patterns of their seeds; what differs is counted for kavern_kv_pattern_result.
 *
 * Shapes, Stream, Errors, Threads: as kavern_kv_fill_pattern.
 * Since: 0.1
 *
 * Safety: `block_ids` and `seeds` must point to `n` values each.
 */
kavern_status kavern_kv_check_pattern(kavern_kv_cache *cache,
                                      void *stream,
                                      uint32_t group,
                                      size_t n,
                                      const int32_t *block_ids,
                                      const uint64_t *seeds);

/**
 * Waits for all checks begun so far, tells what they found and starts again from zero.
 *
 * Errors: KAVERN_ERR_UNSUPPORTED (metadata-only cache), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER,
 * KAVERN_ERR_DEVICE_LOST.
 * Threads: any; blocks until the checks are done.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to a writable struct.
 */
kavern_status kavern_kv_pattern_result(kavern_kv_cache *cache, kavern_kv_check_result *out);

/**
 * Makes a stream, to be passed wherever a `void *stream` is taken together with this manager.
 *
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_LIMIT_REACHED, KAVERN_ERR_DEVICE.
 * Threads: any.
 * Owner: destroy with kavern_stream_destroy; it keeps its manager alive.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to a writable handle.
 */
kavern_status kavern_stream_create(kavern_manager *manager, kavern_stream **out);

/**
 * Waits for the stream's work, destroys the stream and nulls the handle; null is fine.
 *
 * Errors: KAVERN_ERR_INVALID_HANDLE; the handle then stays as it is.
 * Threads: any; blocks until the work is done. A call on another thread that uses the stream ends first.
 * Since: 0.1
 *
 * Safety: `stream` must be null or point to a writable handle.
 */
kavern_status kavern_stream_destroy(kavern_stream **stream);

/**
 * Waits until all work enqueued on the stream so far is done.
 *
 * Stream: 0 or KAVERN_STREAM_DEFAULT for the default stream, a kavern_stream of this manager, or a registered one.
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_DEVICE_LOST.
 * Threads: any; blocks.
 * Since: 0.1
 *
 * Safety: None beyond handles or null.
 */
kavern_status kavern_stream_synchronize(kavern_manager *manager,
                                        void *stream);

/**
 * Makes later work on the stream wait for the work of a ticket.
 *
 * Stream: as for kavern_stream_synchronize.
 * Errors: KAVERN_ERR_STALE_ID for what is no ticket, KAVERN_ERR_INVALID_ARGUMENT for one of another manager, the
 * ticket's own error if its work has failed, KAVERN_ERR_INVALID_HANDLE.
 * Threads: any; enqueues and returns.
 * Since: 0.1
 *
 * Safety: None beyond handles or null.
 */
kavern_status kavern_stream_wait(kavern_manager *manager,
                                 void *stream,
                                 uint64_t ticket);

/**
 * Makes a ticket for all work enqueued on the stream so far.
 *
 * Stream: as for kavern_stream_synchronize.
 * Errors: KAVERN_ERR_WRONG_STATE (the stream is being captured, or it is the default stream and waits for one that
 * is), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_INVALID_ARGUMENT, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_LIMIT_REACHED if
 * 2^20 tickets are pending.
 * Threads: any; enqueues and returns.
 * Owner: nothing to free; a ticket that nobody asks for goes by itself.
 * Since: 0.1
 *
 * Safety: `ticket` must be null or point to a writable value.
 */
kavern_status kavern_stream_record(kavern_manager *manager,
                                   void *stream,
                                   uint64_t *ticket);

/**
 * Asks for the state of tickets, of any managers.
 *
 * Shapes: `tickets` [n], `states` [n]. A state is KAVERN_OK (done), KAVERN_PENDING, or an error: the ticket's own,
 * told once, after which it counts as done; KAVERN_ERR_STALE_ID for what is no ticket.
 * Errors: the call answers KAVERN_PENDING if a ticket is pending, else KAVERN_PARTIAL if a state is an error, else
 * KAVERN_OK; KAVERN_ERR_NULL_POINTER, KAVERN_ERR_INVALID_ARGUMENT.
 * Threads: any; does not block.
 * Since: 0.1
 *
 * Safety: `tickets` must point to `n` values and `states` to `n` writable ones; null is fine where n is 0.
 */
kavern_status kavern_ticket_poll(const uint64_t *tickets,
                                 size_t n,
                                 int32_t *states);

/**
 * Waits for the work of a ticket, at most so long.
 *
 * Units: nanoseconds; 0 only asks, UINT64_MAX waits for ever.
 * Errors: KAVERN_PENDING if the time was not enough; KAVERN_ERR_STALE_ID for what is no ticket; the ticket's own
 * error, told once.
 * Threads: any; blocks.
 * Since: 0.1
 *
 * Safety: None.
 */
kavern_status kavern_ticket_wait(uint64_t ticket,
                                 uint64_t timeout_ns);

/**
 * Makes later work on a stream wait for the work of a ticket; the same as kavern_stream_wait.
 *
 * Stream: as for kavern_stream_synchronize.
 * Errors: as kavern_stream_wait.
 * Threads: any; enqueues and returns.
 * Since: 0.1
 *
 * Safety: None beyond handles or null.
 */
kavern_status kavern_ticket_wait_on_stream(uint64_t ticket, kavern_manager *manager, void *stream);

/**
 * Reads what the allocator holds and did.
 *
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE.
 * Threads: any; threads that allocate at this moment wait for a few microseconds.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to as many writable bytes as its struct_size says.
 */
kavern_status kavern_memory_stats(const kavern_manager *manager, kavern_memory_statistics *out);

/**
 * Answers in `out` whether so many bytes and a margin could be allocated now: 1 or 0.
 *
 * After a yes, kavern_alloc of that much is served, if nobody takes memory in between. It counts what the device and
 * the limits leave and what is free here in the form that such a request needs; not what pools, models and callbacks
 * would give if they were asked, and not what waits for work in flight, so that it may be served after a no as well.
 * `margin_percent` is added to the bytes; KAVERN_MARGIN_DEFAULT is what suits most.
 * Errors: KAVERN_ERR_INVALID_ARGUMENT (0 bytes), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER,
 * KAVERN_ERR_DEVICE.
 * Threads: any; asks the driver. Where what is freed could make the difference, the caches of threads are emptied.
 * Since: 0.1
 *
 * Safety: `out` must be null or point to a writable value.
 */
kavern_status kavern_can_allocate(const kavern_manager *manager,
                                  uint64_t bytes,
                                  uint32_t margin_percent,
                                  uint32_t *out);

/**
 * Gives free memory back to the device: cached blocks whose work is done, empty pages, pooled pages.
 *
 * `released_bytes` (may be null) receives what went back.
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_DEVICE.
 * Threads: any; blocks for the driver's calls, not for work in flight.
 * Since: 0.1
 *
 * Safety: `released_bytes` must be null or point to a writable value.
 */
kavern_status kavern_manager_trim(kavern_manager *manager, uint64_t *released_bytes);

/**
 * Makes the allocator's live blocks lie on less memory, without moving an address.
 *
 * Empty pages go back to the device, and pages of small blocks whose live slots lie at different places share one
 * physical page. Pages with pinned allocations or with memory of a captured graph stay. `budget_bytes` limits the live
 * bytes that are copied; 0 is no limit.
 * Stream: waits for all work on the device first; until the call returns nobody may enqueue work on live allocations
 * or launch a graph that uses them.
 * Errors: KAVERN_ERR_WRONG_STATE (a graph is being captured on a stream that has allocated or that
 * kavern_capture_begin was told of, or on one that the default stream waits for: end the capture first; nothing was
 * done), KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER, KAVERN_ERR_STRUCT_SIZE, KAVERN_ERR_DEVICE; what was done
 * before the failure stays done. No driver can be asked for captures on other streams: the call is made beside them,
 * and they stay whole.
 * Threads: any may allocate and free meanwhile; blocks.
 * Since: 0.1
 * Source: Mesh (Powers and others, PLDI 2019), for memory of the host.
 *
 * Safety: `out` must be null or point to as many writable bytes as its struct_size says; and what "Stream" asks for.
 */
kavern_status kavern_manager_defragment(kavern_manager *manager,
                                        uint64_t budget_bytes,
                                        kavern_defragment_result *out);

/**
 * Sets what is asked for memory before kavern_alloc, kavern_pool_create, kavern_pool_acquire, kavern_kv_cache_create,
 * kavern_kv_resize, kavern_elastic_commit or kavern_elastic_resize is refused, and after any call that passes the soft
 * limit; null asks nobody. A pool whose own limit is reached does not ask.
 *
 * It is called without a lock of the library, on the thread that needs memory, may use all of this manager, also
 * shrink the cache or the range that grows, and is not called while it runs already.
 * Errors: KAVERN_ERR_INVALID_HANDLE, KAVERN_ERR_NULL_POINTER.
 * Threads: any; a call that has begun may still be running when this returns.
 * Since: 0.1
 *
 * Safety: `function` must be null or a function that may be called with `userdata` until it is replaced and the calls in
 * flight have ended.
 */
kavern_status kavern_manager_on_reclaim(kavern_manager *manager,
                                        kavern_give_back_fn function,
                                        void *userdata);

/**
 * Version of the ABI that the loaded library serves: major << 16 | minor.
 *
 * Compare with KAVERN_ABI_VERSION of the header: the major numbers must be equal, the library's minor number at least
 * the header's.
 * Since: 0.1
 */
uint32_t kavern_abi_version(void);

/**
 * Version of the library, for example "0.1.0".
 *
 * Owner: static text, never free it.
 * Since: 0.1
 */
const char *kavern_version_string(void);

/**
 * One line about the build, for reports of faults: version, ABI, backends, target, profile.
 *
 * Owner: static text, never free it.
 * Since: 0.1
 */
const char *kavern_build_info(void);

/**
 * 1 if this build has the feature, 0 if not or if nobody knows the name.
 *
 * Names: "host", "cuda" (backends; a device need not be there), "streams", "tickets", "report", "log", "kv",
 * "kv-events", "pool", "pinned".
 * Since: 0.1
 *
 * Safety: `name` must be null or a text that ends with a zero.
 */
uint32_t kavern_has_feature(const char *name);

/**
 * Copies the text of this thread's latest failure: function, what was asked, what was there, what to do.
 *
 * Success never clears it; it is empty before the first failure. `needed` (may be null) receives the size with the
 * terminating zero; `buf` null with `cap` 0 asks for that size alone.
 * Units: bytes; at most 1024 are needed.
 * Errors: KAVERN_ERR_BUFFER_TOO_SMALL with `needed` set and `buf` untouched; KAVERN_ERR_NULL_POINTER. A failure here
 * does not change the text.
 * Threads: each thread has its own text. Works in a forked child.
 * Since: 0.1
 *
 * Safety: `buf` must be null or point to `cap` writable bytes, `needed` be null or point to a writable value.
 */
kavern_status kavern_last_error(char *buf,
                                size_t cap,
                                size_t *needed);

/**
 * Name of a status, for example "KAVERN_ERR_NULL_POINTER"; "unknown" for a number that is none.
 *
 * Owner: static text, never free it.
 * Since: 0.1
 */
const char *kavern_status_name(kavern_status status);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* KAVERN_H */
