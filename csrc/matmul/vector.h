// Few rows of x (decoding): each row of weights is read once from memory and unpacked in registers. Sixteen lanes on
// every tier: four for a (sub-)block, of every four of which each lane has its own; lane i of four takes dwords of
// codes i, i + 4, ... of the (sub-)block; then a fixed tree.
#pragma once
#include <utility>

#include "matmul/activations.h"
#if defined(QK_PAIRS)
#include "matmul/pairs.h"
#endif

namespace quantkit {
namespace QK_TIER {

constexpr int AHEAD = 4096;  // bytes that weights are fetched before their use: the hardware does not look that far

template <class R>
inline void fetch_ahead(const uint8_t* chunk) {
    for (int at = 0; at < R::CHUNK_BYTES; at += 64) prefetch(chunk + AHEAD + at);
}

// Scales of a chunk times those of x, in the order of (sub-)blocks; below += the minima times the sums of x.
template <class R, int N>
inline void scale_chunk(const Row& row, int64_t chunk, int m, const Vector<R> (&x)[N], Floats (&scaled)[N][R::SUBS],
                        Floats (&below)[N]) {
    alignas(32) float scale[8 * R::SUBS], min[8 * R::SUBS];
    R::scales(row, chunk, m, scale, min);
    for (int i = 0; i < N; i++)
        for (int s = 0; s < R::SUBS; s++) {
            scaled[i][s] = load_floats(scale + 8 * s) * load_floats(x[i].scales(chunk) + 8 * s);
            if (R::MINS) below[i] = below[i] + load_floats(min + 8 * s) * load_floats(x[i].sums(chunk) + 8 * s);
        }
}

template <class R, int N>
struct Scaled {
    alignas(64) float v[N][8 * R::SUBS];
};

template <class R, int J>
inline Bytes codes_of(const uint8_t* chunk) {
    const Bytes codes = R::template codes<J>(chunk);
    return SIGNED_BYTES && R::MAX > 127 ? codes ^ set_bytes(128) : codes;
}

// Sub-blocks 2 K and 2 K + 1 of a chunk with m blocks: eight lanes.
template <class R, int N, int K>
inline void add_two(const uint8_t* chunk, int m, const Vector<R> (&x)[N], int64_t at, const Scaled<R, N>& scaled,
                    Floats (&total)[N][2]) {
    constexpr int J = K * 2 / R::SUBS;  // the block
    if (J >= m) return;
    const Bytes first = codes_of<R, J>(chunk), second = J + 1 < m ? codes_of<R, (J + 1) % 8>(chunk) : set_bytes(0);
    for (int i = 0; i < N; i++) {
        const int8_t* codes = x[i].codes + 256 * at + 32 * J;
        Ints d = dot<R::MAX>(first, codes);
        if (R::SUBS == 1) d = fold(d, dot<R::MAX>(second, codes + 32));
        if (Vector<R>::START) d = d + load_ints(x[i].start + 32 * R::SUBS * at + 8 * K);
        total[i][K % 2] = total[i][K % 2] + floats(d) * set_pair(scaled.v[i] + 2 * K);
    }
}

template <class R, int N, int... K>
inline void add_twos(const uint8_t* chunk, int m, const Vector<R> (&x)[N], int64_t at, const Scaled<R, N>& scaled,
                     Floats (&total)[N][2], std::integer_sequence<int, K...>) {
    if (m == 8) {
        (add_two<R, N, K>(chunk, 8, x, at, scaled, total), ...);
    } else {
        (add_two<R, N, K>(chunk, m, x, at, scaled, total), ...);
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
    add_twos<R, N>(row.codes + c * R::CHUNK_BYTES, m, x, c, scaled, total,
                   std::make_integer_sequence<int, 4 * R::SUBS>());
}

#if defined(QK_PAIRS)
// The codes of sub-blocks 4 K .. 4 K + 3 of a whole chunk.
template <class R, int K>
inline void read_four(const uint8_t* chunk, Pair& first, Pair& second) {
    if constexpr (R::SUBS == 2)
        first = second = pair_of<2 * K>(R(), chunk);
    else if constexpr (IN_FOURS<R>)
        four_of<K>(R(), chunk, first, second);
    else
        first = pair_of<4 * K>(R(), chunk), second = pair_of<4 * K + 2>(R(), chunk);
    if (SIGNED_BYTES && R::MAX > 127) first = first ^ set_pair_bytes(128), second = second ^ set_pair_bytes(128);
}

// Of ROWS rows: all sixteen lanes. x is loaded once for them.
template <class R, int N, int ROWS, int K>
inline void add_four(const uint8_t* const (&chunk)[ROWS], const Vector<R> (&x)[N], int64_t at,
                     const PairFloats (&scales)[ROWS][N], PairFloats (&total)[ROWS][N]) {
    constexpr int BYTES = 128 / R::SUBS;
    Pair codes[N][2];
    PairInts start[N];
    for (int i = 0; i < N; i++) {
        const uint8_t* p = reinterpret_cast<const uint8_t*>(x[i].codes) + 256 * at + BYTES * K;
        codes[i][0] = load_pair(p);
        if (R::SUBS == 1) codes[i][1] = load_pair(p + 64);
        if (Vector<R>::START) start[i] = load_pair_ints(x[i].start + 32 * R::SUBS * at + 16 * K);
    }
    for (int k = 0; k < ROWS; k++) {
        Pair first, second;
        read_four<R, K>(chunk[k], first, second);
        for (int i = 0; i < N; i++) {
            PairInts d;
            if constexpr (R::SUBS == 1)
                d = dot_both<R::MAX, IN_FOURS<R>>(first, codes[i][0], second, codes[i][1]);
            else
                d = dot<R::MAX>(first, codes[i][0]);
            if (Vector<R>::START) d = d + start[i];
            total[k][i] = total[k][i] + floats(d) * spread<K>(scales[k][i]);
        }
    }
}

template <class R, int N, int ROWS, int... K>
inline void add_fours(const uint8_t* const (&chunk)[ROWS], const Vector<R> (&x)[N], int64_t at,
                      const PairFloats (&scales)[ROWS][N], PairFloats (&total)[ROWS][N],
                      std::integer_sequence<int, K...>) {
    (add_four<R, N, ROWS, K>(chunk, x, at, scales, total), ...);
}

// The same for ROWS rows in turn, `apart` rows from each other, a chunk at a time.
template <class R, int N, int ROWS>
inline void paired_rows(const VectorTask& task, int64_t r, int64_t apart, const Vector<R> (&x)[N]) {
    const int64_t blocks = task.weights->cols / 32;
    Row row[ROWS];
    constexpr bool TOGETHER = R::MINS && R::SUBS == 1;  // eight scales and eight minima fill a register
    PairFloats total[ROWS][N], both[ROWS][N];
    Floats below[ROWS][N];
    for (int k = 0; k < ROWS; k++) {
        row[k] = row_of(*task.weights, task.first_row + r + k * apart);
        for (int i = 0; i < N; i++) total[k][i] = both[k][i] = set_pair_floats(0), below[k][i] = set_floats(0);
    }
    for (int64_t c = 0; c < blocks / 8; c++) {
        const uint8_t* chunk[ROWS];
        PairFloats scales[ROWS][N];
        for (int k = 0; k < ROWS; k++) {
            chunk[k] = row[k].codes + c * R::CHUNK_BYTES;
            fetch_ahead<R>(chunk[k]);
            if constexpr (TOGETHER) {
                const PairFloats read = scales_and_minima(R(), row[k], c);
                for (int i = 0; i < N; i++) {
                    scales[k][i] = read * load_pair_floats(x[i].scales(c));
                    both[k][i] = both[k][i] + scales[k][i];
                }
            } else {
                Floats scaled[N][R::SUBS];
                scale_chunk<R, N>(row[k], c, 8, x, scaled, below[k]);
                for (int i = 0; i < N; i++) scales[k][i] = join(scaled[i][0], scaled[i][R::SUBS - 1]);
            }
        }
        add_fours<R, N, ROWS>(chunk, x, c, scales, total, std::make_integer_sequence<int, 2 * R::SUBS>());
    }
    for (int k = 0; k < ROWS; k++) {
        Floats halves[N][2];
        for (int i = 0; i < N && TOGETHER; i++) below[k][i] = odd_of(both[k][i]);
        for (int i = 0; i < N; i++) halves[i][0] = even_of(total[k][i]), halves[i][1] = odd_of(total[k][i]);
        if (blocks % 8) chunk_of_row<R, N>(row[k], blocks / 8, blocks, x, halves, below[k]);
        store_row<R, N>(task, r + k * apart, halves, below[k]);
    }
}
#endif

template <class R, int N>
static void vector_rows(const VectorTask& task, const Vector<R> (&x)[N]) {
#if defined(QK_PAIRS)
    const int64_t apart = task.n_rows / PAIR_ROWS;
    for (int64_t r = 0; r < apart; r++) paired_rows<R, N, PAIR_ROWS>(task, r, apart, x);
    for (int64_t r = apart * PAIR_ROWS; r < task.n_rows; r++) paired_rows<R, N, 1>(task, r, 0, x);
#else
    const int64_t blocks = task.weights->cols / 32;
    for (int64_t r = 0; r < task.n_rows; r++) {
        const Row row = row_of(*task.weights, task.first_row + r);
        Floats total[N][2], below[N];
        for (int i = 0; i < N; i++) total[i][0] = total[i][1] = below[i] = set_floats(0);
        for (int64_t c = 0; 8 * c < blocks; c++) {
            fetch_ahead<R>(row.codes + c * R::CHUNK_BYTES);
            chunk_of_row<R, N>(row, c, blocks, x, total, below);
        }
        store_row<R, N>(task, r, total, below);
    }
#endif
}

template <class R>
static void vector(VectorTask task) {
    const auto of = [&](int i) { return Vector<R>(const_cast<uint8_t*>(task.x[i]), task.weights->cols); };
    if constexpr (VECTOR_COLS > 1) {
        if (task.n == 3) return vector_rows<R, 3>(task, {of(0), of(1), of(2)});
        if (task.n == 2) return vector_rows<R, 2>(task, {of(0), of(1)});
    }
    for (; task.n > 0; task.n--) {
        VectorTask one = task;
        one.out[0] = task.out[task.n - 1];
        vector_rows<R, 1>(one, {of(task.n - 1)});
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
