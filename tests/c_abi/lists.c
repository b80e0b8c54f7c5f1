/* A list of operations does what the same operations do one by one: two caches get the same random traffic, one in
   lists of up to 60, the other in lists of one. Only what depends on a refused operation of its list answers
   KAVERN_ERR_DEPENDENCY, also where that one was refused before it reached the cache.
   usage: lists [ROUNDS [SEED]] */
#define _POSIX_C_SOURCE 200809L
#include "objects.h"
#include "two_caches.h"

enum { SEQUENCES = 24, BLOCKS = 160, LONGEST = 250, LIST = 60, KINDS = 4 };

typedef struct {
    uint64_t id, length, committed;
    int32_t tokens[LONGEST + 8];
    bool is_live;
} sequence;

typedef struct {
    kavern_kv_op ops[LIST];
    int whose[LIST];
    bool is_malformed[LIST];
    int32_t ids[LIST][LONGEST];
    int count;
} list;

/* Few different tokens, so that prompts and answers are found again. */
static int32_t any_token(void) { return below(6) == 0 ? (int32_t)below(3) : 0; }

/* kind 0: one group; 1: two with blocks of other sizes; 2: a window; 3: a state. */
static kavern_kv_cache *make(kavern_manager *manager, uint32_t hash, int kind) {
    kavern_kv_group groups[2];
    memset(groups, 0, sizeof groups);
    for (int at = 0; at < 2; ++at) {
        groups[at].struct_size = sizeof groups[at];
        groups[at].kind = KAVERN_GROUP_OPAQUE;
        groups[at].block_tokens = at == 1 && kind == 1 ? 8 : 4;
        groups[at].block_bytes = 64;
    }
    if (kind == 2) {
        groups[1] = (kavern_kv_group){.struct_size = sizeof groups[1], .kind = KAVERN_GROUP_SLIDING, .layers = 1,
            .kv_heads = 1, .head_dim = 8, .dtype = KAVERN_F16, .block_tokens = 4, .layout = KAVERN_NHD,
            .window_tokens = 12};
    }
    if (kind == 3) groups[1].kind = KAVERN_GROUP_STATE;
    static const uint8_t secret[32] = {9};
    kavern_kv_cache_config config = config_for(groups, kind == 0 ? 1 : 2);
    config.max_sequences = SEQUENCES;
    config.capacity_blocks = BLOCKS;
    config.max_batch_tokens = 512;
    config.max_sequence_tokens = LONGEST;
    config.hash_secret = secret;
    config.hash = hash;
    config.flags |= KAVERN_KV_METADATA_ONLY;
    return create_cache(manager, &config);
}

static void admit(kavern_kv_cache *const caches[2], uint64_t step, sequence *new) {
    uint64_t length = 1 + below(60), leases[2];
    for (uint64_t at = 0; at < length; ++at) new->tokens[at] = any_token();
    kavern_kv_request request = {.struct_size = sizeof request, .tokens = new->tokens, .token_count = length,
        .namespace_id = 1 + below(2), .flags = KAVERN_REQUEST_KEEP_ONE_TOKEN};
    kavern_kv_match_result found[2];
    kavern_kv_op_result result[2];
    for (int side = 0; side < 2; ++side) {
        OK(kavern_kv_match(caches[side], 1, &request, &found[side]));
        leases[side] = found[side].lease;
        kavern_kv_op what = operation(KAVERN_OP_ADMIT, leases[side], length - found[side].hit_tokens);
        if (kavern_kv_step(caches[side], step, 1, &what, &result[side]) != KAVERN_OK) {
            what = operation(KAVERN_OP_RELEASE, leases[side], 0);
            kavern_kv_op_result released;
            OK(kavern_kv_step(caches[side], step, 1, &what, &released));
        }
    }
    CHECK(memcmp(&found[0], &found[1], sizeof found[0]) == 0);
    CHECK(memcmp(&result[0], &result[1], sizeof result[0]) == 0);
    new->is_live = result[0].status == KAVERN_OK;
    new->id = result[0].sequence;
    new->length = length;
    new->committed = found[0].hit_tokens;
}

/* One more operation for a sequence, as its list would leave it. Some are wrong: too many tokens, a field that is not
   used, no ids. */
static void list_one(list *ops, sequence *planned, int at, bool may_roll_back) {
    uint64_t open = planned->length - planned->committed, count;
    kavern_kv_op *what = &ops->ops[ops->count];
    bool *is_malformed = &ops->is_malformed[ops->count];
    *is_malformed = false;
    switch (below(12)) {
    case 0: case 1: case 2: case 3:
        if (open == 0) return;
        count = below(3) == 0 ? 1 + below(open) : open;
        *what = operation(KAVERN_OP_COMMIT, planned->id, count);
        memcpy(ops->ids[ops->count], planned->tokens + planned->committed, 4 * count);
        what->token_ids = ops->ids[ops->count];
        planned->committed += count;
        break;
    case 4: case 5: case 6: case 7: case 8:
        count = below(4);
        if (planned->length + count + 5 > LONGEST) return;
        *what = operation(KAVERN_OP_APPEND, planned->id, count);
        what->lookahead = below(4) == 0 ? (uint32_t)below(5) : 0;
        for (uint64_t i = 0; i < count; ++i) planned->tokens[planned->length + i] = any_token();
        planned->length += count;
        break;
    case 9:
        if (!may_roll_back) return;
        count = below(planned->length < 6 ? planned->length : 6);
        *what = operation(KAVERN_OP_ROLLBACK, planned->id, planned->length - count);
        planned->length -= count;
        if (planned->committed > planned->length) planned->committed = planned->length;
        break;
    case 10:
        *what = operation(KAVERN_OP_FREE, planned->id, 0);
        planned->is_live = false;
        break;
    default:
        if (below(3) != 0) return;
        *what = operation(below(2) == 0 ? KAVERN_OP_APPEND : KAVERN_OP_COMMIT, planned->id, 1);
        *is_malformed = true;
        if (what->kind == KAVERN_OP_COMMIT) {
            what->token_ids = below(2) == 0 ? NULL : ops->ids[ops->count];
            memset(ops->ids[ops->count], 0, sizeof ops->ids[0]);
            what->offset = 1;
        } else if (below(2) == 0) {
            what->reserved = 1;
        } else {
            what->tokens = LONGEST + 1;
            *is_malformed = false;
        }
    }
    ops->whose[ops->count++] = at;
}

static uint64_t refused, dependent;

/* What became of one operation: a sequence is what its operations that were done have made of it. */
static void take(sequence *s, const kavern_kv_op *what, int32_t status) {
    if (status != KAVERN_OK) return;
    if (what->kind == KAVERN_OP_COMMIT) s->committed += what->tokens;
    if (what->kind == KAVERN_OP_APPEND) s->length += what->tokens;
    if (what->kind == KAVERN_OP_FREE) s->is_live = false;
    if (what->kind == KAVERN_OP_ROLLBACK) {
        s->length = what->tokens;
        if (s->committed > s->length) s->committed = s->length;
    }
}

static void play(kavern_kv_cache *const caches[2], uint64_t step, const list *ops, sequence sequences[SEQUENCES]) {
    static kavern_kv_op_result results[LIST];
    bool is_refused[SEQUENCES] = {false}, are_all = true;
    kavern_status status = kavern_kv_step(caches[0], step, (size_t)ops->count, ops->ops, results);
    for (int at = 0; at < ops->count; ++at) {
        int whose = ops->whose[at];
        kavern_kv_op_result alone;
        if (is_refused[whose] && ops->ops[at].kind != KAVERN_OP_FREE) {
            const int is_right = ops->is_malformed[at] ? results[at].status != KAVERN_OK
                                                       : results[at].status == KAVERN_ERR_DEPENDENCY;
            CHECK(is_right);
            ++dependent;
        } else {
            kavern_kv_step(caches[1], step, 1, &ops->ops[at], &alone);
            CHECK(memcmp(&alone, &results[at], sizeof alone) == 0);
            is_refused[whose] = results[at].status != KAVERN_OK;
            take(&sequences[whose], &ops->ops[at], results[at].status);
        }
        refused += results[at].status != KAVERN_OK;
        are_all = are_all && results[at].status == KAVERN_OK;
    }
    CHECK(status == (are_all ? KAVERN_OK : KAVERN_PARTIAL));
}

static void compare_tables(kavern_kv_cache *const caches[2], uint64_t step) {
    kavern_kv_group_tables groups[2][2];
    kavern_kv_step_tables tables[2];
    for (int side = 0; side < 2; ++side) {
        tables[side] =
            (kavern_kv_step_tables){.struct_size = sizeof tables[0], .groups = groups[side], .group_capacity = 2};
        OK(kavern_kv_tables(caches[side], step, KAVERN_STREAM_DEFAULT, &tables[side]));
    }
    CHECK(tables[0].token_count == tables[1].token_count && tables[0].copy_count == tables[1].copy_count);
    for (uint32_t at = 0; at < tables[0].group_count; ++at) {
        size_t cells = SEQUENCES * groups[0][at].row_cells;
        CHECK(memcmp(groups[0][at].block_table_host, groups[1][at].block_table_host, 4 * cells) == 0);
    }
}

static void run(kavern_manager *manager, uint32_t hash, int kind, int rounds) {
    kavern_kv_cache *caches[2] = {make(manager, hash, kind), make(manager, hash, kind)};
    static sequence sequences[SEQUENCES], planned[SEQUENCES];
    static list ops;
    memset(sequences, 0, sizeof sequences);
    for (int round = 1; round <= rounds; ++round) {
        uint64_t step = (uint64_t)round;
        for (int at = 0; at < SEQUENCES; ++at) {
            if (!sequences[at].is_live && below(6) == 0) admit(caches, step, &sequences[at]);
        }
        memcpy(planned, sequences, sizeof planned);
        ops.count = 0;
        for (int tries = 0; tries < LIST; ++tries) {
            int at = (int)below(SEQUENCES);
            /* A state cannot go back to just any token. */
            if (planned[at].is_live) list_one(&ops, &planned[at], at, kind != 3);
        }
        for (int at = 0; at < SEQUENCES; ++at) {
            memcpy(sequences[at].tokens, planned[at].tokens, sizeof planned[at].tokens);
        }
        play(caches, step, &ops, sequences);
        if (round % 3 == 0) compare_tables(caches, step);
        for (int side = 0; side < 2; ++side) {
            OK(kavern_kv_step_done(caches[side], step, NULL));
            if (round % 16 == 0) OK(kavern_kv_validate(caches[side]));
        }
    }
    OK(kavern_kv_cache_destroy(&caches[0]));
    OK(kavern_kv_cache_destroy(&caches[1]));
}

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 1000;
    random_state += (argc > 2 ? strtoull(argv[2], NULL, 10) : 0);
    kavern_manager *manager = open_manager("host");
    for (int kind = 0; kind < KINDS; ++kind) {
        run(manager, KAVERN_HASH_BLAKE3, kind, rounds);
        run(manager, KAVERN_HASH_XXH3, kind, rounds);
    }
    CHECK(refused > 0 && dependent > 0);
    OK(kavern_manager_destroy(&manager));
    printf("lists: %llu operations refused, %llu for what they depend on\n", (unsigned long long)refused,
        (unsigned long long)dependent);
    return 0;
}
