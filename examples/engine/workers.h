// A few threads that share loops. Results never depend on them: each index is worked on whole by one thread.
// Not a queue of tasks: one loop at a time, started by one thread, which works along and returns when all is done.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace engine {

class Workers {
  public:
    // `count` threads in all, the caller's one among them; 0 takes as many as there are processors.
    explicit Workers(size_t count);
    ~Workers();
    Workers(const Workers &) = delete;
    Workers &operator=(const Workers &) = delete;

    // Calls `work(i)` for each i below `count`, in any order, from any of the threads.
    void each(size_t count, const std::function<void(size_t)> &work);
    size_t count() const { return threads.size() + 1; }

  private:
    bool work_along(uint64_t &seen);
    void serve();

    // Number of the loop in the upper half, next index in the lower. An index is taken by one compare-and-swap, which
    // fails if another loop has begun meanwhile; so `body` and `end` are those of the loop that it was taken from.
    std::atomic<uint64_t> ticket{0};
    std::atomic<const std::function<void(size_t)> *> body{nullptr};
    std::atomic<uint32_t> end{0};
    std::atomic<uint32_t> done{0};
    std::atomic<bool> stops{false};
    std::atomic<int> asleep{0};
    std::mutex mutex;
    std::condition_variable wake;
    std::vector<std::thread> threads;
};

}  // namespace engine
