/* An engine tests its own use of streams without a GPU.
 *
 * One stream computes a block of keys and values, another one offloads it. The first attempt forgets that the offload
 * has to wait; on a GPU that gives wrong tokens now and then, and no error. On the simulated device it is found with
 * every seed, whichever of the two ran first. The second attempt waits, and nothing is found.
 *
 *     cc -I include examples/01_sim_race.c -L target/release -lkavern -o sim_race && ./sim_race
 */
#include <kavern.h>
#include <stdio.h>
#include <stdlib.h>

static void check(kavern_status status, const char *what) {
    char text[512] = "";
    if (status >= 0) return;
    kavern_last_error(text, sizeof text, NULL);
    fprintf(stderr, "%s: %s\n", what, text);
    exit(1);
}

#define CALL(call) check((call), #call)

/* A cache, only for its memory: 16 blocks of 2 layers. */
static kavern_kv_cache *make_cache(kavern_manager *manager) {
    kavern_kv_cache *cache = NULL;
    kavern_kv_group group = {0};
    kavern_kv_cache_config config;
    CALL(kavern_kv_cache_config_init(&config, sizeof config));
    group.struct_size = sizeof group;
    group.kind = KAVERN_GROUP_FULL;
    group.layers = 2;
    group.kv_heads = 2;
    group.head_dim = 64;
    group.dtype = KAVERN_BF16;
    group.block_tokens = 16;
    group.layout = KAVERN_NHD;
    config.groups = &group;
    config.group_count = 1;
    config.capacity_blocks = 16;
    config.max_sequences = 4;
    CALL(kavern_kv_cache_create(manager, &config, &cache));
    return cache;
}

static void attempt(const char *name, int waits) {
    kavern_manager *manager = NULL;
    kavern_stream *compute = NULL, *offload = NULL;
    kavern_manager_config config;
    CALL(kavern_manager_config_init(&config, sizeof config));
    config.device = "sim?seed=7";
    CALL(kavern_manager_create(&config, &manager));
    kavern_kv_cache *cache = make_cache(manager);
    CALL(kavern_stream_create(manager, &compute));
    CALL(kavern_stream_create(manager, &offload));

    kavern_kv_description about = {.struct_size = sizeof about};
    CALL(kavern_kv_describe(cache, 0, &about));
    kavern_sim_range block = {about.base_address + 3 * about.block_bytes, about.block_bytes};

    /* The attention kernel writes block 3 ... */
    CALL(kavern_sim_launch(manager, compute, NULL, 0, &block, 1));
    if (waits) {
        uint64_t ticket = 0;
        CALL(kavern_stream_record(manager, compute, &ticket));
        CALL(kavern_stream_wait(manager, offload, ticket));
    }
    /* ... and the copy to the host reads it. */
    CALL(kavern_sim_launch(manager, offload, &block, 1, NULL, 0));
    CALL(kavern_stream_synchronize(manager, compute));
    CALL(kavern_stream_synchronize(manager, offload));

    size_t needed = 0;
    CALL(kavern_sim_report(manager, NULL, 0, &needed));
    char *report = malloc(needed);
    if (report == NULL) exit(1);
    CALL(kavern_sim_report(manager, report, needed, NULL));
    printf("%s: %s\n", name, report);
    free(report);

    CALL(kavern_stream_destroy(&offload));
    CALL(kavern_stream_destroy(&compute));
    CALL(kavern_kv_cache_destroy(&cache));
    CALL(kavern_manager_destroy(&manager));
}

int main(void) {
    attempt("without the wait", 0);
    attempt("with the wait", 1);
    return 0;
}
