/* Device memory from the outside: sizes, alignment, streams, tags, batches, refusals, limits, giving back. */
#include "check.h"

#include <pthread.h>

static kavern_manager *open_limited(uint64_t bytes) {
    kavern_manager *manager = NULL;
    kavern_manager_config config;
    OK(kavern_manager_config_init(&config, sizeof config));
    config.device = test_device();
    config.device_limit_bytes = bytes;
    OK(kavern_manager_create(&config, &manager));
    return manager;
}

static kavern_memory_statistics stats_of(kavern_manager *manager) {
    kavern_memory_statistics found = {.struct_size = sizeof found};
    OK(kavern_memory_stats(manager, &found));
    return found;
}

static void sizes_and_refusals(void) {
    kavern_manager *manager = open_limited(0);
    kavern_stream *stream = NULL;
    OK(kavern_stream_create(manager, &stream));
    uint64_t tag = 0, same = 0, addresses[64] = {0}, total = 0;
    OK(kavern_tag(manager, "weights", &tag));
    OK(kavern_tag(manager, "weights", &same));
    CHECK(tag != 0 && tag == same);
    for (int i = 0; i < 64; ++i) {
        uint64_t bytes = UINT64_C(1) << (i % 27), alignment = UINT64_C(256) << (i % 14);
        OK(kavern_alloc(manager, bytes, alignment, stream, tag, &addresses[i]));
        CHECK(addresses[i] != 0 && addresses[i] % alignment == 0);
        total += bytes;
    }
    kavern_memory_statistics held = stats_of(manager);
    CHECK(held.live_bytes == total && held.live_count == 64);
    kavern_address_description found = {.struct_size = sizeof found};
    OK(kavern_address_info(manager, addresses[20], &found));
    CHECK(found.address == addresses[20] && found.bytes == UINT64_C(1) << 20 && found.block_bytes >= found.bytes);
    CHECK(strcmp(found.tag, "weights") == 0);
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_address_info(manager, addresses[20] + 256, &found));
    OK(kavern_address_pin(manager, addresses[20]));
    OK(kavern_address_unpin(manager, addresses[20]));
    EXPECT(KAVERN_ERR_NOT_FOUND, kavern_address_unpin(manager, addresses[20]));
    OK(kavern_record_use(manager, addresses[20], KAVERN_STREAM_DEFAULT));
    for (int i = 0; i < 64; ++i) OK(kavern_free(manager, addresses[i], stream));
    for (int i = 0; i < 64; ++i) EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_free(manager, addresses[i], stream));
    CHECK(last_error_has("no live allocation"));
    OK(kavern_free(manager, 0, stream));
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_alloc(manager, 0, 0, stream, 0, &same));
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_alloc(manager, 1, 3, stream, 0, &same));
    EXPECT(KAVERN_ERR_OUT_OF_MEMORY, kavern_alloc(manager, UINT64_MAX, 0, stream, 0, &same));
    EXPECT(KAVERN_ERR_STALE_ID, kavern_alloc(manager, 1, 0, stream, 12345, &same));
    EXPECT(KAVERN_ERR_INVALID_HANDLE, kavern_alloc(manager, 1, 0, (void *)0x123450, 0, &same));
    kavern_manager *other = open_limited(0);
    OK(kavern_alloc(other, 4096, 0, NULL, 0, &same));
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_free(manager, same, NULL));
    OK(kavern_free(other, same, NULL));
    OK(kavern_manager_destroy(&other));
    CHECK(stats_of(manager).live_bytes == 0);
    /* A stream that is gone frees nothing any more. */
    OK(kavern_alloc(manager, 4096, 0, stream, 0, &same));
    kavern_stream *gone = stream;
    OK(kavern_stream_destroy(&stream));
    EXPECT(KAVERN_ERR_INVALID_HANDLE, kavern_free(manager, same, gone));
    OK(kavern_free(manager, same, NULL));
    OK(kavern_stream_synchronize(manager, NULL));
    uint64_t released = 0;
    OK(kavern_manager_trim(manager, &released));
    OK(kavern_manager_trim(manager, NULL));
    OK(kavern_manager_validate(manager));
    kavern_manager *destroyed = manager;
    OK(kavern_manager_destroy(&manager));
    EXPECT(KAVERN_ERR_INVALID_HANDLE, kavern_alloc(destroyed, 4096, 0, NULL, 0, &same));
    EXPECT(KAVERN_ERR_INVALID_HANDLE, kavern_free(destroyed, 4096, NULL));
}

static void batches(void) {
    kavern_manager *manager = open_limited(UINT64_C(64) << 20);
    uint64_t bytes[8], addresses[8] = {0};
    for (int i = 0; i < 8; ++i) bytes[i] = UINT64_C(1) << 20;
    OK(kavern_alloc_batch(manager, 8, bytes, 0, NULL, 0, addresses));
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < i; ++j) CHECK(addresses[i] != addresses[j]);
    /* All or none, and nothing is written for none. */
    uint64_t before[8];
    memcpy(before, addresses, sizeof before);
    bytes[7] = UINT64_C(1) << 30;
    EXPECT(KAVERN_ERR_OUT_OF_MEMORY, kavern_alloc_batch(manager, 8, bytes, 0, NULL, 0, addresses));
    CHECK(last_error_has("element 7"));
    CHECK(memcmp(before, addresses, sizeof before) == 0 && stats_of(manager).live_count == 8);
    int32_t statuses[8];
    addresses[3] += 1;
    EXPECT(KAVERN_PARTIAL, kavern_free_batch(manager, 8, addresses, NULL, statuses));
    for (int i = 0; i < 8; ++i) CHECK(statuses[i] == (i == 3 ? KAVERN_ERR_INVALID_ARGUMENT : KAVERN_OK));
    addresses[3] -= 1;
    OK(kavern_free_batch(manager, 1, &addresses[3], NULL, NULL));
    CHECK(stats_of(manager).live_count == 0);
    OK(kavern_manager_destroy(&manager));
}

typedef struct {
    kavern_manager *manager;
    uint64_t spare;
    int calls;
} reserve;

static uint64_t give(void *userdata, uint64_t bytes) {
    reserve *kept = userdata;
    ++kept->calls;
    CHECK(bytes > 0);
    if (kept->spare == 0) return 0;
    OK(kavern_free(kept->manager, kept->spare, NULL));
    kept->spare = 0;
    return UINT64_C(40) << 20;
}

static void short_memory(void) {
    kavern_manager *manager = open_limited(UINT64_C(64) << 20);
    uint64_t address = 0;
    uint32_t can = 7;
    OK(kavern_can_allocate(manager, UINT64_C(40) << 20, KAVERN_MARGIN_DEFAULT, &can));
    CHECK(can == 1);
    OK(kavern_can_allocate(manager, UINT64_C(60) << 20, KAVERN_MARGIN_DEFAULT, &can));
    CHECK(can == 0);
    OK(kavern_can_allocate(manager, UINT64_C(60) << 20, 0, &can));
    CHECK(can == 1);
    /* What kavern_alloc calls a mistake is none that could be had. */
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_alloc(manager, 0, 0, NULL, 0, &address));
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_can_allocate(manager, 0, KAVERN_MARGIN_DEFAULT, &can));
    CHECK(last_error_has("0 bytes requested"));
    reserve kept = {.manager = manager};
    OK(kavern_alloc(manager, UINT64_C(40) << 20, 0, NULL, 0, &kept.spare));
    EXPECT(KAVERN_ERR_OUT_OF_MEMORY, kavern_alloc(manager, UINT64_C(40) << 20, 0, NULL, 0, &address));
    CHECK(last_error_has("bytes requested") && last_error_has("live 41943040 bytes"));
    /* The program is asked before it is refused, and what it gives is taken. */
    OK(kavern_manager_on_reclaim(manager, give, &kept));
    OK(kavern_alloc(manager, UINT64_C(40) << 20, 0, NULL, 0, &address));
    CHECK(kept.calls == 1 && kept.spare == 0);
    EXPECT(KAVERN_ERR_OUT_OF_MEMORY, kavern_alloc(manager, UINT64_C(40) << 20, 0, NULL, 0, &kept.spare));
    CHECK(kept.calls == 2);
    OK(kavern_manager_on_reclaim(manager, NULL, NULL));
    EXPECT(KAVERN_ERR_OUT_OF_MEMORY, kavern_alloc(manager, UINT64_C(40) << 20, 0, NULL, 0, &kept.spare));
    CHECK(kept.calls == 2);
    kavern_memory_statistics found = stats_of(manager);
    CHECK(found.ladder_refusals == 3 && found.ladder_rooms >= 3 && found.ladder_host_waits >= 3);
    OK(kavern_free(manager, address, NULL));
    OK(kavern_manager_destroy(&manager));
}

static void half_empty_pages(void) {
    enum { BLOCKS = 32 * 16 };
    kavern_manager *manager = open_limited(0);
    static uint64_t blocks[BLOCKS];
    for (int i = 0; i < BLOCKS; ++i) OK(kavern_alloc_zeroed(manager, 65536, 0, NULL, 0, &blocks[i]));
    for (int i = 0; i < BLOCKS; ++i)
        if (i % 8 != i / 32 % 8) OK(kavern_free(manager, blocks[i], NULL));
    kavern_defragment_result done = {.struct_size = sizeof done};
    OK(kavern_manager_defragment(manager, 0, &done));
    CHECK(done.before_bytes >= UINT64_C(32) << 20 && done.meshed_pages > 0);
    CHECK(done.after_bytes <= UINT64_C(6) << 20);
    for (int i = 0; i < BLOCKS; ++i)
        if (i % 8 == i / 32 % 8) OK(kavern_free(manager, blocks[i], NULL));
    CHECK(stats_of(manager).live_count == 0);
    OK(kavern_manager_validate(manager));
    OK(kavern_manager_destroy(&manager));
}

/* With the promise that nobody else enqueues, a request that would be refused finds the half-empty pages. */
static void half_empty_pages_serve_a_request(void) {
    enum { BLOCKS = 32 * 16 };
    static uint64_t blocks[BLOCKS];
    for (uint32_t flags = 0; flags <= KAVERN_MANAGER_MESH_ON_SHORTAGE; ++flags) {
        kavern_manager_config config;
        kavern_manager *manager = NULL;
        uint64_t address = 0, rest = 0;
        OK(kavern_manager_config_init(&config, sizeof config));
        config.device = test_device();
        config.device_limit_bytes = UINT64_C(128) << 20;
        config.flags = flags;
        OK(kavern_manager_create(&config, &manager));
        for (int i = 0; i < BLOCKS; ++i) OK(kavern_alloc_zeroed(manager, 65536, 0, NULL, 0, &blocks[i]));
        for (int i = 0; i < BLOCKS; ++i)
            if (i % 8 != i / 32 % 8) OK(kavern_free(manager, blocks[i], NULL));
        /* Only now: where memory is short, blocks of this size would not lie in slots. */
        OK(kavern_alloc(manager, UINT64_C(96) << 20, 0, NULL, 0, &rest));
        EXPECT(flags == 0 ? KAVERN_ERR_OUT_OF_MEMORY : KAVERN_OK,
               kavern_alloc(manager, UINT64_C(16) << 20, 0, NULL, 0, &address));
        CHECK(flags != 0 || last_error_has("the limit is 134217728 bytes"));
        CHECK(stats_of(manager).ladder_meshes == flags && stats_of(manager).ladder_refusals == 1 - flags);
        OK(kavern_free(manager, address, NULL));
        OK(kavern_free(manager, rest, NULL));
        for (int i = 0; i < BLOCKS; ++i)
            if (i % 8 == i / 32 % 8) OK(kavern_free(manager, blocks[i], NULL));
        OK(kavern_manager_validate(manager));
        OK(kavern_manager_destroy(&manager));
    }
}

enum { THREADS = 8, TURNS = 20000 };
static kavern_manager *shared_manager;

static void *allocate_and_free(void *number) {
    kavern_stream *stream = NULL;
    uint64_t live[32] = {0}, state = (uint64_t)(uintptr_t)number * 2654435761u + 1;
    OK(kavern_stream_create(shared_manager, &stream));
    for (int turn = 0; turn < TURNS; ++turn) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        uint64_t *slot = &live[(state >> 33) % 32];
        if (*slot != 0) {
            OK(kavern_free(shared_manager, *slot, stream));
            *slot = 0;
        } else {
            OK(kavern_alloc(shared_manager, 1 + (state >> 40) % 300000, 0, stream, 0, slot));
        }
    }
    for (int i = 0; i < 32; ++i) OK(kavern_free(shared_manager, live[i], stream));
    OK(kavern_stream_destroy(&stream));
    return NULL;
}

static void threads(void) {
    pthread_t running[THREADS];
    shared_manager = open_limited(0);
    for (uintptr_t i = 0; i < THREADS; ++i) CHECK(!pthread_create(&running[i], NULL, allocate_and_free, (void *)i));
    for (int i = 0; i < THREADS; ++i) CHECK(!pthread_join(running[i], NULL));
    kavern_memory_statistics found = stats_of(shared_manager);
    CHECK(found.live_bytes == 0 && found.live_count == 0 && found.allocations == found.frees);
    OK(kavern_manager_validate(shared_manager));
    OK(kavern_manager_destroy(&shared_manager));
}

/* A server that makes a stream for each request: more of them than the allocator has numbers for at a time. */
static void streams_one_after_the_other(void) {
    kavern_manager *manager = open_limited(0);
    uint64_t kept = 0, address = 0;
    for (int turn = 0; turn < 70000; ++turn) {
        kavern_stream *stream = NULL;
        OK(kavern_stream_create(manager, &stream));
        OK(kavern_alloc(manager, 512, 0, stream, 0, &address));
        if (turn == 5) {
            kept = address;
        } else {
            OK(kavern_free(manager, address, stream));
        }
        OK(kavern_stream_destroy(&stream));
    }
    kavern_address_description about = {.struct_size = sizeof about};
    OK(kavern_address_info(manager, kept, &about));
    CHECK(about.bytes == 512);
    OK(kavern_free(manager, kept, NULL));
    OK(kavern_manager_destroy(&manager));
}

int main(void) {
    sizes_and_refusals();
    batches();
    short_memory();
    half_empty_pages();
    half_empty_pages_serve_a_request();
    streams_one_after_the_other();
    threads();
    puts("device memory: sizes, batches, short memory, half-empty pages, many streams, threads");
    return 0;
}
