// Continuous batching over the five calls of a KV cache; scheduler.h says the rules.
#include "scheduler.h"

#include <algorithm>

#include "failure.h"

namespace engine {

Scheduler::Scheduler(Model &model, KvCache &cache, const Limits &limits)
    : model(model), cache(cache), limits(limits), number(cache.latest_step()) {}

size_t Scheduler::submit(Request request) {
    const size_t longest = std::min(cache.longest(), model.shape().context);
    if (request.prompt.empty()) unusable("a prompt without a token");
    if (request.most_new == 0) unusable("a request for no token");
    // The last token is given out and never computed, so it needs no place.
    const size_t needed = request.prompt.size() + request.most_new - 1;
    if (needed > longest) {
        unusable("a prompt of " + std::to_string(request.prompt.size()) + " tokens with " +
                 std::to_string(request.most_new) + " new ones is longer than the " +
                 (longest == cache.longest() ? "cache" : "context of the model") + ", which holds " +
                 std::to_string(longest) + "; ask for fewer or make it larger");
    }
    for (const int32_t token : request.prompt) {
        if (token < 0 || static_cast<size_t>(token) >= model.shape().words) {
            unusable("token " + std::to_string(token) + " is not one of the model");
        }
    }
    auto job = std::make_unique<Job>();
    job->tokens = request.prompt;
    job->outcome.prompt_tokens = request.prompt.size();
    job->request = std::move(request);
    job->start = Clock::now();
    waiting.push_back(job.get());
    jobs.push_back(std::move(job));
    return jobs.size() - 1;
}

void Scheduler::run() {
    while (step()) {
    }
}

bool Scheduler::step() {
    if (waiting.empty() && running.empty() && to_free.empty() && to_release.empty()) return false;
    const Clock::time_point start = Clock::now();
    number++;
    std::vector<Op> ops;
    std::vector<Job *> of_op, scheduled;
    plan(ops, of_op);
    cache.step(number, ops);
    settle(ops, of_op, scheduled);
    std::vector<size_t> counts;
    for (size_t i = 0; i < ops.size(); i++) {
        if (of_op[i] != nullptr && ops[i].was_done) counts.push_back(ops[i].count);
    }
    compute(scheduled, counts);
    cache.step_done(number);
    cache.poll();
    sums.steps++;
    sums.seconds += std::chrono::duration<double>(Clock::now() - start).count();
    return true;
}

// What the job may run of `left` tokens: the next token, or a chunk of a prompt.
size_t Scheduler::budget_for(const Job &job, size_t left) const {
    return std::min(job.tokens.size() - job.computed, left);
}

// Whether a running prompt is about to publish more of this job's prefix than was found: better to wait for that
// than to compute the same again.
bool Scheduler::waits_for_prefix(const Job &job, size_t hit_tokens) const {
    if (!job.request.shares) return false;
    for (const Job *other : running) {
        if (!other->request.shares) continue;
        const size_t most = std::min({job.tokens.size() - 1, other->tokens.size(), cache.longest()});
        const auto end = job.tokens.begin() + static_cast<std::ptrdiff_t>(most);
        auto same = static_cast<size_t>(std::mismatch(job.tokens.begin(), end, other->tokens.begin()).first -
                                        job.tokens.begin());
        same -= same % cache.block_tokens();
        if (same > hit_tokens && other->computed < same) return true;
    }
    return false;
}

// Looks up those of the waiting prompts that may start in this step.
std::vector<Lookup> Scheduler::look_up(size_t left) {
    std::vector<Lookup> lookups;
    size_t room = limits.running > running.size() ? limits.running - running.size() : 0;
    // After a refusal one at a time, so that a long prompt is not overtaken for ever by short ones. None while running
    // ones lack blocks: a lease holds what it found, and that may be the very blocks that could be evicted.
    if (was_short) room = std::min<size_t>(room, 1);
    if (lacks_blocks) room = 0;
    for (size_t i = 0; i < waiting.size() && i < room && left > 0; i++) {
        const Job &job = *waiting[i];
        lookups.push_back({job.tokens.data(), job.tokens.size(), job.request.shares, 0, 0});
    }
    if (!lookups.empty()) cache.match(lookups);
    return lookups;
}

// One list: what ended, then the running ones from the oldest on, then new ones. So the oldest get blocks first.
void Scheduler::plan(std::vector<Op> &ops, std::vector<Job *> &of_op) {
    for (const uint64_t sequence : to_free) ops.push_back({OpKind::free, sequence});
    for (const uint64_t lease : to_release) ops.push_back({OpKind::release, lease});
    to_free.clear();
    to_release.clear();
    of_op.assign(ops.size(), nullptr);

    size_t left = limits.step_tokens;
    // A token for each first, so that a long prompt does not hold up the answers that run.
    size_t decoding = 0;
    for (const Job *job : running) decoding += job->tokens.size() - job->computed == 1;
    size_t for_prompts = left > decoding ? left - decoding : 0;
    for (Job *job : running) {
        const bool decodes = job->tokens.size() - job->computed == 1;
        const size_t count = budget_for(*job, decodes ? left : std::min(left, for_prompts));
        if (count == 0) continue;
        ops.push_back({OpKind::append, job->sequence, job->tokens.data() + job->computed, count});
        of_op.push_back(job);
        left -= count;
        if (!decodes) for_prompts -= count;
    }
    const std::vector<Lookup> lookups = look_up(left);
    std::deque<Job *> still;
    for (size_t i = 0; i < lookups.size(); i++) {
        Job *job = waiting.front();
        waiting.pop_front();
        const size_t hit = lookups[i].hit_tokens;
        job->computed = hit;
        const size_t count = budget_for(*job, left);
        if (count == 0 || waits_for_prefix(*job, hit)) {
            job->computed = 0;
            to_release.push_back(lookups[i].lease);
            still.push_back(job);
            continue;
        }
        // The blocks of the whole prompt are held at once, so a prompt that has begun is never short of them.
        const size_t reserve = job->tokens.size() - hit - count;
        ops.push_back({OpKind::admit, lookups[i].lease, job->tokens.data() + hit, count, reserve});
        of_op.push_back(job);
        // From here on it counts as running, for those behind it that share its prefix.
        running.push_back(job);
        left -= count;
    }
    while (!still.empty()) {
        waiting.push_front(still.back());
        still.pop_back();
    }
}

// Reads what was refused. A refused job stays as it was; one that could not start waits again, at the front.
void Scheduler::settle(const std::vector<Op> &ops, const std::vector<Job *> &of_op, std::vector<Job *> &scheduled) {
    std::vector<Job *> back;
    was_short = lacks_blocks = false;
    for (size_t i = 0; i < ops.size(); i++) {
        Job *job = of_op[i];
        if (job == nullptr) {
            if (!ops[i].was_done) throw Failure(1, "the cache refused to free a sequence or to release a lease");
            continue;
        }
        if (ops[i].was_done) {
            job->sequence = ops[i].sequence;
            scheduled.push_back(job);
            if (ops[i].kind == OpKind::admit && job->outcome.tokens.empty() && job->outcome.preemptions == 0) {
                job->outcome.hit_tokens = job->computed;
                sums.prompt_tokens += job->outcome.prompt_tokens;
                sums.hit_tokens += job->computed;
            }
            continue;
        }
        was_short = true;
        if (ops[i].kind == OpKind::append) {
            lacks_blocks = true;
            continue;
        }
        job->computed = 0;
        to_release.push_back(ops[i].target);
        running.erase(std::find(running.begin(), running.end(), job));
        back.push_back(job);
    }
    waiting.insert(waiting.begin(), back.begin(), back.end());
    sums.peak_running = std::max(sums.peak_running, running.size());
    idle_steps = scheduled.empty() && !waiting.empty() ? idle_steps + 1 : 0;
    if (idle_steps > 3) throw Failure(1, "the cache refuses a prompt although nothing else holds a block");
    if (lacks_blocks) preempt_youngest();
}

// Ends the youngest sequence; it is freed at the beginning of the next step's list. If this step runs it too, that is
// not lost: its token is taken, and what it writes stays findable.
void Scheduler::preempt_youngest() {
    Job *victim = running.back();
    if (running.size() == 1) {
        // Leases that this step took go first.
        if (to_release.empty()) throw Failure(1, "the cache is too small for one sequence");
        return;
    }
    to_free.push_back(victim->sequence);
    victim->outcome.preemptions++;
    sums.preemptions++;
    victim->sequence = 0;
}

void Scheduler::compute(const std::vector<Job *> &scheduled, const std::vector<size_t> &counts) {
    std::vector<int32_t> tokens;
    std::vector<size_t> wanted;
    std::vector<Job *> choosing;
    const StepRows &rows = cache.tables(number);
    if (rows.sequences.size() != scheduled.size()) throw Failure(1, "the tables hold another batch than was scheduled");
    for (size_t i = 0; i < scheduled.size(); i++) {
        Job &job = *scheduled[i];
        const auto from = job.tokens.begin() + static_cast<std::ptrdiff_t>(job.computed);
        tokens.insert(tokens.end(), from, from + static_cast<std::ptrdiff_t>(counts[i]));
        job.computed += counts[i];
        if (rows.sequences[i].length != job.computed || rows.sequences[i].count != counts[i]) {
            throw Failure(1, "the tables tell another length of a sequence than was scheduled");
        }
        if (job.computed == job.tokens.size()) {
            wanted.push_back(tokens.size() - 1);
            choosing.push_back(&job);
        }
    }
    measure();
    std::vector<float> logits;
    if (!tokens.empty()) model.forward(tokens, rows, wanted, logits);
    sums.computed_tokens += tokens.size();
    for (size_t i = 0; i < choosing.size(); i++) take(*choosing[i], logits.data() + i * model.shape().words);
    // What was preempted goes back to the front, what is finished goes; both give their blocks back.
    std::vector<Job *> still;
    for (Job *job : running) {
        if (job->outcome.is_finished) {
            if (job->sequence != 0) to_free.push_back(job->sequence);
        } else if (job->sequence == 0) {
            job->computed = 0;
            waiting.push_front(job);
        } else {
            still.push_back(job);
        }
    }
    running.swap(still);
}

// Chooses the likeliest token; of equals the first.
void Scheduler::take(Job &job, const float *logits) {
    const float *end = logits + model.shape().words;
    const auto token = static_cast<int32_t>(std::max_element(logits, end) - logits);
    const std::chrono::duration<double> passed = Clock::now() - job.start;
    Outcome &outcome = job.outcome;
    if (outcome.tokens.empty()) {
        outcome.computed_to_first = sums.computed_tokens;
        outcome.seconds_to_first = passed.count();
    }
    outcome.seconds = passed.count();
    outcome.tokens.push_back(token);
    if (job.request.keeps_logits) outcome.logits.emplace_back(logits, end);
    job.tokens.push_back(token);
    sums.new_tokens++;
    outcome.is_finished = token == job.request.end || outcome.tokens.size() == job.request.most_new;
    if (job.request.on_token) job.request.on_token(token);
}

void Scheduler::measure() {
    const KvFigures figures = cache.figures();
    sums.peak_blocks = std::max(sums.peak_blocks, figures.used_blocks);
    sums.peak_shared_blocks = std::max(sums.peak_shared_blocks, figures.saved_blocks);
}

}  // namespace engine
