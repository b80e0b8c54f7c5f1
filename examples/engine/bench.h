// Measures the engine: paged against contiguous, shared against unshared prefixes. docs/benchmarks.md has the figures.
#pragma once

#include "options.h"

namespace engine {

void bench(const Options &options);

}  // namespace engine
