// Few rows of x (decoding): each row of weights is read once from memory, in order, and unpacked in registers. Sums of
// products are whole numbers up to the scale of a block or super-block; then eight lanes of floats, and a fixed tree.
#pragma once
#include <type_traits>

#include "matmul/activations.h"

namespace quantkit {
namespace QK_TIER {

// A product of a code with one of x.
template <class R>
constexpr int LARGEST = 127 * (R::MAX > 127 ? 255 : R::MAX);

struct Totals {
    Floats of, below;
    Totals() { of = below = set_floats(0); }
    float sum_up() const { return sum(of - below); }
};

// Of vector K of a chunk, which is of two blocks: four lanes of each, or (IN_TWOS) in each half of both.
template <class R, int K, int N>
inline void dots_of_two(const uint8_t* chunk, const Vector<R> (&x)[N], int64_t at, Ints (&found)[N][4]) {
    constexpr int MAX = R::MAX;
    const Ints none = set_ints(0);
    Bytes first, second;
    if constexpr (IN_TWOS<R>) {
        const Bytes both = two_of<K>(R(), chunk);
        first = stored<R>(codes_of_nibbles(R(), field<0, 0, 15>(both)));
        second = stored<R>(codes_of_nibbles(R(), field<4, 0, 15>(both)));
    } else {
        first = stored<R>(R::template codes<2 * K>(chunk)), second = stored<R>(R::template codes<2 * K + 1>(chunk));
    }
    for (int i = 0; i < N; i++) {
        const int8_t* codes = x[i].codes + 256 * at + 64 * K;
        const Ints one = add_dot<MAX>(none, first, codes);
        if constexpr (IN_TWOS<R>)
            found[i][K] = add_dot<MAX>(one, second, codes + 32);
        else
            found[i][K] = in_twos<4 * LARGEST<R>>(one, add_dot<MAX>(none, second, codes + 32));
    }
}

template <class R, int N>
struct Dots {
    Ints of[N][4];
    Dots() = default;
    Dots(const uint8_t* chunk, const Vector<R> (&x)[N], int64_t at) {
        dots_of_two<R, 0>(chunk, x, at, of);
        dots_of_two<R, 1>(chunk, x, at, of);
        dots_of_two<R, 2>(chunk, x, at, of);
        dots_of_two<R, 3>(chunk, x, at, of);
    }
};

// Of m blocks of a chunk that has the bytes of eight. Block j ends up in lane_of(j).
template <class R, int N>
inline void add_scaled_dots(const Dots<R, N>& found, const Row& row, int64_t c, int m, const Vector<R> (&x)[N],
                            int64_t at, Totals (&total)[N]) {
    alignas(32) float scale[8], min[8];
    R::scales(row, c, m, scale, min);
    for (int i = 0; i < N; i++) {
        const Ints a = in_twos<8 * LARGEST<R>>(found.of[i][0], found.of[i][1]);
        const Ints b = in_twos<8 * LARGEST<R>>(found.of[i][2], found.of[i][3]);
        Ints dots = IN_TWOS<R> ? in_twos<16 * LARGEST<R>>(a, b) : halves_added(a, b);
        if constexpr (VECTOR_OFFSET<R> != 0) dots = dots - load_ints(x[i].offsets(at));
        total[i].of = total[i].of + floats(dots) * (load_floats(scale) * load_floats(x[i].scales(at)));
        if constexpr (R::MINS) total[i].below = total[i].below + load_floats(min) * load_floats(x[i].sums(at));
    }
}

// Whole chunks. Where there are registers for it, dot products are scaled after those of the next chunk: fewer
// instructions wait for others, and processors look farther ahead.
template <class R, int W, int N>
inline void add_chunks(const Row (&rows)[W], int64_t chunks, const Vector<R> (&x)[N], Totals (&total)[W][N]) {
    constexpr bool LATER = REGISTERS > 16 && N == 1 && ONE_SCALE<R>;
    Dots<R, N> before[W];
    for (int w = 0; LATER && w < W; w++) before[w] = {rows[w].codes, x, 0};
    for (int64_t c = LATER; c < chunks; c++)
        for (int w = 0; w < W; w++) {
            const Dots<R, N> found(rows[w].codes + c * R::CHUNK_BYTES, x, c);
            add_scaled_dots<R, N>(LATER ? before[w] : found, rows[w], c - LATER, 8, x, c - LATER, total[w]);
            before[w] = found;
        }
    for (int w = 0; LATER && w < W; w++)
        add_scaled_dots<R, N>(before[w], rows[w], chunks - 1, 8, x, chunks - 1, total[w]);
}

template <class R, int W, int N>
inline void add_rows(const Row (&rows)[W], int64_t cols, const Vector<R> (&x)[N], Totals (&total)[W][N]) {
    const int64_t chunks = cols / 256;
    if (chunks) add_chunks<R, W, N>(rows, chunks, x, total);
    if (cols % 256 == 0) return;
    const int m = static_cast<int>(cols % 256 / 32);
    for (int w = 0; w < W; w++) {
        const Row& row = rows[w];
        uint8_t rest[R::CHUNK_BYTES] = {};
        std::memcpy(rest, row.codes + chunks * R::CHUNK_BYTES, static_cast<size_t>(m * (R::CHUNK_BYTES / 8)));
        const int64_t group = 8 * chunks >> row.group_shift;  // a chunk has whole groups, or lies in one
        const Row last = {rest, row.scales + group, row.biases + group, row.group_shift};
        add_scaled_dots<R, N>(Dots<R, N>(rest, x, chunks), last, 0, m, x, chunks, total[w]);
    }
}

template <class R>
struct Parts {
    Bytes of[R::RUNS];
    explicit Parts(const uint8_t* chunk) {
        for (int i = 0; i < R::RUNS; i++) of[i] = load_bytes(chunk + R::FIRST + 32 * i);
    }
};

// Blocks 2 K and 2 K + 1 of a super-block.
template <class R, int K, int N>
inline void add_two(const Parts<R>& parts, const WholeVector<R> (&x)[N], int64_t at, const Scales& scales,
                    ScaledSums (&found)[N]) {
    const auto bytes = [&](int i) { return parts.of[(i - R::FIRST) / 32]; };
    const Bytes first = R::template code<2 * K>(bytes), second = R::template code<2 * K + 1>(bytes);
    for (int i = 0; i < N; i++)
        add_scaled<R::MAX, R::SUBS, K>(found[i], first, second, x[i].codes + 256 * at + 64 * K, scales);
}

template <class R, int N>
inline void add_super_block(const uint8_t* chunk, const WholeVector<R> (&x)[N], int64_t at, Totals (&total)[N]) {
    const Parts<R> parts(chunk);
    const Wholes from = R::wholes(chunk);
    const Scales scales = scales_of<R::SUBS>(from.scales);
    ScaledSums found[N];
    add_two<R, 0>(parts, x, at, scales, found);
    add_two<R, 1>(parts, x, at, scales, found);
    add_two<R, 2>(parts, x, at, scales, found);
    add_two<R, 3>(parts, x, at, scales, found);
    for (int i = 0; i < N; i++) {
        const Ints sums = dot_widened(R::SUBS == 2 && R::MINS ? from.mins : from.scales, x[i].sums + 16 * at);
        const Floats step = from.d * set_floats(x[i].step[at]);
        Ints all = found[i].lanes();
        if (R::MINS)
            total[i].below = total[i].below + floats(sums) * odd(step);
        else
            all = all - times_two_to<R::OFFSET_BITS>(sums);
        total[i].of = total[i].of + floats(all) * (R::MINS ? even(step) : step);
    }
}

template <class R, int W, int N>
inline void add_rows(const Row (&rows)[W], int64_t cols, const WholeVector<R> (&x)[N], Totals (&total)[W][N]) {
    for (int64_t c = 0; c < cols / 256; c++)
        for (int w = 0; w < W; w++) add_super_block<R, N>(rows[w].codes + c * R::CHUNK_BYTES, x, c, total[w]);
}

// Rows r, r + step ..: W of them.
template <class R, int W, class X, int N>
inline void vector_rows(const VectorTask& task, int64_t r, int64_t step, const X (&x)[N]) {
    Row rows[W];
    Totals total[W][N];
    for (int w = 0; w < W; w++) rows[w] = row_of(*task.weights, task.first_row + r + w * step);
    add_rows<R, W, N>(rows, task.weights->cols, x, total);
    for (int w = 0; w < W; w++)
        for (int i = 0; i < N; i++) task.out[i][r + w * step] = total[w][i].sum_up();
}

// With one row of x several rows of weights at once, that lie far apart: long runs of addresses, of which processors
// look ahead better than of one, and much better than of those that end after a row. How many pays was measured: three
// with AVX2 where unpacking is light, and two with AVX-512 but for whole bytes and blocks with fifth bits.
template <class R>
constexpr bool LIGHT = R::SUBS == 1 && R::MAX >> (R::CHUNK_BYTES / 32) == 0;  // no table, one scale
template <class R>
constexpr int ROWS_AT_ONCE = REGISTERS == 16          ? (LIGHT<R> ? 3 : 2)
                             : R::SUPER || IN_TWOS<R> ? 2
                                                      : 1;

template <class R, class X, int N>
static void vector_of_rows(const VectorTask& task, const X (&x)[N]) {
    constexpr int W = N == 1 ? ROWS_AT_ONCE<R> : 1;
    const int64_t part = task.n_rows / W;
    for (int64_t r = 0; r < part; r++) vector_rows<R, W>(task, r, part, x);
    for (int64_t r = W * part; r < task.n_rows; r++) vector_rows<R, 1>(task, r, 0, x);
}

template <class R>
static void vector(VectorTask task) {
    using X = std::conditional_t<WHOLE_SCALES<R>, WholeVector<R>, Vector<R>>;
    const auto of = [&](int i) { return X(const_cast<uint8_t*>(task.x[i]), task.weights->cols); };
    if constexpr (VECTOR_COLS > 1) {
        if (task.n == 3) return vector_of_rows<R, X, 3>(task, {of(0), of(1), of(2)});
        if (task.n == 2) return vector_of_rows<R, X, 2>(task, {of(0), of(1)});
    }
    for (; task.n > 0; task.n--) {
        VectorTask one = task;
        one.out[0] = task.out[task.n - 1];
        vector_of_rows<R, X, 1>(one, {of(task.n - 1)});
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
