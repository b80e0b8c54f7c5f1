// Bad input: files that are no models, cut off, flipped or absurd; options and prompts that cannot be used.
// Each is refused with a sentence that says what is wrong. Run under the sanitizers, this is also the proof that the
// reader never leaves the file.
#include <algorithm>
#include <cstring>
#include <iterator>

#include "gguf.h"
#include "made_model.h"
#include "model.h"
#include "options.h"
#include "scheduler.h"
#include "tests.h"
#include "tokenizer.h"

namespace engine {

namespace {

void load(const std::string &path) {
    const Gguf file(path);
    const Tokenizer tokenizer(file);
    const Model model(file, 1);
}

void load(const std::vector<uint8_t> &content) { load(write_file("broken.gguf", content)); }

template <typename T>
void overwrite(std::vector<uint8_t> &bytes, size_t at, T number) {
    std::memcpy(bytes.data() + at, &number, sizeof number);
}

// Where a text stands in the file.
size_t place_of(const std::vector<uint8_t> &bytes, const std::string &text) {
    const auto found = std::search(bytes.begin(), bytes.end(), text.begin(), text.end());
    CHECK(found != bytes.end());
    return static_cast<size_t>(found - bytes.begin());
}

}  // namespace

TEST(a_made_model_loads) { load(made_model({})); }

TEST(what_is_no_gguf_file_is_refused) {
    CHECK_REFUSED(load(write_file("text", {'h', 'e', 'l', 'l', 'o', '\n'})), "not a GGUF file");
    CHECK_REFUSED(load(write_file("short", {'G', 'G'})), "not a GGUF file");
    CHECK_REFUSED(load(write_file("empty", {})), "not a GGUF file");
    CHECK_REFUSED(load(std::string("/there/is/no/such.gguf")), "cannot be opened");
    CHECK_REFUSED(load(std::string("/")), "not a file");
}

TEST(another_version_is_refused) {
    std::vector<uint8_t> bytes = made_model({});
    overwrite<uint32_t>(bytes, 4, 1);
    CHECK_REFUSED(load(bytes), "GGUF version 1; versions 2 and 3 are read");
    overwrite<uint32_t>(bytes, 4, 0x03000000);
    CHECK_REFUSED(load(bytes), "GGUF version 50331648");
}

TEST(a_file_cut_off_anywhere_is_refused) {
    const std::vector<uint8_t> bytes = made_model({});
    const size_t header = place_of(bytes, "blk.1.ffn_down.weight") + 64;
    // Every byte of the first stretch, then in strides that meet every kind of place.
    for (size_t length = 4; length < bytes.size(); length += length < 600 ? 1 : length < header ? 13 : 4099) {
        std::vector<uint8_t> cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length));
        CHECK_REFUSED(load(cut), "truncated");
    }
    std::vector<uint8_t> cut(bytes.begin(), bytes.end() - 1);
    CHECK_REFUSED(load(cut), "truncated: tensor blk.1.ffn_down.weight");
}

TEST(an_unknown_tensor_type_is_refused) {
    std::vector<uint8_t> bytes = made_model({});
    const std::string name = "blk.0.attn_q.weight";
    overwrite<uint32_t>(bytes, place_of(bytes, name) + name.size() + 4 + 16, 12);
    CHECK_REFUSED(load(bytes), "tensor blk.0.attn_q.weight has the unknown type 12");
}

TEST(absurd_numbers_in_the_header_are_refused) {
    const std::vector<uint8_t> good = made_model({});
    std::vector<uint8_t> bytes = good;
    overwrite<uint64_t>(bytes, 8, uint64_t{1} << 60);
    CHECK_REFUSED(load(bytes), "the header asks for");
    bytes = good;
    overwrite<uint64_t>(bytes, 16, UINT64_MAX);
    CHECK_REFUSED(load(bytes), "the header asks for");
    bytes = good;
    overwrite<uint64_t>(bytes, 24, UINT64_MAX - 7);  // the length of the first name
    CHECK_REFUSED(load(bytes), "truncated");

    const std::string tokens = "tokenizer.ggml.tokens";
    for (const uint64_t count : {UINT64_MAX, UINT64_MAX / 8 + 1, uint64_t{1} << 40}) {
        bytes = good;
        overwrite<uint64_t>(bytes, place_of(bytes, tokens) + tokens.size() + 8, count);
        CHECK_REFUSED(load(bytes), "truncated: an array of");
    }
    const std::string name = "blk.0.attn_q.weight";
    const size_t shape = place_of(good, name) + name.size() + 4;
    for (const uint64_t side : {uint64_t{0}, UINT64_MAX, uint64_t{1} << 62, uint64_t{1} << 32}) {
        bytes = good;
        overwrite(bytes, shape, side);
        overwrite(bytes, shape + 8, side);  // products that wrap around to something small
        CHECK_REFUSED(load(bytes), "tensor blk.0.attn_q.weight has a side of");
    }
    for (const uint64_t offset : {UINT64_MAX - 31, uint64_t{1} << 63, uint64_t{1} << 40}) {
        bytes = good;
        overwrite(bytes, shape + 16 + 4, offset);
        CHECK_REFUSED(load(bytes), "truncated: tensor blk.0.attn_q.weight");
    }
    bytes = good;
    overwrite<uint64_t>(bytes, shape + 16 + 4, 7);
    CHECK_REFUSED(load(bytes), "is not aligned");
    bytes = good;
    overwrite<uint32_t>(bytes, shape - 4, 99);
    CHECK_REFUSED(load(bytes), "has 99 dimensions");
}

TEST(what_a_model_needs_and_lacks_is_named) {
    MadeModel wanted;
    for (const char *name : {"token_embd.weight", "output_norm.weight", "blk.1.ffn_up.weight",
                             "blk.0.attn_norm.weight"}) {
        wanted.without_tensor = name;
        CHECK_REFUSED(load(made_model(wanted)), std::string("tensor ") + name + " is missing");
    }
    wanted = {};
    for (const char *key : {"general.architecture", "llama.block_count", "llama.rope.freq_base",
                            "tokenizer.ggml.tokens", "tokenizer.ggml.eos_token_id"}) {
        wanted.without_value = key;
        CHECK_REFUSED(load(made_model(wanted)), std::string("the value ") + key + " is missing");
    }
}

TEST(a_model_of_another_make_is_refused) {
    MadeModel wanted;
    wanted.architecture = "mamba";
    CHECK_REFUSED(load(made_model(wanted)), "the architecture is mamba; llama is served");
    wanted = {};
    wanted.heads = 5;
    CHECK_REFUSED(load(made_model(wanted)), "do not go together");
    wanted = {};
    wanted.heads = 8;
    wanted.kv_heads = 4;
    CHECK_REFUSED(load(made_model(wanted)), "heads of 16, 32, 64 or 128 channels are served");

    std::vector<uint8_t> bytes = made_model({});
    const std::string key = "llama.feed_forward_length";
    overwrite<uint32_t>(bytes, place_of(bytes, key) + key.size() + 4, 64);
    CHECK_REFUSED(load(bytes), "has the shape [64, 96], wanted is [64, 64]");
    bytes = made_model({});
    overwrite<uint32_t>(bytes, place_of(bytes, key) + key.size(), 6);  // a real number where a count belongs
    CHECK_REFUSED(load(bytes), "llama.feed_forward_length is no number");
}

// Whatever stands in the file, it loads or is refused; under the sanitizers every access is looked at.
TEST(flipped_bits_and_random_cuts_do_no_harm) {
    MadeModel small;
    small.layers = 1;
    small.width = 32;
    small.inner = 32;
    small.heads = 2;
    small.kv_heads = 1;
    const std::vector<uint8_t> good = made_model(small);
    const size_t header = place_of(good, "blk.0.ffn_down.weight") + 64;
    size_t refused = 0;
    for (uint64_t seed = 0; seed < 3000; seed++) {
        Random random(seed);
        std::vector<uint8_t> bytes = good;
        for (uint64_t flip = random.below(4) + 1; flip > 0; flip--) {
            bytes[4 + random.below(header - 4)] ^= static_cast<uint8_t>(1u << random.below(8));
        }
        if (seed % 5 == 0) bytes.resize(4 + random.below(bytes.size() - 4));
        try {
            load(bytes);
        } catch (const Failure &failure) {
            CHECK_EQUAL(failure.exit_code, 2);
            refused++;
        }
    }
    CHECK(refused > 1000 && refused < 3000);
}

TEST(options_that_cannot_be_used_are_named) {
    const auto read = [](std::vector<const char *> words) {
        words.insert(words.begin(), "engine");
        return read_options(static_cast<int>(words.size()), words.data());
    };
    CHECK_REFUSED(read({}), "what to do?");
    CHECK_REFUSED(read({"sing"}), "unknown verb \"sing\"");
    CHECK_REFUSED(read({"ask"}), "ask needs at least one text");
    CHECK_REFUSED(read({"ask", "x", "--new"}), "--new needs a value");
    CHECK_REFUSED(read({"ask", "x", "--new", "0"}), "--new takes a number from 1");
    CHECK_REFUSED(read({"ask", "x", "--block-tokens", "12x"}), "not \"12x\"");
    CHECK_REFUSED(read({"ask", "x", "--kv", "f64"}), "--kv takes f32 or bf16");
    CHECK_REFUSED(read({"ask", "x", "--loud", "1"}), "unknown option --loud");
    CHECK_REFUSED(read({"bench", "x"}), "bench takes no \"x\"");
    const Options options = read({"continue", "--kv", "bf16", "--cache", "contiguous", "a", "b", "--new", "7"});
    CHECK(options.type == KvType::bf16 && !options.is_paged && options.new_tokens == 7 && options.texts.size() == 2);
    CHECK_EQUAL(read({"ask", "--help"}).verb, "help");
}

}  // namespace engine
