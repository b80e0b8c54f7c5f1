/* Bad calls of elastic ranges and shared pools. */
#include "sweep.h"

#define ELASTIC(argument) \
    ((kavern_elastic *)(is_bad(argument) ? bad_handle(live_elastic, stale_elastic, live_shared) : live_elastic))
#define SHARED(argument) \
    ((kavern_shared_pool *)(is_bad(argument) ? bad_handle(live_shared, stale_shared, live_elastic) : live_shared))

static const uint64_t mebibyte = 1 << 20;

static void *maybe_misaligned(void) { return &out_memory[64 + 1 + 2 * below(32)]; }
static void *optional_output(int argument) { return is_bad(argument) ? maybe_misaligned() : output(-1); }

/* A part that is nothing, or reaches outside of every capacity. */
static void bad_part(uint64_t *offset, uint64_t *bytes) {
    *offset = some_u64();
    *bytes = one_in(3) ? 0 : UINT64_MAX - below(1 << 20);
}

static void elastic_config_init(void) {
    choose_flaw(2);
    kavern_elastic_config *config = output(0);
    refused(kavern_elastic_config_init(config, is_bad(1) ? bad_struct_size() : sizeof *config));
}

static void elastic_create(void) {
    static kavern_elastic_config config;
    choose_flaw(4);
    OK(kavern_elastic_config_init(&config, sizeof config));
    config.capacity_bytes = 16 * mebibyte;
    if (is_bad(0)) {
        switch (below(7)) {
            case 0: config.struct_size = bad_struct_size(); break;
            case 1: config.flags = unknown_u32(1) | 2; break;
            case 2: config.capacity_bytes = 0; break;
            case 3: config.capacity_bytes = UINT64_MAX - below(1 << 20); break;
            case 4: config.page_bytes = 1 + 2 * some_u64() / 2 * 2; break;
            default: config.reserved[below(4)] = nonzero_u64(); break;
        }
    }
    const kavern_elastic_config *given = is_bad(1) ? bad_pointer() : &config;
    refused(kavern_elastic_create(MANAGER(2), given, output(3)));
}

static void elastic_destroy(void) {
    kavern_elastic **slot = (kavern_elastic **)(void *)&out_memory[1024];
    if (one_in(4)) {
        refused(kavern_elastic_destroy(maybe_misaligned()));
        return;
    }
    do {
        *slot = bad_handle(live_elastic, stale_elastic, live_stream);
    } while (*slot == NULL);
    remember_output();
    refused(kavern_elastic_destroy(slot));
}

static void elastic_commit(void) {
    uint64_t offset = 0, bytes = 1;
    choose_flaw(3);
    if (is_bad(0)) bad_part(&offset, &bytes);
    refused(kavern_elastic_commit(ELASTIC(1), offset, bytes, optional_output(2)));
}

static void elastic_decommit(void) {
    uint64_t offset = 0, bytes = 1;
    choose_flaw(4);
    if (is_bad(0)) bad_part(&offset, &bytes);
    refused(kavern_elastic_decommit(ELASTIC(1), offset, bytes, STREAM(2), optional_output(3)));
}

static void elastic_is_committed(void) {
    uint64_t offset = 0, bytes = 1;
    choose_flaw(3);
    if (is_bad(0)) bad_part(&offset, &bytes);
    refused(kavern_elastic_is_committed(ELASTIC(1), offset, bytes, output(2)));
}

static void elastic_base(void) {
    choose_flaw(2);
    refused(kavern_elastic_base(ELASTIC(0), output(1)));
}

static void elastic_resize(void) {
    choose_flaw(4);
    uint64_t bytes = is_bad(0) ? UINT64_MAX - below(1 << 20) : 0;
    refused(kavern_elastic_resize(ELASTIC(1), bytes, STREAM(2), optional_output(3)));
}

static void elastic_stats(void) {
    choose_flaw(3);
    kavern_elastic_statistics *out = sized_output(0, 1, sizeof *out);
    refused(kavern_elastic_stats(ELASTIC(2), out));
}

static void shared_config_init(void) {
    choose_flaw(2);
    kavern_shared_pool_config *config = output(0);
    refused(kavern_shared_pool_config_init(config, is_bad(1) ? bad_struct_size() : sizeof *config));
}

static void shared_create(void) {
    static kavern_shared_pool_config config;
    choose_flaw(4);
    OK(kavern_shared_pool_config_init(&config, sizeof config));
    config.physical_limit_bytes = 16 * mebibyte;
    if (is_bad(0)) {
        const char *name = bad_text();
        switch (below(6)) {
            case 0: config.struct_size = bad_struct_size(); break;
            case 1: config.flags = unknown_u32(1) | 2; break;
            case 2: config.physical_limit_bytes = below(4096); break;
            case 3: config.machine_limit_bytes = nonzero_u64(); break; /* and no name */
            case 4: config.machine_name = name != NULL ? name : "a/b"; break;
            case 5: config.ready_high_bytes = nonzero_u64(); break; /* and no low mark */
            default: config.reserved[below(4)] = nonzero_u64(); break;
        }
    }
    const kavern_shared_pool_config *given = is_bad(1) ? bad_pointer() : &config;
    refused(kavern_shared_pool_create(MANAGER(2), given, output(3)));
}

static void shared_destroy(void) {
    kavern_shared_pool **slot = (kavern_shared_pool **)(void *)&out_memory[1024];
    if (one_in(4)) {
        refused(kavern_shared_pool_destroy(maybe_misaligned()));
        return;
    }
    do {
        *slot = bad_handle(live_shared, stale_shared, live_stream);
    } while (*slot == NULL);
    remember_output();
    refused(kavern_shared_pool_destroy(slot));
}

/* A text that is the name of no model. */
static const char *model(int argument) { return is_bad(argument) ? bad_text() : "model"; }

static void shared_register(void) {
    choose_flaw(5);
    const char *name = is_bad(0) ? bad_text() : "other";
    uint64_t capacity = is_bad(1) ? (one_in(2) ? 0 : UINT64_MAX - below(1 << 20)) : mebibyte;
    uint64_t weight = is_bad(2) ? 0 : 1;
    uint64_t min = is_bad(3) ? (UINT64_C(1) << 60) + some_u64() / 2 : 0;
    kavern_shared_pool *pool = SHARED(4);
    /* A name of any characters is a good one, so something else is wrong then. */
    if (name != NULL && name[0] == '#') weight = 0;
    refused(kavern_shared_pool_register_model(pool, name, capacity, min, weight, 0));
}

static void shared_unregister(void) {
    choose_flaw(2);
    const char *name = model(0);
    kavern_shared_pool *pool = SHARED(1);
    if (pool == live_shared && name != NULL && strcmp(name, "model") == 0) name = "no such model";
    refused(kavern_shared_pool_unregister_model(pool, name));
}

static void shared_commit(void) {
    uint64_t offset = 0, bytes = 1;
    choose_flaw(4);
    if (is_bad(0)) bad_part(&offset, &bytes);
    refused(kavern_shared_pool_commit(SHARED(1), model(2), offset, bytes, optional_output(3)));
}

static void shared_decommit(void) {
    uint64_t offset = 0, bytes = 1;
    choose_flaw(5);
    if (is_bad(0)) bad_part(&offset, &bytes);
    refused(kavern_shared_pool_decommit(SHARED(1), model(2), offset, bytes, STREAM(3), optional_output(4)));
}

static void shared_base(void) {
    choose_flaw(3);
    refused(kavern_shared_pool_base(SHARED(0), model(1), output(2)));
}

static void shared_model_stats(void) {
    choose_flaw(4);
    kavern_model_statistics *out = sized_output(0, 1, sizeof *out);
    refused(kavern_shared_pool_model_stats(SHARED(2), model(3), out));
}

static void shared_stats(void) {
    choose_flaw(3);
    kavern_shared_pool_statistics *out = sized_output(0, 1, sizeof *out);
    refused(kavern_shared_pool_stats(SHARED(2), out));
}

/* Nothing is committed, so that even a good part cannot be pinned, and nothing is pinned. */
static void shared_pin(void) { refused(kavern_shared_pool_pin_range(SHARED(0), model(1), 0, 1 + below(mebibyte))); }
static void shared_unpin(void) { refused(kavern_shared_pool_unpin_range(SHARED(0), model(1), 0, 1 + below(mebibyte))); }

static void reclaim(void *userdata, const char *name, uint64_t bytes) {
    (void)userdata, (void)name, (void)bytes;
}

static void shared_on_reclaim(void) {
    choose_flaw(2);
    refused(kavern_shared_pool_on_reclaim(SHARED(0), model(1), one_in(2) ? reclaim : NULL, out_memory));
}

const sweep_entry sweep_elastic[] = {
    {"kavern_elastic_config_init", elastic_config_init},
    {"kavern_elastic_create", elastic_create},
    {"kavern_elastic_destroy", elastic_destroy},
    {"kavern_elastic_commit", elastic_commit},
    {"kavern_elastic_decommit", elastic_decommit},
    {"kavern_elastic_is_committed", elastic_is_committed},
    {"kavern_elastic_base", elastic_base},
    {"kavern_elastic_resize", elastic_resize},
    {"kavern_elastic_stats", elastic_stats},
    {"kavern_shared_pool_config_init", shared_config_init},
    {"kavern_shared_pool_create", shared_create},
    {"kavern_shared_pool_destroy", shared_destroy},
    {"kavern_shared_pool_register_model", shared_register},
    {"kavern_shared_pool_unregister_model", shared_unregister},
    {"kavern_shared_pool_commit", shared_commit},
    {"kavern_shared_pool_decommit", shared_decommit},
    {"kavern_shared_pool_base", shared_base},
    {"kavern_shared_pool_model_stats", shared_model_stats},
    {"kavern_shared_pool_stats", shared_stats},
    {"kavern_shared_pool_pin_range", shared_pin},
    {"kavern_shared_pool_unpin_range", shared_unpin},
    {"kavern_shared_pool_on_reclaim", shared_on_reclaim},
    {NULL, NULL},
};
