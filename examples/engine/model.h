// A Llama model out of a GGUF file: tokens in, keys and values into a cache, logits out.
// Float32 throughout; weights are turned into floats as they are used. What is computed for a token depends on that
// token and the rows before it alone, bit for bit: not on what else is in the batch, how a prompt is cut into chunks,
// or how many threads work. Does not choose tokens and does not know text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attention.h"
#include "gguf.h"
#include "kv.h"
#include "matrix.h"
#include "workers.h"

namespace engine {

struct ModelShape {
    size_t layers, width, inner, heads, kv_heads, channels, words, context;
    double rope_base, epsilon;
};

class Model {
  public:
    // Refers to the file's memory, so the file has to outlive it.
    Model(const Gguf &file, size_t threads);

    // Runs the tokens of a step, whose slots and sequences `rows` tells. Gives [wanted.size()][words] logits, those of
    // the batch tokens listed in `wanted`.
    void forward(const std::vector<int32_t> &tokens, const StepRows &rows, const std::vector<size_t> &wanted,
                 std::vector<float> &logits);

    const ModelShape &shape() const { return is; }
    KvShape kv_shape(KvType type) const { return {is.layers, is.kv_heads, is.channels, type}; }
    size_t threads() const { return workers.count(); }

  private:
    struct Layer {
        std::vector<float> attention_norm, inner_norm;
        Matrix query, key, value, output, gate, up, down;
    };

    std::vector<float> vector(const std::string &name) const;
    Matrix matrix(const std::string &name, size_t columns, size_t rows) const;
    void normalise(const std::vector<float> &in, const std::vector<float> &weight, size_t tokens,
                   std::vector<float> &out);
    void rotate(std::vector<float> &values, size_t heads, size_t tokens);
    void set_angles(const StepRows &rows, size_t tokens);
    void run_layer(size_t index, const StepRows &rows, size_t tokens);

    const Gguf &file;
    ModelShape is{};
    Workers workers;
    Matrix embedding, last;
    std::vector<float> last_norm;
    std::vector<Layer> layers;
    // Of the step, [tokens][...]; kept from step to step.
    std::vector<float> x, normed, q, k, v, attended, added, gate, up, cosines, sines, rotated;
};

}  // namespace engine
