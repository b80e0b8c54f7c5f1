/* Eight threads make, use and destroy the same handles and their own: each call succeeds, or says that somebody else
 * was first. */
#include "objects.h"

#include <pthread.h>
#include <stdatomic.h>

#define THREADS 8
#define PLACES 16

static kavern_manager *shared_manager;
static _Atomic(kavern_stream *) places[PLACES];
static _Atomic(kavern_kv_cache *) caches[2];
static long rounds = 2000;

static int is_fair(kavern_status status) {
    return status == KAVERN_OK || status == KAVERN_ERR_INVALID_HANDLE;
}

static void with_shared_streams(uint64_t random) {
    _Atomic(kavern_stream *) *place = &places[random % PLACES];
    kavern_stream *stream = atomic_load(place);
    uint64_t ticket = 0;
    switch (random >> 32 & 3) {
        case 0:
            /* Two threads may destroy the same handle: one of them does. */
            if (stream != NULL) CHECK(is_fair(kavern_stream_destroy(&stream)));
            break;
        case 1: {
            kavern_stream *made = NULL;
            OK(kavern_stream_create(shared_manager, &made));
            kavern_stream *former = atomic_exchange(place, made);
            if (former != NULL) CHECK(is_fair(kavern_stream_destroy(&former)));
            break;
        }
        case 2:
            if (stream == NULL) break;
            CHECK(is_fair(kavern_stream_record(shared_manager, stream, &ticket)));
            if (ticket != 0) OK(kavern_ticket_wait(ticket, UINT64_MAX));
            break;
        default:
            if (stream != NULL) CHECK(is_fair(kavern_stream_synchronize(shared_manager, stream)));
            break;
    }
}

/* Looks a prompt up, drops the lease again, and now and then puts another cache in the place of this one. */
static void with_shared_caches(uint64_t random) {
    _Atomic(kavern_kv_cache *) *place = &caches[random & 1];
    kavern_kv_cache *cache = atomic_load(place);
    if (cache == NULL || random % 61 == 0) {
        kavern_kv_cache *former = atomic_exchange(place, make_cache(shared_manager));
        if (former != NULL) CHECK(is_fair(kavern_kv_cache_destroy(&former)));
        return;
    }
    int32_t tokens[12];
    for (int i = 0; i < 12; ++i) tokens[i] = (int32_t)(random >> 40) + i;
    kavern_kv_request request = {.struct_size = sizeof request, .namespace_id = 1, .tokens = tokens};
    request.token_count = 12;
    kavern_kv_match_result found = {0};
    kavern_status status = kavern_kv_match(cache, 1, &request, &found);
    CHECK(is_fair(status) || status == KAVERN_PARTIAL); /* all leases may be taken */
    kavern_kv_statistics totals = {.struct_size = sizeof totals};
    CHECK(is_fair(kavern_kv_stats(cache, &totals)));
    CHECK(is_fair(kavern_kv_validate(cache)));
    if (found.lease == 0) return;
    kavern_kv_op op = {.struct_size = sizeof op, .kind = KAVERN_OP_RELEASE, .target = found.lease};
    kavern_kv_op_result result = {0};
    /* Step ids rise, so the threads count on together; one of them may be overtaken before its call, and tries
     * again. */
    static _Atomic uint64_t step;
    do {
        uint64_t id = atomic_fetch_add(&step, 1) + 1;
        status = kavern_kv_step(cache, id, 1, &op, &result);
        if (status != KAVERN_OK) continue;
        /* A later step of another thread may have covered it. */
        kavern_status done = kavern_kv_step_done(cache, id, NULL);
        CHECK(is_fair(done) || done == KAVERN_ERR_WRONG_STATE);
    } while (status == KAVERN_ERR_WRONG_STATE || status == KAVERN_ERR_TOO_MANY_STEPS);
    CHECK(is_fair(status));
}

static void with_own_objects(uint64_t random) {
    kavern_manager *manager = open_manager(test_device());
    kavern_stream *stream = NULL;
    uint64_t ticket = 0;
    OK(kavern_stream_create(manager, &stream));
    OK(kavern_manager_stream_register(shared_manager, stream));
    OK(kavern_stream_record(shared_manager, stream, &ticket));
    OK(kavern_manager_stream_unregister(shared_manager, stream));
    if (random & 1) OK(kavern_manager_destroy(&manager));
    OK(kavern_stream_destroy(&stream));
    OK(kavern_manager_destroy(&manager));
    OK(kavern_ticket_wait(ticket, UINT64_MAX));
}

static void *work(void *seed) {
    uint64_t random = (uint64_t)(uintptr_t)seed * 0x9E3779B97F4A7C15u;
    for (long round = 0; round < rounds; ++round) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        with_shared_streams(random);
        with_shared_caches(random);
        if (round % 64 == 0) with_own_objects(random);
        if (round % 16 == 0) {
            kavern_manager_statistics totals = {.struct_size = sizeof totals};
            OK(kavern_manager_stats(shared_manager, &totals));
            OK(kavern_manager_validate(shared_manager));
        }
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc > 1) rounds = atol(argv[1]);
    pthread_t threads[THREADS];
    shared_manager = open_manager(test_device());
    for (uintptr_t i = 0; i < THREADS; ++i) CHECK(pthread_create(&threads[i], NULL, work, (void *)(i + 1)) == 0);
    for (int i = 0; i < THREADS; ++i) CHECK(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < PLACES; ++i) {
        kavern_stream *stream = atomic_load(&places[i]);
        if (stream != NULL) CHECK(is_fair(kavern_stream_destroy(&stream)));
    }
    for (int i = 0; i < 2; ++i) {
        kavern_kv_cache *cache = atomic_load(&caches[i]);
        if (cache != NULL) OK(kavern_kv_cache_destroy(&cache));
    }
    kavern_manager_statistics totals = {.struct_size = sizeof totals};
    OK(kavern_manager_stats(shared_manager, &totals));
    CHECK(totals.own_streams == 0 && totals.registered_streams == 0);
    CHECK(totals.caches == 0 && totals.device_bytes == 0 && totals.pinned_bytes == 0);
    OK(kavern_manager_destroy(&shared_manager));
    return 0;
}
