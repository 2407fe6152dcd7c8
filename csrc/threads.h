// The one thread pool.
#pragma once
#include <cstdint>
#include <functional>

namespace quantkit {

int hardware_threads();  // processors this process may run on

// Calls task(i) for i in [0, count) on up to `threads` threads (0: all), the caller among them. Tasks must not throw.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& task);

}  // namespace quantkit
