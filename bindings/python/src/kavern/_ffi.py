# Generated from src/c_api by `make header`; do not edit.
"""The C functions, structs and numbers of libkavern, one to one, for ctypes.

Names and meaning are those of include/kavern.h. Nothing here checks a status or owns a handle.
"""

import ctypes as _c
import os as _os
from pathlib import Path as _Path

VERSION = "0.1.0"
KAVERN_ABI_VERSION = (0 << 16) | 1
KAVERN_STREAM_DEFAULT = 1  # as void *: the device's default stream
KAVERN_MARGIN_DEFAULT = 10  # percent, for kavern_can_allocate

# kavern_device_capability: Bits of kavern_device_description.capabilities.
KAVERN_DEVICE_VIRTUAL_MEMORY = 1
KAVERN_DEVICE_STREAM_ORDERED = 2
KAVERN_DEVICE_HOST_ADDRESSABLE = 4
KAVERN_DEVICE_CAPTURE = 8
KAVERN_DEVICE_RACE_DETECTION = 16
KAVERN_DEVICE_MANAGED_MEMORY = 32

# kavern_elastic_flags: Bits of kavern_elastic_config.flags and kavern_shared_pool_config.flags.
KAVERN_ELASTIC_SINGLE_PAGES = 1

# kavern_kv_group_kind: What the blocks of a group hold.
KAVERN_GROUP_FULL = 1
KAVERN_GROUP_SLIDING = 2
KAVERN_GROUP_CHUNKED = 3
KAVERN_GROUP_STATE = 4
KAVERN_GROUP_CROSS = 5
KAVERN_GROUP_MLA = 6
KAVERN_GROUP_OPAQUE = 7

# kavern_kv_group_flag: Bits of kavern_kv_group.flags.
KAVERN_GROUP_TRIMMABLE = 1

# kavern_dtype: Element type of keys and values.
KAVERN_F32 = 1
KAVERN_F16 = 2
KAVERN_BF16 = 3
KAVERN_F8_E4M3 = 4
KAVERN_F8_E5M2 = 5
KAVERN_I8 = 6

# kavern_kv_layout: Order of the elements inside one layer of a block.
KAVERN_NHD = 1
KAVERN_HND = 2

# kavern_kv_hash: Which hash chains the blocks of a token namespace.
KAVERN_HASH_BLAKE3 = 1
KAVERN_HASH_XXH3 = 2

# kavern_kv_scrub: When a slot is overwritten with zeros before it is handed out.
KAVERN_SCRUB_NONE = 1
KAVERN_SCRUB_TENANT_CHANGE = 2
KAVERN_SCRUB_ALWAYS = 3

# kavern_kv_cache_flag: Bits of kavern_kv_cache_config.flags.
KAVERN_KV_METADATA_ONLY = 1
KAVERN_KV_RAGGED_TABLES = 2
KAVERN_KV_REQUIRE_SALT = 4
KAVERN_KV_DEVICE_INDEX = 8
KAVERN_KV_CHUNK_INDEX = 16
KAVERN_KV_PARTIAL_HITS = 64
KAVERN_KV_WORKER = 256
KAVERN_KV_ADAPTIVE_BLOCKS = 128
KAVERN_KV_EXACT_ORDER = 32

# kavern_kv_request_flag: Bits of kavern_kv_request.flags.
KAVERN_REQUEST_NO_READ = 1
KAVERN_REQUEST_NO_STORE = 2
KAVERN_REQUEST_DROP_LAST = 4
KAVERN_REQUEST_KEEP_ONE_TOKEN = 8
KAVERN_REQUEST_CHUNKS = 16

# kavern_kv_lookup_mode: What kavern_kv_lookup_device does after a miss.
KAVERN_LOOKUP_INDEPENDENT = 1
KAVERN_LOOKUP_PREFIX = 2

# kavern_kv_op_kind: Kinds of kavern_kv_op. Those marked "later" answer KAVERN_ERR_UNSUPPORTED.
KAVERN_OP_ADMIT = 1
KAVERN_OP_APPEND = 2
KAVERN_OP_COMMIT = 3
KAVERN_OP_FREE = 4
KAVERN_OP_RELEASE = 5
KAVERN_OP_ROLLBACK = 6
KAVERN_OP_FORK = 7
KAVERN_OP_TRIM = 8
KAVERN_OP_EDIT = 9
KAVERN_OP_PREEMPT = 10
KAVERN_OP_RESUME = 11
KAVERN_OP_CANCEL = 12
KAVERN_OP_PIN = 13
KAVERN_OP_UNPIN = 14
KAVERN_OP_RETAIN = 15
KAVERN_OP_LOAD = 16
KAVERN_OP_STORE = 17
KAVERN_OP_ACCEPT = 18

# kavern_kv_preempt_mode: What KAVERN_OP_PREEMPT does with the blocks, in kavern_kv_op.mode.
KAVERN_PREEMPT_KEEP = 1
KAVERN_PREEMPT_DROP = 2
KAVERN_PREEMPT_SWAP = 3

# kavern_kv_event_kind: Kinds of kavern_kv_event.
KAVERN_EVENT_STORED = 1
KAVERN_EVENT_REMOVED = 2
KAVERN_EVENT_CLEARED = 3

# kavern_kv_remove_reason: Why a block is no longer findable.
KAVERN_REMOVE_NONE = 0
KAVERN_REMOVE_EVICTED = 1
KAVERN_REMOVE_REQUESTED = 2
KAVERN_REMOVE_RESET = 3
KAVERN_REMOVE_REPLACED = 4
KAVERN_REMOVE_LIMIT = 6
KAVERN_REMOVE_CANCELLED = 7
KAVERN_REMOVE_EXPIRED = 5
KAVERN_REMOVE_MOVED = 8

# kavern_kv_reset_scope: What kavern_kv_reset forgets.
KAVERN_RESET_ALL = 1
KAVERN_RESET_NAMESPACE = 2

# kavern_manager_flag: Bits of kavern_manager_config.flags.
KAVERN_MANAGER_MESH_ON_SHORTAGE = 1

# kavern_kv_plan_flag: Bits of the flags of kavern_kv_plan_export and kavern_kv_plan_info.
KAVERN_PLAN_FULL = 1

# kavern_pool_rounding: How a pool finds the block for a request; for kavern_pool_config.rounding.
KAVERN_POOL_CLASSES = 0
KAVERN_POOL_FIXED = 1
KAVERN_POOL_LADDER = 2

# kavern_pool_memory: Where the blocks of a pool lie; for kavern_pool_config.memory_kind.
KAVERN_POOL_DEVICE = 0
KAVERN_POOL_MANAGED = 1

# kavern_status_code: Values of kavern_status. Bands: -1..-99 your argument, -100..-199 resources (free something and retry),
KAVERN_OK = 0
KAVERN_PARTIAL = 1
KAVERN_PENDING = 2
KAVERN_ERR_INVALID_ARGUMENT = -1
KAVERN_ERR_NULL_POINTER = -2
KAVERN_ERR_INVALID_HANDLE = -3
KAVERN_ERR_STALE_ID = -4
KAVERN_ERR_STRUCT_SIZE = -5
KAVERN_ERR_UNSUPPORTED = -6
KAVERN_ERR_DEPENDENCY = -7
KAVERN_ERR_WRONG_STATE = -8
KAVERN_ERR_BUFFER_TOO_SMALL = -9
KAVERN_ERR_KEY_MODE = -10
KAVERN_ERR_IN_USE = -11
KAVERN_ERR_ALREADY_EXISTS = -12
KAVERN_ERR_NOT_FOUND = -13
KAVERN_ERR_OUT_OF_MEMORY = -100
KAVERN_ERR_OUT_OF_BLOCKS = -101
KAVERN_ERR_LIMIT_REACHED = -102
KAVERN_ERR_TOO_MANY_STEPS = -103
KAVERN_ERR_OUT_OF_HOST_MEMORY = -104
KAVERN_ERR_NO_DEVICE = -200
KAVERN_ERR_DEVICE = -201
KAVERN_ERR_DEVICE_LOST = -202
KAVERN_ERR_OS = -203
KAVERN_ERR_FORKED = -204
KAVERN_ERR_PANIC = -300
KAVERN_ERR_POISONED = -301
KAVERN_ERR_INTERNAL = -302

# kavern_log_level: How much a reader of the log needs to care.
KAVERN_LOG_OFF = 0
KAVERN_LOG_ERROR = 1
KAVERN_LOG_WARN = 2
KAVERN_LOG_INFO = 3
KAVERN_LOG_DEBUG = 4

kavern_status = _c.c_int32  # Result of every function: 0 done, > 0 done with news, < 0 refused (a KAVERN_ERR_ value).


class kavern_elastic(_c.c_void_p):
    """Addresses for as much as there may ever be, with memory behind the parts in use. Thread-safe; keeps its manager"""


class kavern_shared_pool(_c.c_void_p):
    """Several models under one limit of physical memory. Thread-safe; keeps its manager alive."""


class kavern_manager(_c.c_void_p):
    """One device with its memory, streams and caches. Thread-safe."""


class kavern_kv_cache(_c.c_void_p):
    """A paged, prefix-sharing KV cache. Thread-safe; keeps its manager alive."""


class kavern_stream(_c.c_void_p):
    """A stream made by the library; pass it wherever a `void *stream` is taken."""


class kavern_pool(_c.c_void_p):
    """Blocks of device memory of a few sizes, handed out in stream order. Thread-safe; keeps its manager alive."""


class kavern_device_description(_c.Structure):
    """What a device is. You set struct_size; the call fills the rest."""


class kavern_elastic_config(_c.Structure):
    """How an elastic range is made; fill with kavern_elastic_config_init."""


class kavern_elastic_extent(_c.Structure):
    """A part of a range, widened to whole pages, and what a call has changed there. It will never grow, so it carries no"""


class kavern_elastic_statistics(_c.Structure):
    """What an elastic range has. You set struct_size; the call fills the rest."""


class kavern_kv_advice(_c.Structure):
    """The size class that suits a sequence."""


class kavern_kv_class_statistics(_c.Structure):
    """What a size class holds and did. 1 - tokens / slots is its waste, cells / tokens the cost of its tables."""


class kavern_kv_event(_c.Structure):
    """One numbered change of what is findable."""


class kavern_kv_group(_c.Structure):
    """One group of layers that share block size and layout."""


class kavern_kv_description(_c.Structure):
    """Where and how the blocks of a group lie; all an engine needs to write its slots itself."""


class kavern_kv_token_copy(_c.Structure):
    """A run of tokens that a step copies from slots to slots before its work. All of a block's tokens are the whole block."""


class kavern_kv_zero_block(_c.Structure):
    """A block that the engine fills with zeros before a step's work, because the cache has no memory of its own."""


class kavern_kv_cache_config(_c.Structure):
    """How a KV cache is made; fill with kavern_kv_cache_config_init, then set groups and sizes."""


class kavern_kv_extra(_c.Structure):
    """Something beside the tokens that the content of a block depends on: an image, an embedding."""


class kavern_kv_request(_c.Structure):
    """One prompt to look up."""


class kavern_kv_match_result(_c.Structure):
    """What a lookup found."""


class kavern_kv_op(_c.Structure):
    """One operation of a step. What its kind does not use is 0, `row` 0 or -1; anything else is refused with"""


class kavern_kv_op_result(_c.Structure):
    """What became of an operation."""


class kavern_kv_group_tables(_c.Structure):
    """Tables of one group. Addresses are of the device and never change; host pointers see the same cells."""


class kavern_kv_step_tables(_c.Structure):
    """Tables of a step. You set struct_size, groups and group_capacity; the call fills the rest."""


class kavern_kv_completion(_c.Structure):
    """A finished load or store of another tier."""


class kavern_kv_statistics(_c.Structure):
    """What a KV cache holds and did. free + used + inactive + deferred equals the blocks of all"""


class kavern_kv_resize_result(_c.Structure):
    """What kavern_kv_resize has led to."""


class kavern_kv_prefix(_c.Structure):
    """A named prefix."""


class kavern_kv_check_result(_c.Structure):
    """Result of kavern_kv_check_pattern, accumulated since it was last read."""


class kavern_kv_append_args(_c.Structure):
    """Keys and values of new tokens of one layer, for kavern_kv_append."""


class kavern_kv_chunk_hit(_c.Structure):
    """What kavern_kv_match_chunks says of one key in one group."""


class kavern_kv_lookup_args(_c.Structure):
    """A batch of lookups by hashes that are in device memory."""


class kavern_manager_config(_c.Structure):
    """How a manager is made; fill with kavern_manager_config_init."""


class kavern_manager_statistics(_c.Structure):
    """What a manager has and did. You set struct_size; the call fills the rest."""


class kavern_address_description(_c.Structure):
    """What an address belongs to."""


class kavern_memory_statistics(_c.Structure):
    """What the general allocator of a manager holds and did."""


class kavern_defragment_result(_c.Structure):
    """What kavern_manager_defragment did."""


class kavern_kv_namespace_statistics(_c.Structure):
    """What a namespace holds, may hold and did, under all its salts and adapters, all groups together."""


class kavern_pinned_statistics(_c.Structure):
    """What the pool of pinned host memory has and did. You set struct_size; the call fills the rest."""


class kavern_kv_plan_info(_c.Structure):
    """What a plan is about."""


class kavern_pool_class(_c.Structure):
    """A size class of a pool. It will never grow, so it carries no size."""


class kavern_pool_config(_c.Structure):
    """How a pool is made; fill with kavern_pool_config_init."""


class kavern_pool_statistics(_c.Structure):
    """What a pool has and did. You set struct_size; the call fills the rest."""


class kavern_pool_class_statistics(_c.Structure):
    """What one class of a pool has and did. It will never grow, so it carries no size."""


class kavern_pool_block(_c.Structure):
    """What was handed out. It will never grow, so it carries no size."""


class kavern_shared_pool_config(_c.Structure):
    """How a shared pool is made; fill with kavern_shared_pool_config_init."""


class kavern_model_statistics(_c.Structure):
    """What a model of a shared pool has. You set struct_size; the call fills the rest."""


class kavern_shared_pool_statistics(_c.Structure):
    """What a shared pool has and did. You set struct_size; the call fills the rest."""


class kavern_sim_range(_c.Structure):
    """A range of device memory. It will never grow, so it carries no size."""


# Asks the owner of a model to give up so many bytes: your userdata, the model's name, the bytes. It may use the pool
kavern_reclaim_fn = _c.CFUNCTYPE(None, _c.c_void_p, _c.c_char_p, _c.c_uint64)
# Receives what the library says: your userdata, a KAVERN_LOG_ level, the room that speaks, a sentence.
kavern_log_fn = _c.CFUNCTYPE(None, _c.c_void_p, _c.c_uint32, _c.c_char_p, _c.c_char_p)
# Asked when memory is short: gives back what it can, at best `bytes`, and answers how much it gave.
kavern_give_back_fn = _c.CFUNCTYPE(_c.c_uint64, _c.c_void_p, _c.c_uint64)

kavern_device_description._fields_ = [
    ("struct_size", _c.c_uint32),
    ("capabilities", _c.c_uint32),
    ("total_bytes", _c.c_uint64),
    ("page_bytes", _c.c_uint64),
    ("ordinal", _c.c_uint32),
    ("reserved", _c.c_uint32),
    ("name", _c.c_char * 64),
    ("model", _c.c_char * 128),
    ("backend", _c.c_char * 32),
]

kavern_elastic_config._fields_ = [
    ("struct_size", _c.c_uint32),
    ("flags", _c.c_uint32),
    ("capacity_bytes", _c.c_uint64),
    ("page_bytes", _c.c_uint64),
    ("reserved", _c.c_uint64 * 4),
]

kavern_elastic_extent._fields_ = [
    ("offset", _c.c_uint64),
    ("bytes", _c.c_uint64),
    ("changed_bytes", _c.c_uint64),
]

kavern_elastic_statistics._fields_ = [
    ("struct_size", _c.c_uint32),
    ("reserved", _c.c_uint32),
    ("capacity_bytes", _c.c_uint64),
    ("page_bytes", _c.c_uint64),
    ("committed_bytes", _c.c_uint64),
    ("physical_bytes", _c.c_uint64),
    ("retained_bytes", _c.c_uint64),
    ("leaving_bytes", _c.c_uint64),
    ("mapped_pages", _c.c_uint64),
    ("handles", _c.c_uint64),
    ("pins", _c.c_uint64),
]

kavern_kv_advice._fields_ = [
    ("size_class", _c.c_uint32),
    ("group", _c.c_uint32),
    ("block_tokens", _c.c_uint32),
    ("reserved", _c.c_uint32),
    ("predicted_tokens", _c.c_uint64),
]

kavern_kv_class_statistics._fields_ = [
    ("struct_size", _c.c_uint32),
    ("size_class", _c.c_uint32),
    ("block_tokens", _c.c_uint32),
    ("reserved", _c.c_uint32),
    ("sequences", _c.c_uint64),
    ("tokens", _c.c_uint64),
    ("slots", _c.c_uint64),
    ("cells", _c.c_uint64),
    ("begun_sequences", _c.c_uint64),
    ("ended_sequences", _c.c_uint64),
    ("ended_tokens", _c.c_uint64),
    ("ended_slots", _c.c_uint64),
    ("ended_cells", _c.c_uint64),
    ("passed_over", _c.c_uint64),
    ("refused_ops", _c.c_uint64),
    ("gained_bytes", _c.c_uint64),
    ("given_bytes", _c.c_uint64),
]

kavern_kv_event._fields_ = [
    ("number", _c.c_uint64),
    ("kind", _c.c_uint32),
    ("reason", _c.c_uint32),
    ("group", _c.c_uint32),
    ("block", _c.c_int32),
    ("namespace_id", _c.c_uint64),
    ("token_offset", _c.c_uint64),
    ("key", _c.c_uint8 * 32),
    ("parent_key", _c.c_uint8 * 32),
]

kavern_kv_group._fields_ = [
    ("struct_size", _c.c_uint32),
    ("kind", _c.c_uint32),
    ("layers", _c.c_uint32),
    ("kv_heads", _c.c_uint32),
    ("head_dim", _c.c_uint32),
    ("dtype", _c.c_uint32),
    ("block_tokens", _c.c_uint32),
    ("layout", _c.c_uint32),
    ("block_bytes", _c.c_uint64),
    ("capacity_blocks", _c.c_uint64),
    ("region_address", _c.c_uint64),
    ("region_bytes", _c.c_uint64),
    ("window_tokens", _c.c_uint32),
    ("slot_classes", _c.c_uint32),
    ("size_class", _c.c_uint32),
    ("reserved", _c.c_uint32 * 3),
    ("token_bytes", _c.c_uint32),
    ("cross_tokens", _c.c_uint32),
    ("snapshot_blocks", _c.c_uint32),
    ("flags", _c.c_uint32),
]

kavern_kv_description._fields_ = [
    ("struct_size", _c.c_uint32),
    ("kind", _c.c_uint32),
    ("layers", _c.c_uint32),
    ("kv_heads", _c.c_uint32),
    ("head_dim", _c.c_uint32),
    ("dtype", _c.c_uint32),
    ("block_tokens", _c.c_uint32),
    ("layout", _c.c_uint32),
    ("base_address", _c.c_uint64),
    ("block_count", _c.c_uint64),
    ("block_bytes", _c.c_uint64),
    ("block_stride", _c.c_uint64),
    ("layer_stride", _c.c_uint64),
    ("kv_stride", _c.c_uint64),
    ("token_stride", _c.c_uint64),
    ("head_stride", _c.c_uint64),
    ("row_cells", _c.c_uint64),
    ("null_block", _c.c_int32),
    ("window_tokens", _c.c_uint32),
    ("max_blocks", _c.c_uint64),
]

kavern_kv_token_copy._fields_ = [
    ("group", _c.c_uint32),
    ("row", _c.c_int32),
    ("source_slot", _c.c_int64),
    ("target_slot", _c.c_int64),
    ("tokens", _c.c_uint32),
    ("shift", _c.c_int32),
]

kavern_kv_zero_block._fields_ = [
    ("group", _c.c_uint32),
    ("block", _c.c_int32),
]

kavern_kv_cache_config._fields_ = [
    ("struct_size", _c.c_uint32),
    ("flags", _c.c_uint32),
    ("groups", _c.POINTER(kavern_kv_group)),
    ("group_count", _c.c_uint32),
    ("max_sequences", _c.c_uint32),
    ("capacity_blocks", _c.c_uint64),
    ("capacity_bytes", _c.c_uint64),
    ("max_sequence_tokens", _c.c_uint64),
    ("max_batch_tokens", _c.c_uint32),
    ("max_leases", _c.c_uint32),
    ("max_namespaces", _c.c_uint32),
    ("steps_in_flight", _c.c_uint32),
    ("hash_block_tokens", _c.c_uint32),
    ("hash", _c.c_uint32),
    ("scrub", _c.c_uint32),
    ("event_capacity", _c.c_uint32),
    ("policy", _c.c_char_p),
    ("hash_secret", _c.POINTER(_c.c_uint8)),
    ("name", _c.c_char_p),
    ("fingerprint", _c.c_char_p),
    ("codec_vram", _c.c_char_p),
    ("codec_ram", _c.c_char_p),
    ("codec_disk", _c.c_char_p),
    ("codec_remote", _c.c_char_p),
    ("block_advisor", _c.c_char_p),
    ("waste_permille", _c.c_uint32),
    ("table_permille", _c.c_uint32),
    ("reserved", _c.c_uint64 * 2),
    ("max_blocks", _c.c_uint64),
]

kavern_kv_extra._fields_ = [
    ("id", _c.c_uint8 * 32),
    ("token_offset", _c.c_uint64),
]

kavern_kv_request._fields_ = [
    ("struct_size", _c.c_uint32),
    ("flags", _c.c_uint32),
    ("namespace_id", _c.c_uint64),
    ("adapter_id", _c.c_uint64),
    ("salt", _c.POINTER(_c.c_uint8)),
    ("salt_bytes", _c.c_uint32),
    ("key_bytes", _c.c_uint32),
    ("tokens", _c.POINTER(_c.c_int32)),
    ("token_count", _c.c_uint64),
    ("keys", _c.POINTER(_c.c_uint8)),
    ("key_count", _c.c_uint64),
    ("extras", _c.POINTER(kavern_kv_extra)),
    ("extra_count", _c.c_uint64),
    ("block_ids", _c.POINTER(_c.c_int32)),
    ("block_capacity", _c.c_uint64),
    ("expected_tokens", _c.c_uint64),
    ("size_class", _c.c_uint32),
    ("reserved", _c.c_uint32),
]

kavern_kv_match_result._fields_ = [
    ("status", _c.c_int32),
    ("cross_groups", _c.c_uint32),
    ("lease", _c.c_uint64),
    ("hit_tokens", _c.c_uint64),
    ("hit_tokens_ram", _c.c_uint64),
    ("hit_tokens_disk", _c.c_uint64),
    ("hit_tokens_remote", _c.c_uint64),
    ("block_count", _c.c_uint64),
]

kavern_kv_op._fields_ = [
    ("struct_size", _c.c_uint32),
    ("kind", _c.c_uint32),
    ("target", _c.c_uint64),
    ("tokens", _c.c_uint64),
    ("lookahead", _c.c_uint32),
    ("row", _c.c_int32),
    ("token_ids", _c.POINTER(_c.c_int32)),
    ("keys", _c.POINTER(_c.c_uint8)),
    ("key_count", _c.c_uint64),
    ("extras", _c.POINTER(kavern_kv_extra)),
    ("extra_count", _c.c_uint64),
    ("key_bytes", _c.c_uint32),
    ("reserved", _c.c_uint32),
    ("offset", _c.c_uint64),
    ("ttl_ms", _c.c_uint64),
    ("expected_tokens", _c.c_uint64),
    ("lease", _c.c_uint64),
    ("priority", _c.c_uint32),
    ("mode", _c.c_uint32),
]

kavern_kv_op_result._fields_ = [
    ("status", _c.c_int32),
    ("row", _c.c_int32),
    ("sequence", _c.c_uint64),
    ("blocks_added", _c.c_uint32),
    ("blocks_missing", _c.c_uint32),
    ("group", _c.c_uint32),
    ("blocks_committed", _c.c_uint32),
]

kavern_kv_group_tables._fields_ = [
    ("block_table", _c.c_uint64),
    ("slot_mapping", _c.c_uint64),
    ("page_indptr", _c.c_uint64),
    ("page_indices", _c.c_uint64),
    ("last_page_tokens", _c.c_uint64),
    ("block_table_host", _c.POINTER(_c.c_int32)),
    ("slot_mapping_host", _c.POINTER(_c.c_int64)),
    ("page_indptr_host", _c.POINTER(_c.c_int32)),
    ("page_indices_host", _c.POINTER(_c.c_int32)),
    ("last_page_tokens_host", _c.POINTER(_c.c_int32)),
    ("row_cells", _c.c_uint64),
    ("cells_uploaded", _c.c_uint64),
    ("blocks_zeroed", _c.c_uint64),
]

kavern_kv_step_tables._fields_ = [
    ("struct_size", _c.c_uint32),
    ("group_capacity", _c.c_uint32),
    ("groups", _c.POINTER(kavern_kv_group_tables)),
    ("group_count", _c.c_uint32),
    ("batch_count", _c.c_uint32),
    ("token_count", _c.c_uint32),
    ("reserved", _c.c_uint32),
    ("batch_rows", _c.c_uint64),
    ("batch_starts", _c.c_uint64),
    ("sequence_lengths", _c.c_uint64),
    ("batch_rows_host", _c.POINTER(_c.c_int32)),
    ("batch_starts_host", _c.POINTER(_c.c_int32)),
    ("sequence_lengths_host", _c.POINTER(_c.c_int32)),
    ("copies", _c.c_uint64),
    ("copies_host", _c.POINTER(kavern_kv_token_copy)),
    ("copy_count", _c.c_uint32),
    ("reserved2", _c.c_uint32),
    ("zeros_host", _c.POINTER(kavern_kv_zero_block)),
    ("zero_count", _c.c_uint64),
]

kavern_kv_completion._fields_ = [
    ("ticket", _c.c_uint64),
    ("status", _c.c_int32),
    ("failed_block", _c.c_int32),
    ("target", _c.c_uint64),
    ("bytes", _c.c_uint64),
]

kavern_kv_statistics._fields_ = [
    ("struct_size", _c.c_uint32),
    ("steps_in_flight", _c.c_uint32),
    ("free_blocks", _c.c_uint64),
    ("used_blocks", _c.c_uint64),
    ("inactive_blocks", _c.c_uint64),
    ("deferred_blocks", _c.c_uint64),
    ("indexed_blocks", _c.c_uint64),
    ("sequences", _c.c_uint64),
    ("leases", _c.c_uint64),
    ("namespaces", _c.c_uint64),
    ("lookups", _c.c_uint64),
    ("lookup_blocks", _c.c_uint64),
    ("hit_blocks", _c.c_uint64),
    ("hit_tokens", _c.c_uint64),
    ("allocated_blocks", _c.c_uint64),
    ("committed_blocks", _c.c_uint64),
    ("duplicate_blocks", _c.c_uint64),
    ("evicted_blocks", _c.c_uint64),
    ("collisions", _c.c_uint64),
    ("refused_ops", _c.c_uint64),
    ("used_tokens", _c.c_uint64),
    ("used_slots", _c.c_uint64),
    ("last_event", _c.c_uint64),
    ("metadata_bytes", _c.c_uint64),
    ("pool_bytes", _c.c_uint64),
    ("last_step", _c.c_uint64),
    ("held_tokens", _c.c_uint64),
    ("device_index_cells_sent", _c.c_uint64),
    ("copied_tokens", _c.c_uint64),
    ("hit_blocks_ram", _c.c_uint64),
    ("hit_blocks_disk", _c.c_uint64),
    ("hit_blocks_remote", _c.c_uint64),
    ("missed_blocks", _c.c_uint64),
    ("skipped_blocks", _c.c_uint64),
    ("pinned_blocks", _c.c_uint64),
    ("capacity_blocks", _c.c_uint64),
    ("promised_blocks", _c.c_uint64),
    ("moved_blocks", _c.c_uint64),
]

kavern_kv_resize_result._fields_ = [
    ("blocks", _c.c_uint64),
    ("max_blocks", _c.c_uint64),
    ("held_blocks", _c.c_uint64),
    ("committed_bytes", _c.c_uint64),
]

kavern_kv_prefix._fields_ = [
    ("name", _c.c_char * 64),
    ("namespace_id", _c.c_uint64),
    ("tokens", _c.c_uint64),
    ("blocks", _c.c_uint64),
]

kavern_kv_check_result._fields_ = [
    ("checked_blocks", _c.c_uint64),
    ("mismatched_blocks", _c.c_uint64),
    ("first_mismatch", _c.c_int64),
]

kavern_kv_append_args._fields_ = [
    ("struct_size", _c.c_uint32),
    ("group", _c.c_uint32),
    ("layer", _c.c_uint32),
    ("dtype", _c.c_uint32),
    ("tokens", _c.c_uint32),
    ("reserved", _c.c_uint32),
    ("keys", _c.c_uint64),
    ("values", _c.c_uint64),
    ("slot_mapping", _c.c_uint64),
]

kavern_kv_chunk_hit._fields_ = [
    ("shift", _c.c_int64),
    ("block", _c.c_int32),
    ("reserved", _c.c_uint32),
]

kavern_kv_lookup_args._fields_ = [
    ("struct_size", _c.c_uint32),
    ("group", _c.c_uint32),
    ("mode", _c.c_uint32),
    ("rows", _c.c_uint32),
    ("row_hashes", _c.c_uint32),
    ("reserved", _c.c_uint32),
    ("hashes", _c.c_uint64),
    ("counts", _c.c_uint64),
    ("block_ids", _c.c_uint64),
]

kavern_manager_config._fields_ = [
    ("struct_size", _c.c_uint32),
    ("flags", _c.c_uint32),
    ("device", _c.c_char_p),
    ("device_limit_bytes", _c.c_uint64),
    ("pinned_limit_bytes", _c.c_uint64),
    ("reserved", _c.c_uint64 * 4),
    ("device_soft_limit_bytes", _c.c_uint64),
    ("machine_budget_name", _c.c_char_p),
    ("machine_budget_bytes", _c.c_uint64),
    ("ready_low_bytes", _c.c_uint64),
    ("ready_high_bytes", _c.c_uint64),
]

kavern_manager_statistics._fields_ = [
    ("struct_size", _c.c_uint32),
    ("reserved", _c.c_uint32),
    ("device_bytes", _c.c_uint64),
    ("device_peak_bytes", _c.c_uint64),
    ("device_allocations", _c.c_uint64),
    ("device_total_allocations", _c.c_uint64),
    ("device_limit_bytes", _c.c_uint64),
    ("pinned_bytes", _c.c_uint64),
    ("pinned_peak_bytes", _c.c_uint64),
    ("pinned_allocations", _c.c_uint64),
    ("pinned_total_allocations", _c.c_uint64),
    ("pinned_limit_bytes", _c.c_uint64),
    ("own_streams", _c.c_uint64),
    ("registered_streams", _c.c_uint64),
    ("pending_tickets", _c.c_uint64),
    ("caches", _c.c_uint64),
    ("device_calls", _c.c_uint64),
    ("races", _c.c_uint64),
    ("allocator_bytes", _c.c_uint64),
    ("elastic_bytes", _c.c_uint64),
    ("shared_bytes", _c.c_uint64),
    ("device_held_bytes", _c.c_uint64),
    ("device_soft_limit_bytes", _c.c_uint64),
    ("running_copies", _c.c_uint64),
    ("table_changes", _c.c_uint64),
    ("loud_table_changes", _c.c_uint64),
    ("pooled_page_bytes", _c.c_uint64),
    ("page_hits", _c.c_uint64),
    ("page_misses", _c.c_uint64),
    ("pages_made_ahead", _c.c_uint64),
    ("passed_on_mappings", _c.c_uint64),
    ("stale_mappings", _c.c_uint64),
    ("failed_unmaps", _c.c_uint64),
]

kavern_address_description._fields_ = [
    ("struct_size", _c.c_uint32),
    ("reserved", _c.c_uint32),
    ("address", _c.c_uint64),
    ("bytes", _c.c_uint64),
    ("block_bytes", _c.c_uint64),
    ("stream", _c.c_uint64),
    ("age_ms", _c.c_uint64),
    ("tag", _c.c_char * 64),
]

kavern_memory_statistics._fields_ = [
    ("struct_size", _c.c_uint32),
    ("reserved", _c.c_uint32),
    ("live_bytes", _c.c_uint64),
    ("live_count", _c.c_uint64),
    ("allocations", _c.c_uint64),
    ("frees", _c.c_uint64),
    ("backed_bytes", _c.c_uint64),
    ("front_cache_bytes", _c.c_uint64),
    ("ordered_bytes", _c.c_uint64),
    ("largest_free_bytes", _c.c_uint64),
    ("ladder_own_caches", _c.c_uint64),
    ("ladder_fences", _c.c_uint64),
    ("ladder_trims", _c.c_uint64),
    ("ladder_stream_waits", _c.c_uint64),
    ("ladder_rooms", _c.c_uint64),
    ("ladder_host_waits", _c.c_uint64),
    ("ladder_refusals", _c.c_uint64),
    ("plain_allocations", _c.c_uint64),
    ("ladder_meshes", _c.c_uint64),
    ("retained_bytes", _c.c_uint64),
    ("ladder_moved_pages", _c.c_uint64),
    ("looks", _c.c_uint64),
    ("failed_unmaps", _c.c_uint64),
    ("idle_flushes", _c.c_uint64),
]

kavern_defragment_result._fields_ = [
    ("struct_size", _c.c_uint32),
    ("reserved", _c.c_uint32),
    ("before_bytes", _c.c_uint64),
    ("after_bytes", _c.c_uint64),
    ("meshed_pages", _c.c_uint64),
    ("copied_bytes", _c.c_uint64),
]

kavern_kv_namespace_statistics._fields_ = [
    ("struct_size", _c.c_uint32),
    ("reserved", _c.c_uint32),
    ("held_blocks", _c.c_uint64),
    ("cached_blocks", _c.c_uint64),
    ("findable_blocks", _c.c_uint64),
    ("max_held_blocks", _c.c_uint64),
    ("max_cached_blocks", _c.c_uint64),
    ("lookups", _c.c_uint64),
    ("lookup_blocks", _c.c_uint64),
    ("hit_blocks", _c.c_uint64),
    ("lookup_tokens", _c.c_uint64),
    ("hit_tokens", _c.c_uint64),
    ("stored_blocks", _c.c_uint64),
    ("evicted_blocks", _c.c_uint64),
    ("refused_ops", _c.c_uint64),
    ("promised_blocks", _c.c_uint64),
]

kavern_pinned_statistics._fields_ = [
    ("struct_size", _c.c_uint32),
    ("node", _c.c_uint32),
    ("held_bytes", _c.c_uint64),
    ("chunks", _c.c_uint64),
    ("live_bytes", _c.c_uint64),
    ("live_ranges", _c.c_uint64),
    ("slack_bytes", _c.c_uint64),
    ("leaving_bytes", _c.c_uint64),
    ("free_bytes", _c.c_uint64),
    ("largest_free_bytes", _c.c_uint64),
    ("registered_bytes", _c.c_uint64),
    ("registered_pieces", _c.c_uint64),
    ("ahead_bytes", _c.c_uint64),
    ("hits", _c.c_uint64),
    ("misses", _c.c_uint64),
]

kavern_kv_plan_info._fields_ = [
    ("struct_size", _c.c_uint32),
    ("flags", _c.c_uint32),
    ("step_id", _c.c_uint64),
    ("number", _c.c_uint64),
    ("follows", _c.c_uint64),
    ("scheduler", _c.c_uint64),
    ("geometry", _c.c_uint64),
    ("bytes", _c.c_uint64),
]

kavern_pool_class._fields_ = [
    ("block_bytes", _c.c_uint64),
    ("initial_blocks", _c.c_uint32),
    ("growth_blocks", _c.c_uint32),
]

kavern_pool_config._fields_ = [
    ("struct_size", _c.c_uint32),
    ("flags", _c.c_uint32),
    ("rounding", _c.c_uint32),
    ("growth_blocks", _c.c_uint32),
    ("block_bytes", _c.c_uint64),
    ("initial_blocks", _c.c_uint64),
    ("classes", _c.POINTER(kavern_pool_class)),
    ("class_count", _c.c_uint64),
    ("max_bytes", _c.c_uint64),
    ("idle_ns", _c.c_uint64),
    ("name", _c.c_char_p),
    ("reserved", _c.c_uint64 * 4),
    ("memory_kind", _c.c_uint32),
    ("reserved_tail", _c.c_uint32),
]

kavern_pool_statistics._fields_ = [
    ("struct_size", _c.c_uint32),
    ("class_count", _c.c_uint32),
    ("hits", _c.c_uint64),
    ("misses", _c.c_uint64),
    ("refusals", _c.c_uint64),
    ("stream_waits", _c.c_uint64),
    ("device_waits", _c.c_uint64),
    ("held_bytes", _c.c_uint64),
    ("peak_held_bytes", _c.c_uint64),
    ("max_bytes", _c.c_uint64),
    ("in_use_bytes", _c.c_uint64),
    ("requested_bytes", _c.c_uint64),
    ("blocks", _c.c_uint64),
    ("blocks_in_use", _c.c_uint64),
    ("blocks_waiting", _c.c_uint64),
    ("expansions", _c.c_uint64),
    ("evictions", _c.c_uint64),
    ("hit_rate", _c.c_double),
    ("utilisation", _c.c_double),
    ("fragmentation", _c.c_double),
    ("managed_bytes", _c.c_uint64),
]

kavern_pool_class_statistics._fields_ = [
    ("block_bytes", _c.c_uint64),
    ("blocks", _c.c_uint64),
    ("blocks_in_use", _c.c_uint64),
    ("blocks_waiting", _c.c_uint64),
    ("hits", _c.c_uint64),
    ("misses", _c.c_uint64),
    ("expansions", _c.c_uint64),
    ("evictions", _c.c_uint64),
    ("fragmentation", _c.c_double),
    ("reserved", _c.c_uint64 * 3),
]

kavern_pool_block._fields_ = [
    ("address", _c.c_uint64),
    ("bytes", _c.c_uint64),
]

kavern_shared_pool_config._fields_ = [
    ("struct_size", _c.c_uint32),
    ("flags", _c.c_uint32),
    ("physical_limit_bytes", _c.c_uint64),
    ("page_bytes", _c.c_uint64),
    ("machine_name", _c.c_char_p),
    ("machine_limit_bytes", _c.c_uint64),
    ("reserved", _c.c_uint64 * 4),
    ("ready_low_bytes", _c.c_uint64),
    ("ready_high_bytes", _c.c_uint64),
]

kavern_model_statistics._fields_ = [
    ("struct_size", _c.c_uint32),
    ("reserved", _c.c_uint32),
    ("capacity_bytes", _c.c_uint64),
    ("page_bytes", _c.c_uint64),
    ("committed_bytes", _c.c_uint64),
    ("physical_bytes", _c.c_uint64),
    ("retained_bytes", _c.c_uint64),
    ("leaving_bytes", _c.c_uint64),
    ("peak_bytes", _c.c_uint64),
    ("min_bytes", _c.c_uint64),
    ("weight", _c.c_uint64),
    ("cap_bytes", _c.c_uint64),
    ("wanted_bytes", _c.c_uint64),
    ("requests", _c.c_uint64),
    ("pins", _c.c_uint64),
]

kavern_shared_pool_statistics._fields_ = [
    ("struct_size", _c.c_uint32),
    ("reserved", _c.c_uint32),
    ("limit_bytes", _c.c_uint64),
    ("used_bytes", _c.c_uint64),
    ("pooled_bytes", _c.c_uint64),
    ("models", _c.c_uint64),
    ("requests", _c.c_uint64),
    ("refusals", _c.c_uint64),
    ("scrubbed_bytes", _c.c_uint64),
    ("machine_used_bytes", _c.c_uint64),
]

kavern_sim_range._fields_ = [
    ("address", _c.c_uint64),
    ("bytes", _c.c_uint64),
]

# Name: (restype, argtypes).
FUNCTIONS = {
    "kavern_address_info": (kavern_status, [kavern_manager, _c.c_uint64, _c.POINTER(kavern_address_description)]),
    "kavern_record_use": (kavern_status, [kavern_manager, _c.c_uint64, _c.c_void_p]),
    "kavern_address_pin": (kavern_status, [kavern_manager, _c.c_uint64]),
    "kavern_address_unpin": (kavern_status, [kavern_manager, _c.c_uint64]),
    "kavern_tag": (kavern_status, [kavern_manager, _c.c_char_p, _c.POINTER(_c.c_uint64)]),
    "kavern_capture_begin": (kavern_status, [kavern_manager, _c.c_void_p]),
    "kavern_capture_release": (kavern_status, [kavern_manager, _c.c_void_p, _c.c_void_p]),
    "kavern_kv_cache_config_init": (kavern_status, [_c.POINTER(kavern_kv_cache_config), _c.c_size_t]),
    "kavern_kv_cache_create": (kavern_status, [kavern_manager, _c.POINTER(kavern_kv_cache_config), _c.POINTER(kavern_kv_cache)]),
    "kavern_kv_cache_destroy": (kavern_status, [_c.POINTER(kavern_kv_cache)]),
    "kavern_kv_describe": (kavern_status, [kavern_kv_cache, _c.c_uint32, _c.POINTER(kavern_kv_description)]),
    "kavern_kv_stats": (kavern_status, [kavern_kv_cache, _c.POINTER(kavern_kv_statistics)]),
    "kavern_kv_validate": (kavern_status, [kavern_kv_cache]),
    "kavern_kv_reset": (kavern_status, [kavern_kv_cache, _c.c_uint32, _c.c_uint64, _c.POINTER(_c.c_uint64)]),
    "kavern_kv_evict": (kavern_status, [kavern_kv_cache, _c.c_uint32, _c.c_uint64, _c.POINTER(_c.c_uint64)]),
    "kavern_kv_events_read": (kavern_status, [kavern_kv_cache, _c.POINTER(_c.c_uint64), _c.c_size_t, _c.POINTER(kavern_kv_event), _c.POINTER(_c.c_size_t)]),
    "kavern_kv_events_snapshot": (kavern_status, [kavern_kv_cache, _c.POINTER(_c.c_uint64), _c.c_size_t, _c.POINTER(kavern_kv_event), _c.POINTER(_c.c_size_t)]),
    "kavern_kv_append": (kavern_status, [kavern_kv_cache, _c.c_void_p, _c.POINTER(kavern_kv_append_args)]),
    "kavern_copies_begin": (kavern_status, [kavern_manager]),
    "kavern_copies_end": (kavern_status, [kavern_manager, _c.c_void_p]),
    "kavern_device_count": (kavern_status, [_c.c_char_p, _c.POINTER(_c.c_uint32)]),
    "kavern_device_describe": (kavern_status, [_c.c_char_p, _c.POINTER(kavern_device_description)]),
    "kavern_elastic_config_init": (kavern_status, [_c.POINTER(kavern_elastic_config), _c.c_size_t]),
    "kavern_elastic_create": (kavern_status, [kavern_manager, _c.POINTER(kavern_elastic_config), _c.POINTER(kavern_elastic)]),
    "kavern_elastic_destroy": (kavern_status, [_c.POINTER(kavern_elastic)]),
    "kavern_elastic_commit": (kavern_status, [kavern_elastic, _c.c_uint64, _c.c_uint64, _c.POINTER(kavern_elastic_extent)]),
    "kavern_elastic_decommit": (kavern_status, [kavern_elastic, _c.c_uint64, _c.c_uint64, _c.c_void_p, _c.POINTER(kavern_elastic_extent)]),
    "kavern_elastic_is_committed": (kavern_status, [kavern_elastic, _c.c_uint64, _c.c_uint64, _c.POINTER(_c.c_uint32)]),
    "kavern_elastic_base": (kavern_status, [kavern_elastic, _c.POINTER(_c.c_uint64)]),
    "kavern_elastic_resize": (kavern_status, [kavern_elastic, _c.c_uint64, _c.c_void_p, _c.POINTER(kavern_elastic_extent)]),
    "kavern_elastic_stats": (kavern_status, [kavern_elastic, _c.POINTER(kavern_elastic_statistics)]),
    "kavern_kv_advise": (kavern_status, [kavern_kv_cache, _c.c_uint64, _c.c_uint64, _c.c_uint64, _c.POINTER(kavern_kv_advice)]),
    "kavern_kv_class_stats": (kavern_status, [kavern_kv_cache, _c.c_uint32, _c.POINTER(kavern_kv_class_statistics)]),
    "kavern_kv_prefix_pin": (kavern_status, [kavern_kv_cache, _c.c_char_p, _c.c_uint64]),
    "kavern_kv_prefix_unpin": (kavern_status, [kavern_kv_cache, _c.c_char_p]),
    "kavern_kv_prefix_list": (kavern_status, [kavern_kv_cache, _c.c_size_t, _c.POINTER(kavern_kv_prefix), _c.POINTER(_c.c_size_t)]),
    "kavern_kv_resize": (kavern_status, [kavern_kv_cache, _c.c_uint32, _c.c_uint64, _c.POINTER(kavern_kv_resize_result)]),
    "kavern_set_log_callback": (kavern_status, [_c.c_uint32, kavern_log_fn, _c.c_void_p]),
    "kavern_kv_probe": (kavern_status, [kavern_kv_cache, _c.c_size_t, _c.POINTER(kavern_kv_request), _c.POINTER(_c.c_int64)]),
    "kavern_kv_block_hashes": (kavern_status, [kavern_kv_cache, _c.POINTER(kavern_kv_request), _c.c_uint32, _c.POINTER(_c.c_uint64), _c.c_uint64, _c.POINTER(_c.c_uint64)]),
    "kavern_kv_match_chunks": (kavern_status, [kavern_kv_cache, _c.POINTER(kavern_kv_request), _c.POINTER(_c.c_uint64), _c.POINTER(kavern_kv_chunk_hit), _c.c_uint64, _c.POINTER(kavern_kv_match_result)]),
    "kavern_kv_lookup_device": (kavern_status, [kavern_kv_cache, _c.c_void_p, _c.POINTER(kavern_kv_lookup_args)]),
    "kavern_manager_config_init": (kavern_status, [_c.POINTER(kavern_manager_config), _c.c_size_t]),
    "kavern_manager_create": (kavern_status, [_c.POINTER(kavern_manager_config), _c.POINTER(kavern_manager)]),
    "kavern_manager_destroy": (kavern_status, [_c.POINTER(kavern_manager)]),
    "kavern_manager_stats": (kavern_status, [kavern_manager, _c.POINTER(kavern_manager_statistics)]),
    "kavern_manager_report_json": (kavern_status, [kavern_manager, _c.c_char_p, _c.c_size_t, _c.POINTER(_c.c_size_t)]),
    "kavern_manager_validate": (kavern_status, [kavern_manager]),
    "kavern_warmup": (kavern_status, [kavern_manager]),
    "kavern_manager_stream_register": (kavern_status, [kavern_manager, _c.c_void_p]),
    "kavern_manager_stream_unregister": (kavern_status, [kavern_manager, _c.c_void_p]),
    "kavern_alloc": (kavern_status, [kavern_manager, _c.c_uint64, _c.c_uint64, _c.c_void_p, _c.c_uint64, _c.POINTER(_c.c_uint64)]),
    "kavern_alloc_zeroed": (kavern_status, [kavern_manager, _c.c_uint64, _c.c_uint64, _c.c_void_p, _c.c_uint64, _c.POINTER(_c.c_uint64)]),
    "kavern_free": (kavern_status, [kavern_manager, _c.c_uint64, _c.c_void_p]),
    "kavern_alloc_batch": (kavern_status, [kavern_manager, _c.c_size_t, _c.POINTER(_c.c_uint64), _c.c_uint64, _c.c_void_p, _c.c_uint64, _c.POINTER(_c.c_uint64)]),
    "kavern_free_batch": (kavern_status, [kavern_manager, _c.c_size_t, _c.POINTER(_c.c_uint64), _c.c_void_p, _c.POINTER(kavern_status)]),
    "kavern_kv_namespace_stats": (kavern_status, [kavern_kv_cache, _c.c_uint64, _c.POINTER(kavern_kv_namespace_statistics)]),
    "kavern_kv_namespace_list": (kavern_status, [kavern_kv_cache, _c.POINTER(_c.c_uint64), _c.c_size_t, _c.POINTER(_c.c_uint64), _c.POINTER(_c.c_size_t)]),
    "kavern_kv_namespace_limit": (kavern_status, [kavern_kv_cache, _c.c_uint64, _c.c_uint64, _c.c_uint64]),
    "kavern_pinned_alloc": (kavern_status, [kavern_manager, _c.c_uint64, _c.c_char_p, _c.POINTER(_c.c_void_p)]),
    "kavern_pinned_free": (kavern_status, [kavern_manager, _c.c_void_p, _c.c_void_p]),
    "kavern_pinned_register": (kavern_status, [kavern_manager, _c.c_void_p, _c.c_uint64, _c.c_uint64]),
    "kavern_pinned_unregister": (kavern_status, [kavern_manager, _c.c_void_p]),
    "kavern_pinned_reserve": (kavern_status, [kavern_manager, _c.c_uint64]),
    "kavern_pinned_trim": (kavern_status, [kavern_manager, _c.POINTER(_c.c_uint64)]),
    "kavern_pinned_stats": (kavern_status, [kavern_manager, _c.POINTER(kavern_pinned_statistics)]),
    "kavern_kv_plan_export": (kavern_status, [kavern_kv_cache, _c.c_uint64, _c.c_uint32, _c.c_void_p, _c.c_uint64, _c.POINTER(_c.c_uint64)]),
    "kavern_kv_plan_read": (kavern_status, [_c.c_void_p, _c.c_uint64, _c.POINTER(kavern_kv_plan_info)]),
    "kavern_kv_plan_apply": (kavern_status, [kavern_kv_cache, _c.c_void_p, _c.c_void_p, _c.c_uint64, _c.POINTER(kavern_kv_step_tables)]),
    "kavern_pool_config_init": (kavern_status, [_c.POINTER(kavern_pool_config), _c.c_size_t]),
    "kavern_pool_create": (kavern_status, [kavern_manager, _c.POINTER(kavern_pool_config), _c.POINTER(kavern_pool)]),
    "kavern_pool_destroy": (kavern_status, [_c.POINTER(kavern_pool)]),
    "kavern_pool_acquire": (kavern_status, [kavern_pool, _c.c_uint64, _c.c_void_p, _c.POINTER(kavern_pool_block)]),
    "kavern_pool_release": (kavern_status, [kavern_pool, _c.c_uint64, _c.c_void_p]),
    "kavern_pool_acquire_batch": (kavern_status, [kavern_pool, _c.c_size_t, _c.POINTER(_c.c_uint64), _c.c_void_p, _c.POINTER(kavern_pool_block), _c.POINTER(_c.c_int32)]),
    "kavern_pool_release_batch": (kavern_status, [kavern_pool, _c.c_size_t, _c.POINTER(_c.c_uint64), _c.c_void_p, _c.POINTER(_c.c_int32)]),
    "kavern_pool_stats": (kavern_status, [kavern_pool, _c.POINTER(kavern_pool_statistics), _c.c_size_t, _c.POINTER(kavern_pool_class_statistics)]),
    "kavern_pool_trim": (kavern_status, [kavern_pool, _c.c_uint64, _c.POINTER(_c.c_uint64)]),
    "kavern_pool_validate": (kavern_status, [kavern_pool]),
    "kavern_shared_pool_config_init": (kavern_status, [_c.POINTER(kavern_shared_pool_config), _c.c_size_t]),
    "kavern_shared_pool_create": (kavern_status, [kavern_manager, _c.POINTER(kavern_shared_pool_config), _c.POINTER(kavern_shared_pool)]),
    "kavern_shared_pool_destroy": (kavern_status, [_c.POINTER(kavern_shared_pool)]),
    "kavern_shared_pool_register_model": (kavern_status, [kavern_shared_pool, _c.c_char_p, _c.c_uint64, _c.c_uint64, _c.c_uint64, _c.c_uint64]),
    "kavern_shared_pool_unregister_model": (kavern_status, [kavern_shared_pool, _c.c_char_p]),
    "kavern_shared_pool_commit": (kavern_status, [kavern_shared_pool, _c.c_char_p, _c.c_uint64, _c.c_uint64, _c.POINTER(kavern_elastic_extent)]),
    "kavern_shared_pool_decommit": (kavern_status, [kavern_shared_pool, _c.c_char_p, _c.c_uint64, _c.c_uint64, _c.c_void_p, _c.POINTER(kavern_elastic_extent)]),
    "kavern_shared_pool_base": (kavern_status, [kavern_shared_pool, _c.c_char_p, _c.POINTER(_c.c_uint64)]),
    "kavern_shared_pool_model_stats": (kavern_status, [kavern_shared_pool, _c.c_char_p, _c.POINTER(kavern_model_statistics)]),
    "kavern_shared_pool_stats": (kavern_status, [kavern_shared_pool, _c.POINTER(kavern_shared_pool_statistics)]),
    "kavern_shared_pool_pin_range": (kavern_status, [kavern_shared_pool, _c.c_char_p, _c.c_uint64, _c.c_uint64]),
    "kavern_shared_pool_unpin_range": (kavern_status, [kavern_shared_pool, _c.c_char_p, _c.c_uint64, _c.c_uint64]),
    "kavern_shared_pool_on_reclaim": (kavern_status, [kavern_shared_pool, _c.c_char_p, kavern_reclaim_fn, _c.c_void_p]),
    "kavern_sim_launch": (kavern_status, [kavern_manager, _c.c_void_p, _c.POINTER(kavern_sim_range), _c.c_size_t, _c.POINTER(kavern_sim_range), _c.c_size_t]),
    "kavern_sim_report": (kavern_status, [kavern_manager, _c.c_char_p, _c.c_size_t, _c.POINTER(_c.c_size_t)]),
    "kavern_sim_seed": (kavern_status, [kavern_manager, _c.c_uint64]),
    "kavern_kv_match": (kavern_status, [kavern_kv_cache, _c.c_size_t, _c.POINTER(kavern_kv_request), _c.POINTER(kavern_kv_match_result)]),
    "kavern_kv_step": (kavern_status, [kavern_kv_cache, _c.c_uint64, _c.c_size_t, _c.POINTER(kavern_kv_op), _c.POINTER(kavern_kv_op_result)]),
    "kavern_kv_tables": (kavern_status, [kavern_kv_cache, _c.c_uint64, _c.c_void_p, _c.POINTER(kavern_kv_step_tables)]),
    "kavern_kv_poll": (kavern_status, [kavern_kv_cache, _c.c_size_t, _c.POINTER(kavern_kv_completion), _c.POINTER(_c.c_size_t)]),
    "kavern_kv_step_done": (kavern_status, [kavern_kv_cache, _c.c_uint64, _c.c_void_p]),
    "kavern_kv_block_keys": (kavern_status, [kavern_kv_cache, _c.POINTER(kavern_kv_request), _c.POINTER(_c.c_uint8), _c.c_uint64, _c.POINTER(_c.c_uint64)]),
    "kavern_kv_fill_pattern": (kavern_status, [kavern_kv_cache, _c.c_void_p, _c.c_uint32, _c.c_size_t, _c.POINTER(_c.c_int32), _c.POINTER(_c.c_uint64)]),
    "kavern_kv_check_pattern": (kavern_status, [kavern_kv_cache, _c.c_void_p, _c.c_uint32, _c.c_size_t, _c.POINTER(_c.c_int32), _c.POINTER(_c.c_uint64)]),
    "kavern_kv_pattern_result": (kavern_status, [kavern_kv_cache, _c.POINTER(kavern_kv_check_result)]),
    "kavern_stream_create": (kavern_status, [kavern_manager, _c.POINTER(kavern_stream)]),
    "kavern_stream_destroy": (kavern_status, [_c.POINTER(kavern_stream)]),
    "kavern_stream_synchronize": (kavern_status, [kavern_manager, _c.c_void_p]),
    "kavern_stream_wait": (kavern_status, [kavern_manager, _c.c_void_p, _c.c_uint64]),
    "kavern_stream_record": (kavern_status, [kavern_manager, _c.c_void_p, _c.POINTER(_c.c_uint64)]),
    "kavern_ticket_poll": (kavern_status, [_c.POINTER(_c.c_uint64), _c.c_size_t, _c.POINTER(_c.c_int32)]),
    "kavern_ticket_wait": (kavern_status, [_c.c_uint64, _c.c_uint64]),
    "kavern_ticket_wait_on_stream": (kavern_status, [_c.c_uint64, kavern_manager, _c.c_void_p]),
    "kavern_memory_stats": (kavern_status, [kavern_manager, _c.POINTER(kavern_memory_statistics)]),
    "kavern_can_allocate": (kavern_status, [kavern_manager, _c.c_uint64, _c.c_uint32, _c.POINTER(_c.c_uint32)]),
    "kavern_manager_trim": (kavern_status, [kavern_manager, _c.POINTER(_c.c_uint64)]),
    "kavern_manager_defragment": (kavern_status, [kavern_manager, _c.c_uint64, _c.POINTER(kavern_defragment_result)]),
    "kavern_manager_on_reclaim": (kavern_status, [kavern_manager, kavern_give_back_fn, _c.c_void_p]),
    "kavern_abi_version": (_c.c_uint32, []),
    "kavern_version_string": (_c.c_char_p, []),
    "kavern_build_info": (_c.c_char_p, []),
    "kavern_has_feature": (_c.c_uint32, [_c.c_char_p]),
    "kavern_last_error": (kavern_status, [_c.c_char_p, _c.c_size_t, _c.POINTER(_c.c_size_t)]),
    "kavern_status_name": (_c.c_char_p, [kavern_status]),
}


def KAVERN_SEQ_OF_OP(i):
    """In a list of operations: the sequence that operation i of the same list admits."""
    return (0x5F << 56) | i


def _candidates(path):
    """Where the library may be: the one that was asked for, or else the usual places in order."""
    chosen = path or _os.environ.get("KAVERN_LIBRARY")
    if chosen:
        return [_os.fspath(chosen)]
    here = _Path(__file__).resolve().parent
    beside = [here / "libkavern.so.0", here / "libkavern.so"]
    return [str(p) for p in beside if p.exists()] + ["libkavern.so.0"]


def load(path=None):
    """Load libkavern and give each function its types.

    Looks at `path`, then KAVERN_LIBRARY, then beside this package, then where the loader looks.
    OSError if there is none, if its ABI is not this module's, or if it lacks a function.
    """
    problems = []
    for candidate in _candidates(path):
        try:
            library = _c.CDLL(candidate)
        except OSError as problem:
            problems.append(f"{candidate}: {problem}")
            continue
        _bind(library, candidate)
        return library
    raise OSError("libkavern not found; build it, or set KAVERN_LIBRARY; tried " + "; ".join(problems))


def _bind(library, name):
    try:
        library.kavern_abi_version.restype = _c.c_uint32
        found = library.kavern_abi_version()
        if found >> 16 != KAVERN_ABI_VERSION >> 16 or found < KAVERN_ABI_VERSION:
            raise OSError(
                f"{name} has ABI {found >> 16}.{found & 0xFFFF}, this module needs "
                f"{KAVERN_ABI_VERSION >> 16}.{KAVERN_ABI_VERSION & 0xFFFF}; install a matching pair"
            )
        for symbol, (restype, argtypes) in FUNCTIONS.items():
            function = getattr(library, symbol)
            function.restype = restype
            function.argtypes = argtypes
    except AttributeError as problem:
        raise OSError(f"{name} is not this version of libkavern: {problem}") from None
