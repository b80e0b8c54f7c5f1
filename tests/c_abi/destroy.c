/* Managers are destroyed while work is under way on what was made from them: the device is done with memory before it
 * goes, however it was had and whether it was freed. */
#include "check.h"

#define ROUNDS 100
#define MIB (UINT64_C(1) << 20)

enum { FREED, LIVE, TRIMMED, BATCH, OWN_STREAM, STREAM_OF_ANOTHER, FORMS };

/* Blocks that are being cleared when their manager goes. */
static void clear_and_destroy(const char *device, int form, uint64_t bytes) {
    kavern_manager *manager = open_manager(device), *other = NULL;
    kavern_stream *stream = NULL;
    if (form == OWN_STREAM) OK(kavern_stream_create(manager, &stream));
    if (form == STREAM_OF_ANOTHER) {
        other = open_manager(device);
        OK(kavern_stream_create(other, &stream));
        OK(kavern_manager_stream_register(manager, stream));
    }
    uint64_t blocks[3] = {0};
    int count = form == BATCH ? 3 : 1;
    for (int i = 0; i < count; ++i) OK(kavern_alloc_zeroed(manager, bytes, 0, stream, 0, &blocks[i]));
    if (form != LIVE) OK(kavern_free_batch(manager, (size_t)count, blocks, stream, NULL));
    if (form == TRIMMED) {
        OK(kavern_manager_trim(manager, NULL));
        OK(kavern_manager_trim(manager, NULL));
    }
    OK(kavern_manager_destroy(&manager));
    OK(kavern_stream_destroy(&stream));
    OK(kavern_manager_destroy(&other));
}

enum { FIXED, ELASTIC, ON_A_BLOCK, ON_A_POOL, PLACES };

/* A cache whose blocks are being written when all goes, the memory that it lies on last. */
static void write_and_destroy(const char *device, int place, int has_stream) {
    kavern_manager *manager = open_manager(device);
    kavern_stream *stream = NULL;
    if (has_stream) OK(kavern_stream_create(manager, &stream));
    kavern_kv_group group = {.struct_size = sizeof group, .kind = KAVERN_GROUP_OPAQUE, .block_tokens = 4};
    group.block_bytes = MIB / 4;
    kavern_kv_cache_config config = config_for(&group, 1);
    config.capacity_blocks = 7;
    config.max_sequences = 4;
    config.max_batch_tokens = 64;
    if (place == ELASTIC) config.max_blocks = 32;
    kavern_pool *pool = NULL;
    kavern_pool_block block = {0};
    if (place == ON_A_BLOCK) OK(kavern_alloc(manager, 2 * MIB, 0, stream, 0, &group.region_address));
    if (place == ON_A_POOL) {
        kavern_pool_config sizes;
        OK(kavern_pool_config_init(&sizes, sizeof sizes));
        sizes.rounding = KAVERN_POOL_FIXED;
        sizes.block_bytes = 2 * MIB;
        OK(kavern_pool_create(manager, &sizes, &pool));
        OK(kavern_pool_acquire(pool, 2 * MIB, stream, &block));
        group.region_address = block.address;
    }
    if (group.region_address != 0) group.region_bytes = 2 * MIB;
    kavern_kv_cache *cache = NULL;
    OK(kavern_kv_cache_create(manager, &config, &cache));
    int32_t ids[7];
    uint64_t seeds[7];
    for (int i = 0; i < 7; ++i) {
        ids[i] = i;
        seeds[i] = 1;
    }
    for (int i = 0; i < 4; ++i) OK(kavern_kv_fill_pattern(cache, stream, 0, 7, ids, seeds));
    OK(kavern_kv_cache_destroy(&cache));
    if (place == ON_A_BLOCK) OK(kavern_free(manager, group.region_address, stream));
    OK(kavern_pool_destroy(&pool));
    OK(kavern_manager_destroy(&manager));
    OK(kavern_stream_destroy(&stream));
}

/* A device that fails from some call on, so that it cannot be waited for: what it was doing is over by then. */
static void fail_and_destroy(const char *how, const char *more) {
    for (int call = 1; call <= 40; ++call) {
        char device[80];
        snprintf(device, sizeof device, "host?%sfail_from=%d&error=%s", more, call, how);
        kavern_manager_config config;
        OK(kavern_manager_config_init(&config, sizeof config));
        config.device = device;
        kavern_manager *manager = NULL;
        if (kavern_manager_create(&config, &manager) != KAVERN_OK) continue;
        uint64_t block = 0;
        if (kavern_alloc_zeroed(manager, 16 * MIB, 0, NULL, 0, &block) == KAVERN_OK) kavern_free(manager, block, NULL);
        OK(kavern_manager_destroy(&manager));
    }
}

int main(void) {
    const char *const failures[] = {"lost", "device", "panic"};
    for (int i = 0; i < 3; ++i) {
        fail_and_destroy(failures[i], "");
        fail_and_destroy(failures[i], "virtual=0&");
    }
    const uint64_t sizes[4] = {4096, 256 << 10, 4 * MIB, 64 * MIB};
    for (int form = FREED; form < FORMS; ++form) {
        for (int at = 0; at < 4; ++at) {
            int rounds = sizes[at] > 4 * MIB ? ROUNDS / 32 : ROUNDS;
            for (int i = 0; i < rounds; ++i) clear_and_destroy(test_device(), form, sizes[at]);
        }
    }
    kavern_device_description found = {.struct_size = sizeof found};
    OK(kavern_device_describe(test_device(), &found));
    for (int place = FIXED; place < PLACES; ++place) {
        if (place == ELASTIC && (found.capabilities & KAVERN_DEVICE_VIRTUAL_MEMORY) == 0) continue;
        for (int i = 0; i < ROUNDS; ++i) write_and_destroy(test_device(), place, i % 2);
    }
    return 0;
}
