/* faults <how> [<parameter>&]: the first, second, third ... call of the device fails (how: oom, device, lost or panic)
 * while a program allocates, runs a cache for two steps and moves pages about. Each run ends in a known status, a call
 * that is refused has nothing, and destroying leaves no memory behind. The parameter is the device's. */
#include "objects.h"

static const char *how, *parameter = "";
static long refusals, panics;

static int went_well(kavern_status status) {
    if (status >= 0) return 1;
    CHECK(strcmp(kavern_status_name(status), "unknown") != 0);
    CHECK(status != KAVERN_ERR_INTERNAL && status != KAVERN_ERR_INVALID_HANDLE);
    if (status == KAVERN_ERR_PANIC || status == KAVERN_ERR_POISONED) CHECK(strcmp(how, "panic") == 0);
    if (status == KAVERN_ERR_PANIC) ++panics;
    ++refusals;
    return 0;
}

static kavern_kv_cache *try_cache(kavern_manager *manager) {
    kavern_kv_group group = {.struct_size = sizeof group, .kind = KAVERN_GROUP_OPAQUE, .block_tokens = 4};
    group.block_bytes = 4096;
    kavern_kv_cache_config config = config_for(&group, 1);
    config.capacity_blocks = 16;
    if (*parameter == 0) config.max_blocks = 3 * page_bytes() / 4096;
    config.max_sequences = 4;
    config.max_batch_tokens = 64;
    kavern_kv_cache *cache = NULL;
    went_well(kavern_kv_cache_create(manager, &config, &cache));
    return cache;
}

static void use(kavern_manager *manager, kavern_kv_cache *cache, void *stream) {
    int32_t tokens[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    for (uint64_t step = 1; step <= 2; ++step) {
        kavern_kv_request request = {.struct_size = sizeof request, .namespace_id = 1, .tokens = tokens};
        request.token_count = 10;
        kavern_kv_match_result found = {0};
        if (!went_well(kavern_kv_match(cache, 1, &request, &found)) || found.lease == 0) return;
        kavern_kv_op ops[3] = {
            {.struct_size = sizeof ops[0], .kind = KAVERN_OP_ADMIT, .target = found.lease, .row = -1},
            {.struct_size = sizeof ops[0], .kind = KAVERN_OP_COMMIT, .target = KAVERN_SEQ_OF_OP(0)},
            {.struct_size = sizeof ops[0], .kind = KAVERN_OP_FREE, .target = KAVERN_SEQ_OF_OP(0)},
        };
        ops[0].tokens = 10 - found.hit_tokens;
        ops[0].expected_tokens = 30;
        ops[1].tokens = 10 - found.hit_tokens;
        ops[1].token_ids = tokens + found.hit_tokens;
        kavern_kv_op_result results[3];
        kavern_kv_step_tables tables = {.struct_size = sizeof tables};
        went_well(kavern_kv_step(cache, step, 3, ops, results));
        went_well(kavern_kv_tables(cache, step, stream, &tables));
        int32_t block = 3;
        uint64_t seed = 5;
        kavern_kv_check_result checked;
        went_well(kavern_kv_fill_pattern(cache, stream, 0, 1, &block, &seed));
        went_well(kavern_kv_check_pattern(cache, stream, 0, 1, &block, &seed));
        went_well(kavern_kv_pattern_result(cache, &checked));
        went_well(kavern_kv_step_done(cache, step, stream));
        went_well(kavern_stream_synchronize(manager, stream));
        kavern_kv_completion none;
        size_t count = 0;
        went_well(kavern_kv_poll(cache, 1, &none, &count));
    }
    uint64_t blocks = 16, most = 3 * page_bytes() / 4096;
    if (*parameter != 0) return; /* without mapped memory a cache stays as it is */
    uint64_t wanted[3] = {most, 1, 16};
    for (int i = 0; i < 3; ++i) {
        kavern_kv_resize_result resized = {0};
        kavern_kv_statistics statistics = {.struct_size = sizeof statistics};
        if (went_well(kavern_kv_resize(cache, 0, wanted[i], &resized))) {
            blocks = wanted[i];
            CHECK(resized.blocks == blocks && resized.max_blocks == most);
            CHECK(resized.committed_bytes >= blocks * 4096);
        }
        if (went_well(kavern_kv_stats(cache, &statistics))) CHECK(statistics.capacity_blocks == blocks);
    }
    went_well(kavern_kv_validate(cache));
}

static uint64_t live_count(kavern_manager *manager) {
    kavern_memory_statistics totals = {.struct_size = sizeof totals};
    return went_well(kavern_memory_stats(manager, &totals)) ? totals.live_count : 0;
}

/* Blocks all or none, and one that is cleared; what cannot be freed, because the device is lost, stays. */
static uint64_t use_blocks(kavern_manager *manager, void *stream) {
    uint64_t sizes[5] = {100, 100, UINT64_C(40) << 20, 5000, 0}, blocks[5] = {0}, cleared = 0;
    if (went_well(kavern_alloc_batch(manager, 4, sizes, 0, stream, 0, blocks))) {
        for (int i = 0; i < 4; ++i) {
            if (!went_well(kavern_free(manager, blocks[i], stream))) went_well(kavern_free(manager, blocks[i], stream));
        }
    }
    uint64_t left = live_count(manager);
    CHECK(left == 0 || strcmp(how, "lost") == 0 || strcmp(how, "panic") == 0);
    CHECK(kavern_alloc_batch(manager, 5, sizes, 0, stream, 0, blocks) < 0); /* no fault has to be met for that */
    CHECK(live_count(manager) == left || strcmp(how, "panic") == 0);
    if (!went_well(kavern_alloc_zeroed(manager, 5000, 0, stream, 0, &cleared))) {
        CHECK(live_count(manager) == left || strcmp(how, "panic") == 0);
    } else if (!went_well(kavern_free(manager, cleared, stream))) {
        went_well(kavern_free(manager, cleared, stream));
    }
    return live_count(manager);
}

/* A range and a shared pool: memory that comes and goes, and moves between models. */
static void use_pages(kavern_manager *manager, void *stream) {
    kavern_elastic_config config;
    OK(kavern_elastic_config_init(&config, sizeof config));
    config.capacity_bytes = 64 * page_bytes();
    kavern_elastic *elastic = NULL;
    if (went_well(kavern_elastic_create(manager, &config, &elastic))) {
        went_well(kavern_elastic_commit(elastic, page_bytes(), 40 * page_bytes(), NULL));
        went_well(kavern_elastic_decommit(elastic, 0, 20 * page_bytes(), stream, NULL));
        went_well(kavern_elastic_resize(elastic, 8 * page_bytes(), stream, NULL));
    }
    OK(kavern_elastic_destroy(&elastic));
    kavern_shared_pool_config shared_config;
    OK(kavern_shared_pool_config_init(&shared_config, sizeof shared_config));
    shared_config.physical_limit_bytes = 4 * page_bytes();
    kavern_shared_pool *shared = NULL;
    if (went_well(kavern_shared_pool_create(manager, &shared_config, &shared))) {
        const char *models[] = {"a", "b"};
        for (int i = 0; i < 2; ++i) {
            if (!went_well(kavern_shared_pool_register_model(shared, models[i], 8 * page_bytes(), 0, 1, 0))) continue;
            went_well(kavern_shared_pool_commit(shared, models[i], 0, 3 * page_bytes(), NULL));
            went_well(kavern_shared_pool_decommit(shared, models[i], 0, 8 * page_bytes(), stream, NULL));
        }
    }
    OK(kavern_shared_pool_destroy(&shared));
}

/* Whether the fault was met. */
static int run_with_fault(long nth) {
    char device[100];
    snprintf(device, sizeof device, "%s?%sfail_nth=%ld&error=%s", test_device(), parameter, nth, how);
    long before = refusals;
    kavern_manager *manager = open_manager(device), *onlooker = NULL;
    kavern_stream *stream = NULL;
    uint64_t ticket = 0;
    int32_t state = 0;
    went_well(kavern_stream_create(manager, &stream));
    went_well(kavern_stream_record(manager, stream, &ticket));
    if (ticket != 0) {
        kavern_status waited = kavern_ticket_wait(ticket, UINT64_MAX);
        went_well(waited);
        went_well(kavern_ticket_poll(&ticket, 1, &state));
    }
    kavern_kv_cache *cache = try_cache(manager);
    if (cache != NULL) use(manager, cache, stream);
    OK(kavern_kv_cache_destroy(&cache));
    if (*parameter == 0) use_pages(manager, stream);
    use_blocks(manager, NULL);
    uint64_t left = use_blocks(manager, stream); /* the stream goes while the allocator has blocks of it */
    kavern_manager_statistics totals = {.struct_size = sizeof totals};
    kavern_status looked = kavern_manager_stats(manager, &totals);
    if (looked == KAVERN_OK) {
        CHECK((totals.device_bytes == 0 || left > 0) && totals.pinned_bytes == 0 && totals.caches == 0);
        OK(kavern_manager_validate(manager));
    } else {
        EXPECT(KAVERN_ERR_POISONED, looked);
    }
    OK(kavern_stream_destroy(&stream));
    OK(kavern_manager_destroy(&manager));
    onlooker = open_manager("host"); /* other managers are not concerned */
    OK(kavern_stream_synchronize(onlooker, NULL));
    OK(kavern_manager_destroy(&onlooker));
    return refusals != before;
}

int main(int argc, char **argv) {
    CHECK(argc == 2 || argc == 3);
    how = argv[1];
    if (argc == 3) parameter = argv[2];
    long nth = 1, quiet = 0;
    /* A fault may fall on a call whose failure is made good, so the end is a row of runs without one. */
    for (; quiet < 8; ++nth) quiet = run_with_fault(nth) ? 0 : quiet + 1;
    printf("%s: %ld places of failure, %ld refusals\n", how, nth - 1 - quiet, refusals);
    CHECK(nth > 20);
    if (strcmp(how, "panic") == 0) CHECK(panics > 0);
    return 0;
}
