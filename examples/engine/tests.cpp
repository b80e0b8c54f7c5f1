// Runs the engine's tests and ends with "N passed, N failed, N left out".
// engine_tests [--model FILE] [--samples FILE] [WORD]: without a file the tests that need it are left out; a word
// picks the tests whose names have it.
#include "tests.h"

#include <chrono>
#include <cstdio>
#include <cstring>

namespace engine::tests {

std::string model_path, samples_path;

static std::vector<Test> &all() {
    static std::vector<Test> list;
    return list;
}

Registered::Registered(const char *name, void (*run)(), bool needs_model, bool needs_samples) {
    all().push_back({name, run, needs_model, needs_samples});
}

void fail_check(const char *file, int line, const std::string &why) {
    throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + why);
}

static int run_all(const std::string &word) {
    size_t passed = 0, failed = 0, left_out = 0;
    for (const Test &test : all()) {
        if (std::string(test.name).find(word) == std::string::npos) continue;
        if ((test.needs_model && model_path.empty()) || (test.needs_samples && samples_path.empty())) {
            left_out++;
            continue;
        }
        const auto start = std::chrono::steady_clock::now();
        try {
            test.run();
            const std::chrono::duration<double> passed_time = std::chrono::steady_clock::now() - start;
            std::printf("%s ... ok, %.1f s\n", test.name, passed_time.count());
            passed++;
        } catch (const std::exception &error) {
            std::printf("%s ... FAILED\n    %s\n", test.name, error.what());
            failed++;
        }
        std::fflush(stdout);
    }
    std::printf("%zu passed, %zu failed, %zu left out\n", passed, failed, left_out);
    return failed == 0 && passed > 0 ? 0 : 1;
}

}  // namespace engine::tests

int main(int count, char **words) {
    std::string word;
    for (int i = 1; i < count; i++) {
        const bool has_value = i + 1 < count;
        if (std::strcmp(words[i], "--model") == 0 && has_value) engine::tests::model_path = words[++i];
        else if (std::strcmp(words[i], "--samples") == 0 && has_value) engine::tests::samples_path = words[++i];
        else word = words[i];
    }
    return engine::tests::run_all(word);
}
