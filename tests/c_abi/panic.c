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
    CALLS
#undef ON_NONE
#undef ON_MANAGER
#undef ON_CACHE
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
    CALLS
#undef ON_MANAGER
#undef ON_CACHE
    if (!found) {
        kavern_kv_cache *cache = make_cache(manager);
#define ON_MANAGER(name, arguments)
#define ON_CACHE(name, arguments)                                                                                 \
    if (is_named(function, #name)) {                                                                              \
        found = planted(#name, name arguments);                                                                   \
        EXPECT(KAVERN_ERR_POISONED, is_named(function, "kavern_kv_validate")                                      \
                                        ? kavern_kv_stats(cache, NULL) : kavern_kv_validate(cache));              \
        OK(other_call(function, manager));                                                                        \
    }
        CALLS
        OK(kavern_kv_cache_destroy(&cache));
    }
    CHECK(found);
    OK(kavern_manager_destroy(&manager));
    OK(kavern_manager_destroy(&bystander));
    CHECK(manager == NULL);
    return 0;
}
