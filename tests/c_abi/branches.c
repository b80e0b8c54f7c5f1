/* Fork, accept, rollback, edit, preempt, resume and cancel through the C functions, on the host, whose pool the program
   reads and writes itself: what a step copies is told and done, and fields that an operation does not use are
   refused. */
#include "objects.h"

enum { BLOCK_TOKENS = 4, PROMPT = 10 };

static kavern_manager *manager;
static kavern_kv_cache *cache;
static uint64_t step_id = 1;
static kavern_kv_group_tables group;
static kavern_kv_step_tables tables;
static kavern_kv_description shape;

static kavern_kv_op op(uint32_t kind, uint64_t target, uint64_t token_count) {
    return (kavern_kv_op){
        .struct_size = sizeof(kavern_kv_op), .kind = kind, .target = target, .tokens = token_count, .row = -1};
}

static kavern_kv_op_result one(int32_t status, kavern_kv_op what) {
    kavern_kv_op_result result;
    EXPECT(status == 0 ? KAVERN_OK : KAVERN_PARTIAL, kavern_kv_step(cache, step_id, 1, &what, &result));
    if (result.status != status) fprintf(stderr, "kind %u: %s\n", what.kind, kavern_status_name(result.status));
    CHECK(result.status == status);
    return result;
}

static void make_tables(void) {
    tables = (kavern_kv_step_tables){.struct_size = sizeof tables, .groups = &group, .group_capacity = 1};
    OK(kavern_kv_tables(cache, step_id, KAVERN_STREAM_DEFAULT, &tables));
    OK(kavern_stream_synchronize(manager, KAVERN_STREAM_DEFAULT));
}

static void next_step(void) {
    make_tables();
    OK(kavern_kv_step_done(cache, step_id++, NULL));
}

/* First channel of the key of a token. */
static uint16_t *key_of(int32_t row, uint64_t token) {
    uint64_t block = (uint64_t)group.block_table_host[(uint64_t)row * group.row_cells + token / BLOCK_TOKENS];
    uint64_t at = shape.base_address + block * shape.block_stride + token % BLOCK_TOKENS * shape.token_stride;
    return (uint16_t *)(uintptr_t)at;
}

int main(void) {
    manager = open_manager("host");
    cache = make_cache(manager);
    shape.struct_size = sizeof shape;
    OK(kavern_kv_describe(cache, 0, &shape));
    int32_t ids[PROMPT];
    for (int i = 0; i < PROMPT; ++i) ids[i] = 100 + i;
    kavern_kv_request request = {.struct_size = sizeof request, .tokens = ids, .token_count = PROMPT,
        .namespace_id = 1};
    kavern_kv_match_result found;
    OK(kavern_kv_match(cache, 1, &request, &found));
    kavern_kv_op_result parent = one(KAVERN_OK, op(KAVERN_OP_ADMIT, found.lease, PROMPT));
    kavern_kv_op commit = op(KAVERN_OP_COMMIT, parent.sequence, PROMPT);
    commit.token_ids = ids;
    CHECK(one(KAVERN_OK, commit).blocks_committed == 2);
    one(KAVERN_ERR_WRONG_STATE, op(KAVERN_OP_FORK, parent.sequence, 0));
    next_step();
    for (uint64_t i = 0; i < PROMPT; ++i) *key_of(parent.row, i) = (uint16_t)(7000 + i);

    /* A child of the list is named by its operation; its append copies the two tokens of the open block. */
    kavern_kv_op list[2] = {op(KAVERN_OP_FORK, parent.sequence, 0), op(KAVERN_OP_APPEND, KAVERN_SEQ_OF_OP(0), 1)};
    kavern_kv_op_result results[2];
    OK(kavern_kv_step(cache, step_id, 2, list, results));
    kavern_kv_op_result child = results[0];
    CHECK(child.sequence == results[1].sequence && child.sequence != parent.sequence && results[1].blocks_added == 1);
    EXPECT(KAVERN_ERR_WRONG_STATE, kavern_kv_step_done(cache, step_id, NULL));
    make_tables();
    CHECK(tables.copy_count == 1 && tables.copies != 0 && tables.reserved2 == 0);
    const kavern_kv_token_copy *copy = tables.copies_host;
    CHECK(copy->group == 0 && copy->row == child.row && copy->tokens == 2 && copy->shift == 0);
    CHECK(memcmp(copy, (const void *)(uintptr_t)tables.copies, sizeof *copy) == 0);
    CHECK(*key_of(child.row, 9) == 7009 && key_of(child.row, 9) != key_of(parent.row, 9));
    CHECK(key_of(child.row, 7) == key_of(parent.row, 7));
    next_step();
    kavern_kv_op_result accepted = one(KAVERN_OK, op(KAVERN_OP_ACCEPT, child.sequence, 0));
    CHECK(accepted.sequence == parent.sequence && accepted.row == parent.row);
    one(KAVERN_ERR_STALE_ID, op(KAVERN_OP_ACCEPT, child.sequence, 0));

    kavern_kv_op edit = op(KAVERN_OP_EDIT, parent.sequence, 3);
    edit.offset = 2;
    one(KAVERN_OK, edit);
    make_tables();
    CHECK(tables.copy_count == 4);
    for (uint32_t i = 0; i < tables.copy_count; ++i) CHECK(tables.copies_host[i].shift == (i == 0 ? 0 : -3));
    for (uint64_t i = 0; i < PROMPT - 3; ++i) CHECK(*key_of(parent.row, i) == (i < 2 ? 7000 : 7003) + i);
    next_step();

    kavern_kv_op rollback = op(KAVERN_OP_ROLLBACK, parent.sequence, 5);
    rollback.lookahead = 2;
    one(KAVERN_OK, rollback);
    kavern_kv_op preempt = op(KAVERN_OP_PREEMPT, parent.sequence, 0);
    one(KAVERN_ERR_INVALID_ARGUMENT, preempt);
    preempt.mode = KAVERN_PREEMPT_SWAP;
    one(KAVERN_ERR_UNSUPPORTED, preempt);
    preempt.mode = KAVERN_PREEMPT_KEEP;
    one(KAVERN_OK, preempt);
    one(KAVERN_ERR_WRONG_STATE, op(KAVERN_OP_APPEND, parent.sequence, 1));
    next_step();
    one(KAVERN_OK, op(KAVERN_OP_RESUME, parent.sequence, 1));
    next_step();
    preempt.mode = KAVERN_PREEMPT_DROP;
    one(KAVERN_OK, preempt);
    OK(kavern_kv_match(cache, 1, &request, &found));
    CHECK(found.hit_tokens == 8);
    kavern_kv_op resume = op(KAVERN_OP_RESUME, parent.sequence, 2);
    resume.lease = found.lease;
    CHECK(one(KAVERN_OK, resume).sequence == parent.sequence);
    one(KAVERN_OK, op(KAVERN_OP_CANCEL, parent.sequence, 0));

    /* What an operation does not use is not ignored. */
    for (int field = 0; field < 7; ++field) {
        kavern_kv_op odd = op(KAVERN_OP_CANCEL, parent.sequence, field == 0);
        if (field == 1) odd.offset = 1;
        if (field == 2) odd.lookahead = 1;
        if (field == 3) odd.lease = 1;
        if (field == 4) odd.mode = 1;
        if (field == 5) odd.token_ids = ids;
        if (field == 6) odd.ttl_ms = 1;
        one(KAVERN_ERR_INVALID_ARGUMENT, odd);
        odd.kind = KAVERN_OP_FREE;
        one(KAVERN_ERR_INVALID_ARGUMENT, odd);
    }
    const uint32_t used[][8] = {{0}, {1, 1, 1}, {1, 1}, {1, 0, 0, 1, 1, 1, 1, 1}, {0}, {0}};
    for (uint32_t kind = KAVERN_OP_ADMIT; kind <= KAVERN_OP_RELEASE; ++kind) {
        for (int field = 0; field < 8; ++field) {
            kavern_kv_op odd = op(kind, parent.sequence, 0);
            odd.row = -1;
            if (field == 0) odd.tokens = 1;
            if (field == 1) odd.lookahead = 1;
            if (field == 2) odd.row = 3;
            if (field == 3) odd.token_ids = ids;
            if (field == 4) odd.keys = (const uint8_t *)ids;
            if (field == 5) odd.key_count = 1;
            if (field == 6) odd.extra_count = 1;
            if (field == 7) odd.key_bytes = 1;
            if (!used[kind][field]) one(KAVERN_ERR_INVALID_ARGUMENT, odd);
        }
        one(KAVERN_ERR_STALE_ID, op(kind, parent.sequence, 0));
    }
    for (int kind = 0; kind < 2; ++kind) {
        kavern_kv_op odd = op(kind ? KAVERN_OP_FORK : KAVERN_OP_ADMIT, parent.sequence, 0);
        odd.row = -5;
        one(KAVERN_ERR_INVALID_ARGUMENT, odd);
        odd.row = -1;
        one(KAVERN_ERR_STALE_ID, odd);
    }
    const uint32_t kinds[] = {KAVERN_OP_TRIM, KAVERN_OP_PIN, KAVERN_OP_UNPIN, KAVERN_OP_RETAIN};
    for (int i = 0; i < 20; ++i) {
        kavern_kv_op odd = op(kinds[i / 5], parent.sequence, 0);
        if (i % 5 == 0) odd.row = 3;
        if (i % 5 == 1) odd.token_ids = ids;
        if (i % 5 == 2) odd.lookahead = 1;
        if (i % 5 == 3) odd.key_bytes = 1;
        if (i % 5 == 4) odd.expected_tokens = 1;
        one(KAVERN_ERR_INVALID_ARGUMENT, odd);
    }
    next_step();
    kavern_kv_statistics statistics = {.struct_size = sizeof statistics};
    OK(kavern_kv_stats(cache, &statistics));
    CHECK(statistics.sequences == 0 && statistics.used_blocks == 0 && statistics.leases == 0);
    OK(kavern_kv_validate(cache));
    OK(kavern_kv_cache_destroy(&cache));
    OK(kavern_manager_destroy(&manager));
    return 0;
}
