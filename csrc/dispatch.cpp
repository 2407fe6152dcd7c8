#include "dispatch.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <memory>

#include "formats/scalars.h"
#include "threads.h"

namespace quantkit {

namespace scalar {
extern const Tier TIER;
}
#if defined(QUANTKIT_X86)
namespace avx2 {
extern const Tier TIER;
}
namespace avx512 {
extern const Tier TIER;
}
#endif

std::vector<const Tier*> tiers_built() {
    return {
        &scalar::TIER,
#if defined(QUANTKIT_X86)
        &avx2::TIER,
        &avx512::TIER,
#endif
    };
}

const Tier* find_tier(const std::string& name) {
    for (const Tier* tier : tiers_built())
        if (tier->name == name) return tier->supported() ? tier : nullptr;
    return nullptr;
}

const Tier* best_tier() {
    const Tier* best = nullptr;
    for (const Tier* tier : tiers_built())
        if (tier->supported()) best = tier;
    return best;
}

namespace {

float element(const EncodeJob& job, int64_t row, int64_t col) {
    const uint8_t* p =
        job.source + (row * job.row_stride + col * job.col_stride) * SCALAR_BYTES[static_cast<int>(job.scalar)];
    uint16_t h = 0;
    float x = 0;
    switch (job.scalar) {
        case Scalar::f32:
            std::memcpy(&x, p, 4);
            break;
        case Scalar::f16:
            std::memcpy(&h, p, 2);
            x = f16_to_f32(h);
            break;
        case Scalar::bf16:
            std::memcpy(&h, p, 2);
            x = bf16_to_f32(h);
            break;
        default:
            x = f8_e4m3_to_f32(*p);
            break;
    }
    return job.row_scale ? x * job.row_scale[row] : x;
}

}  // namespace

// Only walked when a task has met a bad element.
EncodeResult first_bad(const EncodeJob& job, float limit) {
    EncodeResult result;
    for (int64_t row = 0; row < job.rows; row++)
        for (int64_t col = 0; col < job.cols; col++) {
            const float x = element(job, row, col);
            if (!(std::fabs(x) <= limit)) {
                result.bad_row = row;
                result.bad_col = col;
                result.bad_value = x;
                return result;
            }
        }
    return result;
}

EncodeResult encode(const Tier& tier, Format format, const EncodeJob& job, int threads) {
    std::atomic<bool> bad{false};
    parallel_for(tier.encode_tasks(format, job), threads, [&](int64_t task) {
        if (!bad.load(std::memory_order_relaxed) && !tier.encode_task(format, job, task)) bad = true;
    });
    return bad ? first_bad(job, FORMATS[static_cast<int>(format)].max_abs) : EncodeResult();
}

void decode(const Tier& tier, Format format, const uint8_t* in, float* out, int64_t blocks, int threads) {
    const FormatRow& row = FORMATS[static_cast<int>(format)];
    const int64_t step = std::max<int64_t>(1, 65536 / row.block_size), tasks = (blocks + step - 1) / step;
    parallel_for(tasks, threads, [&](int64_t task) {
        const int64_t first = task * step, n = std::min(step, blocks - first);
        tier.decode_blocks(format, in + first * row.block_bytes, out + first * row.block_size, n);
    });
}

void dot(const Tier& tier, Format format, const DotJob& job, int threads) {
    const int64_t step = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, job.cols));
    parallel_for((job.rows + step - 1) / step, threads,
                 [&](int64_t task) { tier.dot_rows(format, job, task * step, std::min(job.rows, (task + 1) * step)); });
}

bool multiply(const Tier& tier, const FloatJob& job, int threads) {
    constexpr int64_t RUN = 11;               // panels, for which x is read from memory once
    thread_local std::vector<float> scratch;  // fresh pages would cost more than the work on them
    std::atomic<bool> finite{true};
    const int64_t panels = (job.rows + FLOAT_PANEL - 1) / FLOAT_PANEL;
    if (threads <= 0) threads = hardware_threads();
    const int64_t share = threads > 1 ? panels / (2 * threads) + 1 : panels;
    const int64_t step = std::min(RUN, share) * FLOAT_PANEL;
    parallel_for((job.rows + step - 1) / step, threads, [&](int64_t task) {
        const size_t n_floats = static_cast<size_t>(float_panels_scratch(RUN)) + 16;
        if (scratch.size() < n_floats) scratch = std::vector<float>(n_floats);
        void* start = scratch.data();
        size_t room = n_floats * sizeof(float);
        float* aligned = static_cast<float*>(std::align(64, (n_floats - 16) * sizeof(float), start, room));
        if (!tier.float_panels(job, task * step, std::min(job.rows, (task + 1) * step), aligned)) finite = false;
    });
    return finite;
}

}  // namespace quantkit
