/* panic <function>, started with KAVERN_FAULT_PANIC=<function>: the panic becomes a status and a text, the object is
 * poisoned, everything else goes on. */
#include "objects.h"

static int planted(const char *function, kavern_status status) {
    EXPECT(KAVERN_ERR_PANIC, status);
    char wanted[100];
    snprintf(wanted, sizeof wanted, "%s: panic at ", function);
    CHECK(last_error_has(wanted));
    CHECK(last_error_has("planted by KAVERN_FAULT_PANIC"));
    return 1;
}

static int is_named(const char *function, const char *name) {
    return strcmp(function, name) == 0;
}

/* Any call on the manager that is not the one with the panic. */
static kavern_status other_call(const char *function, kavern_manager *manager) {
    kavern_manager_statistics totals = {.struct_size = sizeof totals};
    return is_named(function, "kavern_manager_validate") ? kavern_manager_stats(manager, &totals)
                                                          : kavern_manager_validate(manager);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    const char *function = argv[1];
    int found = 0;
    /* Functions that make the objects cannot be called first. */
#define ON_NONE(name, arguments) \
    if (is_named(function, #name)) found = planted(#name, name arguments);
#define ON_MANAGER(name, arguments)
#define ON_CACHE(name, arguments)
#define ON_POOL(name, arguments)
#define ON_ELASTIC(name, arguments)
#define ON_SHARED(name, arguments)
    CALLS
#undef ON_NONE
#undef ON_MANAGER
#undef ON_CACHE
#undef ON_POOL
    if (found) {
        EXPECT(KAVERN_ERR_NULL_POINTER, kavern_stream_synchronize(NULL, NULL));
        return 0;
    }

    kavern_manager *manager = open_manager(test_device()), *bystander = open_manager(test_device());
#define ON_NONE(name, arguments)
#define ON_MANAGER(name, arguments)                                                                               \
    if (is_named(function, #name)) {                                                                              \
        found = planted(#name, name arguments);                                                                   \
        EXPECT(KAVERN_ERR_POISONED, other_call(function, manager));                                               \
        OK(other_call(function, bystander));                                                                      \
    }
#define ON_CACHE(name, arguments)
#define ON_POOL(name, arguments)
    CALLS
#undef ON_MANAGER
#undef ON_CACHE
#undef ON_POOL
    if (!found) {
        kavern_kv_cache *cache = make_cache(manager);
        kavern_pool *pool = make_pool(manager);
#define ON_MANAGER(name, arguments)
#define ON_CACHE(name, arguments)                                                                                 \
    if (is_named(function, #name)) {                                                                              \
        found = planted(#name, name arguments);                                                                   \
        EXPECT(KAVERN_ERR_POISONED, is_named(function, "kavern_kv_validate")                                      \
                                        ? kavern_kv_stats(cache, NULL) : kavern_kv_validate(cache));              \
        OK(other_call(function, manager));                                                                        \
    }
#define ON_POOL(name, arguments)                                                                                  \
    if (is_named(function, #name)) {                                                                              \
        found = planted(#name, name arguments);                                                                   \
        EXPECT(KAVERN_ERR_POISONED, is_named(function, "kavern_pool_validate")                                    \
                                        ? kavern_pool_release(pool, 0, NULL) : kavern_pool_validate(pool));       \
        OK(other_call(function, manager));                                                                        \
    }
        CALLS
#undef ON_CACHE
#undef ON_POOL
#undef ON_ELASTIC
#define ON_CACHE(name, arguments)
#define ON_POOL(name, arguments)
        OK(kavern_kv_cache_destroy(&cache));
        OK(kavern_pool_destroy(&pool));
    }
    if (!found) {
        kavern_elastic *elastic = make_elastic(manager, 4);
#define ON_ELASTIC(name, arguments)                                                                               \
    if (is_named(function, #name)) {                                                                              \
        found = planted(#name, name arguments);                                                                   \
        EXPECT(KAVERN_ERR_POISONED, is_named(function, "kavern_elastic_stats")                                    \
                                        ? kavern_elastic_base(elastic, NULL) : kavern_elastic_stats(elastic, NULL)); \
        OK(other_call(function, manager));                                                                        \
    }
        CALLS
#undef ON_ELASTIC
#undef ON_SHARED
#define ON_ELASTIC(name, arguments)
        OK(kavern_elastic_destroy(&elastic));
    }
    if (!found) {
        kavern_shared_pool *shared = make_shared(manager, 4);
#define ON_SHARED(name, arguments)                                                                                \
    if (is_named(function, #name)) {                                                                              \
        found = planted(#name, name arguments);                                                                   \
        EXPECT(KAVERN_ERR_POISONED, is_named(function, "kavern_shared_pool_stats")                                \
                                        ? kavern_shared_pool_unregister_model(shared, "a")                        \
                                        : kavern_shared_pool_stats(shared, NULL));                                \
        OK(other_call(function, manager));                                                                        \
    }
        CALLS
        OK(kavern_shared_pool_destroy(&shared));
    }
    CHECK(found);
    OK(kavern_manager_destroy(&manager));
    OK(kavern_manager_destroy(&bystander));
    CHECK(manager == NULL);
    return 0;
}
