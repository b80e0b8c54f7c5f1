/* Bad calls of the KV cache. Batches answer KAVERN_PARTIAL with a refusal in each bad element. */
#include "sweep.h"

#define CACHE(argument) \
    ((kavern_kv_cache *)(is_bad(argument) ? bad_handle(live_cache, stale_cache, live_manager) : live_cache))

static int32_t tokens[64];
static unsigned char bytes[256];
static kavern_kv_extra extra_array[4];
static int32_t block_ids[64];
static uint64_t seeds[16];
static uint64_t last_step;

static void *maybe_misaligned(void) { return &out_memory[64 + 1 + 2 * below(32)]; }
/* For results that may be left out: bad means misaligned. */
static void *optional_output(int argument) { return is_bad(argument) ? maybe_misaligned() : output(-1); }

static void cache_config_init(void) {
    choose_flaw(2);
    kavern_kv_cache_config *config = output(0);
    size_t size = is_bad(1) ? bad_struct_size() : sizeof *config;
    refused(kavern_kv_cache_config_init(config, size));
}

static void good_group(kavern_kv_group *group) {
    memset(group, 0, sizeof *group);
    group->struct_size = sizeof *group;
    group->kind = KAVERN_GROUP_FULL;
    group->layers = 1;
    group->kv_heads = 1;
    group->head_dim = 8;
    group->dtype = KAVERN_F16;
    group->block_tokens = 4;
    group->layout = KAVERN_NHD;
}

static void spoil_group(kavern_kv_group *group) {
    switch (below(21)) {
        case 0: group->struct_size = bad_struct_size(); break;
        case 1: group->kind = one_in(2) ? 0 : unknown_u32(7); break;
        case 2: group->kind = 2 + (uint32_t)below(5); break;
        case 3: group->layers = one_in(2) ? 0 : unknown_u32(1024); break;
        case 4: group->kv_heads = one_in(2) ? 0 : unknown_u32(1024); break;
        case 5: group->head_dim = one_in(2) ? 0 : unknown_u32(4096); break;
        case 6: group->dtype = one_in(2) ? 0 : unknown_u32(6); break;
        case 7: group->block_tokens = one_in(2) ? 0 : unknown_u32(65536); break;
        case 8: group->layout = one_in(2) ? 0 : unknown_u32(2); break;
        case 9: group->block_bytes = nonzero_u64(); break;
        case 10: group->capacity_blocks = (UINT64_C(1) << 40) + some_u64() / 2; break;
        case 11: group->region_bytes = nonzero_u64(); break; /* and no address */
        case 12: group->window_tokens = (uint32_t)some_u64() | 1; break;
        case 13: group->slot_classes = (uint32_t)some_u64() | 1; break;
        case 14: group->kind = KAVERN_GROUP_OPAQUE; break; /* with layers and heads */
        case 15: group->token_bytes = (uint32_t)some_u64() | 1; break;
        case 16: group->cross_tokens = (uint32_t)some_u64() | 1; break;
        case 17: group->snapshot_blocks = (uint32_t)some_u64() | 1; break;
        case 18: group->flags = unknown_u32(1) | 2; break;
        case 19: group->size_class = (uint32_t)some_u64() | 1; break; /* and no KAVERN_KV_ADAPTIVE_BLOCKS */
        default: group->reserved[below(3)] = (uint32_t)some_u64() | 1; break;
    }
}

static void spoil_cache_config(kavern_kv_cache_config *config) {
    const char *text = bad_text();
    if (text == NULL) text = "no such policy";
    switch (below(25)) {
        case 0: config->struct_size = bad_struct_size(); break;
        case 1: config->flags = (uint32_t)some_u64() | 1u << 30; break;
        case 2: config->groups = bad_pointer(); break;
        case 3: config->group_count = one_in(2) ? 0 : unknown_u32(16); break;
        case 4: config->max_sequences = one_in(2) ? 0 : unknown_u32(1 << 20); break;
        case 5: config->capacity_blocks = (UINT64_C(1) << 40) + some_u64() / 2; break;
        case 6: config->capacity_blocks = 0; break; /* and no bytes */
        case 7: config->max_sequence_tokens = (UINT64_C(1) << 40) + some_u64() / 2; break;
        case 8: config->max_batch_tokens = 0; break;
        case 9: config->max_leases = one_in(2) ? 0 : unknown_u32(1 << 20); break;
        case 10: config->max_namespaces = one_in(2) ? 0 : unknown_u32(1 << 20); break;
        case 11: config->steps_in_flight = one_in(2) ? 0 : unknown_u32(64); break;
        case 12: config->hash_block_tokens = 3 + 2 * (uint32_t)below(1000); break;
        case 13: config->hash = one_in(2) ? 0 : unknown_u32(2); break;
        case 14: config->scrub = one_in(2) ? 0 : unknown_u32(3); break;
        case 15: config->event_capacity = unknown_u32(1 << 24); break;
        case 16: config->policy = text; break;
        case 17: config->fingerprint = text; break;
        case 18: config->codec_vram = config->codec_ram = config->codec_disk = config->codec_remote = text; break;
        case 19: config->max_blocks = (UINT64_C(1) << 40) + some_u64() / 2; break;
        case 20: config->block_advisor = text; break;
        case 21: config->waste_permille = (uint32_t)some_u64() | 1; break;
        case 22: config->table_permille = (uint32_t)some_u64() | 1; break;
        case 23: config->flags = KAVERN_KV_ADAPTIVE_BLOCKS; break; /* and no classes */
        default: config->reserved[below(2)] = nonzero_u64(); break;
    }
}

static void cache_create(void) {
    static kavern_kv_group groups[2];
    static kavern_kv_cache_config config;
    choose_flaw(5);
    good_group(&groups[0]);
    good_group(&groups[1]);
    OK(kavern_kv_cache_config_init(&config, sizeof config));
    config.groups = groups;
    config.group_count = 2;
    config.capacity_blocks = 8;
    config.max_sequences = 2;
    config.max_batch_tokens = 16;
    if (is_bad(0)) spoil_group(&groups[below(2)]);
    if (is_bad(1)) spoil_cache_config(&config);
    const kavern_kv_cache_config *given = is_bad(2) ? bad_pointer() : &config;
    refused(kavern_kv_cache_create(MANAGER(3), given, output(4)));
}

static void cache_destroy(void) {
    kavern_kv_cache **slot = (kavern_kv_cache **)(void *)&out_memory[1024];
    if (one_in(4)) {
        refused(kavern_kv_cache_destroy(maybe_misaligned()));
        return;
    }
    do {
        *slot = bad_handle(live_cache, stale_cache, live_stream);
    } while (*slot == NULL);
    remember_output();
    refused(kavern_kv_cache_destroy(slot));
}

static void good_request(kavern_kv_request *request) {
    memset(request, 0, sizeof *request);
    request->struct_size = sizeof *request;
    request->namespace_id = 1 + below(3);
    request->tokens = tokens;
    request->token_count = 1 + below(40);
}

/* Everything but struct_size, which is the whole call's. */
static void spoil_request(kavern_kv_request *request) {
    switch (below(13)) {
        case 0: request->flags = (uint32_t)some_u64() | 1u << 30; break;
        case 1: request->reserved = (uint32_t)some_u64() | 1; break;
        case 11: request->size_class = (uint32_t)some_u64() | 1; break; /* there are no classes */
        case 2:
            request->salt = bytes;
            request->salt_bytes = unknown_u32(64);
            break;
        case 3: request->salt_bytes = 1 + (uint32_t)below(64); break; /* and no salt */
        case 4: request->key_bytes = unknown_u32(32); break;
        case 5: request->tokens = bad_pointer(); break;
        case 6: request->token_count = bad_count(4); break;
        case 7: request->key_count = nonzero_u64(); break; /* and no key_bytes */
        case 8:
            request->keys = bytes;
            request->key_bytes = 1 + (uint32_t)below(32); /* and tokens too */
            request->key_count = 1;
            break;
        case 9:
            request->extras = one_in(2) ? bad_pointer() : extra_array;
            request->extra_count = request->extras == extra_array ? bad_count(sizeof *extra_array) : 1;
            break;
        case 10:
            request->tokens = NULL;
            request->token_count = 0;
            request->key_bytes = 32;
            request->keys = bytes;
            request->key_count = bad_count(32);
            break;
        default:
            request->block_ids = one_in(2) ? maybe_misaligned() : block_ids;
            request->block_capacity = request->block_ids == block_ids ? bad_count(4) : 4;
            break;
    }
}

static void match(void) {
    static kavern_kv_request requests[4];
    kavern_kv_match_result *results = (kavern_kv_match_result *)(void *)&out_memory[1024];
    size_t n = 1 + below(4);
    for (size_t i = 0; i < n; ++i) good_request(&requests[i]);
    if (one_in(2)) {
        for (size_t i = 0; i < n; ++i) spoil_request(&requests[i]);
        EXPECT(KAVERN_PARTIAL, kavern_kv_match(live_cache, n, requests, results));
        for (size_t i = 0; i < n; ++i) CHECK(results[i].status < 0 && results[i].lease == 0);
        CHECK(is_unchanged_from(1024 + n * sizeof *results));
        return;
    }
    choose_flaw(5);
    if (is_bad(0)) requests[below(n)].struct_size = bad_struct_size();
    if (is_bad(1)) n = bad_count(sizeof *requests);
    const kavern_kv_request *given = is_bad(2) ? bad_pointer() : requests;
    refused(kavern_kv_match(CACHE(3), n, given, output(4)));
}

static uint64_t bad_id(void) {
    return one_in(3) ? some_u64() & ~(UINT64_C(0xFF) << 56) : UINT64_C(0x51) << 56 | below(1 << 24);
}

static void bad_op(kavern_kv_op *op, size_t index) {
    memset(op, 0, sizeof *op);
    op->struct_size = sizeof *op;
    op->row = -1;
    op->kind = 1 + (uint32_t)below(5);
    op->target = bad_id();
    op->tokens = some_u64();
    op->lookahead = (uint32_t)some_u64();
    switch (below(12)) {
        case 0: op->kind = one_in(2) ? 0 : unknown_u32(18); break;
        case 1: op->kind = 6 + (uint32_t)below(13); break;
        case 2: op->reserved = (uint32_t)some_u64() | 1; break;
        case 3:
            op->kind = 2 + (uint32_t)below(3);
            op->target = KAVERN_SEQ_OF_OP(index + below(100)); /* itself or a later one */
            break;
        case 9: /* a field that it does not use, or a priority that there is not */
            op->kind = KAVERN_OP_PIN + (uint32_t)below(3);
            op->lookahead = 0;
            op->priority = 101 + (uint32_t)below(1000);
            break;
        case 10:
            op->kind = KAVERN_OP_PIN + (uint32_t)below(3);
            op->lookahead = (uint32_t)some_u64() | 1;
            break;
        case 4:
            op->kind = KAVERN_OP_COMMIT;
            op->token_ids = bad_pointer();
            op->tokens |= 1;
            break;
        case 5:
            op->kind = KAVERN_OP_COMMIT;
            op->key_bytes = 33 + (uint32_t)below(1000);
            op->key_count = 1;
            op->keys = bytes;
            break;
        case 6:
            op->kind = KAVERN_OP_ROLLBACK;
            op->token_ids = bad_pointer();
            op->extras = one_in(2) ? bad_pointer() : extra_array;
            op->extra_count = op->extras == extra_array ? bad_count(sizeof *extra_array) : 1;
            break;
        case 7:
            op->kind = 9 + (uint32_t)below(4);
            op->offset = some_u64();
            op->lease = some_u64();
            op->mode = (uint32_t)some_u64();
            op->ttl_ms = some_u64();
            op->priority = (uint32_t)some_u64();
            break;
        case 8:
            op->kind = KAVERN_OP_TRIM;
            op->offset = some_u64();
            op->tokens &= op->ttl_ms = one_in(2) ? some_u64() : 0;
            break;
        default: op->tokens = op->kind == KAVERN_OP_COMMIT ? 0 : op->tokens; break;
    }
}

static void step(void) {
    static kavern_kv_op ops[8];
    kavern_kv_op_result *results = (kavern_kv_op_result *)(void *)&out_memory[1024];
    size_t n = 1 + below(8);
    for (size_t i = 0; i < n; ++i) bad_op(&ops[i], i);
    if (one_in(2)) {
        EXPECT(KAVERN_PARTIAL, kavern_kv_step(live_cache, ++last_step, n, ops, results));
        for (size_t i = 0; i < n; ++i) CHECK(results[i].status < 0);
        CHECK(is_unchanged_from(1024 + n * sizeof *results));
        OK(kavern_kv_step_done(live_cache, last_step, NULL));
        return;
    }
    choose_flaw(6);
    /* 0 and those before the last one are over. */
    uint64_t id = is_bad(0) ? below(last_step + 1) : last_step + 1;
    if (is_bad(1)) ops[below(n)].struct_size = bad_struct_size();
    if (is_bad(2)) n = bad_count(sizeof *ops);
    const kavern_kv_op *given = is_bad(3) ? bad_pointer() : ops;
    refused(kavern_kv_step(CACHE(4), id, n, given, output(5)));
}

static uint64_t step_not_begun(void) { return last_step + 1 + some_u64() / 2; }

static void tables(void) {
    static kavern_kv_group_tables groups[4];
    choose_flaw(5);
    kavern_kv_step_tables *out = (kavern_kv_step_tables *)(void *)&out_memory[1024];
    memset(out, 0, sizeof *out);
    out->group_capacity = 4;
    out->groups = is_bad(0) ? maybe_misaligned() : groups;
    out = sized_output(1, 2, sizeof *out);
    refused(kavern_kv_tables(CACHE(3), step_not_begun(), STREAM(4), out));
}

static void poll(void) {
    choose_flaw(4);
    size_t max = is_bad(0) ? bad_count(sizeof(kavern_kv_completion)) : 4;
    kavern_kv_completion *completions = is_bad(1) ? bad_pointer() : (void *)&out_memory[2048];
    refused(kavern_kv_poll(CACHE(2), max, completions, output(3)));
}

static void step_done(void) {
    choose_flaw(2);
    refused(kavern_kv_step_done(CACHE(0), step_not_begun(), STREAM(1)));
}

static void describe(void) {
    choose_flaw(4);
    uint32_t group = is_bad(0) ? unknown_u32(0) : 0;
    kavern_kv_description *out = sized_output(1, 2, sizeof *out);
    refused(kavern_kv_describe(CACHE(3), group, out));
}

static void stats(void) {
    choose_flaw(3);
    kavern_kv_statistics *out = sized_output(0, 1, sizeof *out);
    refused(kavern_kv_stats(CACHE(2), out));
}

static void validate(void) {
    choose_flaw(1);
    refused(kavern_kv_validate(CACHE(0)));
}

static void reset(void) {
    choose_flaw(3);
    uint32_t scope = is_bad(0) ? (one_in(4) ? 0 : unknown_u32(2)) : KAVERN_RESET_NAMESPACE;
    uint64_t *removed = optional_output(1);
    refused(kavern_kv_reset(CACHE(2), scope, some_u64(), removed));
}

static void evict(void) {
    choose_flaw(3);
    uint32_t group = is_bad(0) ? unknown_u32(0) : 0;
    uint64_t *evicted = optional_output(1);
    refused(kavern_kv_evict(CACHE(2), group, some_u64(), evicted));
}

static const char *bad_name(void) {
    static char name[128];
    size_t length = one_in(3) ? 0 : 64 + below(60);
    memset(name, 'n', length);
    name[length] = 0;
    return one_in(2) ? name : bad_text();
}

static void prefix_pin(void) {
    choose_flaw(3);
    const char *name = is_bad(0) ? bad_name() : "prompt";
    /* No lease is held here, so a good name is refused for its lease. */
    refused(kavern_kv_prefix_pin(CACHE(1), name, bad_id()));
}

static void prefix_unpin(void) {
    choose_flaw(2);
    const char *name = is_bad(0) ? bad_name() : "nobody's";
    refused(kavern_kv_prefix_unpin(CACHE(1), name));
}

static void prefix_list(void) {
    choose_flaw(4);
    size_t max = is_bad(0) ? bad_count(sizeof(kavern_kv_prefix)) : 4;
    kavern_kv_prefix *prefixes = is_bad(1) ? bad_pointer() : (void *)&out_memory[4096];
    refused(kavern_kv_prefix_list(CACHE(2), max, prefixes, output(3)));
}

static void resize(void) {
    choose_flaw(4);
    uint32_t group = is_bad(0) ? unknown_u32(0) : 0;
    uint64_t blocks = 1;
    if (is_bad(1)) blocks = one_in(2) ? 0 : (UINT64_C(1) << 29) + some_u64() / 2;
    refused(kavern_kv_resize(CACHE(2), group, blocks, output(3)));
}

static void advise(void) {
    choose_flaw(2);
    refused(kavern_kv_advise(CACHE(0), some_u64(), some_u64(), some_u64(), output(1)));
}

static void class_stats(void) {
    choose_flaw(4);
    uint32_t group = is_bad(0) ? unknown_u32(0) : 0;
    kavern_kv_class_statistics *out = sized_output(1, 2, sizeof *out);
    refused(kavern_kv_class_stats(CACHE(3), group, out));
}

typedef kavern_status events_call(kavern_kv_cache *, uint64_t *, size_t, kavern_kv_event *, size_t *);

static void events_of(events_call *call) {
    choose_flaw(5);
    uint64_t *cursor = is_bad(0) ? bad_pointer() : (void *)&out_memory[2048];
    size_t max = is_bad(1) ? bad_count(sizeof(kavern_kv_event)) : 4;
    kavern_kv_event *events = is_bad(2) ? bad_pointer() : (void *)&out_memory[4096];
    refused(call(CACHE(3), cursor, max, events, output(4)));
}

static void events_read(void) { events_of(kavern_kv_events_read); }
static void events_snapshot(void) { events_of(kavern_kv_events_snapshot); }

static void block_keys(void) {
    static kavern_kv_request request;
    choose_flaw(6);
    good_request(&request);
    if (is_bad(0)) request.struct_size = bad_struct_size();
    if (is_bad(1)) {
        do {
            good_request(&request);
            spoil_request(&request);
        } while (request.block_ids != NULL); /* which this function does not use */
    }
    const kavern_kv_request *given = is_bad(2) ? bad_pointer() : &request;
    uint64_t capacity = is_bad(3) ? bad_count(32) : 64;
    uint8_t *keys = is_bad(4) ? NULL : &out_memory[4096];
    kavern_kv_cache *cache = one_in(4) ? bad_handle(live_cache, stale_cache, live_manager) : live_cache;
    refused(kavern_kv_block_keys(cache, given, keys, capacity, output(5)));
}

static void probe(void) {
    static kavern_kv_request requests[4];
    int64_t *tokens_found = (int64_t *)(void *)&out_memory[1024];
    size_t n = 1 + below(4);
    for (size_t i = 0; i < n; ++i) good_request(&requests[i]);
    if (one_in(2)) {
        for (size_t i = 0; i < n; ++i) {
            do {
                good_request(&requests[i]);
                spoil_request(&requests[i]);
            } while (requests[i].block_ids != NULL); /* which this function does not use */
        }
        EXPECT(KAVERN_PARTIAL, kavern_kv_probe(live_cache, n, requests, tokens_found));
        for (size_t i = 0; i < n; ++i) CHECK(tokens_found[i] < 0);
        CHECK(is_unchanged_from(1024 + n * sizeof *tokens_found));
        return;
    }
    choose_flaw(5);
    if (is_bad(0)) requests[below(n)].struct_size = bad_struct_size();
    if (is_bad(1)) n = bad_count(sizeof *requests);
    const kavern_kv_request *given = is_bad(2) ? bad_pointer() : requests;
    refused(kavern_kv_probe(CACHE(3), n, given, output(4)));
}

static void block_hashes(void) {
    static kavern_kv_request request;
    choose_flaw(7);
    good_request(&request);
    if (is_bad(0)) request.struct_size = bad_struct_size();
    if (is_bad(1)) {
        do {
            good_request(&request);
            spoil_request(&request);
        } while (request.block_ids != NULL); /* which this function does not use */
    }
    const kavern_kv_request *given = is_bad(2) ? bad_pointer() : &request;
    uint64_t capacity = is_bad(3) ? bad_count(16) : 64;
    uint64_t *hashes = is_bad(4) ? NULL : (void *)&out_memory[4096];
    uint32_t group = is_bad(5) ? unknown_u32(0) : 0;
    kavern_kv_cache *cache = one_in(4) ? bad_handle(live_cache, stale_cache, live_manager) : live_cache;
    refused(kavern_kv_block_hashes(cache, given, group, hashes, capacity, output(6)));
}

/* The sweep's cache has neither of the two indices, so that good calls are refused too. */
static void match_chunks(void) {
    static kavern_kv_request request;
    static uint64_t offsets[4];
    choose_flaw(7);
    good_request(&request);
    request.flags = is_bad(0) ? 0 : KAVERN_REQUEST_CHUNKS;
    request.tokens = is_bad(1) ? tokens : NULL;
    request.token_count = 0;
    request.keys = is_bad(2) ? bad_pointer() : bytes;
    request.key_bytes = 16;
    request.key_count = is_bad(3) ? bad_count(16) : 4;
    const uint64_t *given = is_bad(4) ? maybe_misaligned() : offsets;
    kavern_kv_chunk_hit *hits = is_bad(5) ? bad_pointer() : (void *)&out_memory[4096];
    refused(kavern_kv_match_chunks(live_cache, &request, given, hits, one_in(4) ? 3 : 8, output(6)));
}

static void lookup_device(void) {
    static kavern_kv_lookup_args args;
    static uint64_t base;
    if (base == 0) {
        kavern_kv_description found = {.struct_size = sizeof found};
        OK(kavern_kv_describe(live_cache, 0, &found));
        base = found.base_address;
    }
    choose_flaw(8);
    memset(&args, 0, sizeof args);
    args.struct_size = is_bad(0) ? bad_struct_size() : sizeof args;
    args.group = is_bad(1) ? unknown_u32(0) : 0;
    args.mode = is_bad(2) ? (one_in(4) ? 0 : unknown_u32(2)) : 1 + (uint32_t)below(2);
    args.rows = args.row_hashes = 1;
    args.reserved = is_bad(3) ? (uint32_t)some_u64() | 1 : 0;
    args.hashes = is_bad(4) ? 0 : base;
    args.block_ids = is_bad(5) ? 0 : base;
    const kavern_kv_lookup_args *given = one_in(5) ? bad_pointer() : &args;
    refused(kavern_kv_lookup_device(CACHE(6), STREAM(7), given));
}

static void append(void) {
    static kavern_kv_append_args args;
    static uint64_t base;
    if (base == 0) {
        kavern_kv_description found = {.struct_size = sizeof found};
        OK(kavern_kv_describe(live_cache, 0, &found));
        base = found.base_address;
    }
    choose_flaw(10);
    memset(&args, 0, sizeof args);
    args.struct_size = is_bad(0) ? bad_struct_size() : sizeof args;
    args.group = is_bad(1) ? unknown_u32(0) : 0;
    args.layer = is_bad(2) ? unknown_u32(1) : below(2);
    args.dtype = is_bad(3) ? (one_in(4) ? 0 : unknown_u32(6)) : KAVERN_BF16;
    args.tokens = 1;
    args.reserved = is_bad(4) ? (uint32_t)some_u64() | 1 : 0;
    args.keys = is_bad(5) ? 0 : base;
    args.values = is_bad(6) ? 0 : base;
    args.slot_mapping = is_bad(7) ? 0 : base;
    const kavern_kv_append_args *given = one_in(5) ? bad_pointer() : &args;
    refused(kavern_kv_append(CACHE(8), STREAM(9), given));
}

typedef kavern_status pattern_call(kavern_kv_cache *, void *, uint32_t, size_t, const int32_t *, const uint64_t *);

static void pattern_of(pattern_call *call) {
    choose_flaw(7);
    for (int i = 0; i < 4; ++i) block_ids[i] = i;
    if (is_bad(0)) block_ids[below(4)] = one_in(2) ? -1 - (int32_t)below(1 << 30) : 16 + (int32_t)below(1 << 30);
    uint32_t group = is_bad(1) ? unknown_u32(0) : 0;
    size_t n = is_bad(2) ? bad_count(8) : 4;
    const int32_t *ids = is_bad(3) ? bad_pointer() : block_ids;
    const uint64_t *given_seeds = is_bad(4) ? bad_pointer() : seeds;
    refused(call(CACHE(5), STREAM(6), group, n, ids, given_seeds));
}

static void fill_pattern(void) { pattern_of(kavern_kv_fill_pattern); }
static void check_pattern(void) { pattern_of(kavern_kv_check_pattern); }

static void pattern_result(void) {
    choose_flaw(2);
    refused(kavern_kv_pattern_result(CACHE(0), output(1)));
}

const sweep_entry sweep_kv[] = {
    {"kavern_kv_cache_config_init", cache_config_init},
    {"kavern_kv_cache_create", cache_create},
    {"kavern_kv_cache_destroy", cache_destroy},
    {"kavern_kv_match", match},
    {"kavern_kv_step", step},
    {"kavern_kv_tables", tables},
    {"kavern_kv_poll", poll},
    {"kavern_kv_step_done", step_done},
    {"kavern_kv_describe", describe},
    {"kavern_kv_stats", stats},
    {"kavern_kv_validate", validate},
    {"kavern_kv_reset", reset},
    {"kavern_kv_evict", evict},
    {"kavern_kv_prefix_pin", prefix_pin},
    {"kavern_kv_prefix_unpin", prefix_unpin},
    {"kavern_kv_prefix_list", prefix_list},
    {"kavern_kv_resize", resize},
    {"kavern_kv_advise", advise},
    {"kavern_kv_class_stats", class_stats},
    {"kavern_kv_events_read", events_read},
    {"kavern_kv_events_snapshot", events_snapshot},
    {"kavern_kv_block_keys", block_keys},
    {"kavern_kv_probe", probe},
    {"kavern_kv_block_hashes", block_hashes},
    {"kavern_kv_match_chunks", match_chunks},
    {"kavern_kv_lookup_device", lookup_device},
    {"kavern_kv_append", append},
    {"kavern_kv_fill_pattern", fill_pattern},
    {"kavern_kv_check_pattern", check_pattern},
    {"kavern_kv_pattern_result", pattern_result},
    {NULL, NULL},
};
