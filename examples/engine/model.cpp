// A Llama model's forward pass; model.h says what it promises.
#include "model.h"

#include <algorithm>
#include <cmath>

#include "failure.h"
#include "lanes.h"

namespace engine {

namespace {

// Tokens that a thread takes at a time where the work of each is small.
constexpr size_t STRETCH = 8;

ModelShape read_shape(const Gguf &file) {
    const std::string architecture = file.text("general.architecture");
    if (architecture != "llama") {
        unusable(file.path() + ": the architecture is " + architecture + "; llama is served");
    }
    ModelShape shape{};
    shape.layers = file.number("llama.block_count");
    shape.width = file.number("llama.embedding_length");
    shape.inner = file.number("llama.feed_forward_length");
    shape.heads = file.number("llama.attention.head_count");
    shape.kv_heads = file.number("llama.attention.head_count_kv");
    shape.context = file.number("llama.context_length");
    shape.words = file.texts("tokenizer.ggml.tokens").size();
    shape.rope_base = file.real("llama.rope.freq_base");
    shape.epsilon = file.real("llama.attention.layer_norm_rms_epsilon");
    const auto within = [&](size_t number, size_t most, const char *name) {
        if (number < 1 || number > most) unusable(file.path() + ": " + name + " is " + std::to_string(number));
    };
    within(shape.layers, 1024, "the number of layers");
    within(shape.heads, 1024, "the number of heads");
    within(shape.kv_heads, shape.heads, "the number of key heads");
    within(shape.width, 1 << 20, "the width");
    within(shape.inner, 1 << 20, "the inner width");
    within(shape.context, 1 << 24, "the context");
    within(shape.words, 1 << 24, "the number of tokens");
    shape.channels = shape.width / shape.heads;
    const size_t width = shape.channels;
    if (shape.width % shape.heads != 0 || shape.heads % shape.kv_heads != 0 ||
        (width != 16 && width != 32 && width != 64 && width != 128) || shape.width % 32 != 0 || shape.inner % 32 != 0) {
        unusable(file.path() + ": width " + std::to_string(shape.width) + ", " + std::to_string(shape.heads) +
                 " heads, " + std::to_string(shape.kv_heads) + " key heads and inner width " +
                 std::to_string(shape.inner) + " do not go together; heads of 16, 32, 64 or 128 channels are served");
    }
    if (file.has("llama.rope.dimension_count") && file.number("llama.rope.dimension_count") != shape.channels) {
        unusable(file.path() + ": a rotation of only a part of the channels is not served");
    }
    if (!std::isfinite(shape.rope_base) || shape.rope_base < 1 || !(shape.epsilon > 0 && shape.epsilon < 1)) {
        unusable(file.path() + ": the base of the rotation or the epsilon of the norms is out of range");
    }
    return shape;
}

void add(std::vector<float> &to, const std::vector<float> &what, size_t count) {
    for (size_t i = 0; i < count; i++) to[i] += what[i];
}

}  // namespace

Model::Model(const Gguf &source, size_t threads) : file(source), is(read_shape(source)), workers(threads) {
    embedding = matrix("token_embd.weight", is.width, is.words);
    // Without a matrix of its own the output uses the embedding.
    last = file.has_tensor("output.weight") ? matrix("output.weight", is.width, is.words) : embedding;
    last_norm = vector("output_norm.weight");
    const size_t kv_width = is.kv_heads * is.channels;
    for (size_t i = 0; i < is.layers; i++) {
        const std::string name = "blk." + std::to_string(i) + ".";
        Layer layer;
        layer.attention_norm = vector(name + "attn_norm.weight");
        layer.inner_norm = vector(name + "ffn_norm.weight");
        layer.query = matrix(name + "attn_q.weight", is.width, is.width);
        layer.key = matrix(name + "attn_k.weight", is.width, kv_width);
        layer.value = matrix(name + "attn_v.weight", is.width, kv_width);
        layer.output = matrix(name + "attn_output.weight", is.width, is.width);
        layer.gate = matrix(name + "ffn_gate.weight", is.width, is.inner);
        layer.up = matrix(name + "ffn_up.weight", is.width, is.inner);
        layer.down = matrix(name + "ffn_down.weight", is.inner, is.width);
        layers.push_back(std::move(layer));
    }
}

std::vector<float> Model::vector(const std::string &name) const {
    const Tensor &tensor = file.tensor(name, {is.width});
    if (tensor.type != TensorType::f32) {
        unusable(file.path() + ": tensor " + name + " is of type " + tensor_type_name(tensor.type) + ", wanted is F32");
    }
    std::vector<float> values(is.width);
    std::memcpy(values.data(), tensor.data, is.width * sizeof(float));
    return values;
}

Matrix Model::matrix(const std::string &name, size_t columns, size_t rows) const {
    return Matrix(file.tensor(name, {columns, rows}));
}

void Model::normalise(const std::vector<float> &in, const std::vector<float> &weight, size_t tokens,
                      std::vector<float> &out) {
    workers.each((tokens + STRETCH - 1) / STRETCH, [&](size_t stretch) {
        for (size_t token = stretch * STRETCH; token < std::min(tokens, (stretch + 1) * STRETCH); token++) {
            const float *from = in.data() + token * is.width;
            Floats squares{};
            for (size_t i = 0; i < is.width; i += LANES) {
                squares = multiply_add(load(from + i), load(from + i), squares);
            }
            const float mean = sum(squares) / static_cast<float>(is.width);
            const Floats scale = all(1.0f / std::sqrt(mean + static_cast<float>(is.epsilon)));
            for (size_t i = 0; i < is.width; i += LANES) {
                store(out.data() + token * is.width + i, load(from + i) * scale * load(weight.data() + i));
            }
        }
    });
}

void Model::set_angles(const StepRows &rows, size_t tokens) {
    const size_t half = is.channels / 2;
    cosines.resize(tokens * half);
    sines.resize(tokens * half);
    for (const SequenceRows &sequence : rows.sequences) {
        for (size_t i = 0; i < sequence.count; i++) {
            const auto position = static_cast<double>(sequence.length - sequence.count + i);
            for (size_t pair = 0; pair < half; pair++) {
                const double exponent = -static_cast<double>(pair) / static_cast<double>(half);
                const double angle = position * std::pow(is.rope_base, exponent);
                cosines[(sequence.first + i) * half + pair] = static_cast<float>(std::cos(angle));
                sines[(sequence.first + i) * half + pair] = static_cast<float>(std::sin(angle));
            }
        }
    }
}

// The file's rows have the two channels of a pair side by side; they leave as channel i and i + channels / 2, the
// order in which keys are cached.
void Model::rotate(std::vector<float> &values, size_t heads, size_t tokens) {
    const size_t half = is.channels / 2;
    rotated.resize(tokens * heads * is.channels);
    for (size_t token = 0; token < tokens; token++) {
        for (size_t head = 0; head < heads; head++) {
            const float *from = values.data() + (token * heads + head) * is.channels;
            float *to = rotated.data() + (token * heads + head) * is.channels;
            for (size_t pair = 0; pair < half; pair++) {
                const float cosine = cosines[token * half + pair], sine = sines[token * half + pair];
                to[pair] = from[2 * pair] * cosine - from[2 * pair + 1] * sine;
                to[pair + half] = from[2 * pair + 1] * cosine + from[2 * pair] * sine;
            }
        }
    }
    values.swap(rotated);
}

void Model::run_layer(size_t index, const StepRows &rows, size_t tokens) {
    const Layer &layer = layers[index];
    const AttentionShape heads{is.heads, is.kv_heads, is.channels};
    q.resize(tokens * is.width);
    k.resize(tokens * is.kv_heads * is.channels);
    v.resize(k.size());
    normalise(x, layer.attention_norm, tokens, normed);
    multiply(workers, {{&layer.query, q.data()}, {&layer.key, k.data()}, {&layer.value, v.data()}}, normed.data(),
             tokens);
    rotate(q, is.heads, tokens);
    rotate(k, is.kv_heads, tokens);
    // All of the step's rows are written before any is read, so a sequence may read what another of the batch wrote.
    write_rows(heads, rows, index, k.data(), v.data());
    attend(workers, heads, rows, index, q.data(), attended.data());
    multiply(workers, {{&layer.output, added.data()}}, attended.data(), tokens);
    add(x, added, tokens * is.width);

    normalise(x, layer.inner_norm, tokens, normed);
    multiply(workers, {{&layer.gate, gate.data()}, {&layer.up, up.data()}}, normed.data(), tokens);
    workers.each((tokens + STRETCH - 1) / STRETCH, [&](size_t stretch) {
        const size_t end = std::min(tokens, (stretch + 1) * STRETCH) * is.inner;
        for (size_t i = stretch * STRETCH * is.inner; i < end; i += LANES) {
            const Floats value = load(gate.data() + i), limit = all(-88.0f);
            // x / (1 + e^-x); the exponent is held where e stays finite.
            const Floats negated = value < limit ? limit : value;
            store(gate.data() + i, value / (all(1.0f) + exponential(-negated)) * load(up.data() + i));
        }
    });
    multiply(workers, {{&layer.down, added.data()}}, gate.data(), tokens);
    add(x, added, tokens * is.width);
}

void Model::forward(const std::vector<int32_t> &tokens, const StepRows &rows, const std::vector<size_t> &wanted,
                    std::vector<float> &logits) {
    const size_t count = tokens.size();
    if (rows.slots.size() != count) throw Failure(1, "the cache scheduled another number of tokens than the model got");
    x.resize(count * is.width);
    for (std::vector<float> *each : {&normed, &attended, &added}) each->resize(count * is.width);
    gate.resize(count * is.inner);
    up.resize(count * is.inner);
    for (size_t i = 0; i < count; i++) {
        const auto token = static_cast<size_t>(tokens[i]);
        if (tokens[i] < 0 || token >= is.words) {
            unusable("token " + std::to_string(tokens[i]) + " is not one of the model");
        }
        embedding.row(token, x.data() + i * is.width);
    }
    set_angles(rows, count);
    for (size_t i = 0; i < layers.size(); i++) run_layer(i, rows, count);

    for (size_t i = 0; i < wanted.size(); i++) {
        std::copy_n(x.data() + wanted[i] * is.width, is.width, added.data() + i * is.width);
    }
    normalise(added, last_norm, wanted.size(), normed);
    logits.resize(wanted.size() * is.words);
    multiply(workers, {{&last, logits.data()}}, normed.data(), wanted.size());
}

}  // namespace engine
