// The one thread pool.
#pragma once
#include <cstdint>
#include <functional>

namespace quantkit {

int hardware_threads();  // processors this process may run on

// What threads of the pool do after a job: sleep, or look for a moment whether the next one comes. To wake a sleeping
// thread takes as long as a whole small product; but one that looks takes a processor, which other pools (BLAS) may
// want.
enum class After { sleep, look };

// Calls task(i) for i in [0, count) on up to `threads` threads (0: all), the caller among them. Tasks must not throw.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& task, After after = After::sleep);

}  // namespace quantkit
