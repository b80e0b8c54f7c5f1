/* Lookups as an engine makes them: a prompt is stored and found by a match, a probe, on the device and as chunks. Runs
 * on the host's memory, or on a GPU through its driver. */
#include "driver.h"

enum { TOKENS = 24, BLOCK_TOKENS = 4, BLOCKS = TOKENS / BLOCK_TOKENS };

static int on_gpu;
static kavern_manager *manager;
static kavern_stream *stream;
static int32_t tokens[TOKENS];

static void open_device(void) {
    on_gpu = strncmp(test_device(), "cuda", 4) == 0 && has_gpu();
    manager = open_manager(test_device());
    OK(kavern_stream_create(manager, &stream));
    if (on_gpu) {
        int ordinal = 0;
        void *context = NULL;
        DRIVER(cuDeviceGet, &ordinal, 0);
        DRIVER(cuDevicePrimaryCtxRetain, &context, ordinal);
        DRIVER(cuCtxSetCurrent, context);
    }
}

static void put(uint64_t address, const void *source, size_t bytes) {
    if (on_gpu) {
        DRIVER(cuMemcpyHtoD_v2, (unsigned long long)address, source, bytes);
    } else {
        memcpy((void *)(uintptr_t)address, source, bytes);
    }
}

static void get(void *target, uint64_t address, size_t bytes) {
    OK(kavern_stream_synchronize(manager, stream));
    if (on_gpu) {
        DRIVER(cuMemcpyDtoH_v2, target, (unsigned long long)address, bytes);
    } else {
        memcpy(target, (const void *)(uintptr_t)address, bytes);
    }
}

static kavern_kv_cache *make(uint32_t flags) {
    kavern_kv_group group;
    memset(&group, 0, sizeof group);
    group.struct_size = sizeof group;
    group.kind = KAVERN_GROUP_OPAQUE;
    group.block_tokens = BLOCK_TOKENS;
    group.block_bytes = 64;
    kavern_kv_cache_config config = config_for(&group, 1);
    config.flags = flags;
    config.capacity_blocks = 64;
    return create_cache(manager, &config);
}

static kavern_kv_request prompt(void) {
    kavern_kv_request request;
    memset(&request, 0, sizeof request);
    request.struct_size = sizeof request;
    request.namespace_id = 7;
    request.tokens = tokens;
    request.token_count = TOKENS;
    return request;
}

static kavern_kv_request passages(const uint64_t *keys, uint64_t count) {
    kavern_kv_request request = prompt();
    request.flags = KAVERN_REQUEST_CHUNKS;
    request.tokens = NULL;
    request.token_count = 0;
    request.keys = (const uint8_t *)keys;
    request.key_bytes = 8;
    request.key_count = count;
    return request;
}

static kavern_kv_op op_of(uint32_t kind, uint64_t target, uint64_t count) {
    kavern_kv_op op;
    memset(&op, 0, sizeof op);
    op.struct_size = sizeof op;
    op.kind = kind;
    op.target = target;
    op.tokens = count;
    op.row = -1;
    return op;
}

/* Stores a prompt of blocks in step 1, which stays open; answers its lease's hits. */
static void store(kavern_kv_cache *cache, const kavern_kv_request *request, uint64_t count) {
    kavern_kv_match_result found;
    OK(kavern_kv_match(cache, 1, request, &found));
    CHECK(found.hit_tokens == 0);
    kavern_kv_op ops[2] = {op_of(KAVERN_OP_ADMIT, found.lease, count),
                           op_of(KAVERN_OP_COMMIT, KAVERN_SEQ_OF_OP(0), count)};
    ops[1].token_ids = request->tokens;
    ops[1].keys = request->keys;
    ops[1].key_bytes = request->key_bytes;
    ops[1].key_count = request->key_count;
    kavern_kv_op_result results[2];
    OK(kavern_kv_step(cache, 1, 2, ops, results));
    CHECK(results[1].blocks_committed == count / BLOCK_TOKENS);
    kavern_kv_step_tables tables;
    memset(&tables, 0, sizeof tables);
    tables.struct_size = sizeof tables;
    OK(kavern_kv_tables(cache, 1, stream, &tables));
}

static void on_the_device(void) {
    kavern_kv_cache *cache = make(KAVERN_KV_DEVICE_INDEX);
    kavern_kv_request request = prompt();
    int64_t probed[2] = {-1, -1};
    OK(kavern_kv_probe(cache, 1, &request, probed));
    CHECK(probed[0] == 0);
    store(cache, &request, TOKENS);
    kavern_kv_request wrong = request;
    wrong.flags = 1u << 30;
    kavern_kv_request both[2] = {request, wrong};
    EXPECT(KAVERN_PARTIAL, kavern_kv_probe(cache, 2, both, probed));
    CHECK(probed[0] == TOKENS && probed[1] == KAVERN_ERR_INVALID_ARGUMENT);

    uint64_t hashes[2][BLOCKS][2], count = 0;
    EXPECT(KAVERN_ERR_BUFFER_TOO_SMALL, kavern_kv_block_hashes(cache, &request, 0, hashes[0][0], BLOCKS - 1, &count));
    CHECK(count == BLOCKS);
    OK(kavern_kv_block_hashes(cache, &request, 0, hashes[0][0], BLOCKS, &count));
    /* The second row has a hash in its middle that nobody stored. */
    memcpy(hashes[1], hashes[0], sizeof hashes[0]);
    hashes[1][2][1] ^= 1;
    hashes[1][2][0] ^= 1;
    uint64_t memory = 0;
    OK(kavern_alloc(manager, 4096, 256, stream, 0, &memory));
    OK(kavern_stream_synchronize(manager, stream));
    put(memory, hashes, sizeof hashes);
    kavern_kv_lookup_args args;
    memset(&args, 0, sizeof args);
    args.struct_size = sizeof args;
    args.rows = 2;
    args.row_hashes = BLOCKS;
    args.hashes = memory;
    args.block_ids = memory + 2048;

    int32_t ids[BLOCKS], seen[2][BLOCKS];
    request.block_ids = ids;
    request.block_capacity = BLOCKS;
    kavern_kv_match_result found;
    OK(kavern_kv_match(cache, 1, &request, &found));
    CHECK(found.hit_tokens == TOKENS && found.block_count == BLOCKS);
    for (uint32_t mode = KAVERN_LOOKUP_INDEPENDENT; mode <= KAVERN_LOOKUP_PREFIX; ++mode) {
        args.mode = mode;
        OK(kavern_kv_lookup_device(cache, stream, &args));
        get(seen, args.block_ids, sizeof seen);
        CHECK(memcmp(seen[0], ids, sizeof ids) == 0);
        for (int i = 0; i < BLOCKS; ++i) {
            int is_hit = mode == KAVERN_LOOKUP_PREFIX ? i < 2 : i != 2;
            CHECK(seen[1][i] == (is_hit ? ids[i] : -1));
        }
    }
    /* So many rows and hashes that their bytes are more than 64 bits can tell. */
    args.rows = args.row_hashes = 1u << 31;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_kv_lookup_device(cache, stream, &args));
    kavern_kv_statistics stats = {.struct_size = sizeof stats};
    OK(kavern_kv_stats(cache, &stats));
    CHECK(stats.device_index_cells_sent == BLOCKS && stats.lookups == 2);
    OK(kavern_kv_validate(cache));
    OK(kavern_kv_cache_destroy(&cache));
    OK(kavern_free(manager, memory, stream));
}

static void as_chunks(void) {
    kavern_kv_cache *cache = make(KAVERN_KV_CHUNK_INDEX);
    uint64_t stored[3] = {101, 102, 103}, asked[4] = {103, 999, 101, 102}, places[4] = {0, 4, 8, 400};
    kavern_kv_request request = passages(stored, 3);
    store(cache, &request, 3 * BLOCK_TOKENS);
    request = passages(asked, 4);
    request.token_count = UINT64_MAX;
    kavern_kv_match_result wrong;
    EXPECT(KAVERN_PARTIAL, kavern_kv_match(cache, 1, &request, &wrong));
    CHECK(wrong.status == KAVERN_ERR_INVALID_ARGUMENT);
    request.token_count = 0;
    kavern_kv_chunk_hit hits[4];
    kavern_kv_match_result found;
    EXPECT(KAVERN_ERR_BUFFER_TOO_SMALL, kavern_kv_match_chunks(cache, &request, places, hits, 3, &found));
    OK(kavern_kv_match_chunks(cache, &request, places, hits, 4, &found));
    CHECK(found.hit_tokens == 0 && hits[0].block == -1);
    kavern_kv_op release = op_of(KAVERN_OP_RELEASE, found.lease, 0);
    kavern_kv_op_result released;
    OK(kavern_kv_step(cache, 1, 1, &release, &released));
    /* What an open step is yet to write is not found; from here on it is. */
    OK(kavern_kv_step_done(cache, 1, stream));
    OK(kavern_kv_match_chunks(cache, &request, places, hits, 4, &found));
    CHECK(found.hit_tokens == 3 * BLOCK_TOKENS && found.block_count == 3 && found.lease != 0);
    CHECK(hits[0].block >= 0 && hits[0].shift == -8);
    CHECK(hits[1].block == -1 && hits[1].shift == 0);
    CHECK(hits[2].block >= 0 && hits[2].shift == 8);
    CHECK(hits[3].block >= 0 && hits[3].shift == 396);
    kavern_kv_op ops[2] = {op_of(KAVERN_OP_ADMIT, found.lease, 1), op_of(KAVERN_OP_RELEASE, found.lease, 0)};
    kavern_kv_op_result results[2];
    EXPECT(KAVERN_PARTIAL, kavern_kv_step(cache, 2, 2, ops, results));
    CHECK(results[0].status == KAVERN_ERR_WRONG_STATE && results[1].status == KAVERN_OK);
    request.flags = 0;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_kv_match_chunks(cache, &request, places, hits, 4, &found));
    EXPECT(KAVERN_PARTIAL, kavern_kv_match(cache, 1, &request, &found));
    CHECK(found.status == KAVERN_ERR_KEY_MODE);
    OK(kavern_kv_validate(cache));
    OK(kavern_kv_cache_destroy(&cache));
}

int main(void) {
    open_device();
    for (int i = 0; i < TOKENS; ++i) tokens[i] = 100 + i;
    on_the_device();
    as_chunks();
    OK(kavern_stream_destroy(&stream));
    OK(kavern_manager_destroy(&manager));
    return 0;
}
