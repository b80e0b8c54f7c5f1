/* A cache whose bookkeeping does not fit into host memory is refused, and nothing of it stays. */
#include <kavern.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

static int expect(kavern_status status, kavern_status wanted)
{
    char text[1024] = "";
    size_t needed = 0;
    if (status == wanted)
        return 0;
    kavern_last_error(text, sizeof text, &needed);
    fprintf(stderr, "status %d, %d expected: %s\n", (int)status, (int)wanted, text);
    return 1;
}

int main(void)
{
    struct rlimit limit = { (rlim_t)3 << 30, (rlim_t)3 << 30 };
    kavern_manager *manager = NULL;
    kavern_kv_cache *cache = NULL;
    kavern_kv_cache_config config;
    kavern_kv_group group;
    kavern_manager_statistics statistics;
    int failures = 0;

    failures += setrlimit(RLIMIT_AS, &limit) != 0;
    failures += expect(kavern_manager_create(&(kavern_manager_config){ .struct_size = sizeof(kavern_manager_config) },
                                             &manager), KAVERN_OK);
    memset(&group, 0, sizeof group);
    group.struct_size = sizeof group;
    group.kind = KAVERN_GROUP_OPAQUE;
    group.block_tokens = 1;
    group.block_bytes = 64;
    failures += expect(kavern_kv_cache_config_init(&config, sizeof config), KAVERN_OK);
    config.groups = &group;
    config.group_count = 1;
    config.flags = KAVERN_KV_METADATA_ONLY;

    config.capacity_blocks = (uint64_t)1 << 28;
    failures += expect(kavern_kv_cache_create(manager, &config, &cache), KAVERN_ERR_OUT_OF_HOST_MEMORY);
    config.capacity_blocks = 2000;
    config.max_sequences = 1 << 20;
    failures += expect(kavern_kv_cache_create(manager, &config, &cache), KAVERN_ERR_OUT_OF_HOST_MEMORY);
    failures += cache != NULL;

    config.max_sequences = 8;
    failures += expect(kavern_kv_cache_create(manager, &config, &cache), KAVERN_OK);
    failures += expect(kavern_kv_cache_destroy(&cache), KAVERN_OK);
    statistics.struct_size = sizeof statistics;
    failures += expect(kavern_manager_stats(manager, &statistics), KAVERN_OK);
    failures += statistics.device_bytes != 0 || statistics.pinned_bytes != 0 || statistics.caches != 0;
    failures += expect(kavern_manager_destroy(&manager), KAVERN_OK);
    return failures;
}
