// Answers questions or goes on with texts, all in one batch, and shows a table of what it took.
#pragma once

#include <memory>

#include "kv.h"
#include "model.h"
#include "options.h"

namespace engine {

// The cache that the options ask for.
std::unique_ptr<KvCache> make_cache(const Options &options, const Model &model);

void chat(const Options &options);

}  // namespace engine
