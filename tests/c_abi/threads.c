/* Eight threads make, use and destroy the same handles and their own: each call succeeds, or says that somebody else was
 * first. */
#include "check.h"

#include <pthread.h>
#include <stdatomic.h>

#define THREADS 8
#define PLACES 16

static kavern_manager *shared_manager;
static _Atomic(kavern_stream *) places[PLACES];
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

static void with_own_objects(uint64_t random) {
    kavern_manager *manager = open_manager("host");
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
    shared_manager = open_manager("host");
    for (uintptr_t i = 0; i < THREADS; ++i) CHECK(pthread_create(&threads[i], NULL, work, (void *)(i + 1)) == 0);
    for (int i = 0; i < THREADS; ++i) CHECK(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < PLACES; ++i) {
        kavern_stream *stream = atomic_load(&places[i]);
        if (stream != NULL) CHECK(is_fair(kavern_stream_destroy(&stream)));
    }
    kavern_manager_statistics totals = {.struct_size = sizeof totals};
    OK(kavern_manager_stats(shared_manager, &totals));
    CHECK(totals.own_streams == 0 && totals.registered_streams == 0);
    OK(kavern_manager_destroy(&shared_manager));
    return 0;
}
