/* Size classes of a scheduler and its worker in two processes, under a load that goes from small blocks to large ones
 * and back.
 *
 * The parent's scheduler has no memory and moves that of its worker, which is its child, between the classes; plans
 * tell the sizes. Beside it the parent has one cache with memory of its own that does the same operations and is
 * resized by hand as the scheduler's classes are. After each step the child answers a digest of what its tables and
 * all tokens of the batch are; the parent compares it with that of the cache of its own. */
#define _POSIX_C_SOURCE 200809L
#include "check.h"
#include "two_caches.h"

#include <sys/wait.h>
#include <unistd.h>

enum {
    CLASSES = 3,
    SEQUENCES = 32,
    LONGEST = 2048,
    BATCH_TOKENS = 4096,
    KV_BYTES = 32,
    PAGE = 4096,
    CLASS_PAGES = 64,
    SLAB = 32 * PAGE,
    PHASE_STEPS = 300
};

enum { APPLY = 1, STOP = 2 };

static const uint32_t block_tokens[CLASSES] = {4, 16, 64};

typedef struct {
    uint64_t tables, tokens, pool_bytes;
    uint64_t blocks[CLASSES];
} answer;

static kavern_kv_cache *make(kavern_manager *manager, uint32_t flags) {
    kavern_kv_group groups[CLASSES];
    memset(groups, 0, sizeof groups);
    for (uint32_t i = 0; i < CLASSES; ++i) {
        groups[i].struct_size = sizeof groups[i];
        groups[i].kind = KAVERN_GROUP_FULL;
        groups[i].layers = 1;
        groups[i].kv_heads = 1;
        groups[i].head_dim = KV_BYTES / 2;
        groups[i].dtype = KAVERN_F16;
        groups[i].block_tokens = block_tokens[i];
        groups[i].layout = KAVERN_NHD;
        groups[i].size_class = i + 1;
    }
    kavern_kv_cache_config config = config_for(groups, CLASSES);
    static const uint8_t secret[32] = {7};
    config.hash_secret = secret;
    config.capacity_bytes = (uint64_t)CLASSES * CLASS_PAGES * PAGE;
    config.max_blocks = (uint64_t)CLASSES * CLASS_PAGES * PAGE / (2 * KV_BYTES * block_tokens[0]);
    config.max_sequences = SEQUENCES;
    config.max_sequence_tokens = LONGEST;
    config.max_batch_tokens = BATCH_TOKENS;
    config.flags = flags | KAVERN_KV_ADAPTIVE_BLOCKS;
    return create_cache(manager, &config);
}

static kavern_kv_step_tables empty_tables(kavern_kv_group_tables *groups) {
    kavern_kv_step_tables tables;
    memset(&tables, 0, sizeof tables);
    tables.struct_size = sizeof tables;
    tables.group_capacity = CLASSES;
    tables.groups = groups;
    return tables;
}

/* The host backend's device memory can be read where it lies. */
static const int32_t *words_at(uint64_t address) { return (const int32_t *)(uintptr_t)address; }

/* The step's work, then what every token of the batch's sequences is, from their first on. */
static answer work(kavern_manager *manager, kavern_kv_cache *cache, void *stream, uint64_t step,
                   const kavern_kv_step_tables *tables) {
    OK(kavern_stream_synchronize(manager, stream));
    kavern_kv_description found[CLASSES];
    answer seen = {14695981039346656037u, 14695981039346656037u, 0, {0}};
    const int32_t *rows = words_at(tables->batch_rows), *starts = words_at(tables->batch_starts);
    const int32_t *lengths = words_at(tables->sequence_lengths);
    for (uint32_t i = 0; i < CLASSES; ++i) {
        found[i] = (kavern_kv_description){.struct_size = sizeof found[i]};
        OK(kavern_kv_describe(cache, i, &found[i]));
        seen.blocks[i] = found[i].block_count;
    }
    for (uint32_t at = 0; at < tables->batch_count; ++at) {
        int32_t row = rows[at], length = lengths[row];
        for (uint32_t i = 0; i < CLASSES; ++i) {
            const kavern_kv_group_tables *of = &tables->groups[i];
            if (of->slot_mapping_host[starts[at]] < 0) continue;
            for (int32_t token = starts[at]; token < starts[at + 1]; ++token) {
                uint64_t slot = (uint64_t)of->slot_mapping_host[token];
                uint64_t place = found[i].base_address + slot / block_tokens[i] * found[i].block_stride +
                                 slot % block_tokens[i] * found[i].token_stride;
                uint64_t mark = step << 16 | (uint64_t)token;
                memcpy((void *)(uintptr_t)place, &mark, sizeof mark);
                memcpy((void *)(uintptr_t)(place + found[i].kv_stride), &mark, sizeof mark);
            }
            const int32_t *cells = words_at(of->block_table) + (uint64_t)row * of->row_cells;
            int32_t each = (int32_t)block_tokens[i], count = (length + each - 1) / each;
            seen.tables = digest(seen.tables, cells, 4 * (size_t)count);
            seen.tables = digest(seen.tables, &length, sizeof length);
            for (int32_t token = 0; token < length; ++token) {
                uint64_t place = found[i].base_address + (uint64_t)cells[token / each] * found[i].block_stride +
                                 (uint64_t)(token % each) * found[i].token_stride;
                seen.tokens = digest(seen.tokens, (const void *)(uintptr_t)place, sizeof(uint64_t));
                place += found[i].kv_stride;
                seen.tokens = digest(seen.tokens, (const void *)(uintptr_t)place, sizeof(uint64_t));
            }
        }
    }
    kavern_kv_statistics statistics = {.struct_size = sizeof statistics};
    OK(kavern_kv_stats(cache, &statistics));
    seen.pool_bytes = statistics.pool_bytes;
    return seen;
}

static int worker(int from, int to) {
    kavern_manager *manager = open_manager("host?page_bytes=4096");
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
        kavern_kv_group_tables groups[CLASSES];
        kavern_kv_step_tables tables = empty_tables(groups);
        kavern_kv_plan_info info = {.struct_size = sizeof info};
        OK(kavern_kv_plan_read(message, head[1], &info));
        OK(kavern_kv_plan_apply(cache, stream, message, head[1], &tables));
        answer seen = work(manager, cache, stream, info.step_id, &tables);
        OK(kavern_kv_step_done(cache, info.step_id, stream));
        put(to, &seen, sizeof seen);
        free(message);
    }
    OK(kavern_kv_validate(cache));
    OK(kavern_kv_cache_destroy(&cache));
    OK(kavern_stream_destroy(&stream));
    OK(kavern_manager_destroy(&manager));
    return 0;
}

typedef struct {
    uint64_t sequence, length;
} running;

/* Everybody who runs gets a token, some end, and one more begins if there is room; answers whether there was. */
static int operations(kavern_kv_cache **caches, uint64_t step, uint32_t size_class, running *live, int *count) {
    static int32_t tokens[LONGEST];
    OK(kavern_kv_step(caches[0], step, 0, NULL, NULL));
    OK(kavern_kv_step(caches[1], step, 0, NULL, NULL));
    for (int at = *count - 1; at >= 0; --at) {
        if (below(size_class == 1 ? 24 : 8) == 0) {
            CHECK(both(caches, step, operation(KAVERN_OP_FREE, live[at].sequence, 0), NULL).status == KAVERN_OK);
            live[at] = live[--*count];
        } else if (both(caches, step, operation(KAVERN_OP_APPEND, live[at].sequence, 1), NULL).status == KAVERN_OK) {
            live[at].length += 1;
        }
    }
    if (*count == SEQUENCES) return 1;
    uint64_t length = size_class == 1 ? 200 + below(200) : 1000 + below(500), kind = below(40), leases[2];
    for (uint64_t i = 0; i < length; ++i) tokens[i] = (int32_t)(kind * 10000 + i);
    kavern_kv_match_result found[2];
    for (int i = 0; i < 2; ++i) {
        kavern_kv_request request;
        memset(&request, 0, sizeof request);
        request.struct_size = sizeof request;
        request.namespace_id = 1;
        request.tokens = tokens;
        request.token_count = length;
        request.size_class = size_class;
        OK(kavern_kv_match(caches[i], 1, &request, &found[i]));
        leases[i] = found[i].lease;
    }
    CHECK(found[0].hit_tokens == found[1].hit_tokens);
    uint64_t hits = found[0].hit_tokens, rest = length - hits;
    kavern_kv_op_result admitted = both(caches, step, operation(KAVERN_OP_ADMIT, 0, rest), leases);
    if (admitted.status != KAVERN_OK) {
        CHECK(admitted.status == KAVERN_ERR_OUT_OF_BLOCKS);
        CHECK(both(caches, step, operation(KAVERN_OP_RELEASE, 0, 0), leases).status == KAVERN_OK);
        return 0;
    }
    kavern_kv_op commit = operation(KAVERN_OP_COMMIT, admitted.sequence, rest);
    commit.token_ids = &tokens[hits];
    if (rest > 0) CHECK(both(caches, step, commit, NULL).status == KAVERN_OK);
    live[*count].sequence = admitted.sequence;
    live[(*count)++].length = length;
    return 1;
}

static answer send_plan(int to, int from, kavern_kv_cache *scheduler, uint64_t step) {
    uint64_t needed = 0;
    EXPECT(KAVERN_ERR_BUFFER_TOO_SMALL, kavern_kv_plan_export(scheduler, step, 0, NULL, 0, &needed));
    unsigned char *message = malloc(needed);
    CHECK(message != NULL);
    OK(kavern_kv_plan_export(scheduler, step, 0, message, needed, &needed));
    uint64_t head[2] = {APPLY, needed};
    put(to, head, sizeof head);
    put(to, message, needed);
    free(message);
    answer seen;
    get(from, &seen, sizeof seen);
    return seen;
}

static void scheduler(int from, int to) {
    kavern_manager *manager = open_manager("host?page_bytes=4096");
    kavern_stream *stream = NULL;
    OK(kavern_stream_create(manager, &stream));
    kavern_kv_cache *caches[2] = {make(manager, 0), make(manager, KAVERN_KV_METADATA_ONLY)};
    static const uint32_t phases[] = {1, 3, 1};
    uint64_t blocks[CLASSES], first[CLASSES], step = 0;
    for (uint32_t i = 0; i < CLASSES; ++i) first[i] = blocks[i] = CLASS_PAGES * PAGE / (2 * KV_BYTES * block_tokens[i]);
    running live[SEQUENCES];
    int count = 0, refused = 0;
    for (size_t phase = 0; phase < sizeof phases / sizeof *phases; ++phase) {
        uint32_t size_class = phases[phase];
        for (int i = 0; i < PHASE_STEPS; ++i) {
            refused += !operations(caches, ++step, size_class, live, &count);
            kavern_kv_group_tables groups[CLASSES];
            kavern_kv_step_tables tables = empty_tables(groups);
            OK(kavern_kv_tables(caches[0], step, stream, &tables));
            answer expected = work(manager, caches[0], stream, step, &tables);
            answer seen = send_plan(to, from, caches[1], step);
            CHECK(seen.tables == expected.tables);
            CHECK(seen.tokens == expected.tokens);
            CHECK(seen.pool_bytes <= (uint64_t)CLASSES * (CLASS_PAGES * PAGE + SLAB));
            OK(kavern_kv_step_done(caches[0], step, stream));
            OK(kavern_stream_synchronize(manager, stream));
            OK(kavern_kv_step_done(caches[1], step, NULL));
            OK(kavern_kv_poll(caches[1], 0, NULL, &(size_t){0}));
            for (uint32_t i = 0; i < CLASSES; ++i) {
                kavern_kv_description found = {.struct_size = sizeof found};
                OK(kavern_kv_describe(caches[1], i, &found));
                CHECK(seen.blocks[i] > 0 && seen.blocks[i] <= found.max_blocks);
                if (found.block_count == blocks[i]) continue;
                blocks[i] = found.block_count;
                kavern_kv_resize_result resized;
                kavern_status status = kavern_kv_resize(caches[0], i, blocks[i], &resized);
                CHECK(status == KAVERN_OK || status == KAVERN_PARTIAL);
            }
        }
        /* The class that everybody wants has got more than it began with. */
        CHECK(blocks[size_class - 1] > first[size_class - 1] * 5 / 4);
    }
    CHECK(refused > 0);
    uint64_t head[2] = {STOP, 0};
    put(to, head, sizeof head);
    for (int i = 0; i < 2; ++i) {
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
