// Makes small GGUF files with random weights, so that most tests need neither the network nor a real model; and
// broken ones, so that the reader can be tried.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace engine {

// Numbers that are the same everywhere for the same seed (splitmix64).
class Random {
  public:
    explicit Random(uint64_t seed) : state(seed) {}
    uint64_t next();
    uint64_t below(uint64_t end) { return next() % end; }
    // From -1 to 1.
    float unit();

  private:
    uint64_t state;
};

// Writes the parts of a GGUF file one after the other.
class GgufWriter {
  public:
    GgufWriter();
    template <typename T>
    void put(T number) {
        const auto *from = reinterpret_cast<const uint8_t *>(&number);
        bytes.insert(bytes.end(), from, from + sizeof number);
    }
    void put_text(const std::string &text);
    void number(const std::string &key, uint32_t value);
    void real(const std::string &key, float value);
    void text(const std::string &key, const std::string &value);
    void texts(const std::string &key, const std::vector<std::string> &values);
    void types(const std::string &key, const std::vector<int32_t> &values);
    void tensor(const std::string &name, const std::vector<uint64_t> &shape, uint32_t type,
                std::vector<uint8_t> content);
    // Header, values, tensors, data.
    std::vector<uint8_t> file() const;

  private:
    struct Piece {
        std::string name;
        std::vector<uint64_t> shape;
        uint32_t type;
        std::vector<uint8_t> content;
    };

    std::vector<uint8_t> bytes;
    uint64_t values = 0;
    std::vector<Piece> pieces;
};

struct MadeModel {
    uint64_t seed = 1;
    size_t layers = 2, width = 64, inner = 96, heads = 4, kv_heads = 2;
    // Named as in the file; empty for none.
    std::string without_tensor, without_value;
    std::string architecture = "llama";
};

// A whole model with 256 byte tokens, a few merges and the tokens of chats; its matrices are of all three types.
std::vector<uint8_t> made_model(const MadeModel &wanted);

// Writes a file below the tests' folder and answers its path.
std::string write_file(const std::string &name, const std::vector<uint8_t> &content);

}  // namespace engine
