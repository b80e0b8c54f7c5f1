// Text to tokens and back: byte-level BPE with the vocabulary and merges of a GGUF file.
// Digits stand alone, then the rule of GPT-2 cuts the rest into words. Which signs beyond Latin-1 are letters is told
// by Unicode blocks, not by its full tables: there a word may be cut elsewhere than by the model's own tokenizer, but
// every text comes back as it was. A text with a byte for which the vocabulary has no token is refused.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "gguf.h"

namespace engine {

// One turn of a chat.
struct Turn {
    std::string role, content;
};

class Tokenizer {
  public:
    explicit Tokenizer(const Gguf &file);

    // Plain text; what looks like a special token in it is text too.
    std::vector<int32_t> encode(std::string_view text) const;
    // The turns in the form of ChatML, then the beginning of the assistant's answer.
    std::vector<int32_t> encode_chat(const std::vector<Turn> &turns) const;
    // The bytes of a token; special ones give their name. A token may end inside of a character.
    const std::string &bytes(int32_t token) const { return pieces.at(static_cast<size_t>(token)); }
    std::string decode(const std::vector<int32_t> &tokens) const;
    // The token that ends an answer.
    int32_t end() const { return end_token; }
    size_t size() const { return pieces.size(); }

  private:
    struct Merge {
        size_t rank;
        int32_t token;
    };

    void encode_word(std::string_view word, std::vector<int32_t> &out) const;
    int32_t special(const char *name) const;

    std::vector<std::string> pieces;
    std::unordered_map<std::string, int32_t> specials;
    // -1 where the vocabulary lacks the byte.
    int32_t byte_tokens[256];
    // By the left token in the upper half and the right one in the lower.
    std::unordered_map<uint64_t, Merge> merges;
    int32_t end_token = -1;
};

}  // namespace engine
