// Measures the engine; bench.h says what. Both sides of a comparison run in turns; what is shown is the median with
// the lowest and the highest. The bound is measured in the same run: reading all weights once, on all threads.
#include "bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <numeric>
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
        std::printf("%-52s %8.2f %s (%.2f-%.2f)\n", name, middle, unit, values.front(), values.back());
    }
};

struct Run {
    double tokens_a_second, mean_seconds_to_first;
    Totals totals;
};

Run serve(const Options &options, Model &model, const std::vector<std::vector<int32_t>> &prompts, size_t new_tokens,
          bool shares) {
    const auto cache = make_cache(options, model);
    Scheduler scheduler(model, *cache, {options.running, options.step_tokens});
    std::vector<size_t> numbers;
    for (const std::vector<int32_t> &prompt : prompts) {
        Request request;
        request.prompt = prompt;
        request.most_new = new_tokens;
        request.shares = shares;
        numbers.push_back(scheduler.submit(std::move(request)));
    }
    scheduler.run();
    double to_first = 0;
    for (const size_t number : numbers) to_first += scheduler.outcome(number).seconds_to_first;
    const Totals &totals = scheduler.totals();
    return {static_cast<double>(totals.new_tokens) / totals.seconds, to_first / static_cast<double>(prompts.size()),
            totals};
}

void throughput(Options options, Model &model, const std::vector<std::vector<int32_t>> &prompts, const char *name) {
    Sample contiguous, paged, ratio;
    for (size_t round = 0; round < options.rounds; round++) {
        // Each side goes first every other time.
        for (const bool is_second : {false, true}) {
            options.is_paged = is_second == (round % 2 == 0);
            const Run run = serve(options, model, prompts, options.new_tokens, false);
            (options.is_paged ? paged : contiguous).values.push_back(run.tokens_a_second);
        }
        ratio.values.push_back(paged.values.back() / contiguous.values.back());
    }
    char title[96];
    std::snprintf(title, sizeof title, "%s, contiguous", name);
    contiguous.print(title, "tokens/s");
    std::snprintf(title, sizeof title, "%s, paged", name);
    paged.print(title, "tokens/s");
    std::snprintf(title, sizeof title, "%s, paged over contiguous, by round", name);
    ratio.print(title, "x");
}

void first_token(Options options, Model &model, const std::vector<std::vector<int32_t>> &prompts) {
    options.is_paged = true;
    options.cache_tokens = 2 * CHATS * options.longest;
    Sample alone, shared, ratio;
    Totals totals;
    for (size_t round = 0; round < options.rounds; round++) {
        for (const bool shares : {round % 2 == 0, round % 2 != 0}) {
            const Run run = serve(options, model, prompts, 16, shares);
            (shares ? shared : alone).values.push_back(run.mean_seconds_to_first);
            if (shares) totals = run.totals;
        }
        ratio.values.push_back(shared.values.back() / alone.values.back());
    }
    alone.print("mean time to first token, unshared", "s");
    shared.print("mean time to first token, shared, cold", "s");
    ratio.print("shared over unshared, by round", "x");
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
    options.cache_tokens = std::max(options.cache_tokens, CHATS * options.longest);
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
