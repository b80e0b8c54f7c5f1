// Measures the engine; bench.h says what. Both sides of a comparison run in turns, step by step, so that whatever else
// the machine does meets both; each side counts the time of its own steps. What is shown is the median with the lowest
// and the highest. The bound is measured in the same run: reading all weights once, on all threads.
#include "bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "chat.h"
#include "gguf.h"
#include "scheduler.h"
#include "tokenizer.h"
#include "workload.h"

namespace engine {

namespace {

constexpr size_t CHATS = 8;
constexpr size_t SHARED_TOKENS = 512;

struct Sample {
    std::vector<double> values;

    double median() {
        std::sort(values.begin(), values.end());
        return values[values.size() / 2];
    }

    void print(const char *name, const char *unit) {
        const double middle = median();
        std::printf("%-52s %8.3f %s (%.3f-%.3f)\n", name, middle, unit, values.front(), values.back());
    }
};

std::vector<size_t> submit(Scheduler &scheduler, const std::vector<std::vector<int32_t>> &prompts, size_t new_tokens,
                           bool shares) {
    std::vector<size_t> numbers;
    for (const std::vector<int32_t> &prompt : prompts) {
        Request request;
        request.prompt = prompt;
        request.most_new = new_tokens;
        request.shares = shares;
        numbers.push_back(scheduler.submit(std::move(request)));
    }
    return numbers;
}

// One side of a comparison: a cache, its scheduler, and how long each step that only decodes took.
struct Side {
    std::unique_ptr<KvCache> cache;
    std::unique_ptr<Scheduler> scheduler;
    std::vector<size_t> numbers;
    Sample steps, results;

    void begin(const Options &options, Model &model, const std::vector<std::vector<int32_t>> &prompts, bool shares) {
        const Limits limits{options.running, options.step_tokens};
        steps.values.clear();
        scheduler.reset();
        cache = make_cache(options, model);
        scheduler = std::make_unique<Scheduler>(model, *cache, limits);
        numbers = submit(*scheduler, prompts, options.new_tokens, shares);
    }

    bool step() {
        const Totals before = scheduler->totals();
        if (!scheduler->step()) return false;
        const Totals &after = scheduler->totals();
        const bool decodes = after.new_tokens - before.new_tokens == after.computed_tokens - before.computed_tokens;
        if (decodes && after.new_tokens > before.new_tokens) steps.values.push_back(after.seconds - before.seconds);
        return true;
    }
};

// Runs two sides to their end in turns; each goes first every other time.
template <typename Each>
void run_in_turns(Side &a, Side &b, Each after_each) {
    bool goes_on = true;
    for (size_t step = 0; goes_on; step++) {
        Side &first = step % 2 == 0 ? a : b, &second = step % 2 == 0 ? b : a;
        goes_on = false;
        for (Side *side : {&first, &second}) {
            if (!side->step()) continue;
            goes_on = true;
            after_each(*side);
        }
    }
}

void throughput(Options options, Model &model, const std::vector<std::vector<int32_t>> &prompts,
                const std::string &name) {
    Sample ratio;
    Side contiguous, paged;
    for (size_t round = 0; round < options.rounds; round++) {
        options.is_paged = false;
        contiguous.begin(options, model, prompts, false);
        options.is_paged = true;
        paged.begin(options, model, prompts, false);
        run_in_turns(contiguous, paged, [](Side &) {});
        for (Side *side : {&contiguous, &paged}) {
            side->results.values.push_back(static_cast<double>(prompts.size()) / side->steps.median());
        }
        ratio.values.push_back(paged.results.values.back() / contiguous.results.values.back());
    }
    contiguous.results.print((name + ", contiguous").c_str(), "tokens/s");
    paged.results.print((name + ", paged").c_str(), "tokens/s");
    ratio.print((name + ", paged over contiguous, by round").c_str(), "x");
}

void first_token(Options options, Model &model, const std::vector<std::vector<int32_t>> &prompts) {
    options.is_paged = true;
    options.new_tokens = 16;
    Sample ratio;
    Side alone, shared;
    for (size_t round = 0; round < options.rounds; round++) {
        alone.begin(options, model, prompts, false);
        shared.begin(options, model, prompts, true);
        double sums[2] = {};
        std::vector<bool> seen[2] = {std::vector<bool>(prompts.size()), std::vector<bool>(prompts.size())};
        run_in_turns(alone, shared, [&](Side &side) {
            const size_t which = &side == &shared;
            for (size_t i = 0; i < prompts.size(); i++) {
                if (seen[which][i] || side.scheduler->outcome(side.numbers[i]).tokens.empty()) continue;
                seen[which][i] = true;
                sums[which] += side.scheduler->totals().seconds;
            }
        });
        alone.results.values.push_back(sums[0] / static_cast<double>(prompts.size()));
        shared.results.values.push_back(sums[1] / static_cast<double>(prompts.size()));
        ratio.values.push_back(sums[1] / sums[0]);
    }
    alone.results.print("mean time to first token, unshared", "s");
    shared.results.print("mean time to first token, shared, cold", "s");
    ratio.print("shared over unshared, by round", "x");
    const Totals &totals = shared.scheduler->totals();
    std::printf("%-52s %zu of %zu\n", "tokens of the prompts found", totals.hit_tokens, totals.prompt_tokens);
    std::printf("%-52s %zu of %zu\n", "blocks saved at the peak, of those needed unshared", totals.peak_shared_blocks,
                totals.peak_shared_blocks + totals.peak_blocks);
}

void read_weights(const Options &options) {
    std::ifstream file(options.model, std::ios::binary);
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    Workers workers(options.threads);
    Sample sample;
    constexpr size_t stretch = 1 << 18;
    uint64_t total = 0;
    for (size_t round = 0; round < 2 * options.rounds; round++) {
        const auto start = std::chrono::steady_clock::now();
        std::vector<uint64_t> sums(bytes.size() / stretch);
        workers.each(sums.size(), [&](size_t index) {
            uint64_t word, sum = 0;
            for (size_t at = 0; at < stretch; at += sizeof word) {
                std::memcpy(&word, bytes.data() + index * stretch + at, sizeof word);
                sum += word;
            }
            sums[index] = sum;
        });
        const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
        sample.values.push_back(passed.count() * 1000);
        total = std::accumulate(sums.begin(), sums.end(), total);
    }
    sample.print("bound: reading the file once from memory", "ms");
    // The sum keeps the reads from being left out.
    std::printf("%-52s %zu MiB, %zu threads, sum %llx\n", "the file", bytes.size() >> 20, workers.count(),
                static_cast<unsigned long long>(total));
}

}  // namespace

void bench(const Options &given) {
    Options options = given;
    const Gguf file(options.model);
    const Tokenizer tokenizer(file);
    Model model(file, options.threads);
    options.longest = std::max(options.longest, SHARED_TOKENS + 256);
    options.cache_tokens = std::max(options.cache_tokens, 2 * CHATS * options.longest);
    options.running = std::max(options.running, CHATS);

    read_weights(options);
    const auto chats = chats_with_shared_prefix(tokenizer, CHATS, 64);
    for (const KvType type : {KvType::f32, KvType::bf16}) {
        options.type = type;
        const bool is_full = type == KvType::f32;
        throughput(options, model, {chats[0]}, is_full ? "1 chat, f32" : "1 chat, bf16");
        throughput(options, model, chats, is_full ? "8 chats, f32" : "8 chats, bf16");
    }
    options.type = KvType::f32;
    first_token(options, model, chats_with_shared_prefix(tokenizer, CHATS, SHARED_TOKENS));
}

}  // namespace engine
