/* captures [round]: an engine captures graphs on a stream of its own, which the library never hears of, while memory of
   every kind is freed, a heap is defragmented, caches and devices close: each capture stays whole, and nothing is freed
   under work that still runs. Other threads go on launching meanwhile. Needs a GPU. */
#define _DEFAULT_SOURCE
#include "driver.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { ACTIVE = 1, MODES = 3, BUSY_US = 30000 };
static const uint64_t MIB = UINT64_C(1) << 20;

/* What each round uses; of the stream that works, and of the one that is captured, the library knows nothing. */
static kavern_manager *manager, *second;
static kavern_stream *stream;
static kavern_pool *pool;
static kavern_kv_cache *cache;
static kavern_elastic *elastic;
static void *working, *captured, *page, *reserved;
static unsigned long long target;
static _Atomic int is_over;

static void work(void *unused) {
    (void)unused;
    usleep(BUSY_US);
}

static void end_work(void *unused) {
    (void)unused;
    atomic_store(&is_over, 1);
}

/* The engine is at work on these bytes for a while. */
static void keep_busy(uint64_t address, uint64_t bytes) {
    atomic_store(&is_over, 0);
    DRIVER(cuLaunchHostFunc, working, work, NULL);
    DRIVER(cuMemsetD8Async, (unsigned long long)address, (unsigned char)7, (size_t)bytes, working);
    DRIVER(cuLaunchHostFunc, working, end_work, NULL);
}

/* A pool of one block, which is idle: a trim gives it to the device. */
static uint64_t idle_pool(uint32_t kind, uint64_t bytes) {
    kavern_pool_config config;
    kavern_pool_block block;
    OK(kavern_pool_config_init(&config, sizeof config));
    config.rounding = KAVERN_POOL_FIXED;
    config.block_bytes = bytes;
    config.growth_blocks = 1;
    config.idle_ns = UINT64_MAX;
    config.memory_kind = kind;
    OK(kavern_pool_create(manager, &config, &pool));
    OK(kavern_pool_acquire(pool, bytes, stream, &block));
    OK(kavern_pool_release(pool, block.address, stream));
    OK(kavern_stream_synchronize(manager, stream));
    return block.address;
}

static void trim_pool(void) {
    uint64_t freed = 0;
    OK(kavern_pool_trim(pool, 0, &freed));
    CHECK(freed > 0);
}

static void end_pool(void) { OK(kavern_pool_destroy(&pool)); }

static void prepare_small(void) { keep_busy(idle_pool(KAVERN_POOL_DEVICE, 4096), 4096); }
static void prepare_large(void) { keep_busy(idle_pool(KAVERN_POOL_DEVICE, 256 * MIB), 256 * MIB); }
static void prepare_managed(void) { keep_busy(idle_pool(KAVERN_POOL_MANAGED, MIB), MIB); }

static void prepare_pinned(void) {
    OK(kavern_pinned_alloc(manager, 128 * MIB, 0, &page));
    OK(kavern_pinned_free(manager, page, stream));
    OK(kavern_stream_synchronize(manager, stream));
    keep_busy((uint64_t)(uintptr_t)page, 128 * MIB);
}

static void trim_pinned(void) {
    uint64_t freed = 0;
    OK(kavern_pinned_trim(manager, &freed));
    CHECK(freed >= 128 * MIB);
}

static void prepare_registered(void) {
    reserved = aligned_alloc(4096, MIB);
    CHECK(reserved != NULL);
    memset(reserved, 0, MIB);
    OK(kavern_pinned_register(manager, reserved, MIB, 0));
    keep_busy((uint64_t)(uintptr_t)reserved, MIB);
}

static void unregister(void) { OK(kavern_pinned_unregister(manager, reserved)); }
static void end_registered(void) { free(reserved); }

/* A device with memory of every kind, of which nothing is given back before it is closed. */
static void prepare_close(void) {
    uint64_t address = 0;
    second = open_manager(test_device());
    OK(kavern_warmup(second));
    OK(kavern_alloc(second, 8 * MIB, 0, NULL, 0, &address));
    OK(kavern_pinned_alloc(second, MIB, 0, &page));
    keep_busy(address, 8 * MIB);
}

static void close_device(void) { OK(kavern_manager_destroy(&second)); }

static void open_and_close(void) {
    kavern_manager *third = open_manager(test_device());
    OK(kavern_warmup(third));
    OK(kavern_manager_destroy(&third));
}

static void prepare_cache(void) {
    kavern_kv_group group = {.struct_size = sizeof group, .kind = KAVERN_GROUP_OPAQUE, .block_tokens = 4};
    kavern_kv_cache_config config;
    group.block_bytes = 65536;
    OK(kavern_kv_cache_config_init(&config, sizeof config));
    config.groups = &group;
    config.group_count = 1;
    config.capacity_blocks = 64;
    config.max_sequences = 4;
    OK(kavern_kv_cache_create(manager, &config, &cache));
    kavern_kv_description shape = {.struct_size = sizeof shape};
    OK(kavern_kv_describe(cache, 0, &shape));
    keep_busy(shape.base_address, 65536);
}

static void end_cache(void) { OK(kavern_kv_cache_destroy(&cache)); }

static void make_and_end_cache(void) {
    kavern_kv_cache *before = cache;
    prepare_cache();
    end_cache();
    cache = before;
}

static void use_elastic(void) {
    kavern_elastic_config config;
    OK(kavern_elastic_config_init(&config, sizeof config));
    config.capacity_bytes = 64 * MIB;
    OK(kavern_elastic_create(manager, &config, &elastic));
    OK(kavern_elastic_commit(elastic, 0, 32 * MIB, NULL));
    OK(kavern_elastic_decommit(elastic, 0, 16 * MIB, stream, NULL));
    OK(kavern_elastic_destroy(&elastic));
}

static void use_streams(void) {
    kavern_stream *own = NULL;
    uint64_t ticket = 0, block = 0;
    OK(kavern_stream_create(manager, &own));
    OK(kavern_alloc(manager, MIB, 0, own, 0, &block));
    OK(kavern_free(manager, block, own));
    OK(kavern_stream_record(manager, own, &ticket));
    OK(kavern_ticket_wait_on_stream(ticket, manager, stream));
    OK(kavern_ticket_wait(ticket, UINT64_MAX));
    OK(kavern_stream_synchronize(manager, own));
    OK(kavern_stream_destroy(&own));
}

static void allocate_pinned(void) {
    OK(kavern_pinned_alloc(manager, 512 * MIB, 0, &page));
    OK(kavern_pinned_free(manager, page, stream));
}

static void use_pool(void) {
    idle_pool(KAVERN_POOL_DEVICE, 32 * MIB);
    end_pool();
}

static void use_heap(void) {
    uint64_t blocks[3];
    OK(kavern_alloc(manager, 4096, 0, stream, 0, &blocks[0]));
    OK(kavern_alloc_zeroed(manager, 8 * MIB, 0, stream, 0, &blocks[1]));
    OK(kavern_alloc(manager, 100 * MIB, 0, NULL, 0, &blocks[2]));
    for (int i = 0; i < 3; ++i) OK(kavern_free(manager, blocks[i], i < 2 ? stream : NULL));
    OK(kavern_manager_trim(manager, NULL));
}

static void defragment(void) {
    kavern_defragment_result done = {.struct_size = sizeof done};
    OK(kavern_manager_defragment(manager, 0, &done));
}

typedef struct {
    const char *what;
    void (*prepare)(void), (*act)(void), (*end)(void);
    /* Whether the act may not return before the work is over. */
    int waits;
} round_;

static const round_ ROUNDS[] = {
    {"a small direct allocation is freed", prepare_small, trim_pool, end_pool, 1},
    {"a large direct allocation is freed", prepare_large, trim_pool, end_pool, 1},
    {"managed memory is freed", prepare_managed, trim_pool, end_pool, 1},
    {"pinned memory is freed", prepare_pinned, trim_pinned, NULL, 1},
    {"registered memory is unregistered", prepare_registered, unregister, end_registered, 1},
    {"a device is closed", prepare_close, close_device, NULL, 1},
    {"a device is opened and closed", NULL, open_and_close, NULL, 0},
    {"a cache is closed", prepare_cache, end_cache, NULL, 1},
    {"a cache is made and closed", prepare_cache, make_and_end_cache, end_cache, 0},
    {"a range changes", NULL, use_elastic, NULL, 0},
    {"a stream lives and goes", NULL, use_streams, NULL, 0},
    {"memory is pinned", NULL, allocate_pinned, NULL, 0},
    {"a pool is made and goes", NULL, use_pool, NULL, 0},
    {"the allocator works", NULL, use_heap, NULL, 0},
    {"the heap is defragmented", use_heap, defragment, NULL, 0},
};

static void play(const round_ *one, unsigned mode) {
    void *graph = NULL, *executable = NULL;
    unsigned status = 0;
    unsigned char seen = 0;
    if (one->prepare != NULL) one->prepare();
    DRIVER(cuStreamBeginCapture_v2, captured, mode);
    DRIVER(cuMemsetD8Async, target, (unsigned char)(mode + 1), (size_t)1, captured);
    one->act();
    int was_over = atomic_load(&is_over);
    DRIVER(cuStreamIsCapturing, captured, &status);
    if (status != ACTIVE || (one->waits && !was_over)) {
        fprintf(stderr, "%s, mode %u: capture %u, work over %d\n", one->what, mode, status, was_over);
        fail_at(__FILE__, __LINE__, "the capture is whole, and the work was waited for");
    }
    DRIVER(cuStreamEndCapture, captured, &graph);
    if (one->end != NULL) one->end();
    DRIVER(cuGraphInstantiateWithFlags, &executable, graph, 0ULL);
    DRIVER(cuGraphLaunch, executable, captured);
    DRIVER(cuStreamSynchronize, captured);
    DRIVER(cuMemcpyDtoH_v2, &seen, target, (size_t)1);
    CHECK(seen == mode + 1);
    DRIVER(cuGraphExecDestroy, executable);
    DRIVER(cuGraphDestroy, graph);
    DRIVER(cuStreamSynchronize, working);
}

/* ----------------------------------------------------------- a free that waits for a stream which the library knows */

static _Atomic int is_launched, was_seen;

static void await_launch(void *unused) {
    (void)unused;
    for (int i = 0; i < 200 && !atomic_load(&is_launched); ++i) usleep(10000);
    atomic_store(&was_seen, atomic_load(&is_launched));
}

static void *launch(void *context) {
    DRIVER(cuCtxSetCurrent, context);
    usleep(100000);
    DRIVER(cuMemsetD8Async, target, (unsigned char)9, (size_t)1, captured);
    atomic_store(&is_launched, 1);
    return NULL;
}

/* The work that a free waits for ends only when another thread has launched something. */
static void others_launch_while_a_free_waits(void *context) {
    pthread_t thread;
    OK(kavern_manager_stream_register(manager, working));
    idle_pool(KAVERN_POOL_DEVICE, MIB);
    DRIVER(cuLaunchHostFunc, working, await_launch, NULL);
    CHECK(pthread_create(&thread, NULL, launch, context) == 0);
    trim_pool();
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(atomic_load(&was_seen));
    end_pool();
    DRIVER(cuStreamSynchronize, captured);
    OK(kavern_manager_stream_unregister(manager, working));
}

int main(int argc, char **argv) {
    int only = argc > 1 ? atoi(argv[1]) : -1;
    if (!has_gpu()) return 0;
    manager = open_manager(test_device());
    OK(kavern_warmup(manager));
    void *context = NULL;
    int ordinal = 0;
    DRIVER(cuDeviceGet, &ordinal, atoi(test_device() + (test_device()[4] == ':' ? 5 : 4)));
    DRIVER(cuDevicePrimaryCtxRetain, &context, ordinal);
    DRIVER(cuCtxSetCurrent, context);
    DRIVER(cuStreamCreate, &working, 1u);
    DRIVER(cuStreamCreate, &captured, 1u);
    DRIVER(cuMemAlloc_v2, &target, (size_t)256);
    OK(kavern_stream_create(manager, &stream));
    int count = (int)(sizeof ROUNDS / sizeof ROUNDS[0]);
    for (unsigned mode = 0; mode < MODES; ++mode)
        for (int i = 0; i < count; ++i)
            if (only < 0 || i == only) play(&ROUNDS[i], mode);
    if (only < 0 || only == count) others_launch_while_a_free_waits(context);
    OK(kavern_manager_validate(manager));
    OK(kavern_stream_destroy(&stream));
    OK(kavern_manager_destroy(&manager));
    DRIVER(cuMemFree_v2, target);
    DRIVER(cuStreamDestroy_v2, working);
    DRIVER(cuStreamDestroy_v2, captured);
    printf("%d captures stayed whole beside frees, waits and closings\n", MODES * count);
    return 0;
}
