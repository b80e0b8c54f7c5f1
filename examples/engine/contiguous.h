// The cache that Kavern is compared with: one piece of memory for each sequence, as long as the longest may become.
// No blocks and no sharing. A sequence is refused when every piece is taken.
#pragma once

#include <vector>

#include "kv.h"

namespace engine {

class ContiguousCache final : public KvCache {
  public:
    ContiguousCache(const KvShape &shape, size_t sequences, size_t longest);

    void match(std::vector<Lookup> &lookups) override;
    void step(uint64_t step, std::vector<Op> &ops) override;
    const StepRows &tables(uint64_t step) override;
    void poll() override {}
    void step_done(uint64_t) override {}

    uint64_t latest_step() const override { return latest; }
    KvFigures figures() const override;
    size_t block_tokens() const override { return most; }
    size_t longest() const override { return most; }
    std::string name() const override { return "contiguous"; }

  private:
    struct Piece {
        std::vector<std::byte> memory;
        bool is_taken = false;
        size_t length = 0;
    };

    KvShape shape;
    size_t most;
    uint64_t latest = 0;
    std::vector<Piece> pieces;
    StepRows rows;
};

}  // namespace engine
