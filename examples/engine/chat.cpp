// Answers questions and shows a table; chat.h says what for.
#include "chat.h"

#include <cstdio>
#include <string>
#include <vector>

#include "contiguous.h"
#include "gguf.h"
#include "paged.h"
#include "scheduler.h"
#include "tokenizer.h"

namespace engine {

namespace {

// All answers are made at a time; they are shown one after the other, the first unfinished one as it is made.
class Screen {
  public:
    explicit Screen(const std::vector<std::string> &titles) : titles(titles), texts(titles.size()),
                                                              ended(titles.size(), false) {
        open();
    }

    void add(size_t number, const std::string &text) {
        if (number == shown) {
            std::fputs(text.c_str(), stdout);
            std::fflush(stdout);
        } else {
            texts[number] += text;
        }
    }

    void end(size_t number) {
        ended[number] = true;
        while (shown < titles.size() && ended[shown]) {
            std::fputs("\n", stdout);
            shown++;
            open();
        }
    }

  private:
    void open() {
        if (shown == titles.size()) return;
        std::printf("\n> %s\n%s", titles[shown].c_str(), texts[shown].c_str());
        std::fflush(stdout);
    }

    const std::vector<std::string> &titles;
    std::vector<std::string> texts;
    std::vector<bool> ended;
    size_t shown = 0;
};

void print_table(const Totals &totals, const KvCache &cache, const KvShape &shape, const Options &options) {
    const KvFigures figures = cache.figures();
    const double mib = 1024.0 * 1024.0;
    const double held = static_cast<double>(totals.peak_blocks * figures.block_bytes) / mib;
    const double plain = static_cast<double>(totals.peak_running * options.longest * shape.token_bytes()) / mib;
    std::printf("\n%-34s %s, %s\n", "cache", cache.name().c_str(), shape.type == KvType::f32 ? "f32" : "bf16");
    const double speed = static_cast<double>(totals.new_tokens) / totals.seconds;
    std::printf("%-34s %.1f\n", "tokens a second, all answers", speed);
    std::printf("%-34s %.1f %% (%zu of %zu tokens)\n", "prefix hit rate of the prompts",
                100.0 * static_cast<double>(totals.hit_tokens) / static_cast<double>(totals.prompt_tokens),
                totals.hit_tokens, totals.prompt_tokens);
    std::printf("%-34s %zu\n", "blocks saved by sharing, at most", totals.peak_shared_blocks);
    std::printf("%-34s %.1f MiB\n", "memory of keys and values held", held);
    std::printf("%-34s %.1f MiB (%zu sequences of %zu tokens)\n", "a contiguous cache keeps", plain,
                totals.peak_running, options.longest);
}

}  // namespace

std::unique_ptr<KvCache> make_cache(const Options &options, const Model &model) {
    const KvShape shape = model.kv_shape(options.type);
    if (!options.is_paged) return std::make_unique<ContiguousCache>(shape, options.running, options.longest);
    PagedSettings settings;
    settings.block_tokens = options.block_tokens;
    settings.blocks = (options.cache_tokens + options.block_tokens - 1) / options.block_tokens;
    settings.sequences = options.running;
    settings.batch_tokens = options.step_tokens;
    return std::make_unique<PagedCache>(shape, settings);
}

void chat(const Options &options) {
    const Gguf file(options.model);
    const Tokenizer tokenizer(file);
    Model model(file, options.threads);
    const std::unique_ptr<KvCache> cache = make_cache(options, model);
    Scheduler scheduler(model, *cache, {options.running, options.step_tokens});
    const bool asks = options.verb == "ask";
    const int32_t end = tokenizer.end();

    std::vector<Request> requests(options.texts.size());
    for (size_t i = 0; i < requests.size(); i++) {
        const std::string &text = options.texts[i];
        requests[i].prompt = asks ? tokenizer.encode_chat({{"system", options.system}, {"user", text}})
                                  : tokenizer.encode(text);
        requests[i].most_new = options.new_tokens;
        requests[i].end = end;
    }
    Screen screen(options.texts);
    std::vector<size_t> left(requests.size(), options.new_tokens);
    for (size_t i = 0; i < requests.size(); i++) {
        requests[i].on_token = [&, i](int32_t token) {
            if (token != end) screen.add(i, tokenizer.bytes(token));
            if (token == end || --left[i] == 0) screen.end(i);
        };
        scheduler.submit(std::move(requests[i]));
    }
    scheduler.run();
    print_table(scheduler.totals(), *cache, model.kv_shape(options.type), options);
}

}  // namespace engine
