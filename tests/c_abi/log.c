/* A log callback that uses the library: what it hears of was said while the library had locks that it needs itself. */
#define _DEFAULT_SOURCE
#include "check.h"

#include <stdatomic.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)

static kavern_manager *manager;
static kavern_elastic *elastic;
static atomic_int heard;

static void note(void *userdata, uint32_t level, const char *room, const char *text) {
    (void)userdata;
    if (level != KAVERN_LOG_ERROR || strcmp(room, "memory") != 0 || strstr(text, "stay mapped") == NULL) return;
    kavern_elastic_statistics stats = {.struct_size = sizeof stats};
    OK(kavern_elastic_stats(elastic, &stats));
    OK(kavern_manager_validate(manager));
    OK(kavern_manager_trim(manager, NULL));
    /* A failure in here is none of the call that it is heard in. */
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_elastic_commit(elastic, 0, 0, NULL));
    ++heard;
}

int main(void) {
    /* A call that never ends is the failure that is looked for. */
    alarm(60);
    manager = open_manager("host?fail_from=1&kind=unmap&error=device");
    OK(kavern_set_log_callback(KAVERN_LOG_ERROR, note, NULL));
    kavern_elastic_config config;
    OK(kavern_elastic_config_init(&config, sizeof config));
    config.capacity_bytes = 64 * MIB;
    OK(kavern_elastic_create(manager, &config, &elastic));
    OK(kavern_elastic_commit(elastic, 0, 8 * MIB, NULL));
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_elastic_decommit(elastic, 0, 0, NULL, NULL));
    CHECK(heard == 0 && last_error_has("kavern_elastic_decommit"));
    OK(kavern_elastic_decommit(elastic, 0, 4 * MIB, NULL, NULL));
    CHECK(heard >= 1 && last_error_has("kavern_elastic_decommit"));
    /* With a stream it is a thread of the library that unmaps. */
    int before = heard;
    OK(kavern_elastic_decommit(elastic, 4 * MIB, 4 * MIB, KAVERN_STREAM_DEFAULT, NULL));
    while (heard == before) usleep(100);
    /* The allocator has a lock of its own around what it unmaps. */
    uint64_t address = 0;
    OK(kavern_alloc(manager, 48 * MIB, 0, NULL, 0, &address));
    OK(kavern_free(manager, address, NULL));
    before = heard;
    OK(kavern_manager_trim(manager, NULL));
    CHECK(heard > before);
    OK(kavern_set_log_callback(0, NULL, NULL));
    return 0;
}
