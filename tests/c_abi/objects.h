/* The list of calls for both halves of the interface, and a cache to make them on. */
#ifndef OBJECTS_H
#define OBJECTS_H

#include "check.h"
#include "calls.h"

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
    kavern_kv_cache_config config;
    OK(kavern_kv_cache_config_init(&config, sizeof config));
    config.groups = &group;
    config.group_count = 1;
    config.max_sequences = 4;
    config.capacity_blocks = 16;
    config.max_batch_tokens = 64;
    config.event_capacity = 64;
    kavern_kv_cache *cache = NULL;
    OK(kavern_kv_cache_create(manager, &config, &cache));
    return cache;
}

#endif
