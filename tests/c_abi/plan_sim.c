/* Size classes of a scheduler and its worker on simulated streams, several steps in flight on two of them, under a load
 * that goes from small blocks to large ones and back; then another scheduler takes the place of the first, while the
 * worker still runs steps of that one.
 *
 * The worker has memory for what the classes begin with, and for what rounding to slabs may add: memory that a class
 * gets before another one has given it does not fit. The work of every step is declared block by block: it reads what a
 * sequence has and writes what is new. Memory that comes or goes, or blocks that move, without an order to that work is
 * a race. */
#include "check.h"
#include "two_caches.h"

enum {
    CLASSES = 3,
    SEQUENCES = 32,
    LONGEST = 2048,
    KV_BYTES = 128,
    TOKEN_BYTES = 2 * KV_BYTES,
    PAGE = 4096,
    CLASS_PAGES = 512,
    /* The pages of three classes are as many as at first, and whole slabs then: the parts of slabs add up to two. */
    SLACK = 2 * 32 * PAGE,
    IN_FLIGHT = 3,
    PHASE_STEPS = 200,
    RANGES = LONGEST / 4 + 1
};

static const uint32_t block_tokens[CLASSES] = {4, 16, 64};

typedef struct {
    uint64_t sequence, length, written;
    uint32_t group;
    int32_t row;
} running;

static kavern_kv_cache *make(kavern_manager *manager, uint32_t flags) {
    kavern_kv_group groups[CLASSES];
    memset(groups, 0, sizeof groups);
    for (uint32_t i = 0; i < CLASSES; ++i) {
        groups[i].struct_size = sizeof groups[i];
        groups[i].kind = KAVERN_GROUP_OPAQUE;
        groups[i].block_bytes = TOKEN_BYTES * block_tokens[i];
        groups[i].block_tokens = block_tokens[i];
        groups[i].size_class = i + 1;
    }
    kavern_kv_cache_config config = config_for(groups, CLASSES);
    config.capacity_bytes = (uint64_t)CLASSES * CLASS_PAGES * PAGE;
    config.max_blocks = (uint64_t)CLASSES * CLASS_PAGES * PAGE / (TOKEN_BYTES * block_tokens[0]);
    config.max_sequences = SEQUENCES;
    config.max_sequence_tokens = LONGEST;
    config.max_batch_tokens = 2 * LONGEST;
    config.steps_in_flight = IN_FLIGHT + 1;
    config.flags = flags | KAVERN_KV_ADAPTIVE_BLOCKS;
    return create_cache(manager, &config);
}

static kavern_manager *limited(const char *device, uint64_t bytes) {
    kavern_manager *manager = NULL;
    kavern_manager_config config;
    OK(kavern_manager_config_init(&config, sizeof config));
    config.device = device;
    config.device_limit_bytes = bytes;
    OK(kavern_manager_create(&config, &manager));
    return manager;
}

static uint64_t held_at_first(const char *device) {
    kavern_manager *manager = open_manager(device);
    kavern_kv_cache *worker = make(manager, KAVERN_KV_WORKER);
    kavern_manager_statistics found = {.struct_size = sizeof found};
    OK(kavern_manager_stats(manager, &found));
    OK(kavern_kv_cache_destroy(&worker));
    OK(kavern_manager_destroy(&manager));
    return found.device_held_bytes;
}

static kavern_status one(kavern_kv_cache *cache, uint64_t step, kavern_kv_op op, kavern_kv_op_result *result) {
    kavern_status status = kavern_kv_step(cache, step, 1, &op, result);
    return status == KAVERN_PARTIAL ? result->status : status;
}

/* Some end, everybody who runs gets a token, and one more begins if there is room; answers whether there was. */
static int operations(kavern_kv_cache *cache, uint64_t step, uint32_t size_class, running *live, int *count) {
    static int32_t tokens[LONGEST];
    kavern_kv_op_result result;
    OK(kavern_kv_step(cache, step, 0, NULL, NULL));
    for (int at = *count - 1; at >= 0; --at) {
        if (below(16) == 0) {
            OK(one(cache, step, operation(KAVERN_OP_FREE, live[at].sequence, 0), &result));
            live[at] = live[--*count];
        } else if (one(cache, step, operation(KAVERN_OP_APPEND, live[at].sequence, 1), &result) == KAVERN_OK) {
            live[at].length += 1;
        }
    }
    if (*count == SEQUENCES - 2) return 1;
    uint64_t length = size_class == 1 ? 100 + below(300) : 500 + below(1000), kind = below(40);
    for (uint64_t i = 0; i < length; ++i) tokens[i] = (int32_t)(kind * 10000 + i);
    kavern_kv_request request;
    memset(&request, 0, sizeof request);
    request.struct_size = sizeof request;
    request.namespace_id = 1;
    request.tokens = tokens;
    request.token_count = length;
    request.size_class = size_class;
    kavern_kv_match_result found;
    OK(kavern_kv_match(cache, 1, &request, &found));
    uint64_t rest = length - found.hit_tokens;
    if (one(cache, step, operation(KAVERN_OP_ADMIT, found.lease, rest), &result) != KAVERN_OK) {
        CHECK(result.status == KAVERN_ERR_OUT_OF_BLOCKS);
        OK(one(cache, step, operation(KAVERN_OP_RELEASE, found.lease, 0), &result));
        if (*count > 0) {
            OK(one(cache, step, operation(KAVERN_OP_FREE, live[0].sequence, 0), &result));
            live[0] = live[--*count];
        }
        return 0;
    }
    live[(*count)++] = (running){result.sequence, length, found.hit_tokens, result.group, result.row};
    if (rest > 0) {
        kavern_kv_op commit = operation(KAVERN_OP_COMMIT, result.sequence, rest);
        commit.token_ids = &tokens[found.hit_tokens];
        OK(one(cache, step, commit, &result));
    }
    return 1;
}

/* A kernel for each sequence with new tokens: reads those before them, writes them. */
static void launch(kavern_manager *manager, kavern_stream *stream, kavern_kv_cache *worker,
                   const kavern_kv_group_tables *tables, running *live, int count) {
    for (int at = 0; at < count; ++at) {
        running *of = &live[at];
        if (of->length == of->written) continue;
        kavern_kv_description found = {.struct_size = sizeof found};
        OK(kavern_kv_describe(worker, of->group, &found));
        const int32_t *cells = tables[of->group].block_table_host + (uint64_t)of->row * tables[of->group].row_cells;
        static kavern_sim_range reads[RANGES], writes[RANGES];
        size_t read_count = 0, write_count = 0;
        uint64_t each = block_tokens[of->group];
        for (uint64_t first = 0; first < of->length; first += each) {
            int32_t block = cells[first / each];
            CHECK(block >= 0 && (uint64_t)block < found.block_count);
            uint64_t base = found.base_address + (uint64_t)block * found.block_stride;
            uint64_t old = of->written < first ? 0 : of->written - first, end = of->length - first;
            if (old > each) old = each;
            if (end > each) end = each;
            if (old > 0) reads[read_count++] = (kavern_sim_range){base, old * TOKEN_BYTES};
            if (end > old)
                writes[write_count++] = (kavern_sim_range){base + old * TOKEN_BYTES, (end - old) * TOKEN_BYTES};
        }
        OK(kavern_sim_launch(manager, stream, reads, read_count, writes, write_count));
        of->written = of->length;
    }
}

/* A scheduler, its worker, and how far they are. */
typedef struct {
    kavern_manager *thinking, *manager;
    kavern_kv_cache *scheduler, *worker;
    kavern_stream *streams[2];
    uint64_t step, done;
    running live[SEQUENCES];
    int count, refused;
} pair;

static void wait_for_worker(pair *of) {
    for (int k = 0; k < 2; ++k) OK(kavern_stream_synchronize(of->manager, of->streams[k]));
}

/* With the flags of its plan. A scheduler's first plan may tell sizes whose memory comes back only when the steps of
 * another one are over; it is applied again then. */
static void run_step(pair *of, uint32_t size_class, uint32_t plan_flags) {
    uint64_t step = ++of->step, needed = 0;
    kavern_stream *stream = of->streams[below(5) == 0];
    of->refused += !operations(of->scheduler, step, size_class, of->live, &of->count);
    EXPECT(KAVERN_ERR_BUFFER_TOO_SMALL, kavern_kv_plan_export(of->scheduler, step, plan_flags, NULL, 0, &needed));
    unsigned char *message = malloc(needed);
    CHECK(message != NULL);
    OK(kavern_kv_plan_export(of->scheduler, step, plan_flags, message, needed, &needed));
    kavern_kv_group_tables groups[CLASSES];
    kavern_kv_step_tables tables = {.struct_size = sizeof tables, .groups = groups, .group_capacity = CLASSES};
    kavern_status applied = kavern_kv_plan_apply(of->worker, stream, message, needed, &tables);
    if (applied == KAVERN_ERR_OUT_OF_MEMORY && plan_flags == KAVERN_PLAN_FULL) {
        wait_for_worker(of);
        applied = kavern_kv_plan_apply(of->worker, stream, message, needed, &tables);
    }
    OK(applied);
    free(message);
    launch(of->manager, stream, of->worker, groups, of->live, of->count);
    OK(kavern_kv_step_done(of->worker, step, stream));
    if (step - of->done >= IN_FLIGHT) {
        wait_for_worker(of);
        of->done += 1 + below(step - of->done);
        OK(kavern_kv_step_done(of->scheduler, of->done, NULL));
    }
    OK(kavern_kv_poll(of->scheduler, 0, NULL, &(size_t){0}));
    if (step % 50 != 0) return;
    OK(kavern_kv_validate(of->scheduler));
    OK(kavern_kv_validate(of->worker));
}

/* Begins anew with a scheduler that knows nothing, while steps of the one before run: every sequence is given up. */
static void replace_scheduler(pair *of) {
    OK(kavern_kv_cache_destroy(&of->scheduler));
    of->scheduler = make(of->thinking, KAVERN_KV_METADATA_ONLY);
    of->count = 0;
    of->done = of->step;
}

static uint64_t small_blocks(const pair *of) {
    kavern_kv_description small = {.struct_size = sizeof small};
    OK(kavern_kv_describe(of->scheduler, 0, &small));
    return small.block_count;
}

static void play(unsigned seed) {
    char device[64];
    snprintf(device, sizeof device, "sim?seed=%u&page_bytes=4096", seed);
    pair of = {.thinking = open_manager("host")};
    of.scheduler = make(of.thinking, KAVERN_KV_METADATA_ONLY);
    of.manager = limited(device, held_at_first(device) + SLACK);
    of.worker = make(of.manager, KAVERN_KV_WORKER);
    for (int i = 0; i < 2; ++i) OK(kavern_stream_create(of.manager, &of.streams[i]));
    static const uint32_t phases[] = {1, 3, 1};
    uint64_t fewest = UINT64_MAX, most = 0;
    for (size_t phase = 0; phase < sizeof phases / sizeof *phases; ++phase) {
        for (int i = 0; i < PHASE_STEPS; ++i) run_step(&of, phases[phase], 0);
        uint64_t blocks = small_blocks(&of);
        if (blocks < fewest) fewest = blocks;
        if (blocks > most) most = blocks;
    }
    CHECK(of.refused > 0 && fewest < most * 4 / 5);
    /* The last steps read blocks above those that the next scheduler begins with. */
    replace_scheduler(&of);
    CHECK(small_blocks(&of) < most);
    run_step(&of, 3, KAVERN_PLAN_FULL);
    for (int i = 0; i < PHASE_STEPS / 4; ++i) run_step(&of, 3, 0);
    wait_for_worker(&of);
    kavern_manager_statistics found = {.struct_size = sizeof found};
    OK(kavern_manager_stats(of.manager, &found));
    CHECK(found.races == 0);
    OK(kavern_kv_cache_destroy(&of.worker));
    for (int k = 0; k < 2; ++k) OK(kavern_stream_destroy(&of.streams[k]));
    OK(kavern_manager_destroy(&of.manager));
    OK(kavern_kv_cache_destroy(&of.scheduler));
    OK(kavern_manager_destroy(&of.thinking));
}

int main(int count, char **arguments) {
    unsigned seeds = count > 1 ? (unsigned)atoi(arguments[1]) : 3;
    for (unsigned seed = 1; seed <= seeds; ++seed) play(seed);
    return 0;
}
