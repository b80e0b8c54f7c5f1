/* Bad calls of the functions of device memory. The manager has no live allocation, so every address is wrong. */
#include "sweep.h"

static uint64_t *address_output(int argument) { return output(argument); }

static uint64_t bad_tag(void) {
    for (;;) {
        uint64_t tag = nonzero_u64();
        if (tag >> 56 != 0x54) return tag;
    }
}

/* A request of which the argument with that number is wrong in one of many ways. */
static void request_of(kavern_status (*call)(kavern_manager *, uint64_t, uint64_t, void *, uint64_t, uint64_t *)) {
    choose_flaw(6);
    kavern_manager *manager = MANAGER(0);
    uint64_t bytes = is_bad(1) ? (one_in(2) ? 0 : UINT64_MAX - below(1u << 20)) : 1 + below(1000);
    uint64_t alignment = is_bad(2) ? (UINT64_C(3) << below(20)) + (one_in(2) ? 0 : UINT64_C(1) << 40) : 256;
    uint64_t tag = is_bad(4) ? bad_tag() : 0;
    refused(call(manager, bytes, alignment, STREAM(3), tag, address_output(5)));
}

static void alloc(void) { request_of(kavern_alloc); }
static void alloc_zeroed(void) { request_of(kavern_alloc_zeroed); }

static void free_one(void) {
    choose_flaw(2);
    refused(kavern_free(MANAGER(0), nonzero_u64(), STREAM(1)));
}

enum { LIST = 4 };

static void alloc_batch(void) {
    uint64_t bytes[LIST] = {100, 200, 300, 400}, *out = (uint64_t *)(void *)&out_memory[1024];
    switch (below(6)) {
        case 0: refused(kavern_alloc_batch(live_manager, LIST, bad_pointer(), 0, NULL, 0, out)); break;
        case 1: refused(kavern_alloc_batch(live_manager, LIST, bytes, 0, bad_stream(), 0, out)); break;
        case 2: refused(kavern_alloc_batch(live_manager, LIST, bytes, 0, NULL, 0, bad_pointer())); break;
        case 3: refused(kavern_alloc_batch(live_manager, bad_count(8), bytes, 0, NULL, 0, out)); break;
        case 4: refused(kavern_alloc_batch(live_manager, LIST, bytes, 0, NULL, bad_tag(), out)); break;
        default:
            bytes[below(LIST)] = one_in(2) ? 0 : UINT64_MAX;
            refused(kavern_alloc_batch(live_manager, LIST, bytes, 0, NULL, 0, out));
            break;
    }
}

static void free_batch(void) {
    uint64_t addresses[LIST];
    int32_t *statuses = (int32_t *)(void *)&out_memory[1024];
    for (int i = 0; i < LIST; ++i) addresses[i] = nonzero_u64();
    switch (below(5)) {
        case 0: refused(kavern_free_batch(live_manager, LIST, bad_pointer(), NULL, statuses)); break;
        case 1: refused(kavern_free_batch(live_manager, LIST, addresses, bad_stream(), statuses)); break;
        case 2: refused(kavern_free_batch(live_manager, bad_count(8), addresses, NULL, statuses)); break;
        case 3: refused(kavern_free_batch(live_manager, LIST, addresses, NULL, (void *)&out_memory[65])); break;
        default:
            EXPECT(KAVERN_PARTIAL, kavern_free_batch(live_manager, LIST, addresses, NULL, statuses));
            for (int i = 0; i < LIST; ++i) CHECK(statuses[i] == KAVERN_ERR_INVALID_ARGUMENT);
            CHECK(is_unchanged_from(1024 + sizeof *statuses * LIST));
            break;
    }
}

static void address_info(void) {
    choose_flaw(3);
    kavern_manager *manager = MANAGER(0);
    kavern_address_description *out = sized_output(1, 2, sizeof *out);
    refused(kavern_address_info(manager, some_u64(), out));
}

static void record_use(void) {
    choose_flaw(2);
    refused(kavern_record_use(MANAGER(0), some_u64(), STREAM(1)));
}

static void address_pin(void) {
    choose_flaw(1);
    refused(kavern_address_pin(MANAGER(0), some_u64()));
}

static void address_unpin(void) {
    choose_flaw(1);
    refused(kavern_address_unpin(MANAGER(0), some_u64()));
}

static void tag(void) {
    choose_flaw(3);
    kavern_manager *manager = MANAGER(0);
    const char *name = "name";
    if (is_bad(1)) name = one_in(2) ? NULL : "\xff\xfe\x80";
    refused(kavern_tag(manager, name, address_output(2)));
}

static void can_allocate(void) {
    choose_flaw(2);
    kavern_manager *manager = MANAGER(0);
    uint32_t *out = is_bad(1) ? bad_pointer() : (uint32_t *)(void *)&out_memory[1024];
    refused(kavern_can_allocate(manager, some_u64(), (uint32_t)some_u64(), out));
}

static void memory_stats(void) {
    choose_flaw(3);
    kavern_manager *manager = MANAGER(0);
    kavern_memory_statistics *out = sized_output(1, 2, sizeof *out);
    refused(kavern_memory_stats(manager, out));
}

static void manager_trim(void) {
    choose_flaw(2);
    kavern_manager *manager = MANAGER(0);
    uint64_t *released = is_bad(1) ? (uint64_t *)(void *)&out_memory[65] : NULL;
    if (released == NULL && manager == live_manager) manager = stale_manager;
    refused(kavern_manager_trim(manager, released));
}

static void manager_defragment(void) {
    choose_flaw(3);
    kavern_manager *manager = MANAGER(0);
    kavern_defragment_result *out = sized_output(1, 2, sizeof *out);
    refused(kavern_manager_defragment(manager, some_u64(), out));
}

static void on_reclaim(void) {
    refused(kavern_manager_on_reclaim(bad_handle(live_manager, stale_manager, live_stream), NULL, NULL));
}

static void copies_begin(void) { refused(kavern_copies_begin(bad_handle(live_manager, stale_manager, live_stream))); }

/* No copy was begun, so every end is one too many. */
static void copies_end(void) {
    choose_flaw(2);
    kavern_manager *manager = MANAGER(0);
    refused(kavern_copies_end(manager, one_in(4) ? NULL : STREAM(1)));
}

static void capture_begin(void) {
    choose_flaw(2);
    kavern_manager *manager = MANAGER(0);
    void *stream = manager == live_manager ? bad_stream() : random_good_stream();
    refused(kavern_capture_begin(manager, stream));
}

static void capture_release(void) {
    choose_flaw(2);
    kavern_manager *manager = MANAGER(0);
    void *stream = manager == live_manager ? bad_stream() : random_good_stream();
    refused(kavern_capture_release(manager, one_in(2) ? stream : bad_stream(), stream));
}

const sweep_entry sweep_memory[] = {
    {"kavern_alloc", alloc},
    {"kavern_alloc_zeroed", alloc_zeroed},
    {"kavern_free", free_one},
    {"kavern_alloc_batch", alloc_batch},
    {"kavern_free_batch", free_batch},
    {"kavern_address_info", address_info},
    {"kavern_record_use", record_use},
    {"kavern_address_pin", address_pin},
    {"kavern_address_unpin", address_unpin},
    {"kavern_tag", tag},
    {"kavern_can_allocate", can_allocate},
    {"kavern_memory_stats", memory_stats},
    {"kavern_manager_trim", manager_trim},
    {"kavern_manager_defragment", manager_defragment},
    {"kavern_manager_on_reclaim", on_reclaim},
    {"kavern_copies_begin", copies_begin},
    {"kavern_copies_end", copies_end},
    {"kavern_capture_begin", capture_begin},
    {"kavern_capture_release", capture_release},
    {NULL, NULL},
};
