#include "threads.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace quantkit {
namespace {

constexpr std::chrono::microseconds PATIENCE{200};

template <class Condition>
bool comes_soon(Condition condition) {
    const auto end = std::chrono::steady_clock::now() + PATIENCE;
    do {
        for (int i = 0; i < 64; i++) {
            if (condition()) return true;
#if defined(__x86_64__) || defined(_M_X64)
            _mm_pause();
#elif defined(__aarch64__)
            __asm__ volatile("yield");
#endif
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

struct Work {
    const std::function<void(int64_t)>* task;
    int64_t count;
    After after;
    std::atomic<int64_t> next{0};
    int seats;  // workers that may still join, guarded by the pool's mutex
    std::atomic<int> inside{0};
    std::condition_variable left;

    void run() {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) (*task)(i);
    }
};

class Pool {
  public:
    void run(int64_t count, int threads, const std::function<void(int64_t)>& task, After after) {
        auto work = std::make_shared<Work>();
        work->task = &task;
        work->count = count;
        work->after = after;
        work->seats = threads - 1;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (static_cast<int>(workers_) < threads - 1) {
                std::thread([this] { loop(); }).detach();
                workers_++;
            }
            queue_.push_back(work);
            arrivals_++;
        }
        wake_.notify_all();
        work->run();
        {
            std::lock_guard<std::mutex> lock(mutex_);
            queue_.erase(std::remove(queue_.begin(), queue_.end(), work), queue_.end());
        }
        if (comes_soon([&] { return work->inside == 0; })) return;
        std::unique_lock<std::mutex> lock(mutex_);
        work->left.wait(lock, [&] { return work->inside == 0; });
    }

  private:
    // Of the jobs with a free seat, the oldest; null if there is none. The mutex is held.
    std::shared_ptr<Work> open_work() {
        for (auto& w : queue_)
            if (w->seats > 0) return w;
        return nullptr;
    }

    void loop() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (After after = After::sleep;;) {
            std::shared_ptr<Work> work = open_work();
            if (!work) {
                if (after == After::look) {
                    const uint64_t seen = arrivals_;
                    lock.unlock();
                    comes_soon([&] { return arrivals_ != seen; });
                    lock.lock();
                }
                wake_.wait(lock, [&] { return (work = open_work()) != nullptr; });
            }
            work->seats--;
            work->inside++;
            lock.unlock();
            work->run();
            after = work->after;
            lock.lock();
            if (--work->inside == 0) work->left.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<std::shared_ptr<Work>> queue_;
    std::atomic<uint64_t> arrivals_{0};
    int workers_ = 0;
};

// Workers do not survive fork(), so the child starts with a pool of its own. Never destroyed: its threads outlive main.
std::atomic<Pool*> the_pool{nullptr};

Pool& pool() {
    static const bool once = [] {
        the_pool = new Pool;
#if !defined(_WIN32)
        pthread_atfork(nullptr, nullptr, [] { the_pool = new Pool; });
#endif
        return true;
    }();
    (void)once;
    return *the_pool;
}

}  // namespace

int hardware_threads() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& task, After after) {
    if (threads <= 0) threads = hardware_threads();
    threads = static_cast<int>(std::min<int64_t>(threads, count));
    if (threads <= 1) {
        for (int64_t i = 0; i < count; i++) task(i);
        return;
    }
    pool().run(count, threads, task, after);
}

}  // namespace quantkit
