#include "threads.h"

#include <algorithm>
#include <atomic>
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

namespace quantkit {
namespace {

struct Work {
    const std::function<void(int64_t)>* task;
    int64_t count;
    std::atomic<int64_t> next{0};
    int seats;  // workers that may still join, guarded by the pool's mutex
    int inside = 0;
    std::condition_variable left;

    void run() {
        for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) (*task)(i);
    }
};

class Pool {
  public:
    void run(int64_t count, int threads, const std::function<void(int64_t)>& task) {
        auto work = std::make_shared<Work>();
        work->task = &task;
        work->count = count;
        work->seats = threads - 1;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            while (static_cast<int>(workers_) < threads - 1) {
                std::thread([this] { loop(); }).detach();
                workers_++;
            }
            queue_.push_back(work);
        }
        wake_.notify_all();
        work->run();
        std::unique_lock<std::mutex> lock(mutex_);
        queue_.erase(std::remove(queue_.begin(), queue_.end(), work), queue_.end());
        work->left.wait(lock, [&] { return work->inside == 0; });
    }

  private:
    void loop() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            std::shared_ptr<Work> work;
            wake_.wait(lock, [&] {
                for (auto& w : queue_)
                    if (w->seats > 0) {
                        work = w;
                        return true;
                    }
                return false;
            });
            work->seats--;
            work->inside++;
            lock.unlock();
            work->run();
            lock.lock();
            if (--work->inside == 0) work->left.notify_all();
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<std::shared_ptr<Work>> queue_;
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

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& task) {
    if (threads <= 0) threads = hardware_threads();
    threads = static_cast<int>(std::min<int64_t>(threads, count));
    if (threads <= 1) {
        for (int64_t i = 0; i < count; i++) task(i);
        return;
    }
    pool().run(count, threads, task);
}

}  // namespace quantkit
