/* A cache whose memory is the engine's tells which blocks are to be wiped before another tenant's work; one with memory
   wipes as many itself and tells none. */
#include "objects.h"

enum { BLOCK_TOKENS = 4, BLOCKS = 6, OLDER_BYTES = offsetof(kavern_kv_step_tables, zeros_host) };

static kavern_kv_cache *make_blocks(kavern_manager *manager, uint32_t flags) {
    kavern_kv_group group = {.struct_size = sizeof group, .kind = KAVERN_GROUP_FULL, .layers = 1, .kv_heads = 1,
        .head_dim = 8, .dtype = KAVERN_BF16, .block_tokens = BLOCK_TOKENS, .layout = KAVERN_NHD};
    kavern_kv_cache_config config = config_for(&group, 1);
    config.max_sequences = 2;
    config.capacity_blocks = BLOCKS;
    config.flags = flags;
    return create_cache(manager, &config);
}

/* In a new step the tenant gets all blocks. */
static uint64_t take_all(kavern_kv_cache *cache, uint64_t step, uint64_t tenant) {
    kavern_kv_request request = {.struct_size = sizeof request, .namespace_id = tenant};
    kavern_kv_match_result found;
    OK(kavern_kv_match(cache, 1, &request, &found));
    kavern_kv_op op = {.struct_size = sizeof op, .kind = KAVERN_OP_ADMIT, .target = found.lease, .row = -1,
        .tokens = BLOCKS * BLOCK_TOKENS};
    kavern_kv_op_result result;
    OK(kavern_kv_step(cache, step, 1, &op, &result));
    return result.sequence;
}

static void end(kavern_kv_cache *cache, uint64_t step, uint64_t sequence) {
    kavern_kv_op op = {.struct_size = sizeof op, .kind = KAVERN_OP_FREE, .target = sequence, .row = -1};
    kavern_kv_op_result result;
    OK(kavern_kv_step(cache, step, 1, &op, &result));
    OK(kavern_kv_step_done(cache, step, NULL));
}

int main(void) {
    kavern_manager *manager = open_manager("host");
    for (uint32_t has_memory = 0; has_memory < 2; ++has_memory) {
        kavern_kv_cache *cache = make_blocks(manager, has_memory ? 0 : KAVERN_KV_METADATA_ONLY);
        kavern_kv_group_tables group;
        for (uint64_t step = 1; step < 5; ++step) {
            uint64_t sequence = take_all(cache, step, step);
            kavern_kv_step_tables tables = {.struct_size = sizeof tables, .groups = &group, .group_capacity = 0};
            EXPECT(KAVERN_ERR_BUFFER_TOO_SMALL, kavern_kv_tables(cache, step, KAVERN_STREAM_DEFAULT, &tables));
            CHECK(tables.zero_count == 0);
            tables.group_capacity = 1;
            OK(kavern_kv_tables(cache, step, KAVERN_STREAM_DEFAULT, &tables));
            uint64_t foreign = step == 1 ? 0 : BLOCKS;
            CHECK(group.blocks_zeroed == (has_memory ? foreign : 0));
            CHECK(tables.zero_count == (has_memory ? 0 : foreign) && (tables.zeros_host == NULL) == !tables.zero_count);
            uint32_t seen = 0;
            for (uint64_t i = 0; i < tables.zero_count; ++i) {
                CHECK(tables.zeros_host[i].group == 0 && (uint32_t)tables.zeros_host[i].block < BLOCKS);
                seen |= 1u << tables.zeros_host[i].block;
            }
            CHECK(seen == (tables.zero_count ? (1u << BLOCKS) - 1 : 0));
            OK(kavern_kv_tables(cache, step, KAVERN_STREAM_DEFAULT, &tables));
            CHECK(tables.zero_count == 0 && tables.zeros_host == NULL && group.blocks_zeroed == 0);
            end(cache, step, sequence);
        }
        /* A program that was built before there was the list goes on as before. */
        uint64_t sequence = take_all(cache, 5, 5);
        kavern_kv_step_tables older = {.struct_size = OLDER_BYTES, .zero_count = 77};
        OK(kavern_kv_tables(cache, 5, KAVERN_STREAM_DEFAULT, &older));
        CHECK(older.batch_count == 1 && older.zeros_host == NULL && older.zero_count == 77);
        end(cache, 5, sequence);
        OK(kavern_kv_validate(cache));
        OK(kavern_kv_cache_destroy(&cache));
    }
    OK(kavern_manager_destroy(&manager));
    return 0;
}
