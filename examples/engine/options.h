// What the command line asks for.
#pragma once

#include <string>
#include <vector>

#include "kv.h"

namespace engine {

struct Options {
    // "ask", "continue", "bench" or "help".
    std::string verb;
    std::vector<std::string> texts;
    std::string model = ".cache/model/SmolLM2-135M-Instruct.Q4_1.gguf";
    std::string system =
        "You are a friendly assistant. Answer the question of the user in two or three short and simple sentences. "
        "Use plain words that a child understands, stay with what is well known, and do not make up facts, names or "
        "numbers. If you do not know the answer, say so.";
    bool is_paged = true;
    KvType type = KvType::f32;
    size_t block_tokens = 16;
    // Tokens that the cache holds, all sequences together.
    size_t cache_tokens = 4096;
    // Of one sequence, which is what a contiguous cache keeps room for.
    size_t longest = 512;
    size_t running = 8;
    size_t step_tokens = 256;
    size_t new_tokens = 100;
    size_t threads = 0;
    size_t rounds = 5;
};

// Fails with exit code 2 and a sentence for what cannot be understood.
Options read_options(int count, const char *const *words);

extern const char *const USAGE;

}  // namespace engine
