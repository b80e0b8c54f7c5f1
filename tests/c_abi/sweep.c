/* sweep <calls per function> <seed>: bad calls of every exported function. Each is refused with a known status, changes
 * no output and leaves nothing behind. Prints the functions it knows; tests/c_abi.rs compares them with the header. */
#include "sweep.h"
#include "objects.h"

kavern_manager *live_manager, *other_manager;
kavern_stream *live_stream;
void *stale_manager, *stale_stream, *stale_cache, *stale_pool, *stale_elastic, *stale_shared;
kavern_kv_cache *live_cache;
kavern_pool *live_pool;
kavern_elastic *live_elastic;
kavern_shared_pool *live_shared;
kavern_manager *live_sim;
kavern_stream *sim_stream;
const char *current_function;
long current_call;
uint64_t sweep_seed;
_Alignas(64) unsigned char out_memory[OUT_BYTES];
static unsigned char out_before[OUT_BYTES];
static uint64_t state;
static int flaw;

uint64_t random_u64(void) {
    uint64_t mixed = (state += 0x9E3779B97F4A7C15u);
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
    return mixed ^ (mixed >> 31);
}

void choose_flaw(int count) { flaw = (int)below((uint64_t)count); }
int is_bad(int argument) { return argument == flaw || one_in(5); }

static void *as_pointer(uint64_t value) { return (void *)(uintptr_t)value; }

/* Changes at least one bit above the index, so that it is no other live handle. */
static void *forged(void *live) {
    uint64_t value = (uint64_t)(uintptr_t)live ^ (UINT64_C(1) << (24 + below(40)));
    if (one_in(2)) value ^= below(1 << 24);
    return as_pointer(value);
}

void *bad_handle(void *live, void *stale, void *other_kind) {
    switch (below(7)) {
        case 0: return NULL;
        case 1: return stale;
        case 2: return other_kind;
        case 3: return &out_memory[below(OUT_BYTES)]; /* memory of ours: must not be followed */
        case 4: return as_pointer(below(4096) + 1);
        case 5: return as_pointer(random_u64() | 1);
        default: return forged(live);
    }
}

void *bad_stream(void) {
    for (;;) {
        uint64_t value = (uint64_t)(uintptr_t)bad_handle(live_stream, stale_stream, live_manager);
        /* 0 and 1 are the default stream; small values may be streams of the host device. */
        if (value >= 1u << 20) return as_pointer(value);
    }
}

void *random_good_stream(void) {
    switch (below(3)) {
        case 0: return NULL;
        case 1: return KAVERN_STREAM_DEFAULT;
        default: return live_stream;
    }
}

void *bad_pointer(void) { return one_in(2) ? NULL : &out_memory[64 + 1 + 2 * below(32)]; }
void *output(int argument) { return is_bad(argument) ? bad_pointer() : &out_memory[1024]; }

void *sized_output(int argument, int size_argument, size_t bytes) {
    uint32_t size = is_bad(size_argument) ? bad_struct_size() : (uint32_t)bytes;
    memcpy(&out_memory[1024], &size, sizeof size);
    remember_output();
    return output(argument);
}

size_t bad_count(size_t element_bytes) {
    switch (below(4)) {
        case 0: return SIZE_MAX;
        case 1: return (size_t)1 << 63;
        case 2: return SIZE_MAX / element_bytes + 1 + below(8);
        default: return (SIZE_MAX >> 1) / element_bytes + 1;
    }
}

uint32_t bad_struct_size(void) { return one_in(2) ? (uint32_t)below(16) : 65537 + (uint32_t)below(1u << 31); }
uint64_t some_u64(void) { return random_u64() >> below(64); }
uint64_t nonzero_u64(void) { return some_u64() | (UINT64_C(1) << below(64)); }

uint32_t unknown_u32(uint32_t largest_known) {
    for (;;) {
        uint32_t value = (uint32_t)some_u64();
        if (value > largest_known) return value;
    }
}

const char *bad_text(void) {
    static char text[8192];
    switch (below(4)) {
        case 0: return NULL;
        case 1:
            memset(text, 'x', sizeof text - 1);
            return text;
        case 2: return "\xff\xfe\x80";
        default: {
            size_t length = 1 + below(40);
            text[0] = '#';
            for (size_t i = 1; i < length; ++i) text[i] = (char)(1 + below(127));
            text[length] = 0;
            return text;
        }
    }
}

void remember_output(void) { memcpy(out_before, out_memory, OUT_BYTES); }

int is_unchanged_from(size_t first) {
    return memcmp(out_before + first, out_memory + first, OUT_BYTES - first) == 0;
}

static void complain(const char *what, kavern_status status) {
    fprintf(stderr, "%s, call %ld, seed %llu: %s (%s)\n", current_function, current_call,
            (unsigned long long)sweep_seed, what, kavern_status_name(status));
    fail_at(__FILE__, __LINE__, "sweep");
}

void refused(kavern_status status) {
    if (status >= 0) complain("was not refused", status);
    if (strcmp(kavern_status_name(status), "unknown") == 0) complain("answered an unknown status", status);
    if (status <= KAVERN_ERR_PANIC) complain("met a bug", status);
    if (!is_unchanged_from(0)) complain("changed an output", status);
}

static void run(const sweep_entry *entries, long calls) {
    for (const sweep_entry *entry = entries; entry->name != NULL; ++entry) {
        current_function = entry->name;
        /* Each function starts from the seed alone, so that a failure is found again whatever the others do. */
        state = sweep_seed;
        for (const char *c = entry->name; *c; ++c) state = state * 31 + (unsigned char)*c;
        for (current_call = 0; current_call < calls; ++current_call) {
            remember_output();
            entry->call();
        }
        puts(entry->name);
    }
}

static void make_objects(void) {
    kavern_manager *manager = open_manager(test_device());
    kavern_stream *stream = NULL;
    OK(kavern_stream_create(manager, &stream));
    kavern_kv_cache *cache = make_cache(manager);
    stale_cache = cache;
    OK(kavern_kv_cache_destroy(&cache));
    kavern_pool *pool = make_pool(manager);
    stale_pool = pool;
    OK(kavern_pool_destroy(&pool));
    kavern_elastic *elastic = make_elastic(manager, 4);
    stale_elastic = elastic;
    OK(kavern_elastic_destroy(&elastic));
    kavern_shared_pool *shared = make_shared(manager, 4);
    stale_shared = shared;
    OK(kavern_shared_pool_destroy(&shared));
    stale_manager = manager;
    stale_stream = stream;
    OK(kavern_stream_destroy(&stream));
    OK(kavern_manager_destroy(&manager));
    live_manager = open_manager(test_device());
    other_manager = open_manager(test_device());
    OK(kavern_stream_create(live_manager, &live_stream));
    live_cache = make_cache(live_manager);
    live_pool = make_pool(live_manager);
    live_elastic = make_elastic(live_manager, 16);
    live_shared = make_shared(live_manager, 16);
    OK(kavern_shared_pool_register_model(live_shared, "model", 16 * page_bytes(), 0, 1, 0));
    live_sim = open_manager("sim?seed=1");
    OK(kavern_stream_create(live_sim, &sim_stream));
}

static void destroy_objects(void) {
    OK(kavern_manager_validate(live_manager));
    OK(kavern_kv_validate(live_cache));
    kavern_kv_statistics kept = {.struct_size = sizeof kept};
    OK(kavern_kv_stats(live_cache, &kept));
    CHECK(kept.leases == 0 && kept.sequences == 0 && kept.steps_in_flight == 0);
    CHECK(kept.free_blocks == 16 && kept.indexed_blocks == 0);
    /* Steps were opened, and the newest id is known to who goes on with the cache. */
    CHECK(kept.last_step > 0 && kavern_kv_step(live_cache, kept.last_step, 0, NULL, NULL) == KAVERN_ERR_WRONG_STATE);
    OK(kavern_kv_step(live_cache, kept.last_step + 1, 0, NULL, NULL));
    OK(kavern_kv_step_done(live_cache, kept.last_step + 1, NULL));
    OK(kavern_kv_cache_destroy(&live_cache));
    OK(kavern_pool_validate(live_pool));
    kavern_pool_statistics pooled = {.struct_size = sizeof pooled};
    OK(kavern_pool_stats(live_pool, &pooled, 0, NULL));
    CHECK(pooled.blocks_in_use == 0 && pooled.misses == 0 && pooled.class_count == 1);
    OK(kavern_pool_destroy(&live_pool));
    kavern_elastic_statistics range = {.struct_size = sizeof range};
    OK(kavern_elastic_stats(live_elastic, &range));
    CHECK(range.physical_bytes == 0 && range.pins == 0);
    OK(kavern_elastic_destroy(&live_elastic));
    kavern_shared_pool_statistics shared = {.struct_size = sizeof shared};
    OK(kavern_shared_pool_stats(live_shared, &shared));
    CHECK(shared.models == 1 && shared.used_bytes == 0 && shared.pooled_bytes == 0);
    OK(kavern_shared_pool_destroy(&live_shared));
    kavern_manager_statistics totals = {.struct_size = sizeof totals};
    OK(kavern_manager_stats(live_manager, &totals));
    CHECK(totals.own_streams == 1 && totals.registered_streams == 0 && totals.caches == 0);
    CHECK(totals.device_bytes == 0 && totals.pinned_bytes == 0);
    OK(kavern_stream_destroy(&live_stream));
    OK(kavern_manager_destroy(&live_manager));
    OK(kavern_manager_destroy(&other_manager));
    OK(kavern_stream_destroy(&sim_stream));
    OK(kavern_manager_destroy(&live_sim));
}

int main(int argc, char **argv) {
    long calls = argc > 1 ? atol(argv[1]) : 10000;
    sweep_seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;
    for (size_t i = 0; i < OUT_BYTES; ++i) out_memory[i] = (unsigned char)(i * 7 + 3);
    make_objects();
    run(sweep_abi, calls);
    run(sweep_kv, calls);
    run(sweep_plan, calls);
    run(sweep_sim, calls);
    run(sweep_memory, calls);
    run(sweep_pool, calls);
    run(sweep_pinned, calls);
    run(sweep_elastic, calls);
    destroy_objects();
    return 0;
}
