// Byte-level BPE; tokenizer.h says what it promises.
#include "tokenizer.h"

#include <algorithm>

#include "failure.h"

namespace engine {

namespace {

constexpr int64_t NORMAL = 1;

enum class Sign { letter, number, space, other };

// The code point that begins at `at`, whose length goes to `length`. A broken sequence counts as one byte.
uint32_t code_point(std::string_view text, size_t at, size_t &length) {
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
    const uint8_t first = byte(at);
    length = first < 0x80 ? 1 : first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
    if (length <= 1 || at + length > text.size()) {
        length = 1;
        return first < 0x80 ? first : 0xfffd;
    }
    uint32_t point = first & (0xffu >> (length + 1));
    for (size_t i = 1; i < length; i++) {
        if ((byte(at + i) & 0xc0) != 0x80) {
            length = 1;
            return 0xfffd;
        }
        point = point << 6 | (byte(at + i) & 0x3fu);
    }
    return point;
}

Sign sign_of(uint32_t point) {
    const auto in = [point](uint32_t from, uint32_t to) { return point >= from && point <= to; };
    if (in('a', 'z') || in('A', 'Z')) return Sign::letter;
    if (in('0', '9')) return Sign::number;
    if (point == ' ' || in(9, 13)) return Sign::space;
    if (point < 0x80) return Sign::other;
    if (point == 0x85 || point == 0xa0 || point == 0x1680 || in(0x2000, 0x200a) || in(0x2028, 0x2029) ||
        point == 0x202f || point == 0x205f || point == 0x3000) {
        return Sign::space;
    }
    if (point == 0xb2 || point == 0xb3 || point == 0xb9 || in(0xbc, 0xbe) || in(0x2150, 0x218b) ||
        in(0x2460, 0x249b) || in(0xff10, 0xff19)) {
        return Sign::number;
    }
    if (point == 0xaa || point == 0xb5 || point == 0xba) return Sign::letter;
    const bool is_other = point < 0xc0 || point == 0xd7 || point == 0xf7 || in(0x2010, 0x2bff) ||
                          in(0x3001, 0x3004) || in(0x3008, 0x3020) || in(0xfe10, 0xfe6f) || in(0xff01, 0xff20) ||
                          point == 0xfffd || in(0x1f000, 0x1faff);
    return is_other ? Sign::other : Sign::letter;
}

// Undoes the byte-level alphabet, in which each of the 256 bytes is a printable character.
std::string raw_bytes(std::string_view token, const std::string &path) {
    static const std::vector<int> from_point = [] {
        std::vector<int> table(512, -1);
        int next = 256;
        for (int byte = 0; byte < 256; byte++) {
            const bool is_printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
            table[static_cast<size_t>(is_printable ? byte : next++)] = byte;
        }
        return table;
    }();
    std::string raw;
    for (size_t at = 0; at < token.size();) {
        size_t length = 0;
        const uint32_t point = code_point(token, at, length);
        if (point >= from_point.size() || from_point[point] < 0) {
            unusable(path + ": the token \"" + std::string(token) + "\" is not written in the byte-level alphabet");
        }
        raw.push_back(static_cast<char>(from_point[point]));
        at += length;
    }
    return raw;
}

// Length of the word that begins at `at`, by the rule of GPT-2:
// 's|'t|'re|'ve|'m|'ll|'d| ?letters| ?numbers| ?others|spaces not before a word|spaces
size_t word_length(std::string_view text, size_t at) {
    for (const std::string_view ending : {"'s", "'t", "'re", "'ve", "'m", "'ll", "'d"}) {
        if (text.substr(at, ending.size()) == ending) return ending.size();
    }
    const auto run = [&](size_t from, Sign wanted) {
        size_t end = from, length = 0;
        while (end < text.size() && sign_of(code_point(text, end, length)) == wanted) end += length;
        return end;
    };
    size_t length = 0;
    const size_t skip = text[at] == ' ' && at + 1 < text.size() ? 1 : 0;
    const Sign first = sign_of(code_point(text, at + skip, length));
    if (first != Sign::space) return run(at + skip, first) - at;
    const size_t end = run(at, Sign::space);
    if (end == text.size()) return end - at;
    // The last space goes with the word behind it, unless it is the only one.
    size_t before = at, step = 0;
    for (size_t i = at; i < end; i += step) {
        before = i;
        code_point(text, i, step);
    }
    return (before > at ? before : end) - at;
}

}  // namespace

Tokenizer::Tokenizer(const Gguf &file) {
    if (const std::string kind = file.text("tokenizer.ggml.model"); kind != "gpt2") {
        unusable(file.path() + ": the tokenizer is " + kind + "; gpt2 is served");
    }
    const auto &tokens = file.texts("tokenizer.ggml.tokens");
    const auto &kinds = file.numbers("tokenizer.ggml.token_type");
    if (kinds.size() != tokens.size() || tokens.size() > INT32_MAX) {
        unusable(file.path() + ": " + std::to_string(tokens.size()) + " tokens have " + std::to_string(kinds.size()) +
                 " types");
    }
    std::unordered_map<std::string, int32_t> by_bytes;
    std::fill(std::begin(byte_tokens), std::end(byte_tokens), -1);
    for (size_t i = 0; i < tokens.size(); i++) {
        const auto id = static_cast<int32_t>(i);
        pieces.push_back(kinds[i] == NORMAL ? raw_bytes(tokens[i], file.path()) : std::string(tokens[i]));
        (kinds[i] == NORMAL ? by_bytes : specials).emplace(pieces.back(), id);
        if (kinds[i] == NORMAL && pieces.back().size() == 1) byte_tokens[static_cast<uint8_t>(pieces.back()[0])] = id;
    }
    const auto &pairs = file.texts("tokenizer.ggml.merges");
    for (size_t rank = 0; rank < pairs.size(); rank++) {
        const size_t space = pairs[rank].find(' ', 1);
        if (space == std::string_view::npos) unusable(file.path() + ": merge " + std::to_string(rank) + " is no pair");
        const std::string left = raw_bytes(pairs[rank].substr(0, space), file.path());
        const std::string right = raw_bytes(pairs[rank].substr(space + 1), file.path());
        const auto a = by_bytes.find(left), b = by_bytes.find(right), whole = by_bytes.find(left + right);
        if (a == by_bytes.end() || b == by_bytes.end() || whole == by_bytes.end()) {
            unusable(file.path() + ": merge " + std::to_string(rank) + " names what is no token");
        }
        const uint64_t pair = static_cast<uint64_t>(a->second) << 32 | static_cast<uint32_t>(b->second);
        merges.emplace(pair, Merge{rank, whole->second});
    }
    const uint64_t end = file.number("tokenizer.ggml.eos_token_id");
    if (end >= pieces.size()) unusable(file.path() + ": the end token " + std::to_string(end) + " is none");
    end_token = static_cast<int32_t>(end);
}

void Tokenizer::encode_word(std::string_view word, std::vector<int32_t> &out) const {
    std::vector<int32_t> parts;
    for (const char byte : word) {
        const int32_t token = byte_tokens[static_cast<uint8_t>(byte)];
        if (token < 0) unusable("the model has no token for the byte " + std::to_string(static_cast<uint8_t>(byte)));
        parts.push_back(token);
    }
    while (parts.size() > 1) {
        size_t place = 0;
        const Merge *best = nullptr;
        for (size_t i = 0; i + 1 < parts.size(); i++) {
            const auto found = merges.find(static_cast<uint64_t>(parts[i]) << 32 | static_cast<uint32_t>(parts[i + 1]));
            if (found != merges.end() && (best == nullptr || found->second.rank < best->rank)) {
                best = &found->second;
                place = i;
            }
        }
        if (best == nullptr) break;
        parts[place] = best->token;
        parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(place) + 1);
    }
    out.insert(out.end(), parts.begin(), parts.end());
}

std::vector<int32_t> Tokenizer::encode(std::string_view text) const {
    std::vector<int32_t> out;
    const auto encode_words = [&](std::string_view part) {
        for (size_t at = 0; at < part.size();) {
            const size_t length = word_length(part, at);
            encode_word(part.substr(at, length), out);
            at += length;
        }
    };
    size_t from = 0;
    for (size_t at = 0; at < text.size();) {
        size_t length = 0;
        if (sign_of(code_point(text, at, length)) == Sign::number) {
            encode_words(text.substr(from, at - from));
            encode_word(text.substr(at, length), out);
            from = at + length;
        }
        at += length;
    }
    encode_words(text.substr(from));
    return out;
}

int32_t Tokenizer::special(const char *name) const {
    const auto found = specials.find(name);
    if (found == specials.end()) unusable(std::string("the model has no token ") + name + ", so it cannot chat");
    return found->second;
}

std::vector<int32_t> Tokenizer::encode_chat(const std::vector<Turn> &turns) const {
    const int32_t start = special("<|im_start|>"), stop = special("<|im_end|>");
    std::vector<int32_t> out;
    const auto add = [&](const std::string &text) {
        const std::vector<int32_t> tokens = encode(text);
        out.insert(out.end(), tokens.begin(), tokens.end());
    };
    for (const Turn &turn : turns) {
        out.push_back(start);
        add(turn.role + "\n" + turn.content);
        out.push_back(stop);
        add("\n");
    }
    out.push_back(start);
    add("assistant\n");
    return out;
}

std::string Tokenizer::decode(const std::vector<int32_t> &tokens) const {
    std::string text;
    for (const int32_t token : tokens) text += bytes(token);
    return text;
}

}  // namespace engine
