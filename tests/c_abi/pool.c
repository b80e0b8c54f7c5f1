/* Pools through the C interface: classes, fixed blocks and the ladder; reuse on a stream, limits, lists, trimming. */
#include "driver.h"

static kavern_pool_statistics stats_of(kavern_pool *pool) {
    kavern_pool_statistics totals = {.struct_size = sizeof totals};
    OK(kavern_pool_stats(pool, &totals, 0, NULL));
    OK(kavern_pool_validate(pool));
    return totals;
}

static uint64_t device_bytes(kavern_manager *manager) {
    kavern_manager_statistics totals = {.struct_size = sizeof totals};
    OK(kavern_manager_stats(manager, &totals));
    return totals.device_bytes;
}

static kavern_pool *make(kavern_manager *manager, uint32_t rounding, uint64_t block_bytes, uint64_t max_bytes) {
    kavern_pool_config config;
    kavern_pool *pool = NULL;
    OK(kavern_pool_config_init(&config, sizeof config));
    CHECK(config.idle_ns == UINT64_C(300000000000));
    config.rounding = rounding;
    config.block_bytes = block_bytes;
    config.max_bytes = max_bytes;
    OK(kavern_pool_create(manager, &config, &pool));
    return pool;
}

static void classes_with_their_defaults(kavern_manager *manager, void *stream) {
    kavern_pool *pool = make(manager, KAVERN_POOL_CLASSES, 0, 0);
    kavern_pool_class_statistics classes[4] = {{0}};
    kavern_pool_statistics totals = {.struct_size = sizeof totals};
    OK(kavern_pool_stats(pool, &totals, 4, classes));
    CHECK(totals.class_count == 3 && totals.blocks == 32 + 16 + 8 && totals.hits + totals.misses == 0);
    CHECK(classes[0].block_bytes == 1024 && classes[0].blocks == 32);
    CHECK(classes[1].block_bytes == 65536 && classes[1].blocks == 16);
    CHECK(classes[2].block_bytes == 1 << 20 && classes[2].blocks == 8 && classes[3].block_bytes == 0);
    CHECK(device_bytes(manager) == totals.held_bytes);
    kavern_pool_block block, again;
    OK(kavern_pool_acquire(pool, 1000, stream, &block));
    CHECK(block.bytes == 1024 && block.address % 256 == 0);
    OK(kavern_pool_release(pool, block.address, stream));
    EXPECT(KAVERN_ERR_WRONG_STATE, kavern_pool_release(pool, block.address, stream));
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_pool_release(pool, block.address + 8, stream));
    OK(kavern_pool_acquire(pool, 1024, stream, &again));
    CHECK(again.address == block.address); /* the stream's own, at once */
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_pool_acquire(pool, (1 << 20) + 1, stream, &again));
    CHECK(last_error_has("1048577") && last_error_has("1048576"));
    totals = stats_of(pool);
    CHECK(totals.hits == 2 && totals.misses == 0 && totals.blocks_in_use == 1 && totals.requested_bytes == 1024);
    OK(kavern_pool_destroy(&pool));
    CHECK(pool == NULL && device_bytes(manager) == 0);
}

static void a_limit_names_what_was_asked_and_what_is_held(kavern_manager *manager, void *stream) {
    kavern_pool *pool = make(manager, KAVERN_POOL_FIXED, 4000, 3 * 4096);
    uint64_t sizes[4] = {1, 4096, 100, 7};
    kavern_pool_block blocks[4];
    int32_t states[4] = {9, 9, 9, 9};
    EXPECT(KAVERN_ERR_OUT_OF_MEMORY, kavern_pool_acquire_batch(pool, 4, sizes, stream, blocks, states));
    CHECK(last_error_has("request 3 of 4") && last_error_has("limit of 12288"));
    CHECK(states[0] == KAVERN_ERR_DEPENDENCY && states[3] == KAVERN_ERR_OUT_OF_MEMORY);
    CHECK(stats_of(pool).held_bytes == 0 && stats_of(pool).refusals == 1); /* what grew for it went back */
    OK(kavern_pool_acquire_batch(pool, 3, sizes, stream, blocks, states));
    CHECK(states[0] == KAVERN_OK && states[2] == KAVERN_OK && blocks[1].bytes == 4096);
    uint64_t addresses[3] = {blocks[0].address, blocks[1].address, blocks[0].address};
    EXPECT(KAVERN_ERR_WRONG_STATE, kavern_pool_release_batch(pool, 3, addresses, stream, states));
    CHECK(states[0] == KAVERN_ERR_DEPENDENCY && states[2] == KAVERN_ERR_WRONG_STATE);
    CHECK(stats_of(pool).blocks_in_use == 3);
    addresses[2] = blocks[2].address;
    OK(kavern_pool_release_batch(pool, 3, addresses, stream, states));
    kavern_pool *other = make(manager, KAVERN_POOL_FIXED, 4096, 0);
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_pool_release(other, addresses[0], stream));
    OK(kavern_pool_destroy(&other));
    OK(kavern_stream_synchronize(manager, stream));
    uint64_t freed = 0;
    OK(kavern_pool_trim(pool, UINT64_MAX, &freed));
    CHECK(freed == 0);
    OK(kavern_pool_trim(pool, 0, &freed));
    CHECK(freed == 3 * 4096 && stats_of(pool).held_bytes == 0 && device_bytes(manager) == 0);
    OK(kavern_pool_destroy(&pool));
}

static void the_ladder_rounds_in_decimal_megabytes(kavern_manager *manager, void *stream) {
    kavern_pool *pool = make(manager, KAVERN_POOL_LADDER, 0, 0);
    CHECK(stats_of(pool).max_bytes == UINT64_C(2048000000));
    struct {
        uint64_t asked, rung;
    } rungs[] = {{500000, 500000}, {1500000, 2000000}, {15000000, 20000000}};
    for (size_t i = 0; i < sizeof rungs / sizeof rungs[0]; ++i) {
        kavern_pool_block block;
        OK(kavern_pool_acquire(pool, rungs[i].asked, stream, &block));
        CHECK(block.bytes >= rungs[i].rung && block.bytes < rungs[i].rung + 256 && block.bytes % 256 == 0);
        OK(kavern_pool_release(pool, block.address, stream));
    }
    kavern_pool_block none;
    EXPECT(KAVERN_ERR_OUT_OF_MEMORY, kavern_pool_acquire(pool, UINT64_C(3000000000), stream, &none));
    CHECK(last_error_has("3000000000") && last_error_has("2048000000"));
    kavern_pool_statistics totals = stats_of(pool);
    CHECK(totals.class_count == 3 && totals.misses == 3 && totals.utilisation == 0 && totals.fragmentation > 0.5);
    OK(kavern_pool_destroy(&pool));
}

/* The device's part of the work: on a GPU by its driver, elsewhere the device is the CPU itself. */
static void copy_on_device(kavern_manager *manager, uint64_t target, uint64_t source, size_t bytes) {
    if (library != NULL) {
        DRIVER(cuMemcpyDtoDAsync_v2, target, source, bytes, NULL);
        OK(kavern_stream_synchronize(manager, NULL));
    } else {
        memcpy((void *)(uintptr_t)target, (const void *)(uintptr_t)source, bytes);
    }
}

static void managed_blocks_are_the_cpus_and_the_devices(kavern_manager *manager) {
    kavern_pool_config config;
    kavern_pool *pool = NULL;
    OK(kavern_pool_config_init(&config, sizeof config));
    CHECK(config.memory_kind == KAVERN_POOL_DEVICE);
    config.memory_kind = KAVERN_POOL_MANAGED;
    config.rounding = KAVERN_POOL_FIXED;
    config.block_bytes = UINT64_MAX;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_pool_create(manager, &config, &pool));
    CHECK(last_error_has("no device has that much"));
    config.block_bytes = (1 << 20) + 1;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_pool_create(manager, &config, &pool));
    CHECK(last_error_has("managed memory") && last_error_has("1048576"));
    config.block_bytes = 1 << 20;
    kavern_device_description device = {.struct_size = sizeof device};
    OK(kavern_device_describe(test_device(), &device));
    if (!(device.capabilities & KAVERN_DEVICE_MANAGED_MEMORY)) {
        EXPECT(KAVERN_ERR_UNSUPPORTED, kavern_pool_create(manager, &config, &pool));
        return;
    }
    OK(kavern_pool_create(manager, &config, &pool));
    kavern_pool_block one, other;
    OK(kavern_pool_acquire(pool, 1 << 20, NULL, &one));
    OK(kavern_pool_acquire(pool, 1 << 20, NULL, &other));
    uint64_t *here = (uint64_t *)(uintptr_t)one.address, *there = (uint64_t *)(uintptr_t)other.address;
    for (uint64_t round = 1; round <= 3; ++round) {
        for (uint64_t i = 0; i < (1 << 20) / 8; ++i) here[i] = i * round;
        copy_on_device(manager, other.address, one.address, 1 << 20);
        for (uint64_t i = 0; i < (1 << 20) / 8; ++i) CHECK(there[i] == i * round);
    }
    CHECK(stats_of(pool).managed_bytes == stats_of(pool).held_bytes && stats_of(pool).managed_bytes >= 2 << 20);
    CHECK(device_bytes(manager) == stats_of(pool).held_bytes);
    OK(kavern_pool_release(pool, one.address, NULL));
    OK(kavern_pool_release(pool, other.address, NULL));
    OK(kavern_pool_destroy(&pool));
    CHECK(device_bytes(manager) == 0);
}

static void a_pool_outlives_its_manager_handle(void) {
    kavern_manager *manager = open_manager(test_device());
    kavern_pool *pool = make(manager, KAVERN_POOL_FIXED, 256, 0);
    OK(kavern_manager_destroy(&manager));
    kavern_pool_block block;
    OK(kavern_pool_acquire(pool, 256, NULL, &block));
    OK(kavern_pool_destroy(&pool)); /* with a block in use */
    OK(kavern_pool_destroy(&pool));
}

int main(void) {
    if (strncmp(test_device(), "cuda", 4) == 0) {
        void *context = NULL;
        CHECK(has_gpu());
        DRIVER(cuInit, 0);
        DRIVER(cuDevicePrimaryCtxRetain, &context, 0);
        DRIVER(cuCtxSetCurrent, context);
    }
    kavern_manager *manager = open_manager(test_device());
    kavern_stream *stream = NULL;
    OK(kavern_stream_create(manager, &stream));
    classes_with_their_defaults(manager, stream);
    classes_with_their_defaults(manager, NULL);
    a_limit_names_what_was_asked_and_what_is_held(manager, stream);
    the_ladder_rounds_in_decimal_megabytes(manager, stream);
    managed_blocks_are_the_cpus_and_the_devices(manager);
    a_pool_outlives_its_manager_handle();
    OK(kavern_stream_destroy(&stream));
    OK(kavern_manager_destroy(&manager));
    return 0;
}
