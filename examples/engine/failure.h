// What stops the program: a sentence for people, and the exit code that belongs to it.
// Not for programming errors, which are asserted.
#pragma once

#include <stdexcept>
#include <string>

namespace engine {

struct Failure : std::runtime_error {
    // 1: a call failed. 2: the input cannot be used (file, prompt, option).
    int exit_code;
    Failure(int code, const std::string &text) : std::runtime_error(text), exit_code(code) {}
};

[[noreturn]] inline void unusable(const std::string &text) { throw Failure(2, text); }

}  // namespace engine
