/* A scheduler and its worker in two processes, beside one cache that does both: the same tables, the same bytes.
 *
 * The parent plays random operations of all kinds on a cache that owns memory and on a metadata-only one, and sends the
 * plans of the second through a pipe to its child. After each step the child answers a digest of all its tables and
 * blocks, as the device holds them; the parent compares it with that of the first cache. The child also tries what must
 * be refused. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include "two_caches.h"

#include <sys/wait.h>
#include <unistd.h>

enum { BLOCKS = 48, BLOCK_TOKENS = 4, BATCH_TOKENS = 64, SEQUENCES = 6, GROUPS = 3, STEPS = 1000, KV_BYTES = 32 };

/* What the parent asks of the child before the message. */
enum { APPLY = 1, LOSE = 2, STOP = 3 };

typedef struct {
    uint64_t tables, blocks;
    int32_t status, reserved;
} answer;

static kavern_kv_cache *make(kavern_manager *manager, uint32_t flags) {
    kavern_kv_group groups[GROUPS];
    memset(groups, 0, sizeof groups);
    for (int group = 0; group < GROUPS; ++group) groups[group].struct_size = sizeof groups[0];
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
    groups[2] = groups[0];
    groups[2].kind = KAVERN_GROUP_SLIDING;
    groups[2].window_tokens = 10;
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
    for (uint32_t group = 0; group < GROUPS; group += 2) {
        kavern_kv_description found = {.struct_size = sizeof found};
        OK(kavern_kv_describe(cache, group, &found));
        for (uint32_t token = 0; token < tables->token_count; ++token) {
            uint64_t slot = (uint64_t)tables->groups[group].slot_mapping_host[token];
            uint64_t at = slot / BLOCK_TOKENS * found.block_stride + slot % BLOCK_TOKENS * found.token_stride;
            uint64_t mark = step << 16 | group << 8 | token;
            memcpy((void *)(uintptr_t)(found.base_address + at), &mark, sizeof mark);
            memcpy((void *)(uintptr_t)(found.base_address + at + found.kv_stride), &mark, sizeof mark);
        }
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

/* The sequences that may be running; of some an ACCEPT has made an end. */
typedef struct {
    uint64_t sequence, length, namespace_id, prompt;
    int is_dropped;
} running;

/* How often an operation of each kind went well. */
static uint64_t done[KAVERN_OP_ACCEPT + 1];

static kavern_kv_op_result play(kavern_kv_cache **caches, uint64_t step, kavern_kv_op op, const uint64_t *leases) {
    kavern_kv_op_result result = both(caches, step, op, leases);
    done[op.kind] += result.status == KAVERN_OK;
    return result;
}

/* An operation that does not end a sequence by itself, or refuses to. */
static void change(kavern_kv_cache **caches, uint64_t step, running *live, int *count) {
    static const uint32_t kinds[] = {KAVERN_OP_ROLLBACK, KAVERN_OP_FORK, KAVERN_OP_FORK, KAVERN_OP_TRIM, KAVERN_OP_EDIT,
        KAVERN_OP_PREEMPT, KAVERN_OP_PIN, KAVERN_OP_UNPIN, KAVERN_OP_RETAIN, KAVERN_OP_ACCEPT, KAVERN_OP_ACCEPT,
        KAVERN_OP_COMMIT};
    static const int32_t next[] = {7, 8};
    running *of = &live[below((uint64_t)*count)];
    kavern_kv_op op = operation(kinds[below(sizeof kinds / sizeof *kinds)], of->sequence, 0);
    uint64_t blocks = of->length / (2 * BLOCK_TOKENS);
    switch (op.kind) {
    case KAVERN_OP_ROLLBACK:
        op.tokens = of->length - below(of->length < 6 ? of->length + 1 : 6);
        break;
    case KAVERN_OP_TRIM:
        op.offset = below(of->length + 1);
        break;
    case KAVERN_OP_EDIT:
        op.offset = 2 * BLOCK_TOKENS * below(blocks + 1);
        op.tokens = 2 * BLOCK_TOKENS;
        break;
    case KAVERN_OP_PREEMPT:
        op.mode = below(2) == 0 ? KAVERN_PREEMPT_KEEP : KAVERN_PREEMPT_DROP;
        break;
    case KAVERN_OP_RETAIN:
        op.priority = (uint32_t)below(101);
        break;
    case KAVERN_OP_COMMIT:
        op.tokens = 1 + below(2);
        op.token_ids = next;
        break;
    default:
        break;
    }
    kavern_kv_op_result result = play(caches, step, op, NULL);
    if (result.status != KAVERN_OK) return;
    if (op.kind == KAVERN_OP_ROLLBACK) of->length = op.tokens;
    if (op.kind == KAVERN_OP_EDIT) of->length -= op.tokens;
    if (op.kind == KAVERN_OP_FORK) {
        live[*count] = *of;
        live[(*count)++].sequence = result.sequence;
    }
    if (op.kind == KAVERN_OP_PREEMPT) of->is_dropped = op.mode == KAVERN_PREEMPT_DROP;
    if (op.kind == KAVERN_OP_ACCEPT) *of = live[--*count];
}

/* Looks the beginning of a prompt up in both; answers the tokens found. */
static uint64_t look_up_both(kavern_kv_cache **caches, uint64_t namespace_id, uint64_t prompt, uint64_t length,
                             int32_t *tokens, uint64_t *leases) {
    uint64_t hits[2];
    for (uint64_t i = 0; i < length; ++i) tokens[i] = (int32_t)(prompt * 1000 + i);
    for (int i = 0; i < 2; ++i) leases[i] = look_up(caches[i], namespace_id, tokens, length, &hits[i]);
    CHECK(hits[0] == hits[1]);
    return hits[0];
}

/* What preempted a sequence took its blocks: it starts anew from what is found. */
static int32_t resume(kavern_kv_cache **caches, uint64_t step, running *of) {
    int32_t tokens[64];
    uint64_t leases[2];
    uint64_t hits = look_up_both(caches, of->namespace_id, of->prompt, of->length, tokens, leases);
    kavern_kv_op op = operation(KAVERN_OP_RESUME, of->sequence, of->length - hits);
    kavern_kv_op_result result = both_with(caches, step, op, NULL, leases);
    done[KAVERN_OP_RESUME] += result.status == KAVERN_OK;
    if (result.status == KAVERN_OK) {
        of->is_dropped = 0;
    } else {
        CHECK(play(caches, step, operation(KAVERN_OP_RELEASE, 0, 0), leases).status == KAVERN_OK);
    }
    return result.status;
}

/* Ends a sequence or lets it go on; answers whether it is there. */
static int go_on(kavern_kv_cache **caches, uint64_t step, running *of) {
    if (below(6) == 0 || of->length > 55) {
        uint32_t kind = below(2) == 0 ? KAVERN_OP_FREE : KAVERN_OP_CANCEL;
        int32_t status = play(caches, step, operation(kind, of->sequence, 0), NULL).status;
        CHECK(status == KAVERN_OK || status == KAVERN_ERR_STALE_ID || kind == KAVERN_OP_CANCEL);
        return status == KAVERN_ERR_IN_USE;
    }
    if (of->is_dropped && below(2) == 0) return resume(caches, step, of) != KAVERN_ERR_STALE_ID;
    uint32_t kind = below(4) == 0 ? KAVERN_OP_RESUME : KAVERN_OP_APPEND;
    int32_t status = play(caches, step, operation(kind, of->sequence, 1), NULL).status;
    of->length += status == KAVERN_OK;
    return status != KAVERN_ERR_STALE_ID;
}

static void random_operations(kavern_kv_cache **caches, uint64_t step, running *live, int *count) {
    int32_t tokens[64];
    OK(kavern_kv_step(caches[0], step, 0, NULL, NULL));
    OK(kavern_kv_step(caches[1], step, 0, NULL, NULL));
    for (uint64_t changes = below(4); changes > 0 && *count > 0 && *count < 2 * SEQUENCES; --changes) {
        change(caches, step, live, count);
    }
    for (int at = *count - 1; at >= 0; --at) {
        if (!go_on(caches, step, &live[at])) live[at] = live[--*count];
    }
    while (*count < SEQUENCES && below(3) != 0) {
        uint64_t length = 1 + below(30), prompt = below(5), namespace_id = below(3), leases[2];
        uint64_t hits = look_up_both(caches, namespace_id, prompt, length, tokens, leases), rest = length - hits;
        kavern_kv_op_result admitted = play(caches, step, operation(KAVERN_OP_ADMIT, 0, rest), leases);
        if (admitted.status != KAVERN_OK) {
            CHECK(play(caches, step, operation(KAVERN_OP_RELEASE, 0, 0), leases).status == KAVERN_OK);
            break;
        }
        kavern_kv_op commit = operation(KAVERN_OP_COMMIT, admitted.sequence, rest);
        commit.token_ids = &tokens[hits];
        CHECK(play(caches, step, commit, NULL).status == KAVERN_OK);
        live[(*count)++] = (running){admitted.sequence, length, namespace_id, prompt, 0};
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
    running live[2 * SEQUENCES];
    int count = 0;
    uint64_t scheduled = 0, zeroed = 0, copied = 0;
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
        copied += tables.copy_count;
    }
    CHECK(scheduled > 2 * STEPS && zeroed > 20 && copied > 20);
    for (uint32_t kind = KAVERN_OP_ADMIT; kind <= KAVERN_OP_ACCEPT; ++kind) {
        CHECK(done[kind] > 10 || kind == KAVERN_OP_LOAD || kind == KAVERN_OP_STORE);
    }
    /* The worker loses one plan, says so at the next, and a full one brings its tables up. */
    uint64_t step = STEPS + 1;
    random_operations(caches, step, live, &count);
    kavern_kv_group_tables groups[GROUPS];
    kavern_kv_step_tables tables = empty_tables(groups);
    OK(kavern_kv_tables(caches[0], step, stream, &tables));
    CHECK(send_plan(to, from, caches[1], step, 0, LOSE).status == KAVERN_OK);
    OK(kavern_kv_step_done(caches[0], step, NULL));
    OK(kavern_kv_step_done(caches[1], step, NULL));
    random_operations(caches, ++step, live, &count);
    OK(kavern_kv_tables(caches[0], step, stream, &tables));
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
