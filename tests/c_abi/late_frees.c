/* Threads whose only calls are in the destructors of their thread-specific values: a buffer of somebody else's is freed
 * there, or one is taken and freed. What such a thread leaves on a stream is the next one's, and does not add up. */
#include "check.h"

#include <pthread.h>
#include <unistd.h>

#define ROUNDS 4
#define THREADS 100
#define BLOCKS 6

static kavern_manager *manager;
static kavern_stream *stream;
static pthread_key_t first_key, second_key, only_key;

typedef struct {
    uint64_t blocks[BLOCKS];
    int turn;
} bundle;

/* Each destructor has several rounds; the later ones find the thread's caches gone. */
static void late(void *value, pthread_key_t key) {
    bundle *all = value;
    uint64_t own = 0;
    OK(kavern_free(manager, all->blocks[all->turn++], stream));
    OK(kavern_alloc(manager, 4096, 0, stream, 0, &own));
    OK(kavern_free(manager, all->blocks[all->turn++], stream));
    OK(kavern_free(manager, own, stream));
    if (all->turn < BLOCKS) CHECK(pthread_setspecific(key, value) == 0);
}

static void late_first(void *value) { late(value, first_key); }
static void late_second(void *value) { late(value, second_key); }

static void late_only(void *value) { OK(kavern_free(manager, (uint64_t)(uintptr_t)value, stream)); }

/* Its one call is a free in a destructor. */
static void *free_only(void *value) {
    CHECK(pthread_setspecific(only_key, value) == 0);
    return NULL;
}

static void *work(void *value) {
    bundle *both = value;
    CHECK(pthread_setspecific(first_key, &both[0]) == 0);
    CHECK(pthread_setspecific(second_key, &both[1]) == 0);
    return NULL;
}

static kavern_memory_statistics statistics(void) {
    kavern_memory_statistics found = {.struct_size = sizeof found};
    OK(kavern_memory_stats(manager, &found));
    return found;
}

static uint64_t resident_bytes(void) {
    unsigned long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHECK(file != NULL && fscanf(file, "%*s %lu", &pages) == 1);
    fclose(file);
    return (uint64_t)pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* Threads whose one call is such a free: whatever it takes to serve it goes with the thread, or to the next one. */
static void free_late_only(void) {
    uint64_t first_front_bytes = 0, first_bytes = 0;
    for (int thread = 0; thread < ROUNDS * THREADS; ++thread) {
        uint64_t block = 0;
        OK(kavern_alloc(manager, 4096, 0, stream, 0, &block));
        pthread_t made;
        CHECK(pthread_create(&made, NULL, free_only, (void *)(uintptr_t)block) == 0);
        CHECK(pthread_join(made, NULL) == 0);
        if (thread > 0) continue;
        first_front_bytes = statistics().front_cache_bytes;
        first_bytes = resident_bytes();
    }
    CHECK(statistics().live_count == 0 && statistics().front_cache_bytes <= first_front_bytes);
    CHECK(resident_bytes() < first_bytes + (8 << 20));
}

int main(void) {
    static bundle bundles[THREADS][2];
    manager = open_manager(test_device());
    OK(kavern_stream_create(manager, &stream));
    CHECK(pthread_key_create(&first_key, late_first) == 0);
    /* The library makes its own key at the first use on some thread: one of these comes before it and one after. */
    uint64_t begin = 0, first_bytes = 0;
    OK(kavern_alloc(manager, 4096, 0, stream, 0, &begin));
    OK(kavern_free(manager, begin, stream));
    CHECK(pthread_key_create(&second_key, late_second) == 0);
    CHECK(pthread_key_create(&only_key, late_only) == 0);
    free_late_only();
    for (int round = 0; round < ROUNDS; ++round) {
        for (int thread = 0; thread < THREADS; ++thread)
            for (int at = 0; at < 2 * BLOCKS; ++at) {
                bundle *all = &bundles[thread][at / BLOCKS];
                all->turn = 0;
                OK(kavern_alloc(manager, 4096, 0, stream, 0, &all->blocks[at % BLOCKS]));
            }
        for (int thread = 0; thread < THREADS; ++thread) {
            pthread_t made;
            CHECK(pthread_create(&made, NULL, work, bundles[thread]) == 0);
            CHECK(pthread_join(made, NULL) == 0);
            CHECK(bundles[thread][0].turn == BLOCKS && bundles[thread][1].turn == BLOCKS);
        }
        kavern_memory_statistics now = statistics();
        CHECK(now.live_count == 0 && now.live_bytes == 0);
        /* What threads leave on a stream is the next thread's: neither it nor their caches add up. */
        uint64_t now_bytes = resident_bytes();
        if (round == 0) first_bytes = now_bytes;
        CHECK(now_bytes < first_bytes + (8 << 20));
        OK(kavern_manager_validate(manager));
    }
    OK(kavern_manager_validate(manager));
    OK(kavern_stream_destroy(&stream));
    OK(kavern_manager_destroy(&manager));
    return 0;
}
