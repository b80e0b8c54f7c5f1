// A GGUF file, read only: metadata and where the tensors lie.
// The file is mapped and nothing in it is believed: every length, count and offset is checked before it is used, and
// what does not hold is a Failure that says where. Does not know what a model is (see model.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace engine {

// The types of elements that are read. Numbers as in the file.
enum class TensorType : uint32_t { f32 = 0, q4_1 = 3, q8_0 = 8 };

// Bytes of `elements` elements, which are a multiple of 32 in the quantised types.
size_t tensor_bytes(TensorType type, size_t elements);
const char *tensor_type_name(TensorType type);

struct Tensor {
    TensorType type;
    // Fastest first: {columns, rows} of a matrix.
    std::vector<size_t> shape;
    const uint8_t *data;
};

class Gguf {
  public:
    explicit Gguf(const std::string &path);
    ~Gguf();
    Gguf(const Gguf &) = delete;
    Gguf &operator=(const Gguf &) = delete;

    // Each answers the value or fails with the key's name: missing, or of another type.
    uint64_t number(const std::string &key) const;
    double real(const std::string &key) const;
    std::string text(const std::string &key) const;
    const std::vector<std::string_view> &texts(const std::string &key) const;
    const std::vector<int64_t> &numbers(const std::string &key) const;
    bool has(const std::string &key) const { return values.count(key) != 0; }

    // The tensor of that name and shape.
    const Tensor &tensor(const std::string &name, const std::vector<size_t> &shape) const;
    bool has_tensor(const std::string &name) const { return tensors.count(name) != 0; }
    const std::string &path() const { return file; }

  private:
    using Value = std::variant<uint64_t, int64_t, double, std::string_view, std::vector<std::string_view>,
                               std::vector<int64_t>, std::vector<double>>;
    struct Cursor;

    void map();
    void parse();
    Value read_value(Cursor &cursor, uint32_t type) const;
    Value read_array(Cursor &cursor) const;
    void read_tensor(Cursor &cursor, std::vector<std::pair<std::string, uint64_t>> &offsets);
    template <typename T>
    const T &value(const std::string &key, const char *kind) const;
    [[noreturn]] void refuse(const std::string &why) const;

    std::string file;
    const uint8_t *bytes = nullptr;
    size_t size = 0;
    std::map<std::string, Value> values;
    std::map<std::string, Tensor> tensors;
};

}  // namespace engine
