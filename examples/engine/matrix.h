// Quantised matrices times rows of floats.
// Weights are turned into floats a few rows at a time, in the cache of the processor, and used for all tokens there.
// The sum for one (row, token) runs over the columns in one order whatever the number of tokens or threads is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gguf.h"
#include "workers.h"

namespace engine {

struct Matrix {
    TensorType type = TensorType::f32;
    size_t rows = 0;
    // A multiple of 32.
    size_t columns = 0;
    const uint8_t *data = nullptr;

    Matrix() = default;
    // A tensor of the shape {columns, rows}.
    explicit Matrix(const Tensor &tensor);
    // Writes one row as floats.
    void row(size_t index, float *out) const;
};

// One product of several over the same input: `out` is [tokens][rows of the matrix].
struct Product {
    const Matrix *matrix;
    float *out;
};

// `in` is [tokens][columns].
void multiply(Workers &workers, const std::vector<Product> &products, const float *in, size_t tokens);

}  // namespace engine
