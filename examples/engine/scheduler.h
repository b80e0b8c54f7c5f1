// Continuous batching: which tokens of which sequences run in the next step.
// Every running sequence gets its next token; what is left of the step's tokens goes to prompts, chunk by chunk, then
// to prompts that wait. A cache that is full is answered by ending the youngest sequence and computing it anew later
// (preemption by recompute). Greedy, so the output of a request depends on nothing but its prompt. One thread.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

#include "kv.h"
#include "model.h"

namespace engine {

struct Request {
    std::vector<int32_t> prompt;
    size_t most_new = 64;
    // The token that ends the answer early; -1 for none.
    int32_t end = -1;
    // Whether prefixes are looked up and published.
    bool shares = true;
    // Keep the logits that each token was chosen from.
    bool keeps_logits = false;
    std::function<void(int32_t)> on_token;
};

// What became of a request.
struct Outcome {
    std::vector<int32_t> tokens;
    std::vector<std::vector<float>> logits;
    size_t prompt_tokens = 0;
    // Of the prompt when it was first admitted.
    size_t hit_tokens = 0;
    size_t preemptions = 0;
    bool is_finished = false;
    // Tokens that the model had computed, of all requests, when the first token was there.
    size_t computed_to_first = 0;
    double seconds_to_first = 0, seconds = 0;
};

struct Limits {
    // Sequences that run at a time.
    size_t running = 8;
    // Tokens of a step.
    size_t step_tokens = 256;
};

// Sums over a run.
struct Totals {
    size_t steps = 0;
    size_t computed_tokens = 0;
    size_t new_tokens = 0;
    size_t prompt_tokens = 0;
    size_t hit_tokens = 0;
    size_t preemptions = 0;
    // The most at a time: blocks in use, blocks that sharing saved, sequences.
    size_t peak_blocks = 0, peak_shared_blocks = 0, peak_running = 0;
    double seconds = 0;
};

class Scheduler {
  public:
    Scheduler(Model &model, KvCache &cache, const Limits &limits);

    // Answers the request's number. Fails if it could never be served: longer than the cache or the model's context.
    size_t submit(Request request);
    // Runs one step; false if nothing is left to do.
    bool step();
    void run();

    const Outcome &outcome(size_t number) const { return jobs.at(number)->outcome; }
    const Totals &totals() const { return sums; }

  private:
    using Clock = std::chrono::steady_clock;

    struct Job {
        Request request;
        Outcome outcome;
        // The prompt and what was generated; all but the last of a running job are computed, or will be.
        std::vector<int32_t> tokens;
        size_t computed = 0;
        uint64_t sequence = 0;
        Clock::time_point start;
    };

    size_t budget_for(const Job &job, size_t left) const;
    bool waits_for_prefix(const Job &job, size_t hit_tokens) const;
    std::vector<Lookup> look_up(size_t left);
    void plan(std::vector<Op> &ops, std::vector<Job *> &of_op);
    void settle(const std::vector<Op> &ops, const std::vector<Job *> &of_op, std::vector<Job *> &scheduled);
    void preempt_youngest();
    void compute(const std::vector<Job *> &scheduled, const std::vector<size_t> &counts);
    void take(Job &job, const float *logits);
    void measure();

    Model &model;
    KvCache &cache;
    Limits limits;
    std::vector<std::unique_ptr<Job>> jobs;
    std::deque<Job *> waiting;
    // Oldest first.
    std::vector<Job *> running;
    // Ended since the last step: sequences to free, leases to release.
    std::vector<uint64_t> to_free, to_release;
    // What the latest step told: some operation was refused; one of a running sequence was.
    bool was_short = false, lacks_blocks = false;
    // Steps in a row that ran nothing although prompts wait.
    size_t idle_steps = 0;
    // Of the latest step.
    uint64_t number;
    Totals sums;
};

}  // namespace engine
