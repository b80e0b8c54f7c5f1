/* The child of a fork gets KAVERN_ERR_FORKED from every function and can still ask why; the parent goes on. */
#define _POSIX_C_SOURCE 200809L
#include "objects.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

static void refused(const char *function, kavern_status status) {
    if (status != KAVERN_ERR_FORKED) {
        fprintf(stderr, "%s in the child: %s\n", function, kavern_status_name(status));
        _exit(2);
    }
    if (!last_error_has(function) || !last_error_has("fork")) _exit(3);
}

static _Atomic int is_over;

/* Holds the locks of the allocator again and again. */
static void *work(void *manager) {
    while (!is_over) {
        uint64_t address = 0;
        kavern_memory_statistics statistics = {.struct_size = sizeof statistics};
        OK(kavern_alloc(manager, 512 << 10, 64 << 10, NULL, 0, &address));
        OK(kavern_free(manager, address, NULL));
        OK(kavern_memory_stats(manager, &statistics));
    }
    return NULL;
}

/* Children that only end, while another thread works: none hangs on what that thread held at the fork. */
static void forks_that_end(kavern_manager *manager) {
    pthread_t thread;
    uint64_t address = 0;
    OK(kavern_alloc(manager, 4096, 0, NULL, 0, &address));
    OK(kavern_free(manager, address, NULL));
    CHECK(pthread_create(&thread, NULL, work, manager) == 0);
    for (int turn = 0; turn < 60; turn++) {
        fflush(NULL);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            alarm(30);
            exit(0);
        }
        int status = 0;
        CHECK(waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    is_over = 1;
    CHECK(pthread_join(thread, NULL) == 0);
}

int main(void) {
    kavern_manager *manager = open_manager(test_device());
    kavern_stream *stream = NULL;
    OK(kavern_stream_create(manager, &stream));
    kavern_kv_cache *cache = make_cache(manager);
    kavern_pool *pool = make_pool(manager);
    kavern_elastic *elastic = make_elastic(manager, 4);
    kavern_shared_pool *shared = make_shared(manager, 4);
    OK(kavern_elastic_commit(elastic, 0, 1, NULL));
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
#define ON_NONE(name, arguments) refused(#name, name arguments);
#define ON_MANAGER(name, arguments) refused(#name, name arguments);
#define ON_CACHE(name, arguments) refused(#name, name arguments);
#define ON_POOL(name, arguments) refused(#name, name arguments);
#define ON_ELASTIC(name, arguments) refused(#name, name arguments);
#define ON_SHARED(name, arguments) refused(#name, name arguments);
        CALLS
        refused("kavern_manager_destroy", kavern_manager_destroy(&manager));
        refused("kavern_stream_destroy", kavern_stream_destroy(&stream));
        if (kavern_abi_version() != KAVERN_ABI_VERSION || kavern_has_feature("host") != 1) _exit(4);
        _exit(manager != NULL && stream != NULL ? 0 : 5);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    OK(kavern_stream_synchronize(manager, stream));
    OK(kavern_kv_validate(cache));
    OK(kavern_kv_cache_destroy(&cache));
    OK(kavern_pool_validate(pool));
    OK(kavern_pool_destroy(&pool));
    OK(kavern_elastic_commit(elastic, 0, 2 * page_bytes(), NULL));
    OK(kavern_elastic_destroy(&elastic));
    OK(kavern_shared_pool_destroy(&shared));
    forks_that_end(manager);
    OK(kavern_manager_validate(manager));
    OK(kavern_stream_destroy(&stream));
    OK(kavern_manager_destroy(&manager));
    return 0;
}
