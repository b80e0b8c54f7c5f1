// Small GGUF files with random weights; made_model.h says what for.
#include "made_model.h"

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "failure.h"

namespace engine {

namespace {

constexpr uint32_t F32 = 0, Q4_1 = 3, Q8_0 = 8;

// A half of the given bits of a positive number: 2^exponent x (1 + mantissa / 1024).
uint16_t half(int exponent, uint64_t mantissa) {
    return static_cast<uint16_t>((exponent + 15) << 10 | static_cast<int>(mantissa & 0x3ff));
}

template <typename T>
void append(std::vector<uint8_t> &to, T number) {
    const auto *from = reinterpret_cast<const uint8_t *>(&number);
    to.insert(to.end(), from, from + sizeof number);
}

// Elements of about the size that keeps sums of a row near one.
std::vector<uint8_t> content(Random &random, uint32_t type, size_t elements, bool is_norm) {
    std::vector<uint8_t> bytes;
    if (type == F32) {
        for (size_t i = 0; i < elements; i++) append(bytes, is_norm ? 1 + random.unit() / 4 : random.unit() / 5);
        return bytes;
    }
    for (size_t block = 0; block < elements / 32; block++) {
        const int exponent = type == Q4_1 ? -6 : -10;
        const uint16_t scale = half(exponent, random.next());
        append(bytes, scale);
        // About -7.5 scales, so that the values lie around zero.
        if (type == Q4_1) append(bytes, static_cast<uint16_t>(half(exponent + 3, 0x380) | 0x8000));
        const size_t stored = type == Q4_1 ? 16 : 32;
        for (size_t i = 0; i < stored; i++) bytes.push_back(static_cast<uint8_t>(random.next()));
    }
    return bytes;
}

// The byte-level alphabet: each byte as a printable character.
std::string letter(int byte) {
    static const std::vector<std::string> letters = [] {
        std::vector<std::string> all;
        uint32_t next = 256;
        for (uint32_t b = 0; b < 256; b++) {
            const bool is_printable = (b >= 33 && b <= 126) || (b >= 161 && b != 173);
            const uint32_t point = is_printable ? b : next++;
            all.push_back(point < 0x80 ? std::string(1, static_cast<char>(point))
                                       : std::string{static_cast<char>(0xc0 | point >> 6),
                                                     static_cast<char>(0x80 | (point & 0x3f))});
        }
        return all;
    }();
    return letters[static_cast<size_t>(byte)];
}

}  // namespace

uint64_t Random::next() {
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

float Random::unit() { return static_cast<float>(next() >> 40) / 8388608.0f - 1.0f; }

GgufWriter::GgufWriter() = default;

void GgufWriter::put_text(const std::string &text) {
    put<uint64_t>(text.size());
    bytes.insert(bytes.end(), text.begin(), text.end());
}

void GgufWriter::number(const std::string &key, uint32_t value) {
    put_text(key);
    put<uint32_t>(4);
    put(value);
    values++;
}

void GgufWriter::real(const std::string &key, float value) {
    put_text(key);
    put<uint32_t>(6);
    put(value);
    values++;
}

void GgufWriter::text(const std::string &key, const std::string &value) {
    put_text(key);
    put<uint32_t>(8);
    put_text(value);
    values++;
}

void GgufWriter::texts(const std::string &key, const std::vector<std::string> &list) {
    put_text(key);
    put<uint32_t>(9);
    put<uint32_t>(8);
    put<uint64_t>(list.size());
    for (const std::string &each : list) put_text(each);
    values++;
}

void GgufWriter::types(const std::string &key, const std::vector<int32_t> &list) {
    put_text(key);
    put<uint32_t>(9);
    put<uint32_t>(5);
    put<uint64_t>(list.size());
    for (const int32_t each : list) put(each);
    values++;
}

void GgufWriter::tensor(const std::string &name, const std::vector<uint64_t> &shape, uint32_t type,
                        std::vector<uint8_t> content) {
    pieces.push_back({name, shape, type, std::move(content)});
}

std::vector<uint8_t> GgufWriter::file() const {
    GgufWriter whole;
    for (const char c : {'G', 'G', 'U', 'F'}) whole.put(c);
    whole.put<uint32_t>(3);
    whole.put<uint64_t>(pieces.size());
    whole.put<uint64_t>(values);
    whole.bytes.insert(whole.bytes.end(), bytes.begin(), bytes.end());
    uint64_t offset = 0;
    for (const Piece &piece : pieces) {
        whole.put_text(piece.name);
        whole.put<uint32_t>(static_cast<uint32_t>(piece.shape.size()));
        for (const uint64_t side : piece.shape) whole.put(side);
        whole.put(piece.type);
        whole.put(offset);
        offset += (piece.content.size() + 31) / 32 * 32;
    }
    for (const Piece &piece : pieces) {
        whole.bytes.resize((whole.bytes.size() + 31) / 32 * 32);
        whole.bytes.insert(whole.bytes.end(), piece.content.begin(), piece.content.end());
    }
    return whole.bytes;
}

std::vector<uint8_t> made_model(const MadeModel &wanted) {
    Random random(wanted.seed);
    GgufWriter writer;
    const auto has = [&](const std::string &key) { return key != wanted.without_value; };
    const auto number = [&](const std::string &key, size_t value) {
        if (has(key)) writer.number(key, static_cast<uint32_t>(value));
    };
    if (has("general.architecture")) writer.text("general.architecture", wanted.architecture);
    number("llama.block_count", wanted.layers);
    number("llama.context_length", 2048);
    number("llama.embedding_length", wanted.width);
    number("llama.feed_forward_length", wanted.inner);
    number("llama.attention.head_count", wanted.heads);
    number("llama.attention.head_count_kv", wanted.kv_heads);
    if (has("llama.rope.freq_base")) writer.real("llama.rope.freq_base", 10000);
    if (has("llama.attention.layer_norm_rms_epsilon")) writer.real("llama.attention.layer_norm_rms_epsilon", 1e-5f);

    std::vector<std::string> tokens{"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
    std::vector<int32_t> types(3, 3);
    for (int byte = 0; byte < 256; byte++) tokens.push_back(letter(byte));
    std::vector<std::string> merges;
    for (const auto &[left, right] : {std::pair<std::string, std::string>{"t", "h"}, {"th", "e"}, {letter(' '), "the"},
                                      {"i", "n"}, {"in", "g"}, {"a", "n"}}) {
        merges.push_back(left + " " + right);
        tokens.push_back(left + right);
    }
    types.resize(tokens.size(), 1);
    writer.text("tokenizer.ggml.model", "gpt2");
    if (has("tokenizer.ggml.tokens")) writer.texts("tokenizer.ggml.tokens", tokens);
    writer.types("tokenizer.ggml.token_type", types);
    writer.texts("tokenizer.ggml.merges", merges);
    number("tokenizer.ggml.eos_token_id", 2);

    const auto tensor = [&](const std::string &name, std::vector<uint64_t> shape, uint32_t type) {
        uint64_t elements = 1;
        for (const uint64_t side : shape) elements *= side;
        std::vector<uint8_t> bytes = content(random, type, elements, shape.size() == 1);
        if (name != wanted.without_tensor) writer.tensor(name, shape, type, std::move(bytes));
    };
    const uint64_t width = wanted.width, inner = wanted.inner;
    const uint64_t kv_width = wanted.kv_heads * (wanted.width / wanted.heads);
    tensor("token_embd.weight", {width, tokens.size()}, Q8_0);
    tensor("output_norm.weight", {width}, F32);
    for (size_t i = 0; i < wanted.layers; i++) {
        const std::string name = "blk." + std::to_string(i) + ".";
        tensor(name + "attn_norm.weight", {width}, F32);
        tensor(name + "ffn_norm.weight", {width}, F32);
        tensor(name + "attn_q.weight", {width, width}, Q4_1);
        tensor(name + "attn_k.weight", {width, kv_width}, Q8_0);
        tensor(name + "attn_v.weight", {width, kv_width}, F32);
        tensor(name + "attn_output.weight", {width, width}, Q4_1);
        tensor(name + "ffn_gate.weight", {width, inner}, Q4_1);
        tensor(name + "ffn_up.weight", {width, inner}, F32);
        tensor(name + "ffn_down.weight", {inner, width}, Q8_0);
    }
    return writer.file();
}

std::string write_file(const std::string &name, const std::vector<uint8_t> &content) {
    static const std::filesystem::path folder = [] {
        std::string pattern = (std::filesystem::temp_directory_path() / "kavern-engine-XXXXXX").string();
        if (mkdtemp(pattern.data()) == nullptr) throw Failure(1, "no temporary folder can be made");
        static const struct Remover {
            std::filesystem::path path;
            ~Remover() {
                std::error_code ignored;
                std::filesystem::remove_all(path, ignored);
            }
        } remover{pattern};
        return remover.path;
    }();
    const std::filesystem::path path = folder / name;
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file.write(reinterpret_cast<const char *>(content.data()), static_cast<std::streamsize>(content.size()));
    if (!file.flush()) throw Failure(1, "cannot write " + path.string());
    return path.string();
}

}  // namespace engine
