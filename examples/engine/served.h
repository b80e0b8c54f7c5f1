// What tests share: serve prompts with a cache and compare what came out, bit by bit.
#pragma once

#include <cstring>
#include <vector>

#include "contiguous.h"
#include "paged.h"
#include "scheduler.h"
#include "tests.h"

namespace engine::tests {

struct Served {
    std::vector<Outcome> outcomes;
    Totals totals;
};

inline Served serve(Model &model, KvCache &cache, const std::vector<std::vector<int32_t>> &prompts, size_t most_new,
                    const Limits &limits, bool shares, bool keeps_logits = true) {
    Scheduler scheduler(model, cache, limits);
    for (const std::vector<int32_t> &prompt : prompts) {
        Request request;
        request.prompt = prompt;
        request.most_new = most_new;
        request.shares = shares;
        request.keeps_logits = keeps_logits;
        scheduler.submit(std::move(request));
    }
    scheduler.run();
    Served served{{}, scheduler.totals()};
    for (size_t i = 0; i < prompts.size(); i++) served.outcomes.push_back(scheduler.outcome(i));
    return served;
}

// Tokens and logits are the same, to the last bit.
inline void check_same(const Served &a, const Served &b, const char *file, int line) {
    check_equal(a.outcomes.size(), b.outcomes.size(), "requests", file, line);
    for (size_t i = 0; i < a.outcomes.size(); i++) {
        const Outcome &x = a.outcomes[i], &y = b.outcomes[i];
        check_equal(x.is_finished && y.is_finished, true, "both are finished", file, line);
        check_equal(x.tokens.size(), y.tokens.size(), "new tokens", file, line);
        for (size_t t = 0; t < x.tokens.size(); t++) {
            const std::string where = "request " + std::to_string(i) + ", token " + std::to_string(t);
            check_equal(x.tokens[t], y.tokens[t], where.c_str(), file, line);
        }
        check_equal(x.logits.size(), y.logits.size(), "lists of logits", file, line);
        for (size_t t = 0; t < x.logits.size(); t++) {
            const size_t bytes = x.logits[t].size() * sizeof(float);
            if (x.logits[t].size() != y.logits[t].size() ||
                std::memcmp(x.logits[t].data(), y.logits[t].data(), bytes) != 0) {
                fail_check(file, line, "logits of request " + std::to_string(i) + ", token " + std::to_string(t) +
                                           " differ");
            }
        }
    }
}

#define CHECK_SAME(a, b) engine::tests::check_same(a, b, __FILE__, __LINE__)

// Nothing is held any more, and the cache's own proof holds.
inline void check_empty(const PagedCache &cache) {
    const kavern_kv_statistics numbers = cache.statistics();
    check_equal(numbers.sequences, 0u, "sequences", __FILE__, __LINE__);
    check_equal(numbers.leases, 0u, "leases", __FILE__, __LINE__);
    check_equal(numbers.used_blocks, 0u, "used blocks", __FILE__, __LINE__);
    cache.validate();
}

}  // namespace engine::tests
