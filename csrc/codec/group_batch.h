// L groups of run-time length side by side, one per lane, as batch.h has blocks: X[element * L + lane].
#pragma once
#include <vector>

#include "ahead.h"
#include "codec/driver.h"

namespace quantkit {
namespace QK_TIER {

struct GroupBatch {
    int n;  // elements of a group, a multiple of 32
    float *x, *u, *w;
    F low, high, max_abs;
    const uint8_t* next;  // what is read after this batch, and how many bytes of it for each element
    int next_step = 0;
    F operator[](int i) const { return load(x + i * L); }

    explicit GroupBatch(int64_t group_size) : n(static_cast<int>(group_size)) {
        static thread_local std::vector<float> buffer;  // this thread's, until its next batch
        const size_t size = static_cast<size_t>(n) * L;
        buffer.resize(std::max(buffer.size(), 3 * size + 16));
        x = buffer.data() + (64 - reinterpret_cast<uintptr_t>(buffer.data()) % 64) % 64 / sizeof(float);
        u = x + size;
        w = u + size;
        next = reinterpret_cast<const uint8_t*>(x);
    }
};

// What a batch finds out while it loads.
struct Extremes {
    F low = set1(F32_MAX), high = set1(-F32_MAX);
    I magnitude = set1i(0);
    void add(F x) {
        low = min(x, low);
        high = max(x, high);
        magnitude = max(magnitude_bits(x), magnitude);
    }
    void give(GroupBatch& b) const {
        b.low = low;
        b.high = high;
        b.max_abs = from_bits(magnitude);
    }
};

// Each lane has its own run of columns.
template <Scalar S>
void load_group_runs(GroupBatch& b, const uint8_t* const (&runs)[L]) {
    constexpr int BYTES = SCALAR_BYTES[static_cast<int>(S)];
    Extremes e;
    for (int i = 0; i < b.n; i += L) {
        F r[L];
        for (int l = 0; l < L; l++) r[l] = load_scalars<S>(runs[l] + i * BYTES);
        transpose(r);
        for (int k = 0; k < L; k++) {
            store(b.x + (i + k) * L, r[k]);
            e.add(r[k]);
        }
    }
    e.give(b);
}

// The lanes lie side by side, `pitch` bytes per column.
template <Scalar S>
void load_group_lanes(GroupBatch& b, const uint8_t* first, int64_t pitch) {
    Extremes e;
    for (int i = 0; i < b.n; i++) {
        const F x = load_scalars<S>(first + i * pitch);
        store(b.x + i * L, x);
        e.add(x);
    }
    e.give(b);
}

// The columns' importance, scaled so that the largest of a lane is 1; a lane whose weights are all zero is weighted
// evenly.
inline void weigh_groups(GroupBatch& b, const float* const (&columns)[L]) {
    const F zero = set1(0.0f), one = set1(1.0f);
    F top = zero;
    for (int i = 0; i < b.n; i += L) {
        F r[L];
        for (int l = 0; l < L; l++) r[l] = load(columns[l] + i);
        transpose(r);
        for (int k = 0; k < L; k++) {
            store(b.w + (i + k) * L, r[k]);
            top = max(top, r[k]);
        }
    }
    const M none = top <= zero;
    // below 2^-100 an inverse may overflow
    const F up = select(top < set1(7.8886091e-31f), set1(1.2676506e30f), one);
    const F inverse = one / select(none, one, top * up);
    for (int i = 0; i < b.n; i++) store(b.w + i * L, select(none, one, load(b.w + i * L) * up * inverse));
}

}  // namespace QK_TIER
}  // namespace quantkit
