/* Bad calls of pinned host memory. */
#include "sweep.h"

static void pinned_alloc(void) {
    choose_flaw(4);
    kavern_manager *manager = MANAGER(0);
    uint64_t bytes = is_bad(1) ? (one_in(2) ? 0 : UINT64_MAX - below(1 << 20)) : 1 + below(4096);
    const char *tag = "sweep";
    if (is_bad(2)) {
        tag = bad_text();
        if (tag == NULL || tag[0] == '#') tag = "\xff";
    }
    refused(kavern_pinned_alloc(manager, bytes, tag, output(3)));
}

/* Nothing was ever allocated, so every address is wrong. */
static void pinned_free(void) {
    choose_flaw(3);
    kavern_manager *manager = MANAGER(0);
    void *address = is_bad(1) ? NULL : &out_memory[below(OUT_BYTES)];
    refused(kavern_pinned_free(manager, address, STREAM(2)));
}

static void pinned_register(void) {
    choose_flaw(3);
    kavern_manager *manager = MANAGER(0);
    void *address = is_bad(1) ? NULL : &out_memory[4096];
    uint64_t bytes = is_bad(2) ? (one_in(2) ? 0 : UINT64_MAX - below(1 << 20)) : 4096;
    refused(kavern_pinned_register(manager, address, bytes, one_in(2) ? 0 : below(8192)));
}

static void pinned_unregister(void) {
    choose_flaw(2);
    kavern_manager *manager = MANAGER(0);
    refused(kavern_pinned_unregister(manager, is_bad(1) ? NULL : &out_memory[below(OUT_BYTES)]));
}

static void pinned_reserve(void) {
    choose_flaw(1);
    refused(kavern_pinned_reserve(MANAGER(0), below(1 << 20)));
}

static void pinned_trim(void) {
    choose_flaw(2);
    kavern_manager *manager = MANAGER(0);
    uint64_t *freed = is_bad(1) ? (uint64_t *)(void *)&out_memory[64 + 1] : NULL;
    refused(kavern_pinned_trim(manager, freed));
}

static void pinned_stats(void) {
    choose_flaw(3);
    kavern_pinned_statistics *out = sized_output(1, 2, sizeof *out);
    refused(kavern_pinned_stats(MANAGER(0), out));
}

const sweep_entry sweep_pinned[] = {
    {"kavern_pinned_alloc", pinned_alloc},
    {"kavern_pinned_free", pinned_free},
    {"kavern_pinned_register", pinned_register},
    {"kavern_pinned_unregister", pinned_unregister},
    {"kavern_pinned_reserve", pinned_reserve},
    {"kavern_pinned_trim", pinned_trim},
    {"kavern_pinned_stats", pinned_stats},
    {NULL, NULL},
};
