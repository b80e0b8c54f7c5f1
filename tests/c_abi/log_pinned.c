/* A log callback that hears the thread which pins ahead: that thread has nothing half done, and is waited for by nobody
 * in here. The case is the one argument: allocate, reserve, or destroy. */
#define _DEFAULT_SOURCE
#include "check.h"

#include <stdatomic.h>
#include <unistd.h>

#define MIB (UINT64_C(1) << 20)

static kavern_manager *manager;
static const char *what;
static atomic_int heard;

static void note(void *userdata, uint32_t level, const char *room, const char *text) {
    (void)userdata, (void)level, (void)room;
    if (strstr(text, "pinning ahead ended early") == NULL) return;
    if (strcmp(what, "allocate") == 0) {
        void *address = NULL;
        OK(kavern_pinned_alloc(manager, MIB, NULL, &address));
        OK(kavern_pinned_free(manager, address, NULL));
    } else if (strcmp(what, "reserve") == 0) {
        OK(kavern_pinned_reserve(manager, 8 * MIB));
    } else {
        OK(kavern_manager_destroy(&manager));
    }
    ++heard;
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    what = argv[1];
    /* A call that never ends is the failure that is looked for. */
    alarm(60);
    manager = open_manager("host?kind=pinned&fail_nth=1");
    OK(kavern_set_log_callback(KAVERN_LOG_WARN, note, NULL));
    OK(kavern_pinned_reserve(manager, 64 * MIB));
    while (heard == 0) usleep(100);
    if (manager != NULL) {
        /* What was asked for in the callback comes. */
        kavern_pinned_statistics stats = {.struct_size = sizeof stats};
        do {
            OK(kavern_pinned_stats(manager, &stats));
        } while (strcmp(what, "reserve") == 0 && stats.held_bytes < 8 * MIB);
        OK(kavern_manager_validate(manager));
        OK(kavern_manager_destroy(&manager));
    }
    OK(kavern_set_log_callback(0, NULL, NULL));
    return 0;
}
