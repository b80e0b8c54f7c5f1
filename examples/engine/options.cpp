// Reads the command line; options.h says what there is.
#include "options.h"

#include <charconv>
#include <cstring>

#include "failure.h"

namespace engine {

const char *const USAGE =
    "engine ask [options] QUESTION...     answers questions, all at a time; the text shows as it is made\n"
    "engine continue [options] TEXT...    goes on with texts\n"
    "engine bench [options]               measures speed and time to first token, paged against contiguous\n"
    "\n"
    "  --model FILE         a GGUF file (.cache/model/SmolLM2-135M-Instruct.Q4_1.gguf; `make model` fetches it)\n"
    "  --cache KIND         paged (Kavern) or contiguous; paged\n"
    "  --kv TYPE            f32 or bf16, of keys and values; f32\n"
    "  --block-tokens N     tokens of a block; 16\n"
    "  --cache-tokens N     tokens that the cache holds, all sequences together; 4096\n"
    "  --longest N          tokens that a contiguous cache keeps room for in each sequence; 512\n"
    "  --running N          sequences that run at a time; 8\n"
    "  --step-tokens N      tokens of a step; 256\n"
    "  --new N              new tokens of an answer, at most; 100\n"
    "  --threads N          0 for one on each processor; 0\n"
    "  --rounds N           of bench; 5\n"
    "  --system TEXT        what the assistant is told before each question\n"
    "\n"
    "Exit codes: 0 done, 1 a call failed, 2 input or options that cannot be used.\n";

namespace {

size_t number(const char *option, const std::string &text, size_t least, size_t most) {
    size_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || end != text.data() + text.size() || value < least || value > most) {
        unusable(std::string(option) + " takes a number from " + std::to_string(least) + " to " +
                 std::to_string(most) + ", not \"" + text + "\"");
    }
    return value;
}

bool one_of_two(const char *option, const std::string &text, const char *yes, const char *no) {
    if (text != yes && text != no) {
        unusable(std::string(option) + " takes " + yes + " or " + no + ", not \"" + text + "\"");
    }
    return text == yes;
}

}  // namespace

Options read_options(int count, const char *const *words) {
    Options options;
    options.verb = count > 1 ? words[1] : "";
    if (options.verb == "--help" || options.verb == "-h") options.verb = "help";
    if (options.verb != "ask" && options.verb != "continue" && options.verb != "bench" && options.verb != "help") {
        unusable(options.verb.empty() ? "what to do? `engine help` lists the verbs"
                                      : "unknown verb \"" + options.verb + "\"; `engine help` lists them");
    }
    for (int i = 2; i < count; i++) {
        const std::string word = words[i];
        if (word.rfind("--", 0) != 0) {
            options.texts.push_back(word);
            continue;
        }
        if (word == "--help") {
            options.verb = "help";
            continue;
        }
        if (i + 1 == count) unusable(word + " needs a value");
        const std::string value = words[++i];
        const char *name = word.c_str();
        if (word == "--model") options.model = value;
        else if (word == "--system") options.system = value;
        else if (word == "--cache") options.is_paged = one_of_two(name, value, "paged", "contiguous");
        else if (word == "--kv") options.type = one_of_two(name, value, "f32", "bf16") ? KvType::f32 : KvType::bf16;
        else if (word == "--block-tokens") options.block_tokens = number(name, value, 1, 65536);
        else if (word == "--cache-tokens") options.cache_tokens = number(name, value, 1, 1 << 24);
        else if (word == "--longest") options.longest = number(name, value, 1, 1 << 24);
        else if (word == "--running") options.running = number(name, value, 1, 1024);
        else if (word == "--step-tokens") options.step_tokens = number(name, value, 1, 65536);
        else if (word == "--new") options.new_tokens = number(name, value, 1, 1 << 20);
        else if (word == "--threads") options.threads = number(name, value, 0, 256);
        else if (word == "--rounds") options.rounds = number(name, value, 1, 1000);
        else unusable("unknown option " + word + "; `engine help` lists them");
    }
    const bool wants_texts = options.verb == "ask" || options.verb == "continue";
    if (wants_texts && options.texts.empty()) unusable(options.verb + " needs at least one text");
    if (!wants_texts && !options.texts.empty()) unusable(options.verb + " takes no \"" + options.texts[0] + "\"");
    return options;
}

}  // namespace engine
