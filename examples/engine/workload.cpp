// Prompts for measurements and tests; workload.h says which.
#include "workload.h"

#include <string>

namespace engine {

std::vector<std::vector<int32_t>> chats_with_shared_prefix(const Tokenizer &tokenizer, size_t count, size_t shared) {
    static const char *const subjects[] = {"rivers", "bridges", "bread", "the moon", "clocks", "whales", "paper",
                                           "rainbows"};
    std::string rules = "You are a helpful assistant of a library. Answer briefly.";
    std::vector<int32_t> prefix;
    for (int rule = 1; prefix.size() < shared; rule++) {
        rules += " Rule " + std::to_string(rule) + ": when a reader asks about shelf " + std::to_string(rule * 7) +
                 ", say which books stand there and who wrote them.";
        prefix = tokenizer.encode_chat({{"system", rules}});
    }
    prefix.resize(shared);
    std::vector<std::vector<int32_t>> chats;
    for (size_t i = 0; i < count; i++) {
        const std::string subject = subjects[i % std::size(subjects)];
        chats.push_back(prefix);
        const std::vector<int32_t> own = tokenizer.encode_chat(
            {{"user", "Question " + std::to_string(i + 1) + ": tell me something about " + subject + "."}});
        chats.back().insert(chats.back().end(), own.begin(), own.end());
    }
    return chats;
}

}  // namespace engine
