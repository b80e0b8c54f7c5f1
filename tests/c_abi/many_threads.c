/* Sixty-four threads on one manager and one cache for as long as asked: each call answers what its documentation
 * allows, what the device holds is what was written there, and at the end nothing is left.
 *
 * many_threads [seconds]; KAVERN_SOAK_SECONDS is the default. Whoever finds the lock of the steps free is the engine
 * for one step: the contract asks for one at a time. All others look up, probe, read events and counts, pin and unpin
 * prefixes, wipe, evict, resize, limit, validate, and use the allocator, pools, pinned memory, streams and tickets. */
#include "objects.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#define THREADS 64
#define BLOCK_TOKENS 4
#define BLOCKS 512
#define MAX_BLOCKS 1024
#define SEQUENCES 48
#define LEASES 128
#define PROMPT_TOKENS 64
#define ROW_BLOCKS 32
#define NAMESPACES 4
#define OWN 24

static kavern_manager *manager;
static kavern_kv_cache *cache;
static kavern_pool *pool;
static kavern_stream *engine_stream;
static _Atomic int is_over;

/* Leases on their way from those who look up to the engine. */
static _Atomic uint64_t mailbox[LEASES];
/* Counts of what was done, for the last line. */
static _Atomic uint64_t calls, operations, steps, hits, patterns, gaps, read_events, allocations;

/* What the engine knows, under its lock. */
typedef struct {
    uint64_t id;
    uint64_t tokens;
    uint64_t namespace_id;
    /* Blocks that it filled with a pattern: nobody else writes to them as long as it lives. */
    int32_t filled[ROW_BLOCKS];
    /* Where they begin in its row, and how many there are. */
    size_t filled_from, filled_count;
    int32_t row;
} sequence;
static pthread_mutex_t engine_lock = PTHREAD_MUTEX_INITIALIZER;
static sequence live[SEQUENCES];
static size_t live_count;
/* Device memory is the host's, which may look into it. */
static int on_host;
static uint64_t step_id;

typedef struct {
    uint64_t state;
    uint64_t cursor;
    kavern_stream *stream;
    uint64_t blocks[OWN];
    uint64_t bytes[OWN];
    kavern_pool_block pooled[4];
    uint64_t tally;
    char name[16];
} worker;

static uint64_t next(worker *me) {
    me->state ^= me->state << 13;
    me->state ^= me->state >> 7;
    me->state ^= me->state << 17;
    return me->state * 0x2545F4914F6CDD1Du >> 16;
}

static uint64_t below(worker *me, uint64_t limit) { return next(me) % limit; }

/* One of the statuses that a call may answer. */
#define ONE_OF(call, a, b)                                                                                        \
    do {                                                                                                          \
        kavern_status got_ = (call);                                                                              \
        ++me->tally;                                                                                              \
        if (got_ != KAVERN_OK && got_ != (a) && got_ != (b)) {                                                    \
            fprintf(stderr, "%s\n", kavern_status_name(got_));                                                    \
            fail_at(__FILE__, __LINE__, #call);                                                                   \
        }                                                                                                         \
    } while (0)
#define GOOD(call) ONE_OF(call, KAVERN_OK, KAVERN_OK)

/* A prompt that others ask for too: few kinds, and each one in several lengths. */
static kavern_kv_request some_prompt(worker *me, int32_t *tokens) {
    uint64_t kind = below(me, 24);
    kavern_kv_request request;
    memset(&request, 0, sizeof request);
    request.struct_size = sizeof request;
    request.namespace_id = kind % NAMESPACES;
    request.token_count = 1 + below(me, PROMPT_TOKENS);
    request.tokens = tokens;
    for (uint64_t i = 0; i < request.token_count; ++i) tokens[i] = (int32_t)(kind * 1000 + i);
    return request;
}

/* A seed for the pattern of a block that belongs to this sequence alone, by its place in the row: it may move. */
static uint64_t seed_of(const sequence *of, size_t at) { return of->id * 0x9E3779B97F4A7C15u + of->filled_from + at; }

static kavern_kv_op make_op(uint32_t kind, uint64_t target) {
    kavern_kv_op op;
    memset(&op, 0, sizeof op);
    op.struct_size = sizeof op;
    op.kind = kind;
    op.target = target;
    op.row = kind == KAVERN_OP_ADMIT ? -1 : 0;
    return op;
}

static kavern_status apply(worker *me, const kavern_kv_op *ops, size_t n, kavern_kv_op_result *results) {
    ONE_OF(kavern_kv_step(cache, step_id, n, ops, results), KAVERN_PARTIAL, KAVERN_OK);
    atomic_fetch_add(&operations, n);
    return n > 0 ? results[0].status : KAVERN_OK;
}

/* Its bytes are as they were written; then it ends. */
static void end_sequence(worker *me, size_t at) {
    sequence *ending = &live[at];
    uint64_t seeds[ROW_BLOCKS];
    for (size_t i = 0; i < ending->filled_count; ++i) seeds[i] = seed_of(ending, i);
    if (ending->filled_count > 0) {
        GOOD(kavern_kv_check_pattern(cache, engine_stream, 0, ending->filled_count, ending->filled, seeds));
        atomic_fetch_add(&patterns, ending->filled_count);
    }
    kavern_kv_op op = make_op(KAVERN_OP_FREE, ending->id);
    kavern_kv_op_result result;
    CHECK(apply(me, &op, 1, &result) == KAVERN_OK);
    live[at] = live[--live_count];
}

/* Admits a prompt with half of its tokens committed, or gives its lease back. */
static void admit(worker *me) {
    int32_t tokens[PROMPT_TOKENS];
    kavern_kv_request request = some_prompt(me, tokens);
    request.flags = KAVERN_REQUEST_KEEP_ONE_TOKEN | (below(me, 4) == 0 ? KAVERN_REQUEST_NO_STORE : 0);
    kavern_kv_match_result found;
    ONE_OF(kavern_kv_match(cache, 1, &request, &found), KAVERN_PARTIAL, KAVERN_OK);
    if (found.status != KAVERN_OK) {
        CHECK(found.status == KAVERN_ERR_LIMIT_REACHED);
        return;
    }
    atomic_fetch_add(&hits, found.hit_tokens > 0);
    uint64_t rest = request.token_count - found.hit_tokens, count = rest / 2 + 1;
    kavern_kv_op ops[2] = {make_op(KAVERN_OP_ADMIT, found.lease), make_op(KAVERN_OP_COMMIT, KAVERN_SEQ_OF_OP(0))};
    ops[0].tokens = rest;
    ops[1].tokens = count;
    ops[1].token_ids = tokens + found.hit_tokens;
    kavern_kv_op_result results[2];
    if (live_count == SEQUENCES || apply(me, ops, 2, results) != KAVERN_OK) {
        if (live_count < SEQUENCES) {
            CHECK(results[0].status == KAVERN_ERR_OUT_OF_BLOCKS || results[0].status == KAVERN_ERR_LIMIT_REACHED);
            CHECK(results[1].status == KAVERN_ERR_DEPENDENCY);
        }
        kavern_kv_op op = make_op(KAVERN_OP_RELEASE, found.lease);
        CHECK(apply(me, &op, 1, results) == KAVERN_OK);
        return;
    }
    CHECK(results[1].status == KAVERN_OK);
    sequence *begun = &live[live_count++];
    memset(begun, 0, sizeof *begun);
    begun->id = results[0].sequence;
    begun->row = results[0].row;
    begun->tokens = request.token_count;
    begun->namespace_id = request.namespace_id;
    /* Hits are others' blocks; the patterns of this one begin after them. */
    begun->filled_from = found.hit_tokens / BLOCK_TOKENS;
}

/* Blocks of the new sequences are filled with patterns; `first` is the first of them. */
static void fill(worker *me, size_t first) {
    kavern_kv_group_tables group;
    kavern_kv_step_tables tables;
    memset(&tables, 0, sizeof tables);
    tables.struct_size = sizeof tables;
    tables.groups = &group;
    tables.group_capacity = 1;
    GOOD(kavern_kv_tables(cache, step_id, engine_stream, &tables));
    for (size_t at = 0; at < live_count; ++at) {
        sequence *holder = &live[at];
        const int32_t *row = group.block_table_host + (uint64_t)holder->row * group.row_cells;
        size_t end = (holder->tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
        CHECK(tables.sequence_lengths_host[holder->row] == (int32_t)holder->tokens && end <= ROW_BLOCKS);
        /* A shrink may have moved what it held. */
        if (at >= first) holder->filled_count = end - holder->filled_from;
        memcpy(holder->filled, row + holder->filled_from, holder->filled_count * sizeof *row);
        if (at < first || holder->filled_count == 0) continue;
        uint64_t seeds[ROW_BLOCKS];
        for (size_t i = 0; i < holder->filled_count; ++i) seeds[i] = seed_of(holder, i);
        GOOD(kavern_kv_fill_pattern(cache, engine_stream, 0, holder->filled_count, holder->filled, seeds));
    }
}

/* One step of the engine, by whoever holds the lock. */
static void engine_step(worker *me) {
    kavern_kv_op_result result;
    ++step_id;
    kavern_status status;
    while ((status = kavern_kv_step(cache, step_id, 0, NULL, NULL)) == KAVERN_ERR_TOO_MANY_STEPS) {
        size_t count = 0;
        GOOD(kavern_stream_synchronize(manager, engine_stream));
        GOOD(kavern_kv_poll(cache, 0, NULL, &count));
    }
    CHECK(status == KAVERN_OK);
    for (int i = 0; i < LEASES; ++i) {
        uint64_t lease = atomic_exchange(&mailbox[i], 0);
        if (lease == 0) continue;
        kavern_kv_op op = make_op(KAVERN_OP_RELEASE, lease);
        CHECK(apply(me, &op, 1, &result) == KAVERN_OK);
    }
    while (live_count > SEQUENCES / 2 || (live_count > 0 && below(me, 4) == 0))
        end_sequence(me, below(me, live_count));
    size_t first = live_count;
    for (uint64_t n = 1 + below(me, 6); n > 0; --n) admit(me);
    if (first > 0 && below(me, 2) == 0) {
        kavern_kv_op op = make_op(KAVERN_OP_RETAIN, live[below(me, first)].id);
        op.priority = (uint32_t)below(me, 101);
        op.ttl_ms = below(me, 3);
        CHECK(apply(me, &op, 1, &result) == KAVERN_OK);
    }
    fill(me, first);
    if (below(me, 64) == 0) {
        kavern_kv_check_result checked;
        GOOD(kavern_kv_pattern_result(cache, &checked));
        CHECK(checked.mismatched_blocks == 0);
    }
    GOOD(kavern_kv_step_done(cache, step_id, engine_stream));
    atomic_fetch_add(&steps, 1);
}

static void look_up(worker *me) {
    int32_t tokens[PROMPT_TOKENS];
    kavern_kv_request request = some_prompt(me, tokens);
    int64_t probed = 0;
    GOOD(kavern_kv_probe(cache, 1, &request, &probed));
    CHECK(probed >= 0 && (uint64_t)probed <= request.token_count);
    kavern_kv_match_result found;
    ONE_OF(kavern_kv_match(cache, 1, &request, &found), KAVERN_PARTIAL, KAVERN_OK);
    if (found.status != KAVERN_OK) {
        CHECK(found.status == KAVERN_ERR_LIMIT_REACHED);
        return;
    }
    CHECK(found.hit_tokens <= request.token_count);
    if (below(me, 16) == 0) {
        /* The lease is ours until it is in the mailbox. */
        ONE_OF(kavern_kv_prefix_pin(cache, me->name, found.lease), KAVERN_ERR_LIMIT_REACHED, KAVERN_ERR_IN_USE);
    }
    for (;;) {
        for (uint64_t first = below(me, LEASES), turn = 0; turn < LEASES; ++turn) {
            uint64_t none = 0;
            if (atomic_compare_exchange_strong(&mailbox[(first + turn) % LEASES], &none, found.lease)) return;
        }
        /* It is full, and perhaps everybody stands here: then this thread is the engine. */
        CHECK(pthread_mutex_lock(&engine_lock) == 0);
        engine_step(me);
        CHECK(pthread_mutex_unlock(&engine_lock) == 0);
    }
}

static void read_events_of(worker *me) {
    kavern_kv_event events[64];
    size_t count = 0;
    kavern_status status = kavern_kv_events_read(cache, &me->cursor, 64, events, &count);
    CHECK(status == KAVERN_OK || status == KAVERN_PARTIAL);
    for (size_t i = 1; i < count; ++i) CHECK(events[i].number == events[i - 1].number + 1);
    atomic_fetch_add(&read_events, count);
    if (status == KAVERN_OK) return;
    atomic_fetch_add(&gaps, 1);
    uint64_t position = 0;
    do {
        status = kavern_kv_events_snapshot(cache, &position, 64, events, &count);
        CHECK(status == KAVERN_OK || status == KAVERN_PARTIAL);
        for (size_t i = 0; i < count; ++i) CHECK(events[i].kind == KAVERN_EVENT_STORED && events[i].block >= 0);
    } while (status == KAVERN_PARTIAL);
}

static void look_at_counts(worker *me) {
    kavern_kv_statistics totals = {.struct_size = sizeof totals};
    GOOD(kavern_kv_stats(cache, &totals));
    uint64_t sum = totals.free_blocks + totals.used_blocks + totals.inactive_blocks + totals.deferred_blocks;
    CHECK(sum >= totals.capacity_blocks && sum <= MAX_BLOCKS);
    CHECK(totals.lookup_blocks == totals.hit_blocks + totals.missed_blocks + totals.skipped_blocks);
    kavern_kv_namespace_statistics of = {.struct_size = sizeof of};
    GOOD(kavern_kv_namespace_stats(cache, below(me, NAMESPACES), &of));
    uint64_t ids[8], position = 0;
    size_t count = 0;
    ONE_OF(kavern_kv_namespace_list(cache, &position, 8, ids, &count), KAVERN_PARTIAL, KAVERN_OK);
    kavern_kv_description about = {.struct_size = sizeof about};
    GOOD(kavern_kv_describe(cache, 0, &about));
    CHECK(about.block_tokens == BLOCK_TOKENS && about.max_blocks == MAX_BLOCKS);
    uint64_t keys[PROMPT_TOKENS][4], key_count = 0;
    int32_t tokens[PROMPT_TOKENS];
    kavern_kv_request request = some_prompt(me, tokens);
    GOOD(kavern_kv_block_keys(cache, &request, (uint8_t *)keys, PROMPT_TOKENS, &key_count));
    CHECK(key_count == request.token_count / BLOCK_TOKENS);
}

/* What an operator does: rare, because each one lets go of much. */
static void tend(worker *me) {
    uint64_t count = 0;
    size_t completed = 0;
    kavern_kv_resize_result resized;
    switch (below(me, 8)) {
        case 0: GOOD(kavern_kv_reset(cache, KAVERN_RESET_NAMESPACE, below(me, NAMESPACES), &count)); break;
        case 1: GOOD(kavern_kv_evict(cache, 0, below(me, 8), &count)); break;
        case 2:
            count = 256 + below(me, MAX_BLOCKS - 255);
            ONE_OF(kavern_kv_resize(cache, 0, count, &resized), KAVERN_PARTIAL, KAVERN_OK);
            CHECK(resized.max_blocks == MAX_BLOCKS);
            break;
        case 3: GOOD(kavern_kv_namespace_limit(cache, 3, 200 + below(me, 100), below(me, 100))); break;
        case 4: GOOD(kavern_kv_validate(cache)); break;
        case 5: GOOD(kavern_manager_validate(manager)); break;
        case 6: ONE_OF(kavern_kv_prefix_unpin(cache, me->name), KAVERN_ERR_NOT_FOUND, KAVERN_OK); break;
        default: GOOD(kavern_kv_poll(cache, 0, NULL, &completed)); break;
    }
}

/* Memory of the general allocator, some of it from a pool, some of it pinned; its bytes are written and read. */
static void use_memory(worker *me) {
    size_t at = below(me, OWN);
    if (me->blocks[at] != 0) {
        volatile uint64_t *word = (volatile uint64_t *)(uintptr_t)me->blocks[at];
        if (on_host) CHECK(*word == ~me->blocks[at]);
        GOOD(kavern_free(manager, me->blocks[at], me->stream));
        me->blocks[at] = 0;
    } else {
        uint64_t bytes = (uint64_t)256 << below(me, 9);
        GOOD(kavern_alloc(manager, bytes, 0, me->stream, 0, &me->blocks[at]));
        /* The allocator may hand out what work of this stream still uses; there is none. */
        if (on_host) *(volatile uint64_t *)(uintptr_t)me->blocks[at] = ~me->blocks[at];
        atomic_fetch_add(&allocations, 1);
    }
    if (below(me, 8) != 0) return;
    kavern_pool_block *pooled = &me->pooled[below(me, 4)];
    if (pooled->address != 0) {
        GOOD(kavern_pool_release(pool, pooled->address, me->stream));
        pooled->address = 0;
    } else {
        kavern_status status = kavern_pool_acquire(pool, 4096, me->stream, pooled);
        CHECK(status == KAVERN_OK || status == KAVERN_ERR_LIMIT_REACHED || status == KAVERN_ERR_OUT_OF_MEMORY);
        if (status != KAVERN_OK) pooled->address = 0;
    }
    if (below(me, 8) != 0) return;
    void *pinned = NULL;
    GOOD(kavern_pinned_alloc(manager, 4096, NULL, &pinned));
    memset(pinned, 7, 4096);
    GOOD(kavern_pinned_free(manager, pinned, me->stream));
}

static void use_streams(worker *me) {
    uint64_t ticket = 0;
    GOOD(kavern_stream_record(manager, me->stream, &ticket));
    int32_t state = 0;
    ONE_OF(kavern_ticket_poll(&ticket, 1, &state), KAVERN_PENDING, KAVERN_OK);
    GOOD(kavern_ticket_wait(ticket, UINT64_MAX));
    if (below(me, 64) == 0) {
        /* What it freed on the stream stays the manager's; what it holds is freed on the next one. */
        GOOD(kavern_stream_destroy(&me->stream));
        GOOD(kavern_stream_create(manager, &me->stream));
    }
}

static void look_at_manager(worker *me) {
    kavern_manager_statistics totals = {.struct_size = sizeof totals};
    GOOD(kavern_manager_stats(manager, &totals));
    CHECK(totals.races == 0 && totals.caches == 1);
    kavern_memory_statistics memory = {.struct_size = sizeof memory};
    GOOD(kavern_memory_stats(manager, &memory));
    if (below(me, 16) == 0) {
        static _Thread_local char text[1 << 20];
        size_t needed = 0;
        ONE_OF(kavern_manager_report_json(manager, text, sizeof text, &needed), KAVERN_ERR_BUFFER_TOO_SMALL, KAVERN_OK);
    }
    if (below(me, 16) == 0) {
        uint64_t bytes = 0;
        GOOD(kavern_manager_trim(manager, &bytes));
    }
}

static void *work(void *number) {
    worker *me = calloc(1, sizeof *me);
    CHECK(me != NULL);
    me->state = ((uint64_t)(uintptr_t)number + 1) * 0x9E3779B97F4A7C15u;
    snprintf(me->name, sizeof me->name, "prefix %d", (int)(uintptr_t)number % 16);
    GOOD(kavern_stream_create(manager, &me->stream));
    while (!atomic_load(&is_over)) {
        uint64_t random = below(me, 256);
        /* Everybody looks up; the leases need an engine, and its lock says whether there is one. */
        if (random < 96) look_up(me);
        if (random % 4 == 0 && pthread_mutex_trylock(&engine_lock) == 0) {
            engine_step(me);
            CHECK(pthread_mutex_unlock(&engine_lock) == 0);
        }
        if (random >= 96 && random < 128) read_events_of(me);
        if (random >= 128 && random < 144) look_at_counts(me);
        if (random >= 144 && random < 146) tend(me);
        if (random >= 160 && random < 224) use_memory(me);
        if (random >= 224 && random < 232) use_streams(me);
        if (random == 255) look_at_manager(me);
    }
    for (int i = 0; i < OWN; ++i)
        if (me->blocks[i] != 0) GOOD(kavern_free(manager, me->blocks[i], me->stream));
    for (int i = 0; i < 4; ++i)
        if (me->pooled[i].address != 0) GOOD(kavern_pool_release(pool, me->pooled[i].address, me->stream));
    ONE_OF(kavern_kv_prefix_unpin(cache, me->name), KAVERN_ERR_NOT_FOUND, KAVERN_OK);
    GOOD(kavern_stream_destroy(&me->stream));
    atomic_fetch_add(&calls, me->tally);
    free(me);
    return NULL;
}

static void make_objects(void) {
    on_host = strncmp(test_device(), "host", 4) == 0;
    manager = open_manager(test_device());
    kavern_kv_group group;
    memset(&group, 0, sizeof group);
    group.struct_size = sizeof group;
    group.kind = KAVERN_GROUP_FULL;
    group.layers = 2;
    group.kv_heads = 2;
    group.head_dim = 8;
    group.dtype = KAVERN_BF16;
    group.block_tokens = BLOCK_TOKENS;
    group.layout = KAVERN_NHD;
    kavern_kv_cache_config config = config_for(&group, 1);
    config.max_sequences = SEQUENCES;
    config.capacity_blocks = BLOCKS;
    config.max_blocks = MAX_BLOCKS;
    config.max_sequence_tokens = PROMPT_TOKENS * 2;
    config.max_batch_tokens = SEQUENCES * PROMPT_TOKENS;
    config.max_leases = LEASES + THREADS;
    config.event_capacity = 4096;
    config.flags = KAVERN_KV_DEVICE_INDEX;
    OK(kavern_kv_cache_create(manager, &config, &cache));
    kavern_pool_config pool_config;
    OK(kavern_pool_config_init(&pool_config, sizeof pool_config));
    pool_config.rounding = KAVERN_POOL_FIXED;
    pool_config.block_bytes = 4096;
    pool_config.growth_blocks = 16;
    pool_config.max_bytes = 1 << 20;
    OK(kavern_pool_create(manager, &pool_config, &pool));
    OK(kavern_stream_create(manager, &engine_stream));
}

int main(int argc, char **argv) {
    const char *wanted = getenv("KAVERN_SOAK_SECONDS");
    long seconds = argc > 1 ? atol(argv[1]) : wanted != NULL ? atol(wanted) : 3;
    pthread_t threads[THREADS];
    make_objects();
    for (uintptr_t i = 0; i < THREADS; ++i) CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    struct timespec time = {.tv_sec = seconds};
    nanosleep(&time, NULL);
    atomic_store(&is_over, 1);
    for (int i = 0; i < THREADS; ++i) CHECK(pthread_join(threads[i], NULL) == 0);
    /* The last step: everybody's leases and sequences end. */
    worker last = {.state = 1}, *me = &last;
    ++step_id;
    OK(kavern_stream_synchronize(manager, engine_stream));
    size_t count = 0;
    OK(kavern_kv_poll(cache, 0, NULL, &count));
    kavern_kv_op_result result;
    for (int i = 0; i < LEASES; ++i) {
        uint64_t lease = atomic_load(&mailbox[i]);
        kavern_kv_op op = make_op(KAVERN_OP_RELEASE, lease);
        if (lease != 0) CHECK(apply(me, &op, 1, &result) == KAVERN_OK);
    }
    while (live_count > 0) end_sequence(me, live_count - 1);
    OK(kavern_kv_step(cache, step_id, 0, NULL, NULL));
    OK(kavern_kv_step_done(cache, step_id, NULL));
    kavern_kv_check_result checked;
    OK(kavern_kv_pattern_result(cache, &checked));
    CHECK(checked.mismatched_blocks == 0);
    OK(kavern_kv_validate(cache));
    kavern_kv_statistics held = {.struct_size = sizeof held};
    OK(kavern_kv_stats(cache, &held));
    CHECK(held.sequences == 0 && held.leases == 0 && held.used_blocks == 0 && held.deferred_blocks == 0);
    CHECK(held.used_tokens == 0 && held.pinned_blocks == 0);
    OK(kavern_manager_validate(manager));
    OK(kavern_kv_cache_destroy(&cache));
    OK(kavern_pool_destroy(&pool));
    OK(kavern_stream_destroy(&engine_stream));
    uint64_t trimmed = 0;
    OK(kavern_pinned_trim(manager, &trimmed));
    OK(kavern_manager_trim(manager, &trimmed));
    kavern_memory_statistics memory = {.struct_size = sizeof memory};
    OK(kavern_memory_stats(manager, &memory));
    CHECK(memory.live_bytes == 0);
    kavern_manager_statistics totals = {.struct_size = sizeof totals};
    OK(kavern_manager_stats(manager, &totals));
    CHECK(totals.own_streams == 0 && totals.caches == 0 && totals.races == 0);
    CHECK(totals.device_bytes == 0 && totals.pinned_bytes == 0);
    OK(kavern_manager_destroy(&manager));
    CHECK(steps > 0 && hits > 0 && patterns > 0 && read_events > 0 && allocations > 0);
    printf("%d threads, %ld s, 0 errors: %llu calls, %llu steps, %llu operations, %llu hits, %llu patterns checked, "
           "%llu events read, %llu gaps, %llu allocations\n",
           THREADS, seconds, (unsigned long long)calls, (unsigned long long)steps, (unsigned long long)operations,
           (unsigned long long)hits, (unsigned long long)patterns, (unsigned long long)read_events,
           (unsigned long long)gaps, (unsigned long long)allocations);
    return 0;
}
