/* Bad calls of plans and namespaces. The live cache owns memory and is no worker's, so it neither makes nor applies
 * plans: a call is refused even where every argument is good. */
#include "sweep.h"

#define CACHE(argument) \
    ((kavern_kv_cache *)(is_bad(argument) ? bad_handle(live_cache, stale_cache, live_manager) : live_cache))

static unsigned char message[256];

static void *maybe_null(void *good) { return one_in(3) ? NULL : good; }
static uint64_t too_many(void) { return (UINT64_C(1) << 62) + random_u64() / 4; }

static void namespace_stats(void) {
    choose_flaw(3);
    kavern_kv_namespace_statistics *out = sized_output(0, 1, sizeof *out);
    refused(kavern_kv_namespace_stats(CACHE(2), random_u64(), out));
}

static void namespace_list(void) {
    choose_flaw(5);
    uint64_t *position = is_bad(0) ? NULL : (void *)&out_memory[2048];
    size_t max = is_bad(1) ? (one_in(2) ? 0 : (size_t)too_many()) : 4;
    uint64_t *ids = is_bad(2) ? NULL : (void *)&out_memory[4096];
    refused(kavern_kv_namespace_list(CACHE(3), position, max, ids, output(4)));
}

static void namespace_limit(void) {
    choose_flaw(1);
    refused(kavern_kv_namespace_limit(CACHE(0), random_u64(), random_u64(), random_u64()));
}

static void plan_export(void) {
    choose_flaw(5);
    uint32_t flags = is_bad(0) ? 2 | (uint32_t)random_u64() : (uint32_t)below(2);
    void *buffer = is_bad(1) ? NULL : &out_memory[4096];
    uint64_t capacity = is_bad(2) ? too_many() : below(4096);
    refused(kavern_kv_plan_export(CACHE(3), random_u64(), flags, buffer, capacity, output(4)));
}

static void spoil_message(void) {
    for (size_t i = 0; i < sizeof message; ++i) message[i] = (unsigned char)random_u64();
    if (one_in(2)) memcpy(message, "KVPL\1\0\0", 8);
    if (one_in(2)) memcpy(message + 8, &(uint64_t){sizeof message}, 8);
}

static void plan_read(void) {
    choose_flaw(4);
    spoil_message();
    const void *given = is_bad(0) ? maybe_null(message) : message;
    uint64_t bytes = is_bad(1) ? too_many() : below(sizeof message + 1);
    kavern_kv_plan_info *out = sized_output(2, 3, sizeof *out);
    refused(kavern_kv_plan_read(given, bytes, out));
}

static void plan_apply(void) {
    static kavern_kv_group_tables groups[4];
    choose_flaw(6);
    spoil_message();
    const void *given = is_bad(0) ? maybe_null(message) : message;
    uint64_t bytes = is_bad(1) ? too_many() : below(sizeof message + 1);
    kavern_kv_step_tables *out = (kavern_kv_step_tables *)(void *)&out_memory[1024];
    memset(out, 0, sizeof *out);
    out->group_capacity = 4;
    out->groups = groups;
    out = sized_output(2, 3, sizeof *out);
    refused(kavern_kv_plan_apply(CACHE(4), STREAM(5), given, bytes, out));
}

const sweep_entry sweep_plan[] = {
    {"kavern_kv_namespace_stats", namespace_stats},
    {"kavern_kv_namespace_list", namespace_list},
    {"kavern_kv_namespace_limit", namespace_limit},
    {"kavern_kv_plan_export", plan_export},
    {"kavern_kv_plan_read", plan_read},
    {"kavern_kv_plan_apply", plan_apply},
    {NULL, NULL},
};
