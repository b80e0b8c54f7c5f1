// A small inference engine on Kavern's KV cache: the command.
// Reads the options, runs the verb, and turns what stops it into a sentence and an exit code.
#include <cstdio>
#include <exception>

#include "bench.h"
#include "chat.h"
#include "failure.h"
#include "options.h"

int main(int count, char **words) {
    try {
        const engine::Options options = engine::read_options(count, words);
        if (options.verb == "help") {
            std::fputs(engine::USAGE, stdout);
        } else if (options.verb == "bench") {
            engine::bench(options);
        } else {
            engine::chat(options);
        }
        return 0;
    } catch (const engine::Failure &failure) {
        std::fprintf(stderr, "engine: %s\n", failure.what());
        return failure.exit_code;
    } catch (const std::exception &error) {
        std::fprintf(stderr, "engine: %s\n", error.what());
        return 1;
    }
}
