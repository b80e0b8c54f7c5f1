// A KV cache of Kavern on the host device, behind the five calls.
// Sequences that begin with the same tokens share blocks. Keys and values are written by the engine itself, at the
// addresses that kavern_kv_describe tells; kavern_kv_append would enqueue a copy for each layer, and on the host the
// model would have to wait for it. Every status is looked at: a refusal for want of blocks is an answer, all else a
// Failure with the library's sentence.
#pragma once

#include <kavern.h>

#include <vector>

#include "kv.h"

namespace engine {

struct PagedSettings {
    size_t block_tokens = 16;
    size_t blocks = 256;
    size_t sequences = 8;
    // Tokens of a step, at most.
    size_t batch_tokens = 512;
    const char *device = "host";
};

class PagedCache final : public KvCache {
  public:
    PagedCache(const KvShape &shape, const PagedSettings &settings);
    ~PagedCache() override;
    PagedCache(const PagedCache &) = delete;
    PagedCache &operator=(const PagedCache &) = delete;

    void match(std::vector<Lookup> &lookups) override;
    void step(uint64_t step, std::vector<Op> &ops) override;
    const StepRows &tables(uint64_t step) override;
    void poll() override;
    void step_done(uint64_t step) override;

    uint64_t latest_step() const override { return statistics().last_step; }
    KvFigures figures() const override;
    size_t block_tokens() const override { return about.block_tokens; }
    size_t longest() const override;
    std::string name() const override { return "paged"; }

    kavern_kv_statistics statistics() const;
    // Proves the cache's invariants; fails with what is broken.
    void validate() const;
    kavern_manager *manager_handle() const { return manager; }
    kavern_kv_cache *cache_handle() const { return cache; }

  private:
    kavern_manager *manager = nullptr;
    kavern_kv_cache *cache = nullptr;
    kavern_kv_description about{};
    StepRows rows;
    // Lists that every step uses again.
    std::vector<kavern_kv_request> requests;
    std::vector<kavern_kv_match_result> found;
    std::vector<kavern_kv_op> operations;
    std::vector<kavern_kv_op_result> results;
};

// Fails with the name of the status and the library's sentence unless the status is one of success.
void check(kavern_status status, const char *what);

}  // namespace engine
