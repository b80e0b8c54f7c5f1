/* Elastic ranges and shared pools as a C program meets them. */
#include "objects.h"

static kavern_manager_statistics totals_of(kavern_manager *manager) {
    kavern_manager_statistics totals = {.struct_size = sizeof totals};
    OK(kavern_manager_stats(manager, &totals));
    return totals;
}

/* The engine copies to the host by itself: what must be mapped meanwhile is counted, what can wait does. */
static void page_tables_beside_copies(kavern_manager *manager) {
    uint64_t page = page_bytes();
    kavern_stream *stream = NULL;
    OK(kavern_stream_create(manager, &stream));
    kavern_elastic *elastic = make_elastic(manager, 10);
    EXPECT(KAVERN_ERR_WRONG_STATE, kavern_copies_end(manager, NULL));
    EXPECT(KAVERN_ERR_WRONG_STATE, kavern_copies_end(manager, stream));
    CHECK(last_error_has("no copy"));
    kavern_manager_statistics before = totals_of(manager);
    OK(kavern_elastic_commit(elastic, 0, page, NULL));
    CHECK(totals_of(manager).table_changes > before.table_changes);
    CHECK(totals_of(manager).loud_table_changes == before.loud_table_changes);
    OK(kavern_copies_begin(manager));
    OK(kavern_copies_begin(manager));
    CHECK(totals_of(manager).running_copies == 2);
    OK(kavern_elastic_commit(elastic, page, page, NULL));
    kavern_manager_statistics meanwhile = totals_of(manager);
    CHECK(meanwhile.loud_table_changes > before.loud_table_changes);
    OK(kavern_copies_end(manager, stream));
    OK(kavern_copies_end(manager, KAVERN_STREAM_DEFAULT));
    OK(kavern_stream_synchronize(manager, stream));
    OK(kavern_stream_synchronize(manager, KAVERN_STREAM_DEFAULT));
    CHECK(totals_of(manager).running_copies == 0);
    OK(kavern_elastic_commit(elastic, 2 * page, page, NULL));
    CHECK(totals_of(manager).loud_table_changes == meanwhile.loud_table_changes);
    EXPECT(KAVERN_ERR_WRONG_STATE, kavern_copies_end(manager, NULL));
    OK(kavern_elastic_destroy(&elastic));
    OK(kavern_stream_destroy(&stream));
}

static void elastic_ranges(kavern_manager *manager) {
    uint64_t page = page_bytes(), base = 0, again = 0;
    kavern_stream *stream = NULL;
    OK(kavern_stream_create(manager, &stream));
    kavern_elastic *elastic = make_elastic(manager, 100);
    kavern_elastic_extent extent = {0};
    OK(kavern_elastic_base(elastic, &base));
    OK(kavern_elastic_commit(elastic, 3 * page - 1, 40 * page, &extent));
    CHECK(extent.offset == 2 * page && extent.bytes == 41 * page && extent.changed_bytes == 41 * page);
    OK(kavern_elastic_commit(elastic, 0, 10 * page, &extent));
    CHECK(extent.changed_bytes == 2 * page);
    uint32_t is_committed = 7;
    OK(kavern_elastic_is_committed(elastic, 0, 43 * page, &is_committed));
    CHECK(is_committed == 1);
    OK(kavern_elastic_is_committed(elastic, 0, 43 * page + 1, &is_committed));
    CHECK(is_committed == 0);

    OK(kavern_elastic_decommit(elastic, 0, 100 * page, stream, &extent));
    CHECK(extent.bytes == 100 * page && extent.changed_bytes == 43 * page);
    OK(kavern_elastic_decommit(elastic, 0, page, KAVERN_STREAM_DEFAULT, NULL));
    OK(kavern_stream_synchronize(manager, stream));
    OK(kavern_elastic_resize(elastic, 5 * page - 7, NULL, &extent));
    CHECK(extent.offset == 0 && extent.bytes == 5 * page && extent.changed_bytes == 5 * page);
    OK(kavern_elastic_resize(elastic, 3 * page, stream, NULL));
    kavern_elastic_statistics found = {.struct_size = sizeof found};
    OK(kavern_elastic_stats(elastic, &found));
    CHECK(found.capacity_bytes == 100 * page && found.page_bytes == page && found.mapped_pages == 3);
    CHECK(found.committed_bytes == 3 * page && found.physical_bytes >= found.committed_bytes && found.pins == 0);
    OK(kavern_elastic_base(elastic, &again));
    CHECK(base == again && base != 0);
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_elastic_commit(elastic, 100 * page, 1, NULL));
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_elastic_commit(elastic, 0, 0, NULL));

    kavern_elastic_config config;
    OK(kavern_elastic_config_init(&config, sizeof config));
    kavern_elastic *none = NULL;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_elastic_create(manager, &config, &none));
    config.capacity_bytes = page;
    config.page_bytes = page + 1;
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_elastic_create(manager, &config, &none));
    CHECK(none == NULL);
    OK(kavern_stream_destroy(&stream));
    OK(kavern_elastic_destroy(&elastic));
    CHECK(elastic == NULL);
    OK(kavern_elastic_destroy(&elastic));
}

typedef struct {
    kavern_shared_pool *pool;
    uint64_t asked_bytes;
    int calls;
} owner;

/* Gives what it is asked for, from the start of the range. */
static void give(void *userdata, const char *model, uint64_t bytes) {
    owner *self = userdata;
    CHECK(strcmp(model, "big") == 0);
    kavern_model_statistics found = {.struct_size = sizeof found};
    OK(kavern_shared_pool_model_stats(self->pool, model, &found));
    CHECK(found.wanted_bytes == bytes);
    self->asked_bytes += bytes;
    self->calls += 1;
    OK(kavern_shared_pool_decommit(self->pool, model, 0, bytes, KAVERN_STREAM_DEFAULT, NULL));
}

static void shared_pools(kavern_manager *manager) {
    uint64_t page = page_bytes(), base = 0, other = 0;
    kavern_shared_pool *pool = make_shared(manager, 8);
    OK(kavern_shared_pool_register_model(pool, "big", 64 * page, 0, 1, 0));
    OK(kavern_shared_pool_register_model(pool, "small", 64 * page, page, 1, 4 * page));
    EXPECT(KAVERN_ERR_ALREADY_EXISTS, kavern_shared_pool_register_model(pool, "big", page, 0, 1, 0));
    EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_shared_pool_register_model(pool, "x", page, 0, 0, 0));
    EXPECT(KAVERN_ERR_NOT_FOUND, kavern_shared_pool_commit(pool, "x", 0, page, NULL));
    OK(kavern_shared_pool_base(pool, "big", &base));
    OK(kavern_shared_pool_base(pool, "small", &other));
    CHECK(base != 0 && other != 0 && base != other);

    owner self = {.pool = pool};
    OK(kavern_shared_pool_on_reclaim(pool, "big", give, &self));
    OK(kavern_shared_pool_commit(pool, "big", 0, 7 * page, NULL));
    EXPECT(KAVERN_ERR_OUT_OF_MEMORY, kavern_shared_pool_commit(pool, "big", 7 * page, page, NULL));
    kavern_elastic_extent extent = {0};
    OK(kavern_shared_pool_commit(pool, "small", 0, 3 * page, &extent));
    CHECK(extent.changed_bytes == 3 * page);
    CHECK(self.calls == 1 && self.asked_bytes == 2 * page);
    EXPECT(KAVERN_ERR_OUT_OF_MEMORY, kavern_shared_pool_commit(pool, "small", 3 * page, 2 * page, NULL));

    OK(kavern_shared_pool_pin_range(pool, "small", page, page));
    EXPECT(KAVERN_ERR_IN_USE, kavern_shared_pool_decommit(pool, "small", 0, 3 * page, NULL, NULL));
    EXPECT(KAVERN_ERR_IN_USE, kavern_shared_pool_unregister_model(pool, "small"));
    OK(kavern_shared_pool_unpin_range(pool, "small", page, page));
    kavern_model_statistics model = {.struct_size = sizeof model};
    OK(kavern_shared_pool_model_stats(pool, "small", &model));
    CHECK(model.committed_bytes == 3 * page && model.cap_bytes == 4 * page && model.min_bytes == page);
    kavern_shared_pool_statistics totals = {.struct_size = sizeof totals};
    OK(kavern_shared_pool_stats(pool, &totals));
    CHECK(totals.limit_bytes == 8 * page && totals.used_bytes == 8 * page && totals.models == 2);
    CHECK(totals.requests == 1 && totals.refusals == 2 && totals.pooled_bytes == 0);

    OK(kavern_shared_pool_on_reclaim(pool, "big", NULL, NULL));
    OK(kavern_shared_pool_unregister_model(pool, "big"));
    EXPECT(KAVERN_ERR_NOT_FOUND, kavern_shared_pool_unregister_model(pool, "big"));
    OK(kavern_shared_pool_commit(pool, "small", 8 * page, page, NULL));
    OK(kavern_shared_pool_destroy(&pool));
    CHECK(pool == NULL);
}

int main(void) {
    kavern_manager *manager = open_manager(test_device());
    page_tables_beside_copies(manager);
    elastic_ranges(manager);
    shared_pools(manager);
    /* The parent first: the child keeps it alive. */
    kavern_elastic *elastic = make_elastic(manager, 4);
    OK(kavern_elastic_commit(elastic, 0, 1, NULL));
    OK(kavern_manager_validate(manager));
    OK(kavern_manager_destroy(&manager));
    OK(kavern_elastic_commit(elastic, 0, page_bytes() * 4, NULL));
    OK(kavern_elastic_destroy(&elastic));
    return 0;
}
