#include "groups.h"

#include <atomic>

#include "threads.h"

namespace quantkit {

EncodeResult quantize_groups(const Tier& tier, const GroupJob& job, int threads) {
    std::atomic<bool> bad{false};
    parallel_for(tier.group_tasks(job), threads, [&](int64_t task) {
        if (!bad.load(std::memory_order_relaxed) && !tier.group_task(job, task)) bad = true;
    });
    return bad ? first_bad(job.rows, group_limit(job.scale_type)) : EncodeResult();
}

void dequantize_groups(const Tier& tier, const GroupReadJob& job, int threads) {
    parallel_for(job.rows, threads, [&](int64_t row) { tier.read_groups(job, row); });
}

}  // namespace quantkit
