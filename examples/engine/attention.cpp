// Attention over rows of keys and values; attention.h says how.
#include "attention.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "failure.h"
#include "lanes.h"

namespace engine {

namespace {

// Tokens of one sequence that a thread takes at a time.
constexpr size_t STRETCH = 16;

struct Place {
    const StepRows *rows;
    const SequenceRows *sequence;
    // Within a block: layer and head.
    size_t offset;
};

// Calls `visit(t, key, value)` for each row below `length`, in order.
template <typename T, typename Visit>
void each_row(const Place &place, size_t length, bool is_value, Visit visit) {
    const StepRows &rows = *place.rows;
    const size_t offset = place.offset + (is_value ? rows.strides.value : 0);
    for (size_t block = 0, t = 0; t < length; block++) {
        const std::byte *row = place.sequence->blocks[block] + offset;
        for (const size_t end = std::min(length, t + rows.block_tokens); t < end; t++, row += rows.strides.token) {
            visit(t, reinterpret_cast<const T *>(row));
        }
    }
}

// One head of one token: VECTORS x 16 channels.
template <typename T, size_t VECTORS>
void attend_one(const Place &place, size_t length, const float *query, float *scores, float *out) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(VECTORS * LANES));
    std::array<Floats, VECTORS> wanted;
    for (size_t v = 0; v < VECTORS; v++) wanted[v] = load(query + v * LANES) * all(scale);

    float highest = -INFINITY;
    each_row<T>(place, length, false, [&](size_t t, const T *key) {
        Floats dot = wanted[0] * load(key);
        for (size_t v = 1; v < VECTORS; v++) dot = multiply_add(wanted[v], load(key + v * LANES), dot);
        scores[t] = sum(dot);
        highest = std::max(highest, scores[t]);
    });

    // The lanes past the end count as minus infinity, which gives 0.
    const size_t padded = (length + LANES - 1) / LANES * LANES;
    std::fill(scores + length, scores + padded, -INFINITY);
    Floats total{};
    for (size_t t = 0; t < padded; t += LANES) {
        Floats weights = exponential(load(scores + t) - all(highest));
        for (size_t lane = length - t; lane < LANES; lane++) weights[lane] = 0;
        store(scores + t, weights);
        total += weights;
    }

    std::array<Floats, VECTORS> sums{};
    each_row<T>(place, length, true, [&](size_t t, const T *value) {
        const Floats weight = all(scores[t]);
        for (size_t v = 0; v < VECTORS; v++) sums[v] = multiply_add(weight, load(value + v * LANES), sums[v]);
    });
    const Floats share = all(1.0f / sum(total));
    for (size_t v = 0; v < VECTORS; v++) store(out + v * LANES, sums[v] * share);
}

using AttendOne = void (*)(const Place &, size_t, const float *, float *, float *);

template <typename T>
AttendOne one_head(size_t channels) {
    switch (channels) {
        case 16: return attend_one<T, 1>;
        case 32: return attend_one<T, 2>;
        case 64: return attend_one<T, 4>;
        case 128: return attend_one<T, 8>;
        default: unusable("heads of " + std::to_string(channels) + " channels; 16, 32, 64 and 128 are served");
    }
}

template <typename T>
void write_row(const float *from, size_t channels, std::byte *to);

template <>
void write_row<float>(const float *from, size_t channels, std::byte *to) {
    std::memcpy(to, from, channels * sizeof(float));
}

template <>
void write_row<Bf16>(const float *from, size_t channels, std::byte *to) {
    auto *rounded = reinterpret_cast<Bf16 *>(to);
    std::transform(from, from + channels, rounded, to_bf16);
}

template <typename T>
void write_all(const AttentionShape &shape, const StepRows &rows, size_t layer, const float *keys,
               const float *values) {
    for (size_t token = 0; token < rows.slots.size(); token++) {
        for (size_t head = 0; head < shape.kv_heads; head++) {
            std::byte *to = rows.slots[token] + layer * rows.strides.layer + head * rows.strides.head;
            const size_t from = (token * shape.kv_heads + head) * shape.channels;
            write_row<T>(keys + from, shape.channels, to);
            write_row<T>(values + from, shape.channels, to + rows.strides.value);
        }
    }
}

}  // namespace

void attend(Workers &workers, const AttentionShape &shape, const StepRows &rows, size_t layer, const float *queries,
            float *out) {
    const AttendOne one = rows.type == KvType::f32 ? one_head<float>(shape.channels) : one_head<Bf16>(shape.channels);
    struct Stretch {
        const SequenceRows *sequence;
        size_t head, from, end;
    };
    std::vector<Stretch> stretches;
    for (const SequenceRows &sequence : rows.sequences) {
        for (size_t from = 0; from < sequence.count; from += STRETCH) {
            const size_t end = std::min(sequence.count, from + STRETCH);
            for (size_t head = 0; head < shape.heads; head++) stretches.push_back({&sequence, head, from, end});
        }
    }
    workers.each(stretches.size(), [&](size_t index) {
        const Stretch &stretch = stretches[index];
        const SequenceRows &sequence = *stretch.sequence;
        const size_t kv_head = stretch.head / (shape.heads / shape.kv_heads);
        const Place place{&rows, &sequence, layer * rows.strides.layer + kv_head * rows.strides.head};
        static thread_local std::vector<float> scores;
        scores.resize(sequence.length + LANES);
        for (size_t i = stretch.from; i < stretch.end; i++) {
            const size_t at = ((sequence.first + i) * shape.heads + stretch.head) * shape.channels;
            const size_t length = sequence.length - sequence.count + i + 1;
            one(place, length, queries + at, scores.data(), out + at);
        }
    });
}

void write_rows(const AttentionShape &shape, const StepRows &rows, size_t layer, const float *keys,
                const float *values) {
    if (rows.type == KvType::f32) {
        write_all<float>(shape, rows, layer, keys, values);
    } else {
        write_all<Bf16>(shape, rows, layer, keys, values);
    }
}

}  // namespace engine
