// Quantised matrices times rows of floats; matrix.h says how.
#include "matrix.h"

#include <algorithm>
#include <array>

#include "lanes.h"

namespace engine {

namespace {

// A tile of weights times a tile of tokens keeps its sums in registers: 16 vectors where there are 32 wide ones.
#if defined(__AVX512F__)
constexpr size_t TILE_ROWS = 4, TILE_TOKENS = 4;
#else
constexpr size_t TILE_ROWS = 2, TILE_TOKENS = 2;
#endif
// Rows that one thread takes at a time.
constexpr size_t STRETCH = 32;

float from_half(const uint8_t *from) {
    uint16_t half;
    std::memcpy(&half, from, sizeof half);
#if defined(__F16C__)
    return _cvtsh_ss(half);
#else
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    uint32_t bits = static_cast<uint32_t>(half & 0x7fff) << 13;
    if ((half & 0x7c00) == 0x7c00) {
        bits += (255u - 31u) << 23;
    } else {
        bits += (127u - 15u) << 23;
    }
    float value;
    if ((half & 0x7c00) == 0) {  // zero and what is smaller than the smallest normal number
        value = static_cast<float>(half & 0x3ff) * 5.9604644775390625e-8f;
        std::memcpy(&bits, &value, sizeof bits);
    }
    bits |= sign;
    std::memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

Floats widen(Bytes bytes) { return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Floats); }

// Blocks of 32: scale, minimum, 16 bytes with element i in the lower half of byte i and element i + 16 in the upper.
void row_q4_1(const uint8_t *block, size_t columns, float *out) {
    for (size_t column = 0; column < columns; column += 32, block += 20) {
        const Floats scale = all(from_half(block)), minimum = all(from_half(block + 2));
        Bytes both;
        std::memcpy(&both, block + 4, sizeof both);
        store(out + column, multiply_add(widen(both & 15), scale, minimum));
        store(out + column + 16, multiply_add(widen(both >> 4), scale, minimum));
    }
}

// Blocks of 32: scale, 32 signed bytes.
void row_q8_0(const uint8_t *block, size_t columns, float *out) {
    for (size_t column = 0; column < columns; column += 32, block += 34) {
        const Floats scale = all(from_half(block));
        for (size_t half = 0; half < 32; half += 16) {
            SignedBytes bytes;
            std::memcpy(&bytes, block + 2 + half, sizeof bytes);
            const Ints wide = __builtin_convertvector(bytes, Ints);
            store(out + column + half, __builtin_convertvector(wide, Floats) * scale);
        }
    }
}

template <size_t ROWS, size_t TOKENS>
void tile(const float *weights, const float *in, size_t columns, float *out, size_t out_stride) {
    std::array<std::array<Floats, TOKENS>, ROWS> sums{};
    for (size_t column = 0; column < columns; column += LANES) {
        std::array<Floats, TOKENS> values;
        for (size_t t = 0; t < TOKENS; t++) values[t] = load(in + t * columns + column);
        for (size_t r = 0; r < ROWS; r++) {
            const Floats weight = load(weights + r * columns + column);
            for (size_t t = 0; t < TOKENS; t++) sums[r][t] = multiply_add(weight, values[t], sums[r][t]);
        }
    }
    for (size_t r = 0; r < ROWS; r++) {
        for (size_t t = 0; t < TOKENS; t++) out[t * out_stride + r] = sum(sums[r][t]);
    }
}

template <size_t ROWS>
void tiles(const float *weights, const float *in, size_t tokens, size_t columns, float *out, size_t out_stride) {
    size_t token = 0;
    for (; token + TILE_TOKENS <= tokens; token += TILE_TOKENS) {
        tile<ROWS, TILE_TOKENS>(weights, in + token * columns, columns, out + token * out_stride, out_stride);
    }
    for (; token < tokens; token++) {
        tile<ROWS, 1>(weights, in + token * columns, columns, out + token * out_stride, out_stride);
    }
}

void stretch(const Product &product, size_t first, size_t end, const float *in, size_t tokens) {
    const Matrix &matrix = *product.matrix;
    static thread_local std::vector<float> weights;
    weights.resize(TILE_ROWS * matrix.columns);
    for (size_t row = first; row < end; row += TILE_ROWS) {
        const size_t count = std::min(TILE_ROWS, end - row);
        for (size_t r = 0; r < count; r++) matrix.row(row + r, weights.data() + r * matrix.columns);
        if (count == TILE_ROWS) {
            tiles<TILE_ROWS>(weights.data(), in, tokens, matrix.columns, product.out + row, matrix.rows);
            continue;
        }
        for (size_t r = 0; r < count; r++) {
            const float *one = weights.data() + r * matrix.columns;
            tiles<1>(one, in, tokens, matrix.columns, product.out + row + r, matrix.rows);
        }
    }
}

}  // namespace

Matrix::Matrix(const Tensor &tensor)
    : type(tensor.type), rows(tensor.shape.at(1)), columns(tensor.shape.at(0)), data(tensor.data) {}

void Matrix::row(size_t index, float *out) const {
    const uint8_t *from = data + index * tensor_bytes(type, columns);
    switch (type) {
        case TensorType::f32: std::memcpy(out, from, columns * sizeof(float)); break;
        case TensorType::q4_1: row_q4_1(from, columns, out); break;
        case TensorType::q8_0: row_q8_0(from, columns, out); break;
    }
}

void multiply(Workers &workers, const std::vector<Product> &products, const float *in, size_t tokens) {
    if (tokens == 0) return;
    struct Stretch {
        const Product *product;
        size_t first;
    };
    std::vector<Stretch> stretches;
    for (const Product &product : products) {
        for (size_t row = 0; row < product.matrix->rows; row += STRETCH) stretches.push_back({&product, row});
    }
    workers.each(stretches.size(), [&](size_t index) {
        const Stretch &one = stretches[index];
        stretch(*one.product, one.first, std::min(one.first + STRETCH, one.product->matrix->rows), in, tokens);
    });
}

}  // namespace engine
