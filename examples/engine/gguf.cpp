// Maps and checks a GGUF file; gguf.h says what for. Little endian only, versions 2 and 3, which have one layout.
#include "gguf.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "failure.h"

namespace engine {

namespace {

// More than any model has; a count above it is a broken header, not a big model.
constexpr uint64_t MOST_TENSORS = 1 << 16;
constexpr uint64_t MOST_VALUES = 1 << 16;
constexpr uint64_t MOST_NAME_BYTES = 1 << 16;

enum Kind : uint32_t { U8, I8, U16, I16, U32, I32, F32, BOOL, TEXT, ARRAY, U64, I64, F64 };

size_t kind_bytes(uint32_t kind) {
    switch (kind) {
        case U8: case I8: case BOOL: return 1;
        case U16: case I16: return 2;
        case U32: case I32: case F32: return 4;
        case U64: case I64: case F64: return 8;
        case TEXT: return 8;  // its length alone
        default: return 0;
    }
}

std::string shown(const std::vector<size_t> &shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

}  // namespace

size_t tensor_bytes(TensorType type, size_t elements) {
    switch (type) {
        case TensorType::f32: return elements * 4;
        case TensorType::q4_1: return elements / 32 * 20;
        case TensorType::q8_0: return elements / 32 * 34;
    }
    return 0;
}

const char *tensor_type_name(TensorType type) {
    switch (type) {
        case TensorType::f32: return "F32";
        case TensorType::q4_1: return "Q4_1";
        case TensorType::q8_0: return "Q8_0";
    }
    return "?";
}

// Reads forward through the mapped bytes and refuses to pass their end.
struct Gguf::Cursor {
    const Gguf &owner;
    size_t at = 0;

    size_t left() const { return owner.size - at; }

    const uint8_t *take(uint64_t count, const char *what) {
        if (count > left()) {
            owner.refuse("truncated: " + std::string(what) + " needs " + std::to_string(count) + " bytes at " +
                         std::to_string(at) + ", " + std::to_string(left()) + " are left");
        }
        const uint8_t *from = owner.bytes + at;
        at += count;
        return from;
    }

    template <typename T>
    T read(const char *what) {
        T number;
        std::memcpy(&number, take(sizeof number, what), sizeof number);
        return number;
    }

    std::string_view text(const char *what) {
        const auto length = read<uint64_t>(what);
        return {reinterpret_cast<const char *>(take(length, what)), static_cast<size_t>(length)};
    }

    std::string name(const char *what) {
        const std::string_view view = text(what);
        if (view.empty() || view.size() > MOST_NAME_BYTES) owner.refuse(std::string(what) + " has no sensible length");
        return std::string(view);
    }
};

Gguf::Gguf(const std::string &path) : file(path) {
    map();
    try {
        parse();
    } catch (...) {
        munmap(const_cast<uint8_t *>(bytes), size);
        throw;
    }
}

Gguf::~Gguf() { munmap(const_cast<uint8_t *>(bytes), size); }

void Gguf::refuse(const std::string &why) const { unusable(file + ": " + why); }

void Gguf::map() {
    const int descriptor = open(file.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) refuse(std::string("cannot be opened: ") + std::strerror(errno));
    struct stat about {};
    const bool is_file = fstat(descriptor, &about) == 0 && S_ISREG(about.st_mode);
    void *address = MAP_FAILED;
    if (is_file && about.st_size >= 4) {
        size = static_cast<size_t>(about.st_size);
        address = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, descriptor, 0);
    }
    close(descriptor);
    if (address == MAP_FAILED) refuse(is_file ? "not a GGUF file: shorter than its magic number" : "not a file");
    bytes = static_cast<const uint8_t *>(address);
}

void Gguf::parse() {
    Cursor cursor{*this};
    if (std::memcmp(cursor.take(4, "the magic number"), "GGUF", 4) != 0) {
        refuse("not a GGUF file: it does not begin with the letters GGUF");
    }
    const auto version = cursor.read<uint32_t>("the version");
    if (version != 2 && version != 3) {
        refuse("GGUF version " + std::to_string(version) + "; versions 2 and 3 are read");
    }
    const auto tensor_count = cursor.read<uint64_t>("the number of tensors");
    const auto value_count = cursor.read<uint64_t>("the number of values");
    if (tensor_count > MOST_TENSORS || value_count > MOST_VALUES) {
        refuse("the header asks for " + std::to_string(tensor_count) + " tensors and " + std::to_string(value_count) +
               " values; it is broken");
    }
    for (uint64_t i = 0; i < value_count; i++) {
        const std::string key = cursor.name("the name of a value");
        const auto type = cursor.read<uint32_t>("the type of a value");
        if (!values.emplace(key, read_value(cursor, type)).second) refuse("two values are named " + key);
    }
    std::vector<std::pair<std::string, uint64_t>> offsets;
    for (uint64_t i = 0; i < tensor_count; i++) read_tensor(cursor, offsets);

    uint64_t alignment = 32;
    if (has("general.alignment")) alignment = number("general.alignment");
    if (alignment < 4 || alignment > 1 << 20 || (alignment & (alignment - 1)) != 0) {
        refuse("an alignment of " + std::to_string(alignment) + " is none");
    }
    const uint64_t data = (cursor.at + alignment - 1) / alignment * alignment;
    for (const auto &[name, offset] : offsets) {
        Tensor &tensor = tensors.at(name);
        size_t elements = 1;
        for (const size_t side : tensor.shape) elements *= side;
        const size_t needed = tensor_bytes(tensor.type, elements);
        if (offset % alignment != 0) refuse("tensor " + name + " is not aligned");
        if (data > size || offset > size - data || needed > size - data - offset) {
            refuse("truncated: tensor " + name + " needs " + std::to_string(needed) + " bytes at " +
                   std::to_string(offset) + " of the data, the file has " + std::to_string(size));
        }
        tensor.data = bytes + data + offset;
    }
}

Gguf::Value Gguf::read_value(Cursor &cursor, uint32_t type) const {
    const char *what = "a value";
    switch (type) {
        case U8: return static_cast<uint64_t>(cursor.read<uint8_t>(what));
        case U16: return static_cast<uint64_t>(cursor.read<uint16_t>(what));
        case U32: return static_cast<uint64_t>(cursor.read<uint32_t>(what));
        case U64: return cursor.read<uint64_t>(what);
        case BOOL: return static_cast<uint64_t>(cursor.read<uint8_t>(what) != 0);
        case I8: return static_cast<int64_t>(cursor.read<int8_t>(what));
        case I16: return static_cast<int64_t>(cursor.read<int16_t>(what));
        case I32: return static_cast<int64_t>(cursor.read<int32_t>(what));
        case I64: return cursor.read<int64_t>(what);
        case F32: return static_cast<double>(cursor.read<float>(what));
        case F64: return cursor.read<double>(what);
        case TEXT: return cursor.text(what);
        case ARRAY: return read_array(cursor);
        default: refuse("a value of the unknown type " + std::to_string(type));
    }
}

Gguf::Value Gguf::read_array(Cursor &cursor) const {
    const auto type = cursor.read<uint32_t>("the type of an array");
    const auto count = cursor.read<uint64_t>("the length of an array");
    const size_t each = kind_bytes(type);
    if (each == 0) refuse("an array of the type " + std::to_string(type) + ", which is not read");
    if (count > cursor.left() / each) {
        refuse("truncated: an array of " + std::to_string(count) + " elements, " + std::to_string(cursor.left()) +
               " bytes are left");
    }
    if (type == TEXT) {
        std::vector<std::string_view> list;
        list.reserve(count);
        for (uint64_t i = 0; i < count; i++) list.push_back(cursor.text("a text of an array"));
        return list;
    }
    if (type == F32 || type == F64) {
        std::vector<double> list;
        list.reserve(count);
        for (uint64_t i = 0; i < count; i++) list.push_back(std::get<double>(read_value(cursor, type)));
        return list;
    }
    std::vector<int64_t> list;
    list.reserve(count);
    for (uint64_t i = 0; i < count; i++) {
        const Value value = read_value(cursor, type);
        const auto *plain = std::get_if<uint64_t>(&value);
        list.push_back(plain ? static_cast<int64_t>(*plain) : std::get<int64_t>(value));
    }
    return list;
}

void Gguf::read_tensor(Cursor &cursor, std::vector<std::pair<std::string, uint64_t>> &offsets) {
    const std::string name = cursor.name("the name of a tensor");
    const auto sides = cursor.read<uint32_t>("the dimensions of a tensor");
    if (sides < 1 || sides > 4) refuse("tensor " + name + " has " + std::to_string(sides) + " dimensions");
    Tensor tensor{TensorType::f32, {}, nullptr};
    uint64_t elements = 1;
    for (uint32_t i = 0; i < sides; i++) {
        const auto side = cursor.read<uint64_t>("the shape of a tensor");
        // No element is smaller than half a byte, so more of them than twice the file's bytes cannot be there.
        if (side == 0 || side > 2 * size || elements > 2 * size / side) {
            refuse("truncated or broken: tensor " + name + " has a side of " + std::to_string(side) +
                   ", more than a file of " + std::to_string(size) + " bytes can hold");
        }
        elements *= side;
        tensor.shape.push_back(side);
    }
    const auto type = cursor.read<uint32_t>("the type of a tensor");
    tensor.type = static_cast<TensorType>(type);
    if (tensor.type != TensorType::f32 && tensor.type != TensorType::q4_1 && tensor.type != TensorType::q8_0) {
        refuse("tensor " + name + " has the unknown type " + std::to_string(type) + "; F32 (0), Q4_1 (3) and Q8_0 (8)" +
               " are read");
    }
    if (tensor.type != TensorType::f32 && tensor.shape[0] % 32 != 0) {
        refuse("tensor " + name + " has rows of " + std::to_string(tensor.shape[0]) + ", no multiple of 32");
    }
    const auto offset = cursor.read<uint64_t>("the place of a tensor");
    if (!tensors.emplace(name, std::move(tensor)).second) refuse("two tensors are named " + name);
    offsets.emplace_back(name, offset);
}

template <typename T>
const T &Gguf::value(const std::string &key, const char *kind) const {
    const auto found = values.find(key);
    if (found == values.end()) refuse("the value " + key + " is missing");
    const T *typed = std::get_if<T>(&found->second);
    if (typed == nullptr) refuse("the value " + key + " is no " + kind);
    return *typed;
}

uint64_t Gguf::number(const std::string &key) const {
    const auto found = values.find(key);
    if (found != values.end()) {
        if (const auto *with_sign = std::get_if<int64_t>(&found->second); with_sign && *with_sign >= 0) {
            return static_cast<uint64_t>(*with_sign);
        }
    }
    return value<uint64_t>(key, "number of things");
}

double Gguf::real(const std::string &key) const { return value<double>(key, "real number"); }

std::string Gguf::text(const std::string &key) const { return std::string(value<std::string_view>(key, "text")); }

const std::vector<std::string_view> &Gguf::texts(const std::string &key) const {
    return value<std::vector<std::string_view>>(key, "list of texts");
}

const std::vector<int64_t> &Gguf::numbers(const std::string &key) const {
    return value<std::vector<int64_t>>(key, "list of numbers");
}

const Tensor &Gguf::tensor(const std::string &name, const std::vector<size_t> &shape) const {
    const auto found = tensors.find(name);
    if (found == tensors.end()) refuse("tensor " + name + " is missing");
    if (found->second.shape != shape) {
        refuse("tensor " + name + " has the shape " + shown(found->second.shape) + ", wanted is " + shown(shape));
    }
    return found->second;
}

}  // namespace engine
