// What must not change the output of a model: blocks, chunks, batches, threads, prefix hits, preemption.
// With a small random model, so that every case runs in a moment; tests_real.cpp asks the same of a real one.
#include <atomic>
#include <cmath>

#include "lanes.h"
#include "made_model.h"
#include "served.h"
#include "tokenizer.h"
#include "workload.h"

namespace engine {

namespace {

using tests::Served;
using tests::serve;
using Prompts = std::vector<std::vector<int32_t>>;

struct Fixture {
    Gguf file;
    Tokenizer tokenizer;
    Model model;

    explicit Fixture(size_t threads = 2)
        : file(write_file("made.gguf", made_model({}))), tokenizer(file), model(file, threads) {}

    KvShape shape(KvType type = KvType::f32) const { return model.kv_shape(type); }

    // Prompts of different lengths from 1 on.
    Prompts prompts(size_t count, uint64_t seed) const {
        Random random(seed);
        Prompts list(count);
        for (size_t i = 0; i < count; i++) {
            list[i].resize(1 + (i == 0 ? 0 : random.below(90)));
            for (int32_t &token : list[i]) token = static_cast<int32_t>(3 + random.below(250));
        }
        return list;
    }
};

PagedSettings paged(size_t block_tokens, size_t blocks, size_t sequences = 8) {
    return {block_tokens, blocks, sequences, 512, "host"};
}

}  // namespace

TEST(paged_is_contiguous_bit_by_bit_for_all_block_sizes_and_types) {
    Fixture fixture;
    const Prompts prompts = fixture.prompts(5, 1);
    for (const KvType type : {KvType::f32, KvType::bf16}) {
        ContiguousCache contiguous(fixture.shape(type), 8, 256);
        const Served expected = serve(fixture.model, contiguous, prompts, 40, {8, 64}, false);
        for (const size_t block_tokens : {1, 2, 7, 16, 33, 256}) {
            PagedCache cache(fixture.shape(type), paged(block_tokens, 2048 / block_tokens));
            CHECK_SAME(expected, serve(fixture.model, cache, prompts, 40, {8, 64}, true));
            tests::check_empty(cache);
        }
    }
}

TEST(float32_and_bf16_caches_differ_but_little) {
    Fixture fixture;
    const Prompts prompts = fixture.prompts(3, 2);
    PagedCache wide(fixture.shape(KvType::f32), paged(16, 64)), narrow(fixture.shape(KvType::bf16), paged(16, 64));
    const Served a = serve(fixture.model, wide, prompts, 1, {8, 64}, false);
    const Served b = serve(fixture.model, narrow, prompts, 1, {8, 64}, false);
    for (size_t i = 0; i < prompts.size(); i++) {
        const std::vector<float> &x = a.outcomes[i].logits[0], &y = b.outcomes[i].logits[0];
        double difference = 0, size = 0;
        for (size_t w = 0; w < x.size(); w++) {
            difference += (x[w] - y[w]) * (x[w] - y[w]);
            size += x[w] * x[w];
        }
        CHECK(difference > 0 || prompts[i].size() == 1);
        CHECK(std::sqrt(difference / size) < 0.02);
    }
}

TEST(chunks_batches_and_threads_change_nothing) {
    Fixture fixture(1);
    const Prompts prompts = fixture.prompts(6, 3);
    PagedCache whole(fixture.shape(), paged(16, 128));
    const Served expected = serve(fixture.model, whole, prompts, 24, {8, 512}, false);
    for (const size_t step_tokens : {1, 3, 17, 64}) {
        PagedCache cache(fixture.shape(), paged(16, 128));
        CHECK_SAME(expected, serve(fixture.model, cache, prompts, 24, {8, step_tokens}, false));
    }
    for (const size_t running : {1, 2, 5}) {
        PagedCache cache(fixture.shape(), paged(16, 128));
        const Served served = serve(fixture.model, cache, prompts, 24, {running, 32}, false);
        CHECK_SAME(expected, served);
        CHECK_EQUAL(served.totals.peak_running, running);
    }
    for (const size_t threads : {2, 3, 5}) {
        Fixture other(threads);
        PagedCache cache(fixture.shape(), paged(16, 128));
        CHECK_SAME(expected, serve(other.model, cache, prompts, 24, {8, 64}, false));
    }
}

TEST(prefix_hits_skip_the_prefill_and_change_nothing) {
    Fixture fixture;
    Prompts prompts = fixture.prompts(6, 4);
    const std::vector<int32_t> system(100, 40);
    for (std::vector<int32_t> &prompt : prompts) prompt.insert(prompt.begin(), system.begin(), system.end());
    ContiguousCache contiguous(fixture.shape(), 8, 256);
    const Served expected = serve(fixture.model, contiguous, prompts, 20, {8, 64}, false);

    PagedCache cache(fixture.shape(), paged(16, 256));
    const Served cold = serve(fixture.model, cache, prompts, 20, {8, 64}, true);
    CHECK_SAME(expected, cold);
    // 96 tokens are 6 full blocks: computed by the first, found by the five that wait for it.
    CHECK_EQUAL(cold.totals.hit_tokens, 5u * 96);
    CHECK_EQUAL(cold.totals.computed_tokens, expected.totals.computed_tokens - 5 * 96);
    CHECK(cold.totals.peak_shared_blocks >= 5 * 6);

    // Now that all is there, each finds its whole prompt but what does not fill a block.
    const Served warm = serve(fixture.model, cache, prompts, 20, {8, 64}, true);
    CHECK_SAME(expected, warm);
    for (size_t i = 0; i < prompts.size(); i++) {
        CHECK_EQUAL(warm.outcomes[i].hit_tokens, (prompts[i].size() - 1) / 16 * 16);
    }
    tests::check_empty(cache);
}

TEST(a_full_cache_preempts_and_the_output_stays) {
    Fixture fixture;
    const Prompts prompts = fixture.prompts(8, 5);
    ContiguousCache contiguous(fixture.shape(), 8, 256);
    const Served expected = serve(fixture.model, contiguous, prompts, 60, {8, 64}, false);
    for (const size_t block_tokens : {1, 4, 5}) {
        for (const bool shares : {false, true}) {
            for (const size_t tokens : {150, 200, 330}) {
                PagedCache cache(fixture.shape(), paged(block_tokens, tokens / block_tokens));
                const Served served = serve(fixture.model, cache, prompts, 60, {8, 64}, shares);
                CHECK_SAME(expected, served);
                CHECK(served.totals.preemptions > 0 || tokens > 300);
                CHECK(served.totals.peak_blocks * block_tokens <= tokens);
                tests::check_empty(cache);
            }
        }
    }
}

TEST(a_preempted_sequence_finds_its_own_blocks_again) {
    Fixture fixture;
    const Prompts prompts{std::vector<int32_t>(40, 50), std::vector<int32_t>(40, 60)};
    PagedCache cache(fixture.shape(), paged(4, 32));
    const Served served = serve(fixture.model, cache, prompts, 60, {8, 64}, true);
    CHECK(served.totals.preemptions > 0);
    ContiguousCache contiguous(fixture.shape(), 2, 128);
    const Served expected = serve(fixture.model, contiguous, prompts, 60, {8, 64}, false);
    CHECK_SAME(expected, served);
    const size_t again = served.totals.computed_tokens - expected.totals.computed_tokens;
    CHECK(again < 40 + 60);
}

TEST(a_prompt_longer_than_the_cache_or_the_context_is_refused) {
    Fixture fixture;
    PagedCache cache(fixture.shape(), paged(16, 4));
    ContiguousCache contiguous(fixture.shape(), 1, 64);
    for (KvCache *each : {static_cast<KvCache *>(&cache), static_cast<KvCache *>(&contiguous)}) {
        const auto submit = [&](size_t length, size_t most_new) {
            return serve(fixture.model, *each, {std::vector<int32_t>(length, 9)}, most_new, {8, 64}, true);
        };
        CHECK_REFUSED(submit(65, 1), "a prompt of 65 tokens with 1 new ones is longer than the cache, which holds 64");
        CHECK_REFUSED(submit(60, 6), "longer than the cache");
        CHECK_REFUSED(submit(0, 1), "without a token");
        CHECK_REFUSED(submit(1, 0), "no token");
        CHECK_EQUAL(submit(60, 5).outcomes[0].tokens.size(), 5u);
        CHECK_EQUAL(submit(64, 1).outcomes[0].tokens.size(), 1u);
    }
    PagedCache large(fixture.shape(), paged(16, 256));
    CHECK_REFUSED(serve(fixture.model, large, {std::vector<int32_t>(2048, 9)}, 2, {8, 64}, true),
                  "longer than the context of the model, which holds 2048");
    CHECK_REFUSED(serve(fixture.model, large, {{1, 100000}}, 2, {8, 64}, true), "token 100000 is not one");
}

// The engine writes its rows itself, from the description of the cache; kavern_kv_append has to write the same bytes.
TEST(rows_written_by_the_engine_are_those_of_append) {
    Fixture fixture;
    for (const KvType type : {KvType::f32, KvType::bf16}) {
        const KvShape shape = fixture.shape(type);
        PagedCache own(shape, paged(7, 16)), theirs(shape, paged(7, 16));
        const std::vector<int32_t> tokens(50, 5);
        const size_t width = shape.heads * shape.channels;
        Random random(6);
        std::vector<float> keys(tokens.size() * width), values(keys.size());
        for (float &each : keys) each = random.unit() * 100;
        for (float &each : values) each = random.unit() / 100;
        std::vector<StepRows> rows;
        for (PagedCache *cache : {&own, &theirs}) {
            std::vector<Lookup> lookups{{tokens.data(), tokens.size(), true, 0, 0}};
            cache->match(lookups);
            std::vector<Op> ops{{OpKind::admit, lookups[0].lease, tokens.data(), tokens.size()}};
            cache->step(1, ops);
            rows.push_back(cache->tables(1));
        }
        for (size_t layer = 0; layer < shape.layers; layer++) {
            write_rows({1, shape.heads, shape.channels}, rows[0], layer, keys.data(), values.data());
            kavern_kv_append_args args{};
            args.struct_size = sizeof args;
            args.layer = static_cast<uint32_t>(layer);
            args.dtype = KAVERN_F32;
            args.tokens = static_cast<uint32_t>(tokens.size());
            args.keys = reinterpret_cast<uintptr_t>(keys.data());
            args.values = reinterpret_cast<uintptr_t>(values.data());
            // The blocks of a new cache are handed out in some order; the slots of the step say in which.
            kavern_kv_group_tables group{};
            kavern_kv_step_tables tables{};
            tables.struct_size = sizeof tables;
            tables.groups = &group;
            tables.group_capacity = 1;
            check(kavern_kv_tables(theirs.cache_handle(), 1, KAVERN_STREAM_DEFAULT, &tables), "tables");
            args.slot_mapping = group.slot_mapping;
            check(kavern_kv_append(theirs.cache_handle(), KAVERN_STREAM_DEFAULT, &args), "append");
        }
        check(kavern_stream_synchronize(theirs.manager_handle(), KAVERN_STREAM_DEFAULT), "synchronisation");
        const size_t row_bytes = shape.channels * kv_bytes(type);
        for (size_t layer = 0; layer < shape.layers; layer++) {
            for (size_t token = 0; token < tokens.size(); token++) {
                for (size_t head = 0; head < shape.heads; head++) {
                    for (const size_t value : {size_t{0}, rows[0].strides.value}) {
                        const size_t offset = layer * rows[0].strides.layer + head * rows[0].strides.head + value;
                        const std::byte *a = rows[0].slots[token] + offset, *b = rows[1].slots[token] + offset;
                        CHECK(std::memcmp(a, b, row_bytes) == 0);
                    }
                }
            }
        }
        for (PagedCache *cache : {&own, &theirs}) cache->step_done(1);
    }
}

TEST(every_index_of_every_loop_is_worked_on_once) {
    for (const size_t threads : {1, 2, 4, 7}) {
        Workers workers(threads);
        for (size_t loop = 0; loop < 3000; loop++) {
            const size_t count = loop % 37;
            std::vector<std::atomic<int>> seen(count);
            workers.each(count, [&](size_t index) { seen.at(index)++; });
            for (const auto &each : seen) CHECK_EQUAL(each.load(), 1);
        }
    }
}

TEST(the_exponential_is_close_and_exact_at_zero) {
    for (int i = -8700; i <= 8800; i++) {
        const float x = static_cast<float>(i) / 100;
        const float got = exponential(all(x))[3];
        const double expected = std::exp(static_cast<double>(x));
        CHECK(std::abs(got - expected) <= 2e-7 * expected);
    }
    CHECK_EQUAL(exponential(all(0.0f))[0], 1.0f);
}

TEST(bf16_rounds_to_the_nearest_and_ties_to_even) {
    const auto rounded = [](uint32_t bits) {
        float value;
        std::memcpy(&value, &bits, sizeof value);
        return to_bf16(value).bits;
    };
    CHECK_EQUAL(rounded(0x3f800000), 0x3f80);
    CHECK_EQUAL(rounded(0x3f808000), 0x3f80);
    CHECK_EQUAL(rounded(0x3f818000), 0x3f82);
    CHECK_EQUAL(rounded(0x3f808001), 0x3f81);
    CHECK_EQUAL(rounded(0xff7fffff), 0xff80);
    CHECK((rounded(0x7f800001) & 0x7f) != 0);
}

TEST(text_comes_back_as_it_was) {
    Fixture fixture;
    const Tokenizer &tokenizer = fixture.tokenizer;
    const std::vector<std::string> written{" the", "thing", "  ", "\n", "12", "é", "'ll", "…", "汉", " "};
    Random random(8);
    for (int round = 0; round < 300; round++) {
        std::string text;
        for (uint64_t length = random.below(60); length > 0; length--) {
            // Any bytes, and stretches of what people write.
            if (random.below(3) == 0) text.push_back(static_cast<char>(random.next()));
            else text += written[random.below(written.size())];
        }
        CHECK_EQUAL(tokenizer.decode(tokenizer.encode(text)), text);
    }
    // Digits alone, a space with the word behind it, merges by rank.
    CHECK_EQUAL(tokenizer.encode("12").size(), 2u);
    CHECK_EQUAL(tokenizer.encode(" the").size(), 1u);
    CHECK_EQUAL(tokenizer.encode("a  the").size(), 3u);
    CHECK_EQUAL(tokenizer.encode("thing").size(), 2u);
}

}  // namespace engine
