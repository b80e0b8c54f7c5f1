/* Bad calls of pools. */
#include "sweep.h"

#define POOL(argument) \
    ((kavern_pool *)(is_bad(argument) ? bad_handle(live_pool, stale_pool, live_stream) : live_pool))

static void pool_config_init(void) {
    choose_flaw(2);
    kavern_pool_config *config = output(0);
    size_t size = is_bad(1) ? (one_in(8) ? SIZE_MAX - below(100) : bad_struct_size()) : sizeof *config;
    refused(kavern_pool_config_init(config, size));
}

static void pool_create(void) {
    static kavern_pool_config config;
    static kavern_pool_class classes[3];
    choose_flaw(13);
    OK(kavern_pool_config_init(&config, sizeof config));
    config.classes = classes;
    config.class_count = 3;
    config.max_bytes = 1 << 20;
    for (uint32_t i = 0; i < 3; ++i) classes[i] = (kavern_pool_class){.block_bytes = 1024u << i, .growth_blocks = 2};
    if (is_bad(0)) config.struct_size = bad_struct_size();
    if (is_bad(1)) config.flags = (uint32_t)nonzero_u64() | 1;
    if (is_bad(2)) config.reserved[below(4)] = nonzero_u64();
    if (is_bad(3)) config.rounding = unknown_u32(KAVERN_POOL_LADDER);
    if (is_bad(4)) {
        config.name = bad_text();
        /* A short text is a name like any other, as is none. */
        if (config.name == NULL || (strlen(config.name) < 100 && config.name[0] == '#')) config.name = "\xff";
    }
    if (is_bad(5)) classes[below(2)].block_bytes = one_in(2) ? 0 : 1 << 20;
    if (is_bad(6)) config.class_count = one_in(2) ? bad_count(sizeof classes[0]) : UINT64_MAX;
    if (is_bad(7)) {
        /* More than the limit at once. */
        for (int i = 0; i < 3; ++i) classes[i].initial_blocks = 1024 + (uint32_t)below(UINT32_MAX - 1024);
    }
    if (is_bad(8)) {
        config.block_bytes = nonzero_u64();
        config.rounding = one_in(2) ? KAVERN_POOL_CLASSES : KAVERN_POOL_LADDER;
    }
    if (is_bad(11)) config.memory_kind = unknown_u32(KAVERN_POOL_MANAGED);
    if (is_bad(12)) config.reserved_tail = (uint32_t)nonzero_u64() | 1;
    kavern_manager *manager = MANAGER(9);
    const kavern_pool_config *given = one_in(10) ? bad_pointer() : &config;
    refused(kavern_pool_create(manager, given, output(10)));
}

static void pool_destroy(void) {
    void **slot = (void **)(void *)&out_memory[1024];
    if (one_in(4)) {
        refused(kavern_pool_destroy((kavern_pool **)(void *)&out_memory[64 + 1]));
        return;
    }
    do {
        *slot = bad_handle(live_pool, stale_pool, live_manager);
    } while (*slot == NULL);
    remember_output();
    refused(kavern_pool_destroy((kavern_pool **)(void *)slot));
}

static void pool_acquire(void) {
    choose_flaw(4);
    kavern_pool *pool = POOL(0);
    uint64_t bytes = is_bad(1) ? (one_in(4) ? 0 : 4097 + some_u64()) : 1 + below(4096);
    void *stream = STREAM(2);
    refused(kavern_pool_acquire(pool, bytes, stream, output(3)));
}

/* The pool has never handed anything out, so every address is wrong. */
static void pool_release(void) {
    choose_flaw(2);
    kavern_pool *pool = POOL(0);
    refused(kavern_pool_release(pool, some_u64(), STREAM(1)));
}

enum { LIST = 4 };

static void pool_acquire_batch(void) {
    uint64_t bytes[LIST];
    int32_t *states = (int32_t *)(void *)&out_memory[1024];
    kavern_pool_block *blocks = (kavern_pool_block *)(void *)&out_memory[2048];
    for (int i = 0; i < LIST; ++i) bytes[i] = 1 + below(4096);
    switch (below(5)) {
        case 0: refused(kavern_pool_acquire_batch(live_pool, LIST, bad_pointer(), NULL, blocks, states)); break;
        case 1: refused(kavern_pool_acquire_batch(live_pool, LIST, bytes, bad_stream(), blocks, states)); break;
        case 2: refused(kavern_pool_acquire_batch(live_pool, LIST, bytes, NULL, bad_pointer(), states)); break;
        case 3: refused(kavern_pool_acquire_batch(live_pool, bad_count(16), bytes, NULL, blocks, states)); break;
        default: {
            /* The states say which request was wrong, nothing else changes. */
            uint64_t wrong = below(LIST);
            bytes[wrong] = one_in(2) ? 0 : 4097;
            for (uint64_t i = 0; i < wrong; ++i) bytes[i] = 5000;
            EXPECT(KAVERN_ERR_INVALID_ARGUMENT,
                   kavern_pool_acquire_batch(live_pool, LIST, bytes, NULL, blocks, states));
            CHECK(states[0] == KAVERN_ERR_INVALID_ARGUMENT && states[LIST - 1] < 0);
            CHECK(is_unchanged_from(1024 + sizeof *states * LIST));
            break;
        }
    }
}

static void pool_release_batch(void) {
    uint64_t addresses[LIST];
    int32_t *states = (int32_t *)(void *)&out_memory[1024];
    for (int i = 0; i < LIST; ++i) addresses[i] = some_u64();
    switch (below(4)) {
        case 0: refused(kavern_pool_release_batch(live_pool, LIST, bad_pointer(), NULL, states)); break;
        case 1: refused(kavern_pool_release_batch(live_pool, LIST, addresses, bad_stream(), states)); break;
        case 2: refused(kavern_pool_release_batch(live_pool, LIST, addresses, NULL, bad_pointer())); break;
        default:
            EXPECT(KAVERN_ERR_INVALID_ARGUMENT,
                   kavern_pool_release_batch(live_pool, LIST, addresses, NULL, states));
            for (int i = 0; i < LIST; ++i) CHECK(states[i] == KAVERN_ERR_INVALID_ARGUMENT);
            CHECK(is_unchanged_from(1024 + sizeof *states * LIST));
            break;
    }
}

static void pool_stats(void) {
    choose_flaw(4);
    kavern_pool *pool = POOL(0);
    kavern_pool_statistics *out = sized_output(1, 2, sizeof *out);
    void *classes = is_bad(3) ? bad_pointer() : NULL;
    refused(kavern_pool_stats(pool, out, classes == NULL && !is_bad(3) ? bad_count(96) : 4, classes));
}

static void pool_trim(void) {
    choose_flaw(2);
    kavern_pool *pool = POOL(0);
    uint64_t *freed = is_bad(1) ? (uint64_t *)(void *)&out_memory[64 + 1] : NULL;
    if (freed == NULL && pool == live_pool) pool = stale_pool;
    refused(kavern_pool_trim(pool, some_u64(), freed));
}

static void pool_validate(void) {
    choose_flaw(1);
    refused(kavern_pool_validate(POOL(0)));
}

const sweep_entry sweep_pool[] = {
    {"kavern_pool_config_init", pool_config_init},
    {"kavern_pool_create", pool_create},
    {"kavern_pool_destroy", pool_destroy},
    {"kavern_pool_acquire", pool_acquire},
    {"kavern_pool_release", pool_release},
    {"kavern_pool_acquire_batch", pool_acquire_batch},
    {"kavern_pool_release_batch", pool_release_batch},
    {"kavern_pool_stats", pool_stats},
    {"kavern_pool_trim", pool_trim},
    {"kavern_pool_validate", pool_validate},
    {NULL, NULL},
};
