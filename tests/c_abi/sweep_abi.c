/* Bad calls of devices, managers, streams, tickets and versions. */
#include "sweep.h"

static void abi_version(void) { CHECK(kavern_abi_version() == KAVERN_ABI_VERSION); }
static void version_string(void) { CHECK(kavern_version_string()[0] != 0); }
static void build_info(void) { CHECK(kavern_build_info()[0] != 0); }
static void status_name(void) { CHECK(kavern_status_name((kavern_status)some_u64())[0] != 0); }
static void has_feature(void) { CHECK(kavern_has_feature(bad_text()) == 0); }

static void last_error(void) {
    size_t *needed = one_in(2) ? NULL : (size_t *)(void *)&out_memory[64 + 1];
    char *buffer = (char *)&out_memory[1024];
    kavern_manager_validate(NULL); /* so that there is a text */
    switch (below(3)) {
        case 0: refused(kavern_last_error(NULL, below(5000) + 1, NULL)); break;
        case 1: refused(kavern_last_error(buffer, below(10), NULL)); break;
        default: refused(needed ? kavern_last_error(buffer, 4096, needed) : kavern_last_error(NULL, 0, NULL)); break;
    }
}

static void set_log_callback(void) { refused(kavern_set_log_callback(unknown_u32(4), NULL, &out_memory)); }

static void device_count(void) {
    choose_flaw(2);
    const char *backend = is_bad(0) ? bad_text() : "host";
    refused(kavern_device_count(backend, output(1)));
}

static void device_describe(void) {
    choose_flaw(3);
    const char *device = is_bad(0) ? bad_text() : "host";
    kavern_device_description *out = sized_output(1, 2, sizeof *out);
    refused(kavern_device_describe(device, out));
}

static void config_init(void) {
    choose_flaw(2);
    kavern_manager_config *config = output(0);
    size_t size = is_bad(1) ? (one_in(8) ? SIZE_MAX - below(100) : bad_struct_size()) : sizeof *config;
    refused(kavern_manager_config_init(config, size));
}

static void manager_create(void) {
    static struct {
        kavern_manager_config config;
        unsigned char tail[64];
    } large;
    choose_flaw(8);
    memset(&large, 0, sizeof large);
    OK(kavern_manager_config_init(&large.config, sizeof large.config));
    if (is_bad(0)) large.config.struct_size = bad_struct_size();
    else if (is_bad(1)) {
        large.config.struct_size = sizeof large;
        large.tail[below(sizeof large.tail)] = 1 + (unsigned char)below(255);
    }
    if (is_bad(2)) large.config.flags = (uint32_t)nonzero_u64() | 2;
    if (is_bad(3)) large.config.reserved[below(4)] = nonzero_u64();
    if (is_bad(4)) {
        large.config.device = bad_text();
        if (large.config.device == NULL) large.config.device = "";
    }
    if (is_bad(7)) {
        large.config.ready_high_bytes = nonzero_u64();
        if (large.config.ready_high_bytes != UINT64_MAX && one_in(2)) {
            large.config.ready_low_bytes = large.config.ready_high_bytes + 1;
        }
    }
    const kavern_manager_config *config = is_bad(5) ? bad_pointer() : &large.config;
    kavern_manager **out = output(6);
    /* A tail that is not there is no flaw. */
    if (large.config.struct_size == sizeof large.config && config == &large.config && large.config.flags == 0) {
        large.config.flags = 2;
    }
    refused(kavern_manager_create(config, out));
}

static void destroy_of(kavern_status (*destroy)(void **), void *live, void *stale, void *other) {
    void **slot = (void **)(void *)&out_memory[1024];
    if (one_in(4)) {
        refused(destroy((void **)(void *)&out_memory[64 + 1]));
        return;
    }
    do {
        *slot = bad_handle(live, stale, other);
    } while (*slot == NULL);
    remember_output();
    refused(destroy(slot));
}

static kavern_status any_manager_destroy(void **slot) { return kavern_manager_destroy((kavern_manager **)slot); }
static kavern_status any_stream_destroy(void **slot) { return kavern_stream_destroy((kavern_stream **)slot); }
static void manager_destroy(void) { destroy_of(any_manager_destroy, live_manager, stale_manager, live_stream); }
static void stream_destroy(void) { destroy_of(any_stream_destroy, live_stream, stale_stream, live_manager); }

static void manager_stats(void) {
    choose_flaw(3);
    kavern_manager_statistics *out = sized_output(1, 2, sizeof *out);
    refused(kavern_manager_stats(MANAGER(0), out));
}

static void manager_report_json(void) {
    choose_flaw(2);
    kavern_manager *manager = MANAGER(0);
    char *buffer = (char *)&out_memory[1024];
    if (!is_bad(1)) {
        refused(kavern_manager_report_json(manager, buffer, 1024, NULL));
        return;
    }
    switch (below(4)) {
        case 0: refused(kavern_manager_report_json(manager, NULL, below(5000) + 1, NULL)); break;
        case 1: refused(kavern_manager_report_json(manager, buffer, below(100), NULL)); break;
        case 2: refused(kavern_manager_report_json(manager, NULL, 0, NULL)); break;
        default: refused(kavern_manager_report_json(manager, buffer, 8192, (size_t *)(void *)&out_memory[65])); break;
    }
}

static void manager_validate(void) {
    choose_flaw(1);
    refused(kavern_manager_validate(MANAGER(0)));
}

static void warmup(void) {
    choose_flaw(1);
    refused(kavern_warmup(MANAGER(0)));
}

static void stream_register(void) {
    choose_flaw(2);
    kavern_manager *manager = MANAGER(0);
    /* A stream of the manager's own is refused too. */
    void *stream = is_bad(1) ? bad_stream() : random_good_stream();
    /* A foreign stream is an address that a GPU's driver follows, so there only what looks like a handle is tried. */
    if (strcmp(test_device(), "host") != 0 && (uintptr_t)stream >> 56 != 0x4B) stream = live_stream;
    refused(kavern_manager_stream_register(manager, stream));
}

static void stream_unregister(void) {
    choose_flaw(2);
    refused(kavern_manager_stream_unregister(MANAGER(0), STREAM(1)));
}

static void stream_create(void) {
    choose_flaw(2);
    refused(kavern_stream_create(MANAGER(0), output(1)));
}

static void stream_synchronize(void) {
    choose_flaw(2);
    refused(kavern_stream_synchronize(MANAGER(0), STREAM(1)));
}

/* Never made: of another kind, of generation 0 or of one that this program does not reach. */
static uint64_t forged_ticket(void) {
    switch (below(4)) {
        case 0: return 0;
        case 1: return random_u64() & ~(UINT64_C(0xFF) << 56);
        case 2: return UINT64_C(0x53) << 56 | below(1 << 24);
        default: return UINT64_C(0x53) << 56 | UINT64_C(1) << 55 | random_u64() >> 16;
    }
}

static void stream_wait(void) {
    choose_flaw(3);
    kavern_manager *manager = MANAGER(0);
    void *stream = STREAM(1);
    uint64_t ticket = forged_ticket();
    if (!is_bad(2)) OK(kavern_stream_record(live_manager, live_stream, &ticket));
    refused(kavern_stream_wait(manager, stream, ticket));
}

static void ticket_wait_on_stream(void) {
    choose_flaw(3);
    kavern_manager *manager = MANAGER(0);
    void *stream = STREAM(1);
    uint64_t ticket = forged_ticket();
    if (!is_bad(2)) OK(kavern_stream_record(live_manager, live_stream, &ticket));
    refused(kavern_ticket_wait_on_stream(ticket, manager, stream));
}

static void stream_record(void) {
    choose_flaw(3);
    refused(kavern_stream_record(MANAGER(0), STREAM(1), output(2)));
}

static void ticket_poll(void) {
    uint64_t tickets[8];
    int32_t *states = (int32_t *)(void *)&out_memory[1024];
    size_t n = 1 + below(8);
    for (size_t i = 0; i < n; ++i) tickets[i] = forged_ticket();
    switch (below(4)) {
        case 0: refused(kavern_ticket_poll(bad_pointer(), n, states)); break;
        case 1: refused(kavern_ticket_poll(tickets, n, bad_pointer())); break;
        case 2: refused(kavern_ticket_poll(tickets, bad_count(8), states)); break;
        default:
            /* A batch: the states say what is wrong, nothing past them changes. */
            EXPECT(KAVERN_PARTIAL, kavern_ticket_poll(tickets, n, states));
            for (size_t i = 0; i < n; ++i) CHECK(states[i] == KAVERN_ERR_STALE_ID);
            CHECK(is_unchanged_from(1024 + sizeof *states * n));
            break;
    }
}

static void ticket_wait(void) { refused(kavern_ticket_wait(forged_ticket(), some_u64())); }

const sweep_entry sweep_abi[] = {
    {"kavern_abi_version", abi_version},
    {"kavern_version_string", version_string},
    {"kavern_build_info", build_info},
    {"kavern_has_feature", has_feature},
    {"kavern_last_error", last_error},
    {"kavern_status_name", status_name},
    {"kavern_set_log_callback", set_log_callback},
    {"kavern_device_count", device_count},
    {"kavern_device_describe", device_describe},
    {"kavern_manager_config_init", config_init},
    {"kavern_manager_create", manager_create},
    {"kavern_manager_destroy", manager_destroy},
    {"kavern_manager_stats", manager_stats},
    {"kavern_manager_report_json", manager_report_json},
    {"kavern_manager_validate", manager_validate},
    {"kavern_warmup", warmup},
    {"kavern_manager_stream_register", stream_register},
    {"kavern_manager_stream_unregister", stream_unregister},
    {"kavern_stream_create", stream_create},
    {"kavern_stream_destroy", stream_destroy},
    {"kavern_stream_synchronize", stream_synchronize},
    {"kavern_stream_wait", stream_wait},
    {"kavern_stream_record", stream_record},
    {"kavern_ticket_poll", ticket_poll},
    {"kavern_ticket_wait", ticket_wait},
    {"kavern_ticket_wait_on_stream", ticket_wait_on_stream},
    {NULL, NULL},
};
