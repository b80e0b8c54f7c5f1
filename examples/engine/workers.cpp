// Threads that share loops; workers.h says what for. A thread looks for work for a while before it sleeps, because a
// model starts hundreds of short loops a second. Waiters yield, so that a busy machine is not held up by them.
#include "workers.h"

namespace engine {

namespace {

constexpr int LOOKS_BEFORE_SLEEP = 2000;
constexpr int LOOKS_BEFORE_YIELD = 200;

void pause_for(int looks) {
    if (looks >= LOOKS_BEFORE_YIELD) {
        std::this_thread::yield();
        return;
    }
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

}  // namespace

Workers::Workers(size_t count) {
    if (count == 0) count = std::thread::hardware_concurrency();
    for (size_t i = 1; i < count; i++) threads.emplace_back([this] { serve(); });
}

Workers::~Workers() {
    {
        const std::lock_guard<std::mutex> lock(mutex);
        stops = true;
    }
    wake.notify_all();
    for (std::thread &thread : threads) thread.join();
}

void Workers::each(size_t count, const std::function<void(size_t)> &work) {
    if (count <= 1 || threads.empty()) {
        for (size_t i = 0; i < count; i++) work(i);
        return;
    }
    // `end` is 0 between loops. It is set last, so that who sees it sees the ticket and the body that belong to it.
    done = 0;
    uint64_t seen = ((ticket.load() >> 32) + 1) << 32;
    ticket = seen;
    body = &work;
    end = static_cast<uint32_t>(count);
    if (asleep.load() > 0) {
        // The lock lets a thread that is about to sleep either see the new loop or be woken.
        { const std::lock_guard<std::mutex> lock(mutex); }
        wake.notify_all();
    }
    while (work_along(seen)) {
    }
    for (int looks = 0; done.load(std::memory_order_acquire) < count; looks++) pause_for(looks);
    end = 0;
}

// Takes one index and works on it; false if there is none.
bool Workers::work_along(uint64_t &seen) {
    uint64_t now = ticket.load();
    for (;;) {
        const uint32_t index = static_cast<uint32_t>(now);
        if (index >= end.load()) break;
        const auto *work = body.load();
        if (ticket.compare_exchange_weak(now, now + 1)) {
            (*work)(index);
            done.fetch_add(1, std::memory_order_release);
            seen = now;
            return true;
        }
    }
    seen = now;
    return false;
}

void Workers::serve() {
    uint64_t seen = 0;
    for (int looks = 0; !stops; looks++) {
        if (work_along(seen)) {
            looks = 0;
            continue;
        }
        if (looks < LOOKS_BEFORE_SLEEP) {
            pause_for(looks);
            continue;
        }
        std::unique_lock<std::mutex> lock(mutex);
        asleep.fetch_add(1);
        wake.wait(lock, [&] { return stops || ticket.load() >> 32 != seen >> 32; });
        asleep.fetch_sub(1);
        looks = 0;
    }
}

}  // namespace engine
