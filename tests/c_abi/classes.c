/* Size classes as an engine uses them: advice, a forced class, the group in the answers, counts. */
#include "check.h"

enum { SIZES = 3, TOKENS = 600 };

static const uint32_t block_tokens[SIZES] = {16, 64, 256};
static kavern_manager *manager;
static int32_t tokens[TOKENS];

static void set(kavern_kv_group *groups, kavern_kv_cache_config *config) {
    memset(groups, 0, SIZES * sizeof *groups);
    for (uint32_t i = 0; i < SIZES; ++i) {
        groups[i].struct_size = sizeof *groups;
        groups[i].kind = KAVERN_GROUP_FULL;
        groups[i].layers = 2;
        groups[i].kv_heads = 1;
        groups[i].head_dim = 8;
        groups[i].dtype = KAVERN_F16;
        groups[i].layout = KAVERN_NHD;
        groups[i].block_tokens = block_tokens[i];
        groups[i].size_class = i + 1;
    }
    OK(kavern_kv_cache_config_init(config, sizeof *config));
    config->flags = KAVERN_KV_ADAPTIVE_BLOCKS;
    config->groups = groups;
    config->group_count = SIZES;
    config->capacity_bytes = SIZES * UINT64_C(64) * 16 * 1024;
    config->max_sequence_tokens = 4096;
}

static void refuse_wrong_classes(void) {
    kavern_kv_group groups[SIZES];
    kavern_kv_cache_config config;
    kavern_kv_cache *cache = NULL;
    set(groups, &config);
    config.flags = 0;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_kv_cache_create(manager, &config, &cache));
    CHECK(last_error_has("KAVERN_KV_ADAPTIVE_BLOCKS"));
    set(groups, &config);
    groups[2].size_class = 2;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_kv_cache_create(manager, &config, &cache));
    set(groups, &config);
    groups[1].block_tokens = 24;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_kv_cache_create(manager, &config, &cache));
    CHECK(last_error_has("multiple"));
    set(groups, &config);
    groups[1].layers = 3;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_kv_cache_create(manager, &config, &cache));
    set(groups, &config);
    config.block_advisor = "coin";
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_kv_cache_create(manager, &config, &cache));
    CHECK(cache == NULL && last_error_has("predictive"));
}

static kavern_kv_request prompt(uint32_t size_class, uint64_t count) {
    kavern_kv_request request;
    memset(&request, 0, sizeof request);
    request.struct_size = sizeof request;
    request.namespace_id = 7;
    request.tokens = tokens;
    request.token_count = count;
    request.size_class = size_class;
    return request;
}

/* A request from match to free in a step of its own; answers the group that it ran in. */
static uint32_t serve(kavern_kv_cache *cache, uint64_t step, uint32_t size_class, uint64_t count, uint64_t hits) {
    kavern_kv_request request = prompt(size_class, count);
    kavern_kv_match_result found;
    OK(kavern_kv_match(cache, 1, &request, &found));
    CHECK(found.hit_tokens == hits);
    kavern_kv_op ops[3];
    kavern_kv_op_result results[3];
    memset(ops, 0, sizeof ops);
    for (int i = 0; i < 3; ++i) ops[i].struct_size = sizeof *ops;
    ops[0].kind = KAVERN_OP_ADMIT;
    ops[0].target = found.lease;
    ops[0].tokens = count - hits;
    ops[0].row = -1;
    ops[1].kind = KAVERN_OP_COMMIT;
    ops[1].target = KAVERN_SEQ_OF_OP(0);
    ops[1].tokens = count - hits;
    ops[1].token_ids = tokens + hits;
    ops[2].kind = KAVERN_OP_FREE;
    ops[2].target = KAVERN_SEQ_OF_OP(0);
    OK(kavern_kv_step(cache, step, 3, ops, results));
    CHECK(found.cross_groups == 1u << results[0].group);
    OK(kavern_kv_step_done(cache, step, NULL));
    OK(kavern_kv_poll(cache, 0, NULL, &(size_t){0}));
    return results[0].group;
}

int main(void) {
    manager = open_manager(test_device());
    for (int i = 0; i < TOKENS; ++i) tokens[i] = 3 * i + 1;
    refuse_wrong_classes();
    kavern_kv_group groups[SIZES];
    kavern_kv_cache_config config;
    set(groups, &config);
    kavern_kv_cache *cache = NULL;
    OK(kavern_kv_cache_create(manager, &config, &cache));
    kavern_kv_advice advice;
    OK(kavern_kv_advise(cache, 7, 100, 0, &advice));
    CHECK(advice.size_class == 1 && advice.group == 0 && advice.block_tokens == 16 && advice.predicted_tokens == 100);
    OK(kavern_kv_advise(cache, 7, 100, 50000, &advice));
    CHECK(advice.size_class == 3 && advice.group == 2);
    CHECK(advice.predicted_tokens == config.max_sequence_tokens);
    /* A forced class, then what lies there is found without a word. */
    CHECK(serve(cache, 1, 2, TOKENS, 0) == 1);
    CHECK(serve(cache, 2, 0, TOKENS, 576) == 1);
    CHECK(serve(cache, 3, 1, 100, 0) == 0);
    kavern_kv_request unknown = prompt(4, 32);
    kavern_kv_match_result refused;
    EXPECT(KAVERN_PARTIAL, kavern_kv_match(cache, 1, &unknown, &refused));
    CHECK(refused.status == KAVERN_ERR_INVALID_ARGUMENT && refused.lease == 0);
    kavern_kv_class_statistics statistics;
    memset(&statistics, 0, sizeof statistics);
    statistics.struct_size = sizeof statistics;
    OK(kavern_kv_class_stats(cache, 1, &statistics));
    CHECK(statistics.size_class == 2 && statistics.block_tokens == 64 && statistics.begun_sequences == 2);
    CHECK(statistics.ended_sequences == 2 && statistics.ended_tokens == 2 * TOKENS);
    CHECK(statistics.ended_slots == 2 * 640 && statistics.ended_cells == 20 && statistics.sequences == 0);
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_kv_class_stats(cache, 3, &statistics));
    OK(kavern_kv_validate(cache));
    OK(kavern_kv_cache_destroy(&cache));
    OK(kavern_manager_destroy(&manager));
    return 0;
}
