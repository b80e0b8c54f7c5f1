/* What programs share that play the same operations on two caches, one of them across a pipe. */
#ifndef TWO_CACHES_H
#define TWO_CACHES_H

#include "check.h"

#include <string.h>
#include <unistd.h>

static uint64_t random_state = 88172645463325252u;

static inline uint64_t below(uint64_t count) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % count;
}

static inline void put(int end, const void *bytes, size_t count) {
    for (const char *at = bytes; count > 0;) {
        ssize_t written = write(end, at, count);
        CHECK(written > 0);
        at += written;
        count -= (size_t)written;
    }
}

static inline void get(int end, void *bytes, size_t count) {
    for (char *at = bytes; count > 0;) {
        ssize_t got = read(end, at, count);
        CHECK(got > 0);
        at += got;
        count -= (size_t)got;
    }
}

static inline uint64_t digest(uint64_t sum, const void *bytes, size_t count) {
    const unsigned char *at = bytes;
    for (size_t i = 0; i < count; ++i) sum = (sum ^ at[i]) * 1099511628211u;
    return sum;
}

static inline kavern_kv_op operation(uint32_t kind, uint64_t target, uint64_t tokens) {
    kavern_kv_op op;
    memset(&op, 0, sizeof op);
    op.struct_size = sizeof op;
    op.kind = kind;
    op.target = target;
    op.tokens = tokens;
    op.row = -1;
    return op;
}

/* An operation, the same on every cache but for its target or its lease; answers what the first result said and checks
   the second's. */
static inline kavern_kv_op_result both_with(kavern_kv_cache **caches, uint64_t step, kavern_kv_op op,
                                            const uint64_t *targets, const uint64_t *leases) {
    kavern_kv_op_result results[2];
    for (int i = 0; i < 2; ++i) {
        if (targets != NULL) op.target = targets[i];
        if (leases != NULL) op.lease = leases[i];
        kavern_status status = kavern_kv_step(caches[i], step, 1, &op, &results[i]);
        CHECK(status == KAVERN_OK || status == KAVERN_PARTIAL);
    }
    CHECK(memcmp(&results[0], &results[1], sizeof results[0]) == 0);
    return results[0];
}

static inline kavern_kv_op_result both(
    kavern_kv_cache **caches, uint64_t step, kavern_kv_op op, const uint64_t *targets) {
    return both_with(caches, step, op, targets, NULL);
}

#endif
