/* The life of a manager: create, streams, tickets, statistics, report, errors, and destroying in any order. */
#include "check.h"

static void versions(void) {
    CHECK(kavern_abi_version() == KAVERN_ABI_VERSION);
    CHECK(strlen(kavern_version_string()) >= 5);
    CHECK(strstr(kavern_build_info(), kavern_version_string()) != NULL);
    CHECK(kavern_has_feature("host") == 1);
    CHECK(kavern_has_feature("no such feature") == 0);
    CHECK(kavern_has_feature(NULL) == 0);
    CHECK(strcmp(kavern_status_name(KAVERN_ERR_STALE_ID), "KAVERN_ERR_STALE_ID") == 0);
    CHECK(strcmp(kavern_status_name(12345), "unknown") == 0);
}

static void texts_of_errors(void) {
    size_t needed = 0;
    char text[1100];
    EXPECT(KAVERN_OK, kavern_last_error(NULL, 0, &needed));
    CHECK(needed == 1); /* nothing has failed yet */
    EXPECT(KAVERN_ERR_NULL_POINTER, kavern_manager_validate(NULL));
    OK(kavern_last_error(text, sizeof text, &needed));
    CHECK(needed == strlen(text) + 1);
    CHECK(strncmp(text, "kavern_manager_validate: ", 25) == 0);
    text[0] = 'x';
    EXPECT(KAVERN_ERR_BUFFER_TOO_SMALL, kavern_last_error(text, needed - 1, &needed));
    CHECK(text[0] == 'x' && needed > 1);
    OK(kavern_last_error(text, needed, NULL));
    EXPECT(KAVERN_ERR_NULL_POINTER, kavern_last_error(NULL, 5, NULL));
    EXPECT(KAVERN_ERR_NULL_POINTER, kavern_last_error(NULL, 0, NULL));
    CHECK(last_error_has("kavern_manager_validate: ")); /* its own failures do not count */
}

static void devices(void) {
    uint32_t count = 0;
    OK(kavern_device_count("host", &count));
    CHECK(count >= 1);
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_device_count("abacus", &count));
    kavern_device_description found = {.struct_size = sizeof found};
    OK(kavern_device_describe("host", &found));
    CHECK(found.struct_size == sizeof found && found.total_bytes > 0 && found.page_bytes > 0);
    CHECK(strcmp(found.backend, "host") == 0 && strlen(found.name) > 0);
    CHECK(found.capabilities & KAVERN_DEVICE_HOST_ADDRESSABLE);
    EXPECT(KAVERN_ERR_NO_DEVICE, kavern_device_describe("host:99999", &found));
}

static void configurations(void) {
    kavern_manager *manager = NULL;
    struct {
        kavern_manager_config known;
        uint64_t later[4];
    } config;
    /* A newer header: larger, with zeros where this library knows nothing. */
    OK(kavern_manager_config_init(&config.known, sizeof config));
    CHECK(config.known.struct_size == sizeof config);
    OK(kavern_manager_create(&config.known, &manager));
    OK(kavern_manager_destroy(&manager));
    config.later[3] = 1;
    EXPECT(KAVERN_ERR_STRUCT_SIZE, kavern_manager_create(&config.known, &manager));
    config.later[3] = 0;
    config.known.flags = 2;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_manager_create(&config.known, &manager));
    config.known.flags = 0;
    config.known.reserved[2] = 1;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_manager_create(&config.known, &manager));
    config.known.reserved[2] = 0;
    config.known.device = "abacus";
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_manager_create(&config.known, &manager));
    CHECK(last_error_has("abacus"));
    CHECK(manager == NULL);
}

static void streams_and_tickets(void) {
    kavern_manager *manager = open_manager(test_device());
    kavern_stream *stream = NULL, *kept = NULL;
    OK(kavern_stream_create(manager, &stream));
    OK(kavern_stream_synchronize(manager, stream));
    OK(kavern_stream_synchronize(manager, NULL));
    OK(kavern_stream_synchronize(manager, KAVERN_STREAM_DEFAULT));
    EXPECT(KAVERN_ERR_INVALID_HANDLE, kavern_stream_synchronize(manager, (void *)(uintptr_t)0x1234560));

    uint64_t tickets[3] = {0};
    int32_t states[3] = {9, 9, 9};
    OK(kavern_stream_record(manager, stream, &tickets[0]));
    OK(kavern_stream_record(manager, NULL, &tickets[1]));
    CHECK(tickets[0] != 0 && tickets[0] != tickets[1]);
    OK(kavern_ticket_wait(tickets[0], UINT64_MAX));
    OK(kavern_ticket_wait(tickets[1], 1000000000));
    tickets[2] = tickets[1] + 1000000; /* forged */
    EXPECT(KAVERN_PARTIAL, kavern_ticket_poll(tickets, 3, states));
    CHECK(states[0] == KAVERN_OK && states[1] == KAVERN_OK && states[2] == KAVERN_ERR_STALE_ID);
    OK(kavern_ticket_poll(tickets, 2, states));
    OK(kavern_ticket_poll(NULL, 0, NULL));
    EXPECT(KAVERN_ERR_STALE_ID, kavern_ticket_wait(0, 0));
    OK(kavern_stream_record(manager, stream, &tickets[0]));
    OK(kavern_stream_wait(manager, NULL, tickets[0]));
    OK(kavern_stream_synchronize(manager, NULL));

    /* Many tickets that nobody asks for leave no pile behind. */
    for (int i = 0; i < 10000; ++i) OK(kavern_stream_record(manager, NULL, &tickets[1]));
    OK(kavern_stream_synchronize(manager, NULL));
    for (int i = 0; i < 10000; ++i) OK(kavern_stream_record(manager, NULL, &tickets[1]));
    kavern_manager_statistics totals = {.struct_size = sizeof totals};
    OK(kavern_manager_stats(manager, &totals));
    CHECK(totals.own_streams == 1 && totals.pending_tickets < 11000 && totals.device_bytes == 0);

    kavern_stream *stale = stream;
    OK(kavern_stream_create(manager, &kept));
    OK(kavern_stream_destroy(&stream));
    CHECK(stream == NULL);
    OK(kavern_stream_destroy(&stream));
    EXPECT(KAVERN_ERR_INVALID_HANDLE, kavern_stream_destroy(&stale));
    CHECK(stale != NULL);
    EXPECT(KAVERN_ERR_INVALID_HANDLE, kavern_stream_synchronize(manager, stale));

    /* The parent first: the child keeps it alive, and a ticket outlives both. */
    OK(kavern_stream_record(manager, kept, &tickets[0]));
    OK(kavern_manager_destroy(&manager));
    OK(kavern_stream_destroy(&kept));
    OK(kavern_ticket_wait(tickets[0], 0));
    OK(kavern_manager_destroy(NULL));
}

static void foreign_streams(void) {
    kavern_manager *here = open_manager(test_device()), *there = open_manager(test_device());
    kavern_stream *theirs = NULL;
    OK(kavern_stream_create(there, &theirs));
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_stream_synchronize(here, theirs));
    CHECK(last_error_has("kavern_manager_stream_register"));
    OK(kavern_manager_stream_register(here, theirs));
    EXPECT(KAVERN_ERR_ALREADY_EXISTS, kavern_manager_stream_register(here, theirs));
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_manager_stream_register(there, theirs));
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_manager_stream_register(here, KAVERN_STREAM_DEFAULT));
    uint64_t ticket = 0;
    OK(kavern_stream_record(here, theirs, &ticket));
    EXPECT(KAVERN_OK, kavern_ticket_wait(ticket, UINT64_MAX));
    OK(kavern_stream_synchronize(here, theirs));
    kavern_manager_statistics totals = {.struct_size = sizeof totals};
    OK(kavern_manager_stats(here, &totals));
    CHECK(totals.registered_streams == 1 && totals.own_streams == 0);
    OK(kavern_manager_stream_unregister(here, theirs));
    EXPECT(KAVERN_ERR_INVALID_HANDLE, kavern_manager_stream_unregister(here, theirs));
    OK(kavern_stream_synchronize(there, theirs));
    /* Registered at the end: the manager forgets it by itself. */
    OK(kavern_manager_stream_register(here, theirs));
    /* What the front cache of a thread holds for a handle goes with the handle, though the stream lives on. */
    uint64_t address = 0;
    kavern_stream *stale = theirs;
    OK(kavern_alloc(there, 65536, 0, theirs, 0, &address));
    OK(kavern_free(there, address, theirs));
    OK(kavern_stream_destroy(&theirs));
    EXPECT(KAVERN_ERR_INVALID_HANDLE, kavern_alloc(there, 65536, 0, stale, 0, &address));
    OK(kavern_stream_synchronize(here, stale));
    OK(kavern_manager_destroy(&there));
    OK(kavern_manager_destroy(&here));
}

static void reports(void) {
    kavern_manager *manager = open_manager(test_device());
    size_t needed = 0;
    OK(kavern_manager_report_json(manager, NULL, 0, &needed));
    char *text = malloc(needed + 64);
    EXPECT(KAVERN_ERR_BUFFER_TOO_SMALL, kavern_manager_report_json(manager, text, 10, &needed));
    OK(kavern_manager_report_json(manager, text, needed + 64, &needed));
    OK(kavern_warmup(manager));
    OK(kavern_warmup(manager));
    CHECK(strlen(text) + 1 == needed);
    CHECK(text[0] == '{' && text[needed - 2] == '}');
    const int is_cuda = strncmp(test_device(), "cuda", 4) == 0;
    CHECK(strstr(text, is_cuda ? "\"backend\":\"cuda\"" : "\"backend\":\"host\"") != NULL);
    CHECK(strstr(text, "\"live\":[]") != NULL);
    puts(text); /* tests/c_abi.rs parses it */
    free(text);
    OK(kavern_manager_validate(manager));

    kavern_manager_statistics small = {.struct_size = 8};
    EXPECT(KAVERN_ERR_STRUCT_SIZE, kavern_manager_stats(manager, &small));
    struct {
        kavern_manager_statistics known;
        uint64_t later;
    } large = {.known = {.struct_size = sizeof large}, .later = 77};
    OK(kavern_manager_stats(manager, &large.known));
    CHECK(large.later == 77 && large.known.struct_size == sizeof large);
    OK(kavern_manager_destroy(&manager));
}

static int heard;

static void hear(void *userdata, uint32_t level, const char *room, const char *text) {
    CHECK(userdata == &heard && level <= KAVERN_LOG_INFO && room[0] != 0 && text[0] != 0);
    EXPECT(KAVERN_ERR_NULL_POINTER, kavern_manager_validate(NULL)); /* may use the library */
    ++heard;
}

static void logs(void) {
    OK(kavern_set_log_callback(KAVERN_LOG_INFO, hear, &heard));
    kavern_manager *manager = open_manager(test_device());
    CHECK(heard > 0);
    OK(kavern_set_log_callback(0, NULL, NULL));
    int before = heard;
    OK(kavern_manager_destroy(&manager));
    CHECK(heard == before);
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_set_log_callback(5, hear, &heard));
}

/* One stream writes what another reads; answers the races that the simulator found with the wait that is asked for. */
static uint64_t races_with(int wait) {
    kavern_manager *manager = open_manager("sim?seed=7");
    kavern_stream *first = NULL, *second = NULL;
    OK(kavern_stream_create(manager, &first));
    OK(kavern_stream_create(manager, &second));
    kavern_sim_range range = {.bytes = 65536};
    OK(kavern_alloc(manager, range.bytes, 0, first, 0, &range.address));
    OK(kavern_sim_launch(manager, first, NULL, 0, &range, 1));
    uint64_t ticket = 0;
    OK(kavern_stream_record(manager, first, &ticket));
    if (wait == 1) OK(kavern_stream_wait(manager, second, ticket));
    if (wait == 2) OK(kavern_ticket_wait_on_stream(ticket, manager, second));
    OK(kavern_sim_launch(manager, second, &range, 1, NULL, 0));
    OK(kavern_stream_synchronize(manager, first));
    OK(kavern_stream_synchronize(manager, second));
    kavern_manager_statistics totals = {.struct_size = sizeof totals};
    OK(kavern_manager_stats(manager, &totals));
    EXPECT(KAVERN_ERR_STALE_ID, kavern_ticket_wait_on_stream(ticket + 1000000, manager, second));
    OK(kavern_free(manager, range.address, first));
    OK(kavern_stream_destroy(&first));
    OK(kavern_stream_destroy(&second));
    OK(kavern_manager_destroy(&manager));
    return totals.races;
}

static void waits_between_streams(void) {
    CHECK(races_with(0) > 0);
    CHECK(races_with(1) == 0);
    CHECK(races_with(2) == 0);
}

int main(void) {
    versions();
    texts_of_errors();
    devices();
    configurations();
    streams_and_tickets();
    foreign_streams();
    waits_between_streams();
    reports();
    logs();
    return 0;
}
