// The float product of few rows of x: a stretch of a row of weights is decoded into the first-level cache and used up
// there. Sums have 32 virtual lanes (column mod 32) that are added pairwise at the end, so every tier gives the same.
#pragma once
#include <algorithm>
#include <cstring>

#include "dispatch.h"

namespace quantkit {
namespace QK_TIER {

constexpr int64_t STRETCH = 1024;  // columns: a multiple of every block, and 4 KB
constexpr int LANES = 32;

// sums += w * x for J rows of x at once; m is a multiple of 32.
template <int J>
static void add_products(const float* w, const float* x, int64_t pitch, int64_t m, float (*sums)[LANES]) {
    constexpr int K = LANES / L;
    F s[J][K];
    for (int j = 0; j < J; j++)
        for (int k = 0; k < K; k++) s[j][k] = load(sums[j] + k * L);
    for (int64_t i = 0; i < m; i += LANES)
        for (int k = 0; k < K; k++) {
            const F v = load(w + i + k * L);
            for (int j = 0; j < J; j++) s[j][k] = s[j][k] + v * load(x + j * pitch + i + k * L);
        }
    for (int j = 0; j < J; j++)
        for (int k = 0; k < K; k++) store(sums[j] + k * L, s[j][k]);
}

static void dot_rows(Format format, const DotJob& job, int64_t first, int64_t last) {
    const FormatRow& f = FORMATS[static_cast<int>(format)];
    const int64_t row_bytes = job.cols / f.block_size * f.block_bytes;
    alignas(64) float w[STRETCH];
    for (int64_t row = first; row < last; row++) {
        alignas(64) float sums[DOT_ROWS][LANES] = {};
        for (int64_t c = 0; c < job.cols; c += STRETCH) {
            const int64_t n = std::min(STRETCH, job.cols - c), m = (n + LANES - 1) / LANES * LANES;
            decode_blocks(format, job.packed + row * row_bytes + c / f.block_size * f.block_bytes, w, n / f.block_size);
            std::fill(w + n, w + m, 0.0f);
            int j = 0;
            for (; j + 2 <= job.n; j += 2) add_products<2>(w, job.x + j * job.pitch + c, job.pitch, m, sums + j);
            if (j < job.n) add_products<1>(w, job.x + j * job.pitch + c, job.pitch, m, sums + j);
        }
        for (int j = 0; j < job.n; j++) {
            for (int width = LANES / 2; width; width /= 2)
                for (int l = 0; l < width; l++) sums[j][l] += sums[j][l + width];
            job.out[j * job.rows + row] = sums[j][0];
        }
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
