// Few rows of x (decoding): each row of weights is read once from memory and unpacked in registers. Sixteen lanes on
// every tier: lane l takes columns 4 l .. 4 l + 3 of even blocks, lane l + 8 those of odd ones, then a fixed tree.
#pragma once
#include <utility>

#include "matmul/activations.h"
#if defined(QK_PAIRS)
#include "matmul/pairs.h"
#endif

namespace quantkit {
namespace QK_TIER {

// Scales of a chunk times those of x, in the order of (sub-)blocks; below += the minima times the sums of x.
template <class R, int N>
inline void scale_chunk(const Row& row, int64_t chunk, int m, const Vector<R> (&x)[N], Floats (&scaled)[N][R::SUBS],
                        Floats (&below)[N]) {
    alignas(32) float scale[8 * R::SUBS], min[8 * R::SUBS];
    R::scales(row, chunk, m, scale, min);
    for (int i = 0; i < N; i++)
        for (int s = 0; s < R::SUBS; s++) {
            const int64_t at = 8 * (R::SUBS * chunk + s);
            scaled[i][s] = load_floats(scale + 8 * s) * load_floats(x[i].scale + at);
            if (R::MINS) below[i] = below[i] + load_floats(min + 8 * s) * load_floats(x[i].sum + at);
        }
}

template <class R, int N>
struct Scaled {
    alignas(64) float v[N][8 * R::SUBS];
};

template <class R, int N, int J>
inline void add_block(const uint8_t* chunk, const Vector<R> (&x)[N], int64_t at, const Scaled<R, N>& scaled,
                      Floats (&total)[N][2]) {
    Bytes codes = R::template codes<J>(chunk);
    if constexpr (SIGNED_BYTES && R::MAX > 127) codes = codes ^ set_bytes(128);
    for (int i = 0; i < N; i++) {
        const Floats d = dot<R::MAX>(codes, x[i].codes + 256 * at + 32 * J, x[i].start + 64 * at + 8 * J);
        const float* scale = scaled.v[i] + J * R::SUBS;
        total[i][J % 2] = total[i][J % 2] + d * (R::SUBS == 1 ? set_floats(*scale) : set_pair(scale));
    }
}

template <class R, int N, int... J>
inline void add_blocks(const uint8_t* chunk, int m, const Vector<R> (&x)[N], int64_t at, const Scaled<R, N>& scaled,
                       Floats (&total)[N][2], std::integer_sequence<int, J...>) {
    if (m == 8) {
        (add_block<R, N, J>(chunk, x, at, scaled, total), ...);
    } else {
        ((J < m ? add_block<R, N, J>(chunk, x, at, scaled, total) : void()), ...);
    }
}

template <class R, int N>
inline void store_row(const VectorTask& task, int64_t r, const Floats (&total)[N][2], const Floats (&below)[N]) {
    for (int i = 0; i < N; i++) {
        const Floats all = total[i][0] + total[i][1];
        task.out[i][r] = R::MINS ? sum(all) - sum(below[i]) : sum(all);
    }
}

template <class R, int N>
inline void chunk_of_row(const Row& row, int64_t c, int64_t blocks, const Vector<R> (&x)[N], Floats (&total)[N][2],
                         Floats (&below)[N]) {
    const int m = static_cast<int>(blocks - 8 * c < 8 ? blocks - 8 * c : 8);
    Floats products[N][R::SUBS];
    scale_chunk<R, N>(row, c, m, x, products, below);
    Scaled<R, N> scaled;
    for (int i = 0; i < N; i++)
        for (int s = 0; s < R::SUBS; s++) store_floats(scaled.v[i] + 8 * s, products[i][s]);
    in_memory(&scaled);  // each scale is loaded into all lanes at no cost; from a register it takes two moves
    add_blocks<R, N>(row.codes + c * R::CHUNK_BYTES, m, x, c, scaled, total, std::make_integer_sequence<int, 8>());
}

#if defined(QK_PAIRS)
template <class R, int N, int K>
inline void add_pair(const uint8_t* chunk, const Vector<R> (&x)[N], int64_t at, const PairFloats (&scales)[N],
                     PairFloats (&total)[N]) {
    Pair codes = pair_of<2 * K>(R(), chunk);
    if constexpr (SIGNED_BYTES && R::MAX > 127) codes = codes ^ set_pair_bytes(128);
    for (int i = 0; i < N; i++) {
        const PairFloats d = dot_pair<R::MAX>(codes, x[i].codes + 256 * at + 64 * K, x[i].start + 64 * at + 16 * K);
        total[i] = total[i] + d * spread_scales<R::SUBS, K>(scales[i]);
    }
}

// The same for ROWS rows in turn, two blocks at a time.
template <class R, int N, int ROWS>
inline void paired_rows(const VectorTask& task, int64_t r, const Vector<R> (&x)[N]) {
    const int64_t blocks = task.weights->cols / 32;
    Row row[ROWS];
    PairFloats total[ROWS][N];
    Floats below[ROWS][N];
    for (int k = 0; k < ROWS; k++) {
        row[k] = row_of(*task.weights, task.first_row + r + k);
        for (int i = 0; i < N; i++) total[k][i] = set_pair_floats(0), below[k][i] = set_floats(0);
    }
    for (int64_t c = 0; c < blocks / 8; c++)
        for (int k = 0; k < ROWS; k++) {
            Floats scaled[N][R::SUBS];
            scale_chunk<R, N>(row[k], c, 8, x, scaled, below[k]);
            PairFloats scales[N];
            for (int i = 0; i < N; i++) scales[i] = join(scaled[i][0], scaled[i][R::SUBS - 1]);
            const uint8_t* chunk = row[k].codes + c * R::CHUNK_BYTES;
            add_pair<R, N, 0>(chunk, x, c, scales, total[k]);
            add_pair<R, N, 1>(chunk, x, c, scales, total[k]);
            add_pair<R, N, 2>(chunk, x, c, scales, total[k]);
            add_pair<R, N, 3>(chunk, x, c, scales, total[k]);
        }
    for (int k = 0; k < ROWS; k++) {
        Floats halves[N][2];
        for (int i = 0; i < N; i++) halves[i][0] = even_of(total[k][i]), halves[i][1] = odd_of(total[k][i]);
        if (blocks % 8) chunk_of_row<R, N>(row[k], blocks / 8, blocks, x, halves, below[k]);
        store_row<R, N>(task, r + k, halves, below[k]);
    }
}
#endif

template <class R, int N>
static void vector_rows(const VectorTask& task, const Vector<R> (&x)[N]) {
#if defined(QK_PAIRS)
    int64_t r = 0;
    for (; r + PAIR_ROWS <= task.n_rows; r += PAIR_ROWS) paired_rows<R, N, PAIR_ROWS>(task, r, x);
    for (; r < task.n_rows; r++) paired_rows<R, N, 1>(task, r, x);
#else
    const int64_t blocks = task.weights->cols / 32;
    for (int64_t r = 0; r < task.n_rows; r++) {
        const Row row = row_of(*task.weights, task.first_row + r);
        Floats total[N][2], below[N];
        for (int i = 0; i < N; i++) total[i][0] = total[i][1] = below[i] = set_floats(0);
        for (int64_t c = 0; 8 * c < blocks; c++) chunk_of_row<R, N>(row, c, blocks, x, total, below);
        store_row<R, N>(task, r, total, below);
    }
#endif
}

template <class R>
static void vector(VectorTask task) {
    const int64_t cols = task.weights->cols;
    if constexpr (VECTOR_COLS > 1) {
        if (task.n == 3) return vector_rows<R, 3>(task, {{task.x[0], cols}, {task.x[1], cols}, {task.x[2], cols}});
        if (task.n == 2) return vector_rows<R, 2>(task, {{task.x[0], cols}, {task.x[1], cols}});
    }
    for (; task.n > 0; task.n--) {
        VectorTask one = task;
        one.x[0] = task.x[task.n - 1];
        one.out[0] = task.out[task.n - 1];
        vector_rows<R, 1>(one, {{one.x[0], cols}});
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
