/* What the C tests share: checks that name their place, and objects to call functions on. */
#ifndef CHECK_H
#define CHECK_H

#include <kavern.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static inline void fail_at(const char *file, int line, const char *what) {
    char text[1100] = "";
    kavern_last_error(text, sizeof text, NULL);
    fprintf(stderr, "%s:%d: %s\nlast error: %s\n", file, line, what, text);
    exit(1);
}

#define CHECK(condition)                                                                                          \
    do {                                                                                                          \
        if (!(condition)) fail_at(__FILE__, __LINE__, #condition);                                                \
    } while (0)

#define EXPECT(wanted, call)                                                                                      \
    do {                                                                                                          \
        kavern_status got_ = (call);                                                                              \
        if (got_ != (wanted)) {                                                                                   \
            fprintf(stderr, "%s, wanted %s\n", kavern_status_name(got_), kavern_status_name(wanted));             \
            fail_at(__FILE__, __LINE__, #call);                                                                   \
        }                                                                                                         \
    } while (0)

#define OK(call) EXPECT(KAVERN_OK, call)

/* The device that the programs run on: KAVERN_TEST_DEVICE may name a GPU. */
static inline const char *test_device(void) {
    const char *device = getenv("KAVERN_TEST_DEVICE");
    return device != NULL ? device : "host";
}

static inline kavern_manager *open_manager(const char *device) {
    kavern_manager *manager = NULL;
    kavern_manager_config config;
    OK(kavern_manager_config_init(&config, sizeof config));
    config.device = device;
    OK(kavern_manager_create(&config, &manager));
    CHECK(manager != NULL);
    return manager;
}

static inline kavern_kv_cache_config config_for(const kavern_kv_group *groups, uint32_t count) {
    kavern_kv_cache_config config;
    OK(kavern_kv_cache_config_init(&config, sizeof config));
    config.groups = groups;
    config.group_count = count;
    return config;
}

static inline kavern_kv_cache *create_cache(kavern_manager *manager, const kavern_kv_cache_config *config) {
    kavern_kv_cache *cache = NULL;
    OK(kavern_kv_cache_create(manager, config, &cache));
    return cache;
}

/* Whether the text of the latest failure holds the words. */
static inline int last_error_has(const char *words) {
    char text[1100] = "";
    if (kavern_last_error(text, sizeof text, NULL) != KAVERN_OK) return 0;
    return strstr(text, words) != NULL;
}

#endif
