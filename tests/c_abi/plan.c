/* A scheduler and its worker in two processes, beside one cache that does both: the same tables, the same bytes.
 *
 * The parent plays random requests on a cache that owns memory and on a metadata-only one, and sends the plans of the
 * second through a pipe to its child. After each step the child answers a digest of all its tables and blocks, as the
 * device holds them; the parent compares it with that of the first cache. The child also tries what must be refused. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include "two_caches.h"

#include <sys/wait.h>
#include <unistd.h>

enum { BLOCKS = 48, BLOCK_TOKENS = 4, BATCH_TOKENS = 64, SEQUENCES = 6, GROUPS = 2, STEPS = 400, KV_BYTES = 32 };

/* What the parent asks of the child before the message. */
enum { APPLY = 1, LOSE = 2, STOP = 3 };

typedef struct {
    uint64_t tables, blocks;
    int32_t status, reserved;
} answer;

static kavern_kv_cache *make(kavern_manager *manager, uint32_t flags) {
    kavern_kv_group groups[GROUPS];
    memset(groups, 0, sizeof groups);
    groups[0].struct_size = groups[1].struct_size = sizeof groups[0];
    groups[0].kind = KAVERN_GROUP_FULL;
    groups[0].layers = 1;
    groups[0].kv_heads = 1;
    groups[0].head_dim = KV_BYTES / 2;
    groups[0].dtype = KAVERN_F16;
    groups[0].block_tokens = BLOCK_TOKENS;
    groups[0].layout = KAVERN_NHD;
    groups[1].kind = KAVERN_GROUP_OPAQUE;
    groups[1].block_tokens = 2 * BLOCK_TOKENS;
    groups[1].block_bytes = 64;
    kavern_kv_cache_config config = config_for(groups, GROUPS);
    static const uint8_t secret[32] = {7};
    config.hash_secret = secret;
    config.capacity_blocks = BLOCKS;
    config.max_sequences = SEQUENCES;
    config.max_sequence_tokens = 64;
    config.max_batch_tokens = BATCH_TOKENS;
    config.flags = flags;
    return create_cache(manager, &config);
}

/* The host backend's device memory can be read where it lies. */
static uint64_t digest_at(uint64_t sum, uint64_t address, size_t count) {
    return digest(sum, (const void *)(uintptr_t)address, count);
}

static kavern_kv_step_tables empty_tables(kavern_kv_group_tables *groups) {
    kavern_kv_step_tables tables;
    memset(&tables, 0, sizeof tables);
    tables.struct_size = sizeof tables;
    tables.group_capacity = GROUPS;
    tables.groups = groups;
    return tables;
}

static answer look(kavern_manager *manager, kavern_kv_cache *cache, void *stream, const kavern_kv_step_tables *tables) {
    OK(kavern_stream_synchronize(manager, stream));
    answer seen = {14695981039346656037u, 14695981039346656037u, KAVERN_OK, 0};
    seen.tables = digest(seen.tables, &tables->batch_count, 2 * sizeof(uint32_t));
    seen.tables = digest_at(seen.tables, tables->batch_rows, 4 * (size_t)tables->batch_count);
    seen.tables = digest_at(seen.tables, tables->batch_starts, 4 * (size_t)(tables->batch_count + 1));
    seen.tables = digest_at(seen.tables, tables->sequence_lengths, 4 * SEQUENCES);
    for (int group = 0; group < GROUPS; ++group) {
        const kavern_kv_group_tables *of = &tables->groups[group];
        size_t cells = 4 * SEQUENCES * (size_t)of->row_cells;
        seen.tables = digest_at(seen.tables, of->block_table, cells);
        seen.tables = digest(seen.tables, of->block_table_host, cells);
        seen.tables = digest(seen.tables, &of->cells_uploaded, 2 * sizeof(uint64_t));
        if (of->slot_mapping != 0) seen.tables = digest_at(seen.tables, of->slot_mapping, 8 * BATCH_TOKENS);
        kavern_kv_description found = {.struct_size = sizeof found};
        OK(kavern_kv_describe(cache, (uint32_t)group, &found));
        seen.blocks = digest_at(seen.blocks, found.base_address, found.block_bytes * found.block_count);
    }
    return seen;
}

/* The step's work: each scheduled token writes what nobody else would write there. */
static void work(kavern_manager *manager, kavern_kv_cache *cache, void *stream, uint64_t step,
                 const kavern_kv_step_tables *tables) {
    OK(kavern_stream_synchronize(manager, stream));
    kavern_kv_description found = {.struct_size = sizeof found};
    OK(kavern_kv_describe(cache, 0, &found));
    for (uint32_t token = 0; token < tables->token_count; ++token) {
        uint64_t slot = (uint64_t)tables->groups[0].slot_mapping_host[token];
        uint64_t at = slot / BLOCK_TOKENS * found.block_stride + slot % BLOCK_TOKENS * found.token_stride;
        uint64_t mark = step << 16 | token;
        memcpy((void *)(uintptr_t)(found.base_address + at), &mark, sizeof mark);
        memcpy((void *)(uintptr_t)(found.base_address + at + found.kv_stride), &mark, sizeof mark);
    }
}

static void try_bad_messages(kavern_kv_cache *cache, void *stream, unsigned char *message, uint64_t bytes) {
    kavern_kv_group_tables groups[GROUPS];
    for (int i = 0; i < 8; ++i) {
        kavern_kv_step_tables tables = empty_tables(groups);
        uint64_t at = below(bytes);
        unsigned char bit = (unsigned char)(1u << below(8));
        message[at] ^= bit;
        kavern_status status = kavern_kv_plan_apply(cache, stream, message, bytes, &tables);
        CHECK(status == KAVERN_ERR_INVALID_ARGUMENT || status == KAVERN_ERR_UNSUPPORTED);
        message[at] ^= bit;
        EXPECT(KAVERN_ERR_INVALID_ARGUMENT, kavern_kv_plan_apply(cache, stream, message, at, &tables));
    }
}

static int worker(int from, int to) {
    kavern_manager *manager = open_manager("host");
    kavern_stream *stream = NULL;
    OK(kavern_stream_create(manager, &stream));
    kavern_kv_cache *cache = make(manager, KAVERN_KV_WORKER);
    for (;;) {
        uint64_t head[2];
        get(from, head, sizeof head);
        if (head[0] == STOP) break;
        unsigned char *message = malloc(head[1]);
        CHECK(message != NULL);
        get(from, message, head[1]);
        answer seen = {0, 0, KAVERN_OK, 0};
        if (head[0] == APPLY) {
            kavern_kv_group_tables groups[GROUPS];
            kavern_kv_step_tables tables = empty_tables(groups);
            kavern_kv_plan_info info = {.struct_size = sizeof info};
            OK(kavern_kv_plan_read(message, head[1], &info));
            try_bad_messages(cache, stream, message, head[1]);
            kavern_status status = kavern_kv_plan_apply(cache, stream, message, head[1], &tables);
            if (status == KAVERN_OK) {
                work(manager, cache, stream, info.step_id, &tables);
                seen = look(manager, cache, stream, &tables);
                OK(kavern_kv_step_done(cache, info.step_id, stream));
                EXPECT(KAVERN_ERR_WRONG_STATE, kavern_kv_plan_apply(cache, stream, message, head[1], &tables));
            }
            seen.status = status;
        }
        put(to, &seen, sizeof seen);
        free(message);
    }
    OK(kavern_kv_validate(cache));
    OK(kavern_kv_cache_destroy(&cache));
    OK(kavern_stream_destroy(&stream));
    OK(kavern_manager_destroy(&manager));
    return 0;
}

/* A request of a few tokens; prompts share beginnings. */
static uint64_t look_up(kavern_kv_cache *cache, uint64_t namespace_id, const int32_t *tokens, uint64_t count,
                        uint64_t *hit_tokens) {
    kavern_kv_request request;
    memset(&request, 0, sizeof request);
    request.struct_size = sizeof request;
    request.namespace_id = namespace_id;
    request.tokens = tokens;
    request.token_count = count;
    kavern_kv_match_result result;
    OK(kavern_kv_match(cache, 1, &request, &result));
    *hit_tokens = result.hit_tokens;
    return result.lease;
}

typedef struct {
    uint64_t sequence, length;
} running;

static void random_operations(kavern_kv_cache **caches, uint64_t step, running *live, int *count) {
    static int32_t tokens[64];
    OK(kavern_kv_step(caches[0], step, 0, NULL, NULL));
    OK(kavern_kv_step(caches[1], step, 0, NULL, NULL));
    for (int at = *count - 1; at >= 0; --at) {
        if (below(6) == 0 || live[at].length > 55) {
            CHECK(both(caches, step, operation(KAVERN_OP_FREE, live[at].sequence, 0), NULL).status == KAVERN_OK);
            live[at] = live[--*count];
        } else if (both(caches, step, operation(KAVERN_OP_APPEND, live[at].sequence, 1), NULL).status == KAVERN_OK) {
            live[at].length += 1;
        }
    }
    while (*count < SEQUENCES && below(3) != 0) {
        uint64_t length = 1 + below(30), kind = below(5), namespace_id = below(3), leases[2], hits[2];
        for (uint64_t i = 0; i < length; ++i) tokens[i] = (int32_t)(kind * 1000 + i);
        for (int i = 0; i < 2; ++i) leases[i] = look_up(caches[i], namespace_id, tokens, length, &hits[i]);
        CHECK(hits[0] == hits[1]);
        uint64_t rest = length - hits[0];
        kavern_kv_op_result admitted = both(caches, step, operation(KAVERN_OP_ADMIT, 0, rest), leases);
        if (admitted.status != KAVERN_OK) {
            CHECK(both(caches, step, operation(KAVERN_OP_RELEASE, 0, 0), leases).status == KAVERN_OK);
            break;
        }
        kavern_kv_op commit = operation(KAVERN_OP_COMMIT, admitted.sequence, rest);
        commit.token_ids = &tokens[hits[0]];
        CHECK(both(caches, step, commit, NULL).status == KAVERN_OK);
        live[*count].sequence = admitted.sequence;
        live[(*count)++].length = length;
    }
}

static answer send_plan(int to, int from, kavern_kv_cache *scheduler, uint64_t step, uint32_t flags, uint64_t what) {
    uint64_t needed = 0;
    EXPECT(KAVERN_ERR_BUFFER_TOO_SMALL, kavern_kv_plan_export(scheduler, step, flags, NULL, 0, &needed));
    unsigned char *message = malloc(needed);
    CHECK(message != NULL);
    OK(kavern_kv_plan_export(scheduler, step, flags, message, needed, &needed));
    uint64_t head[2] = {what, needed};
    put(to, head, sizeof head);
    put(to, message, needed);
    free(message);
    answer seen;
    get(from, &seen, sizeof seen);
    return seen;
}

static void scheduler(int from, int to) {
    kavern_manager *manager = open_manager("host");
    kavern_stream *stream = NULL;
    OK(kavern_stream_create(manager, &stream));
    kavern_kv_cache *caches[2] = {make(manager, 0), make(manager, KAVERN_KV_METADATA_ONLY)};
    running live[SEQUENCES];
    int count = 0;
    uint64_t scheduled = 0, zeroed = 0;
    for (uint64_t step = 1; step <= STEPS; ++step) {
        random_operations(caches, step, live, &count);
        kavern_kv_group_tables groups[GROUPS];
        kavern_kv_step_tables tables = empty_tables(groups);
        OK(kavern_kv_tables(caches[0], step, stream, &tables));
        work(manager, caches[0], stream, step, &tables);
        answer expected = look(manager, caches[0], stream, &tables);
        answer seen = send_plan(to, from, caches[1], step, 0, APPLY);
        CHECK(seen.status == KAVERN_OK);
        CHECK(seen.tables == expected.tables);
        CHECK(seen.blocks == expected.blocks);
        OK(kavern_kv_step_done(caches[0], step, stream));
        OK(kavern_kv_step_done(caches[1], step, NULL));
        OK(kavern_stream_synchronize(manager, stream));
        OK(kavern_kv_poll(caches[0], 0, NULL, &(size_t){0}));
        scheduled += tables.token_count;
        zeroed += groups[0].blocks_zeroed;
    }
    CHECK(scheduled > 2 * STEPS && zeroed > 20);
    /* The worker loses one plan, says so at the next, and a full one brings its tables up. */
    uint64_t step = STEPS + 1;
    random_operations(caches, step, live, &count);
    CHECK(send_plan(to, from, caches[1], step, 0, LOSE).status == KAVERN_OK);
    OK(kavern_kv_step_done(caches[0], step, NULL));
    OK(kavern_kv_step_done(caches[1], step, NULL));
    random_operations(caches, ++step, live, &count);
    CHECK(send_plan(to, from, caches[1], step, 0, APPLY).status == KAVERN_ERR_DEPENDENCY);
    CHECK(send_plan(to, from, caches[1], step, KAVERN_PLAN_FULL, APPLY).status == KAVERN_OK);
    uint64_t head[2] = {STOP, 0};
    put(to, head, sizeof head);
    for (int i = 0; i < 2; ++i) {
        OK(kavern_kv_step_done(caches[i], step, NULL));
        OK(kavern_kv_validate(caches[i]));
        OK(kavern_kv_cache_destroy(&caches[i]));
    }
    OK(kavern_stream_destroy(&stream));
    OK(kavern_manager_destroy(&manager));
}

int main(void) {
    int plans[2], answers[2];
    CHECK(pipe(plans) == 0 && pipe(answers) == 0);
    /* Before the library is used: the child of a fork has no part in its parent's devices. */
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(plans[1]);
        close(answers[0]);
        exit(worker(plans[0], answers[1]));
    }
    close(plans[0]);
    close(answers[1]);
    scheduler(answers[0], plans[1]);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return 0;
}
