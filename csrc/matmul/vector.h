// Few rows of x (decoding): each row of weights is read once from memory and unpacked in registers. Eight lanes on
// every tier, lane l taking columns 4 l .. 4 l + 3 of a block, even and odd blocks apart, then a fixed tree.
#pragma once
#include <utility>

#include "matmul/activations.h"

namespace quantkit {
namespace QK_TIER {

template <class R, int N, int J>
inline void add_block(const uint8_t* chunk, const Vector<R>* const (&x)[N], int64_t at,
                      const float (&scale)[N][8 * R::SUBS], Floats (&total)[N][2]) {
    Bytes codes = R::template codes<J>(chunk);
    if constexpr (SIGNED_BYTES && R::MAX > 127) codes = codes ^ set_bytes(128);
    for (int i = 0; i < N; i++) {
        const Floats d = dot<R::MAX>(codes, x[i]->codes + 256 * at + 32 * J, x[i]->start + 64 * at + 8 * J);
        const Floats s = R::SUBS == 1 ? set_floats(scale[i][J]) : set_pair(scale[i] + J * (R::SUBS - 1) * 2);
        total[i][J % 2] = total[i][J % 2] + d * s;
    }
}

template <class R, int N, int... J>
inline void add_blocks(const uint8_t* chunk, int m, const Vector<R>* const (&x)[N], int64_t at,
                       const float (&scale)[N][8 * R::SUBS], Floats (&total)[N][2], std::integer_sequence<int, J...>) {
    if (m == 8) {
        (add_block<R, N, J>(chunk, x, at, scale, total), ...);
    } else {
        ((J < m ? add_block<R, N, J>(chunk, x, at, scale, total) : void()), ...);
    }
}

template <class R, int N>
static void vector_rows(const VectorTask& task) {
    const Weights& w = *task.weights;
    const int64_t blocks = w.cols / 32, chunks = chunks_of(w.cols);
    const Vector<R> prepared[3] = {{task.x[0], w.cols}, {task.x[N > 1 ? 1 : 0], w.cols}, {task.x[N - 1], w.cols}};
    const Vector<R>* x[N];
    for (int i = 0; i < N; i++) x[i] = prepared + i;
    for (int64_t r = 0; r < task.n_rows; r++) {
        const Row row = row_of(w, task.first_row + r);
        Floats total[N][2], below[N];
        for (int i = 0; i < N; i++) total[i][0] = total[i][1] = below[i] = set_floats(0);
        for (int64_t c = 0; c < chunks; c++) {
            const int m = static_cast<int>(blocks - 8 * c < 8 ? blocks - 8 * c : 8);
            alignas(32) float scale[8 * R::SUBS], min[8 * R::SUBS], scaled[N][8 * R::SUBS];
            R::scales(row, c, m, scale, min);
            for (int i = 0; i < N; i++)
                for (int s = 0; s < R::SUBS; s++) {
                    const int64_t at = 8 * (R::SUBS * c + s);
                    store_floats(scaled[i] + 8 * s, load_floats(scale + 8 * s) * load_floats(x[i]->scale + at));
                    if (R::MINS) below[i] = below[i] + load_floats(min + 8 * s) * load_floats(x[i]->sum + at);
                }
            add_blocks<R, N>(row.codes + c * R::CHUNK_BYTES, m, x, c, scaled, total,
                             std::make_integer_sequence<int, 8>());
        }
        for (int i = 0; i < N; i++) {
            const Floats all = total[i][0] + total[i][1];
            task.out[i][r] = R::MINS ? sum(all) - sum(below[i]) : sum(all);
        }
    }
}

template <class R>
static void vector(VectorTask task) {
    if constexpr (VECTOR_COLS == 1) {
        for (; task.n > 1; task.n--) {
            VectorTask one = task;
            one.x[0] = task.x[task.n - 1];
            one.out[0] = task.out[task.n - 1];
            vector_rows<R, 1>(one);
        }
        vector_rows<R, 1>(task);
    } else if (task.n == 1) {
        vector_rows<R, 1>(task);
    } else if (task.n == 2) {
        vector_rows<R, 2>(task);
    } else {
        vector_rows<R, 3>(task);
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
