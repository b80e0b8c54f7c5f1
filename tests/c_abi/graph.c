/* A decode step of an engine captured into a CUDA graph: the step interface runs outside of it, the graph reads the
   tables at addresses that never move, and the writing of keys and values is inside. Needs a GPU. */
#include "driver.h"

enum { BATCH = 3, LAYERS = 2, HEADS = 2, CHANNELS = 64, STEPS = 20, BLOCK_TOKENS = 4 };
enum { TOKEN_ELEMENTS = HEADS * CHANNELS };

/* What the "model" gives for a token: every element tells where it belongs. */
static float element(int what, int layer, int row, int step, int index) {
    return (float)(what * 1000003 + layer * 100003 + row * 20011 + step * 257 + index);
}

int main(void) {
    if (!has_gpu()) return 0;
    kavern_manager *manager = open_manager(test_device());
    OK(kavern_warmup(manager));

    kavern_kv_group group = {.struct_size = sizeof group, .kind = KAVERN_GROUP_FULL, .layers = LAYERS,
                             .kv_heads = HEADS, .head_dim = CHANNELS, .dtype = KAVERN_F32,
                             .block_tokens = BLOCK_TOKENS, .layout = KAVERN_NHD};
    kavern_kv_cache *cache = NULL;
    kavern_kv_cache_config config = config_for(&group, 1);
    config.capacity_blocks = 64;
    config.max_sequences = 8;
    OK(kavern_kv_cache_create(manager, &config, &cache));

    /* The engine's own stream, in the context that is current: the primary one that the manager retains too. */
    void *context = NULL, *stream = NULL;
    int ordinal = 0;
    DRIVER(cuDeviceGet, &ordinal, 0);
    DRIVER(cuDevicePrimaryCtxRetain, &context, ordinal);
    DRIVER(cuCtxSetCurrent, context);
    DRIVER(cuStreamCreate, &stream, 1);
    OK(kavern_manager_stream_register(manager, stream));

    const size_t layer_bytes = sizeof(float) * BATCH * TOKEN_ELEMENTS;
    unsigned long long keys = 0, values = 0;
    DRIVER(cuMemAlloc_v2, &keys, layer_bytes * LAYERS);
    DRIVER(cuMemAlloc_v2, &values, layer_bytes * LAYERS);

    void *graph = NULL, *executable = NULL;
    uint64_t sequences[BATCH] = {0};
    int32_t rows[BATCH] = {0};
    static float staged[2][LAYERS][BATCH][TOKEN_ELEMENTS];
    for (int step = 0; step < STEPS; step++) {
        kavern_kv_op ops[2 * BATCH];
        kavern_kv_op_result results[2 * BATCH];
        int32_t tokens[BATCH];
        memset(ops, 0, sizeof ops);
        for (int i = 0; i < BATCH; i++) {
            tokens[i] = 100 * i + step;
            ops[2 * i] = (kavern_kv_op){.struct_size = sizeof ops[0], .kind = KAVERN_OP_APPEND, .tokens = 1,
                                        .target = sequences[i], .row = -1};
            if (step == 0) ops[2 * i].kind = KAVERN_OP_ADMIT;
            ops[2 * i + 1] = (kavern_kv_op){.struct_size = sizeof ops[0], .kind = KAVERN_OP_COMMIT, .tokens = 1,
                                            .token_ids = &tokens[i], .target = sequences[i]};
            if (step == 0) {
                kavern_kv_request request = {.struct_size = sizeof request, .tokens = &tokens[i], .token_count = 1,
                                             .namespace_id = 1};
                kavern_kv_match_result match;
                OK(kavern_kv_match(cache, 1, &request, &match));
                ops[2 * i].target = match.lease;
                ops[2 * i + 1].target = KAVERN_SEQ_OF_OP(2 * i);
            }
        }
        OK(kavern_kv_step(cache, (uint64_t)step + 1, 2 * BATCH, ops, results));
        for (int i = 0; i < BATCH; i++) {
            sequences[i] = results[2 * i].sequence;
            rows[i] = results[2 * i].row;
        }
        kavern_kv_group_tables groups[1];
        kavern_kv_step_tables tables = {.struct_size = sizeof tables, .groups = groups, .group_capacity = 1};
        OK(kavern_kv_tables(cache, (uint64_t)step + 1, stream, &tables));
        if (graph == NULL) {
            /* What is captured is only recorded; the strictest mode would refuse a call that could break it. */
            DRIVER(cuStreamBeginCapture_v2, stream, 0);
            for (int layer = 0; layer < LAYERS; layer++) {
                kavern_kv_append_args append = {.struct_size = sizeof append, .layer = (uint32_t)layer,
                                                .dtype = KAVERN_F32, .tokens = BATCH,
                                                .keys = keys + layer_bytes * (size_t)layer,
                                                .values = values + layer_bytes * (size_t)layer,
                                                .slot_mapping = groups[0].slot_mapping};
                OK(kavern_kv_append(cache, stream, &append));
            }
            kavern_kv_statistics statistics = {.struct_size = sizeof statistics};
            OK(kavern_kv_stats(cache, &statistics)); /* bookkeeping goes on during a capture */
            DRIVER(cuStreamEndCapture, stream, &graph);
            DRIVER(cuGraphInstantiateWithFlags, &executable, graph, 0ULL);
        }
        for (int layer = 0; layer < LAYERS; layer++)
            for (int i = 0; i < BATCH; i++)
                for (int e = 0; e < TOKEN_ELEMENTS; e++) {
                    staged[0][layer][i][e] = element(1, layer, i, step, e);
                    staged[1][layer][i][e] = element(2, layer, i, step, e);
                }
        DRIVER(cuMemcpyHtoDAsync_v2, keys, staged[0], layer_bytes * LAYERS, stream);
        DRIVER(cuMemcpyHtoDAsync_v2, values, staged[1], layer_bytes * LAYERS, stream);
        DRIVER(cuGraphLaunch, executable, stream);
        OK(kavern_kv_step_done(cache, (uint64_t)step + 1, stream));
        OK(kavern_stream_synchronize(manager, stream)); /* the staging buffer is filled again */
        if (step + 1 < STEPS) continue;

        /* Every token of every sequence lies where the block table says. */
        kavern_kv_description shape = {.struct_size = sizeof shape};
        OK(kavern_kv_describe(cache, 0, &shape));
        for (int i = 0; i < BATCH; i++) {
            int32_t blocks[STEPS / BLOCK_TOKENS];
            DRIVER(cuMemcpyDtoH_v2, blocks, groups[0].block_table + 4 * (uint64_t)rows[i] * groups[0].row_cells,
                   sizeof blocks);
            for (int token = 0; token < STEPS; token++)
                for (int layer = 0; layer < LAYERS; layer++)
                    for (int what = 0; what < 2; what++) {
                        float seen[TOKEN_ELEMENTS];
                        uint64_t at = shape.base_address + (uint64_t)blocks[token / BLOCK_TOKENS] * shape.block_stride +
                                      (uint64_t)layer * shape.layer_stride + (uint64_t)what * shape.kv_stride +
                                      (uint64_t)(token % BLOCK_TOKENS) * shape.token_stride;
                        DRIVER(cuMemcpyDtoH_v2, seen, at, sizeof seen);
                        for (int e = 0; e < TOKEN_ELEMENTS; e++)
                            CHECK(seen[e] == element(1 + what, layer, i, token, e));
                    }
        }
    }
    OK(kavern_kv_validate(cache));
    DRIVER(cuGraphExecDestroy, executable);
    DRIVER(cuGraphDestroy, graph);
    OK(kavern_manager_stream_unregister(manager, stream));
    DRIVER(cuStreamDestroy_v2, stream);
    OK(kavern_kv_cache_destroy(&cache));
    OK(kavern_manager_destroy(&manager));
    DRIVER(cuMemFree_v2, keys);
    DRIVER(cuMemFree_v2, values);
    printf("a captured decode step, replayed %d times, wrote every key and value where it belongs\n", STEPS);
    return 0;
}
