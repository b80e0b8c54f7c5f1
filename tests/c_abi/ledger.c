/* The books of a manager: what is taken by every way is in its sums to the byte, in its report, and gone at the end;
 * what is still there when it closes is named. Prints the report of the moment when all ways are in use. */
#include "check.h"

#define MIB (UINT64_C(1) << 20)

static kavern_manager_statistics stats_of(kavern_manager *manager) {
    kavern_manager_statistics found = {.struct_size = sizeof found};
    OK(kavern_manager_stats(manager, &found));
    return found;
}

static void print_report(kavern_manager *manager) {
    size_t needed = 0;
    OK(kavern_manager_report_json(manager, NULL, 0, &needed));
    char *text = malloc(needed + 4096);
    CHECK(text != NULL);
    OK(kavern_manager_report_json(manager, text, needed + 4096, &needed));
    puts(text);
    free(text);
}

static kavern_pool *make_pool(kavern_manager *manager) {
    kavern_pool_config config;
    kavern_pool *pool = NULL;
    OK(kavern_pool_config_init(&config, sizeof config));
    config.rounding = KAVERN_POOL_FIXED;
    config.block_bytes = MIB;
    OK(kavern_pool_create(manager, &config, &pool));
    return pool;
}

static void every_way(void) {
    kavern_manager *manager = open_manager(test_device());
    kavern_manager_statistics before = stats_of(manager);
    CHECK(before.device_bytes == 0 && before.device_held_bytes == 0 && before.pinned_bytes == 0);

    uint64_t tag = 0, small = 0, large = 0;
    OK(kavern_tag(manager, "weights", &tag));
    OK(kavern_alloc(manager, 1000, 0, NULL, tag, &small));
    OK(kavern_alloc(manager, 40 * MIB + 1, 0, NULL, 0, &large));

    kavern_pool *pool = make_pool(manager);
    kavern_pool_block block;
    OK(kavern_pool_acquire(pool, 5, NULL, &block));
    kavern_pool_statistics pooled = {.struct_size = sizeof pooled};
    OK(kavern_pool_stats(pool, &pooled, 0, NULL));

    kavern_elastic_config elastic_config;
    kavern_elastic *elastic = NULL;
    kavern_elastic_extent committed;
    OK(kavern_elastic_config_init(&elastic_config, sizeof elastic_config));
    elastic_config.capacity_bytes = UINT64_C(1) << 30;
    OK(kavern_elastic_create(manager, &elastic_config, &elastic));
    OK(kavern_elastic_commit(elastic, 0, 6 * MIB, &committed));

    kavern_shared_pool_config shared_config;
    kavern_shared_pool *shared = NULL;
    kavern_elastic_extent model;
    OK(kavern_shared_pool_config_init(&shared_config, sizeof shared_config));
    shared_config.physical_limit_bytes = 64 * MIB;
    OK(kavern_shared_pool_create(manager, &shared_config, &shared));
    OK(kavern_shared_pool_register_model(shared, "chat", 64 * MIB, 0, 1, 0));
    OK(kavern_shared_pool_commit(shared, "chat", 0, 10 * MIB, &model));

    void *pinned = NULL;
    OK(kavern_pinned_alloc(manager, 12345, "staging", &pinned));

    kavern_manager_statistics now = stats_of(manager);
    CHECK(now.allocator_bytes == 1000 + 40 * MIB + 1);
    CHECK(now.elastic_bytes == committed.bytes && now.shared_bytes == model.bytes);
    CHECK(now.device_bytes == now.allocator_bytes + pooled.held_bytes + committed.bytes + model.bytes);
    CHECK(now.device_allocations == 2 + 1 && now.device_total_allocations == 2 + 1);
    CHECK(now.device_held_bytes >= now.device_bytes && now.device_peak_bytes >= now.device_held_bytes);
    CHECK(now.pinned_bytes >= 12345);
    print_report(manager);

    OK(kavern_free(manager, small, NULL));
    CHECK(stats_of(manager).allocator_bytes == 40 * MIB + 1);
    OK(kavern_free(manager, large, NULL));
    OK(kavern_pool_release(pool, block.address, NULL));
    OK(kavern_pool_destroy(&pool));
    CHECK(stats_of(manager).device_bytes == committed.bytes + model.bytes);
    OK(kavern_elastic_decommit(elastic, 0, 6 * MIB, NULL, NULL));
    CHECK(stats_of(manager).elastic_bytes == 0);
    OK(kavern_elastic_destroy(&elastic));
    OK(kavern_shared_pool_decommit(shared, "chat", 0, 10 * MIB, NULL, NULL));
    CHECK(stats_of(manager).device_bytes == 0);
    OK(kavern_shared_pool_destroy(&shared));
    OK(kavern_pinned_free(manager, pinned, NULL));
    OK(kavern_stream_synchronize(manager, NULL));
    OK(kavern_manager_trim(manager, NULL));
    OK(kavern_stream_synchronize(manager, NULL));
    OK(kavern_manager_trim(manager, NULL));
    now = stats_of(manager);
    CHECK(now.device_bytes == 0 && now.device_held_bytes == 0 && now.device_allocations == 0);
    CHECK(now.device_peak_bytes >= 57 * MIB);
    OK(kavern_manager_validate(manager));
    OK(kavern_manager_destroy(&manager));
}

static char warnings[4096];

static void note(void *userdata, uint32_t level, const char *room, const char *text) {
    (void)userdata, (void)level, (void)room;
    if (strstr(text, "closed with") == NULL) return;
    size_t length = strlen(warnings);
    snprintf(warnings + length, sizeof warnings - length, "%s\n", text);
}

static void what_is_left_is_named(void) {
    kavern_manager *manager = open_manager(test_device());
    uint64_t tag = 0, address = 0;
    OK(kavern_tag(manager, "activations", &tag));
    OK(kavern_alloc(manager, 777, 0, NULL, tag, &address));
    OK(kavern_alloc(manager, 333, 0, NULL, tag, &address));
    kavern_pool *pool = make_pool(manager);
    kavern_pool_block block;
    void *pinned = NULL;
    OK(kavern_pool_acquire(pool, 5, NULL, &block));
    OK(kavern_pinned_alloc(manager, 12345, "staging", &pinned));
    OK(kavern_set_log_callback(KAVERN_LOG_WARN, note, NULL));
    OK(kavern_pool_destroy(&pool));
    OK(kavern_manager_destroy(&manager));
    OK(kavern_set_log_callback(0, NULL, NULL));
    CHECK(strstr(warnings, "2 live allocations of 1110 bytes") != NULL);
    CHECK(strstr(warnings, "\"activations\" 1110") != NULL);
    CHECK(strstr(warnings, "closed with 1 blocks of 1048576 bytes in use") != NULL);
    CHECK(strstr(warnings, "closed with 1 ranges of 12345 bytes in use") != NULL);
}

int main(void) {
    every_way();
    what_is_left_is_named();
    return 0;
}
