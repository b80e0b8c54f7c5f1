// Prompts for measurements and tests: chats that begin with one long system prompt, and texts of their own.
#pragma once

#include <cstdint>
#include <vector>

#include "tokenizer.h"

namespace engine {

// `count` chats whose first `shared` tokens are one system prompt; each goes on with a question of its own.
std::vector<std::vector<int32_t>> chats_with_shared_prefix(const Tokenizer &tokenizer, size_t count, size_t shared);

}  // namespace engine
