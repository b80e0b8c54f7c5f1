/* Pinned host memory through the C interface: ranges of a pool, pinning ahead, and a range of the caller's. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"

static kavern_pinned_statistics stats_of(kavern_manager *manager) {
    kavern_pinned_statistics totals = {.struct_size = sizeof totals};
    OK(kavern_pinned_stats(manager, &totals));
    OK(kavern_manager_validate(manager));
    return totals;
}

static uint64_t pinned_bytes(kavern_manager *manager) {
    kavern_manager_statistics totals = {.struct_size = sizeof totals};
    OK(kavern_manager_stats(manager, &totals));
    return totals.pinned_bytes;
}

static void ranges(kavern_manager *manager, void *stream) {
    unsigned char *small = NULL, *large = NULL;
    void *again = NULL;
    OK(kavern_pinned_alloc(manager, 1001, "small", (void **)&small));
    OK(kavern_pinned_alloc(manager, 3 << 20, NULL, (void **)&large));
    CHECK((uintptr_t)small % 256 == 0 && (uintptr_t)large % 4096 == 0);
    memset(small, 1, 1001);
    memset(large, 2, 3 << 20);
    CHECK(small[1000] == 1 && large[0] == 2 && large[(3 << 20) - 1] == 2);
    CHECK(pinned_bytes(manager) == 1001 + (3 << 20)); /* exact */
    kavern_pinned_statistics totals = stats_of(manager);
    CHECK(totals.live_ranges == 2 && totals.held_bytes >= totals.live_bytes && totals.misses == 2);
    OK(kavern_pinned_free(manager, small, stream));
    OK(kavern_pinned_free(manager, large, NULL));
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_pinned_free(manager, large, NULL));
    EXPECT(KAVERN_ERR_NULL_POINTER, kavern_pinned_free(manager, NULL, NULL));
    CHECK(pinned_bytes(manager) == 0);
    OK(kavern_stream_synchronize(manager, stream));
    CHECK(stats_of(manager).leaving_bytes == 0);
    OK(kavern_pinned_alloc(manager, 3 << 20, "again", &again));
    CHECK(again == large && stats_of(manager).hits == 1);
    OK(kavern_pinned_free(manager, again, KAVERN_STREAM_DEFAULT));
    OK(kavern_stream_synchronize(manager, NULL));
    uint64_t freed = 0;
    OK(kavern_pinned_trim(manager, &freed));
    CHECK(freed == totals.held_bytes && stats_of(manager).chunks == 0);
}

static void ahead(kavern_manager *manager) {
    OK(kavern_pinned_reserve(manager, 24 << 20));
    void *range = NULL;
    OK(kavern_pinned_alloc(manager, 20 << 20, "waits for the chunk", &range));
    kavern_pinned_statistics totals = stats_of(manager);
    CHECK(totals.held_bytes == 24 << 20 && totals.chunks == 1 && totals.ahead_bytes == 0 && totals.misses == 2);
    OK(kavern_pinned_free(manager, range, NULL));
    OK(kavern_pinned_trim(manager, NULL));
}

static void a_range_of_ours(kavern_manager *manager) {
    void *memory = NULL;
    CHECK(posix_memalign(&memory, 4096, 10 * 4096) == 0);
    memset(memory, 7, 10 * 4096);
    OK(kavern_pinned_register(manager, memory, 10 * 4096, 3 * 4096));
    kavern_pinned_statistics totals = stats_of(manager);
    CHECK(totals.registered_bytes == 10 * 4096 && totals.registered_pieces == 4);
    CHECK(pinned_bytes(manager) == 10 * 4096 && ((unsigned char *)memory)[10 * 4096 - 1] == 7);
    EXPECT(KAVERN_ERR_ALREADY_EXISTS, kavern_pinned_register(manager, memory, 4096, 0));
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_pinned_unregister(manager, (char *)memory + 4096));
    OK(kavern_pinned_unregister(manager, memory));
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_pinned_unregister(manager, memory));
    CHECK(pinned_bytes(manager) == 0 && stats_of(manager).registered_pieces == 0);
    free(memory);
}

static void a_limit_counts_chunks(void) {
    kavern_manager *manager = NULL;
    kavern_manager_config config;
    OK(kavern_manager_config_init(&config, sizeof config));
    config.device = test_device();
    config.pinned_limit_bytes = 1 << 20;
    OK(kavern_manager_create(&config, &manager));
    void *range = NULL, *none = NULL;
    OK(kavern_pinned_alloc(manager, 1 << 20, "all", &range));
    EXPECT(KAVERN_ERR_OUT_OF_HOST_MEMORY, kavern_pinned_alloc(manager, 4096, "more", &none));
    CHECK(last_error_has("more") && last_error_has("limit of 1048576") && none == NULL);
    OK(kavern_manager_destroy(&manager)); /* with a range in use */
}

int main(void) {
    kavern_manager *manager = open_manager(test_device());
    kavern_stream *stream = NULL;
    OK(kavern_stream_create(manager, &stream));
    ranges(manager, stream);
    ahead(manager);
    a_range_of_ours(manager);
    a_limit_counts_chunks();
    OK(kavern_stream_destroy(&stream));
    OK(kavern_manager_destroy(&manager));
    return 0;
}
