// The frame of the engine's tests: sentences that run, and checks that throw.
#pragma once

#include <sstream>
#include <string>
#include <vector>

#include "failure.h"

namespace engine::tests {

struct Test {
    const char *name;
    void (*run)();
    // Which of the files given on the command line it needs.
    bool needs_model, needs_samples;
};

struct Registered {
    Registered(const char *name, void (*run)(), bool needs_model, bool needs_samples);
};

// Paths from the command line; empty if not given.
extern std::string model_path, samples_path;

[[noreturn]] void fail_check(const char *file, int line, const std::string &why);

template <typename A, typename B>
void check_equal(const A &a, const B &b, const char *text, const char *file, int line) {
    if (a == b) return;
    std::ostringstream why;
    why << text << ": " << a << " against " << b;
    fail_check(file, line, why.str());
}

// Runs what must be refused; checks the exit code and that the sentence has these words.
template <typename Call>
void check_refused(Call call, const std::string &words, int exit_code, const char *file, int line) {
    try {
        call();
    } catch (const Failure &failure) {
        const std::string said = failure.what();
        if (said.find(words) == std::string::npos) fail_check(file, line, "\"" + said + "\" does not say: " + words);
        if (failure.exit_code != exit_code) fail_check(file, line, "another exit code for: " + said);
        return;
    }
    fail_check(file, line, "not refused; expected were the words: " + words);
}

#define ENGINE_TEST(name, needs_model, needs_samples)                                             \
    static void name();                                                                           \
    static const engine::tests::Registered registered_##name(#name, name, needs_model, needs_samples); \
    static void name()
#define TEST(name) ENGINE_TEST(name, false, false)
#define TEST_WITH_MODEL(name) ENGINE_TEST(name, true, false)
#define TEST_WITH_SAMPLES(name) ENGINE_TEST(name, true, true)

#define CHECK(condition) \
    do { if (!(condition)) engine::tests::fail_check(__FILE__, __LINE__, #condition); } while (false)
#define CHECK_EQUAL(a, b) engine::tests::check_equal(a, b, #a " and " #b, __FILE__, __LINE__)
#define CHECK_REFUSED(call, words) engine::tests::check_refused([&] { call; }, words, 2, __FILE__, __LINE__)

}  // namespace engine::tests
