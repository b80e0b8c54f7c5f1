// Attention of the tokens of a step over the rows of their sequences.
// Written once over "where does row t lie" (kv.h), so a paged and a contiguous cache give the same sums in the same
// order. A token sees itself and what stands before it; softmax in float32 over all of it, no blocks of its own.
#pragma once

#include "kv.h"
#include "workers.h"

namespace engine {

struct AttentionShape {
    size_t heads, kv_heads, channels;
};

// `queries` and `out` are [tokens][heads][channels]. Keys and values of the step's tokens have been written.
void attend(Workers &workers, const AttentionShape &shape, const StepRows &rows, size_t layer, const float *queries,
            float *out);

// Writes keys and values [tokens][kv_heads][channels] of the step's tokens into their slots, rounding to the type.
void write_rows(const AttentionShape &shape, const StepRows &rows, size_t layer, const float *keys,
                const float *values);

}  // namespace engine
