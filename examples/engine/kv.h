// What the model and the scheduler see of a KV cache: five calls a step, and where each token's row lies.
// The calls are those of Kavern (paged.h); a contiguous cache answers them too (contiguous.h), so that both run under
// one scheduler and one attention and can be compared bit by bit.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace engine {

enum class KvType { f32, bf16 };

inline size_t kv_bytes(KvType type) { return type == KvType::f32 ? 4 : 2; }

// What one token leaves behind: [layer][key or value][head][channel].
struct KvShape {
    size_t layers, heads, channels;
    KvType type;

    size_t token_bytes() const { return layers * 2 * heads * channels * kv_bytes(type); }
};

// From one to the next, in bytes. Channels lie side by side.
struct KvStrides {
    size_t layer, value, token, head;
};

// Where the rows of one scheduled sequence lie. Row t of a layer is at
// blocks[t / block_tokens] + layer * strides.layer + (value ? strides.value : 0) + (t % block_tokens) * strides.token
// + head * strides.head.
struct SequenceRows {
    std::vector<std::byte *> blocks;
    // Tokens with those of this step.
    size_t length = 0;
    // Its first token in the batch, and how many it has there.
    size_t first = 0, count = 0;
};

// The batch of a step. Sequences stand in the order of the operations that scheduled them.
struct StepRows {
    KvType type = KvType::f32;
    KvStrides strides{};
    size_t block_tokens = 0;
    std::vector<SequenceRows> sequences;
    // For each token of the batch the address of its key in layer 0, head 0.
    std::vector<std::byte *> slots;
};

// A prompt to look up. `lease` and `hit_tokens` are the answer; a lease is to be admitted or released.
struct Lookup {
    const int32_t *tokens = nullptr;
    size_t count = 0;
    // Whether to read and to publish prefixes.
    bool shares = true;
    uint64_t lease = 0;
    size_t hit_tokens = 0;
};

enum class OpKind { admit, append, free, release };

// One operation. ADMIT and APPEND schedule the tokens and say that these are final.
struct Op {
    OpKind kind;
    // Lease for admit and release, else the sequence.
    uint64_t target = 0;
    const int32_t *tokens = nullptr;
    size_t count = 0;
    // Tokens beyond these for which blocks are to be held.
    size_t reserve = 0;
    // The answer: whether it was done; if not, nothing changed and the cache is full.
    bool was_done = false;
    uint64_t sequence = 0;
};

// What a cache holds, in its own terms.
struct KvFigures {
    size_t block_bytes = 0;
    // Blocks held now, each counted once.
    size_t used_blocks = 0;
    // Blocks more that it would be without sharing.
    size_t saved_blocks = 0;
    size_t total_blocks = 0;
};

class KvCache {
  public:
    virtual ~KvCache() = default;

    virtual void match(std::vector<Lookup> &lookups) = 0;
    virtual void step(uint64_t step, std::vector<Op> &ops) = 0;
    // Valid until the next step.
    virtual const StepRows &tables(uint64_t step) = 0;
    virtual void poll() = 0;
    virtual void step_done(uint64_t step) = 0;

    // The number of the latest step; the next one is above it.
    virtual uint64_t latest_step() const = 0;
    virtual KvFigures figures() const = 0;
    virtual size_t block_tokens() const = 0;
    // Tokens of the longest sequence that can be held.
    virtual size_t longest() const = 0;
    virtual std::string name() const = 0;
};

}  // namespace engine
