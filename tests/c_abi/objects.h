/* The list of calls for all parts of the interface, and a cache and a pool to make them on. */
#ifndef OBJECTS_H
#define OBJECTS_H

#include "check.h"
#include "calls.h"

static inline uint64_t page_bytes(void) {
    kavern_device_description found = {.struct_size = sizeof found};
    OK(kavern_device_describe(test_device(), &found));
    return found.page_bytes;
}

static inline kavern_kv_cache *make_cache(kavern_manager *manager) {
    kavern_kv_group group;
    memset(&group, 0, sizeof group);
    group.struct_size = sizeof group;
    group.kind = KAVERN_GROUP_FULL;
    group.layers = 2;
    group.kv_heads = 2;
    group.head_dim = 8;
    group.dtype = KAVERN_BF16;
    group.block_tokens = 4;
    group.layout = KAVERN_NHD;
    kavern_kv_cache_config config = config_for(&group, 1);
    config.max_sequences = 4;
    config.capacity_blocks = 16;
    config.max_batch_tokens = 64;
    config.event_capacity = 64;
    return create_cache(manager, &config);
}

static inline kavern_pool *make_pool(kavern_manager *manager) {
    kavern_pool_config config;
    OK(kavern_pool_config_init(&config, sizeof config));
    config.rounding = KAVERN_POOL_FIXED;
    config.block_bytes = 4096;
    config.growth_blocks = 2;
    config.max_bytes = 16384;
    kavern_pool *pool = NULL;
    OK(kavern_pool_create(manager, &config, &pool));
    return pool;
}

static inline kavern_elastic *make_elastic(kavern_manager *manager, uint64_t pages) {
    kavern_elastic_config config;
    OK(kavern_elastic_config_init(&config, sizeof config));
    config.capacity_bytes = pages * page_bytes();
    kavern_elastic *elastic = NULL;
    OK(kavern_elastic_create(manager, &config, &elastic));
    return elastic;
}

static inline kavern_shared_pool *make_shared(kavern_manager *manager, uint64_t pages) {
    kavern_shared_pool_config config;
    OK(kavern_shared_pool_config_init(&config, sizeof config));
    config.physical_limit_bytes = pages * page_bytes();
    config.flags = KAVERN_ELASTIC_SINGLE_PAGES;
    kavern_shared_pool *shared = NULL;
    OK(kavern_shared_pool_create(manager, &config, &shared));
    return shared;
}

#endif
