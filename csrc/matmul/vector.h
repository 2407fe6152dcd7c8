// Few rows of x (decoding): each row of weights is read once from memory, in order, and unpacked in registers, 32 codes
// at a time. Eight lanes of sums on every tier, then a fixed tree. Processors see one stream of addresses and look
// ahead of it themselves; only where loads are short (of two blocks) does it help to ask.
#pragma once
#include <utility>

#include "matmul/activations.h"

namespace quantkit {
namespace QK_TIER {

struct Totals {
    Floats of[2], below;
    Totals() { of[0] = of[1] = below = set_floats(0); }
    float sum_up() const { return sum(of[0] + of[1] - below); }
};

// What a chunk's codes are made of.
constexpr int AHEAD = 4096;  // bytes

template <class R>
constexpr int count_parts() {
    if constexpr (WHOLE_SCALES<R>) return R::RUNS;
    return IN_TWOS<R> ? 4 : 8;
}

template <class R, int P>
inline Bytes part_of(const uint8_t* chunk) {
    if constexpr (WHOLE_SCALES<R>)
        return load_bytes(chunk + R::FIRST + 32 * P);
    else if constexpr (IN_TWOS<R>)
        return two_of<P>(R(), chunk);
    else
        return R::template codes<P>(chunk);
}

template <class R>
struct Parts {
    static constexpr int COUNT = count_parts<R>();
    Bytes of[COUNT];
    template <int... P>
    Parts(const uint8_t* chunk, std::integer_sequence<int, P...>) {
        ((of[P] = part_of<R, P>(chunk)), ...);
    }
    explicit Parts(const uint8_t* chunk) : Parts(chunk, std::make_integer_sequence<int, COUNT>()) {}
};

// Blocks 2 K and 2 K + 1 of a chunk.
template <class R, int N, int K>
inline void add_two(const Parts<R>& parts, const Vector<R> (&x)[N], int64_t at, const Floats (&scales)[N],
                    Totals (&total)[N]) {
    const Ints none = set_ints(0);
    if constexpr (IN_TWOS<R>) {
        const Bytes low = codes_of_nibbles(R(), field<0, 0, 15>(parts.of[K]));
        const Bytes high = codes_of_nibbles(R(), field<4, 0, 15>(parts.of[K]));
        for (int i = 0; i < N; i++) {
            const Ints found = add_dots<R::MAX>(none, low, high, x[i].codes + 256 * at + 64 * K);
            total[i].of[K % 2] = total[i].of[K % 2] + floats(found) * four_each<K>(scales[i]);
        }
    } else {
        constexpr int J = 2 * K;
        const auto codes_of = [&](int j) { return SIGNED_CODES<R> ? parts.of[j] ^ set_bytes(128) : parts.of[j]; };
        const Bytes first = codes_of(J), second = codes_of(J + 1);
        for (int i = 0; i < N; i++) {
            const int8_t* codes = x[i].codes + 256 * at + 32 * J;
            const Ints one = add_dot<R::MAX>(none, first, codes);
            const Ints other = add_dot<R::MAX>(none, second, codes + 32);
            total[i].of[0] = total[i].of[0] + floats(one) * each<J>(scales[i]);
            total[i].of[1] = total[i].of[1] + floats(other) * each<J + 1>(scales[i]);
        }
    }
}

// m blocks of a chunk that has the bytes of eight.
template <class R, int N, int... K>
inline void add_chunk(const Row& row, int64_t c, int m, const Vector<R> (&x)[N], int64_t at, Totals (&total)[N],
                      std::integer_sequence<int, K...>) {
    const Parts<R> parts(row.codes + c * R::CHUNK_BYTES);
    alignas(32) float scale[8], min[8];
    R::scales(row, c, m, scale, min);
    Floats scales[N], below = R::MINS ? load_floats(min) : set_floats(0);
    if (VECTOR_OFFSET<R> != 0) below = below + load_floats(scale) * set_floats(VECTOR_OFFSET<R>);
    for (int i = 0; i < N; i++) {
        scales[i] = load_floats(scale) * load_floats(x[i].scales(at));
        if (Vector<R>::SUMS) total[i].below = total[i].below + below * load_floats(x[i].sums(at));
    }
    (add_two<R, N, K>(parts, x, at, scales, total), ...);
}

template <class R, int N>
inline void add_row(const Row& row, int64_t cols, const Vector<R> (&x)[N], Totals (&total)[N]) {
    constexpr auto TWOS = std::make_integer_sequence<int, 4>();
    const int64_t chunks = cols / 256;
    for (int64_t c = 0; c < chunks; c++) {
        const uint8_t* ahead = row.codes + c * R::CHUNK_BYTES + AHEAD;
        for (int at = 0; IN_TWOS<R> && at < R::CHUNK_BYTES; at += 64) prefetch(ahead + at);
        add_chunk<R, N>(row, c, 8, x, c, total, TWOS);
    }
    if (cols % 256 == 0) return;
    const int m = static_cast<int>(cols % 256 / 32);
    uint8_t rest[R::CHUNK_BYTES] = {};
    std::memcpy(rest, row.codes + chunks * R::CHUNK_BYTES, static_cast<size_t>(m * (R::CHUNK_BYTES / 8)));
    const int64_t group = 8 * chunks >> row.group_shift;  // a chunk has whole groups, or lies in one
    const Row last = {rest, row.scales + group, row.biases + group, row.group_shift};
    add_chunk<R, N>(last, 0, m, x, chunks, total, TWOS);
}

// Block J of a super-block: products of two codes, in 16 bits, times whole scales.
template <class R, int N, int J>
inline void add_block(const Parts<R>& parts, const WholeVector<R> (&x)[N], int64_t at, Bytes scales,
                      Ints (&total)[N][2]) {
    const Bytes codes = R::template code<J>([&](int i) { return parts.of[(i - R::FIRST) / 32]; });
    const Bytes scale = scales_of<R::SUBS, J>(scales);
    for (int i = 0; i < N; i++)
        total[i][J % 2] = add_scaled<R::MAX>(total[i][J % 2], codes, x[i].codes + 256 * at + 32 * J, scale);
}

template <class R, int N, int... J>
inline void add_super_block(const uint8_t* chunk, const WholeVector<R> (&x)[N], int64_t at, Totals (&total)[N],
                            std::integer_sequence<int, J...>) {
    const Parts<R> parts(chunk);
    const Wholes from = R::wholes(chunk);
    const Bytes scales = R::SUBS == 1 ? doubled(from.scale[0]) : widened(from.scale[0], from.scale[1]);
    const Bytes words = R::MINS ? widened(from.min[0], from.min[1]) : widened(from.scale[0], from.scale[1]);
    Ints found[N][2];
    for (int i = 0; i < N; i++) found[i][0] = found[i][1] = set_ints(0);
    (add_block<R, N, J>(parts, x, at, scales, found), ...);
    for (int i = 0; i < N; i++) {
        const Ints sums = dot_words(words, x[i].sums + 16 * at);
        Ints all = found[i][0] + found[i][1];
        if (R::MINS)
            total[i].below = total[i].below + floats(sums) * set_floats(from.dmin * x[i].step[at]);
        else
            all = all - times_two_to<R::OFFSET_BITS>(sums);
        total[i].of[0] = total[i].of[0] + floats(all) * set_floats(from.d * x[i].step[at]);
    }
}

template <class R, int N>
inline void add_row(const Row& row, int64_t cols, const WholeVector<R> (&x)[N], Totals (&total)[N]) {
    for (int64_t c = 0; c < cols / 256; c++)
        add_super_block<R, N>(row.codes + c * R::CHUNK_BYTES, x, c, total, std::make_integer_sequence<int, 8>());
}

template <class R, class X, int N>
static void vector_rows(const VectorTask& task, const X (&x)[N]) {
    for (int64_t r = 0; r < task.n_rows; r++) {
        Totals total[N];
        add_row<R, N>(row_of(*task.weights, task.first_row + r), task.weights->cols, x, total);
        for (int i = 0; i < N; i++) task.out[i][r] = total[i].sum_up();
    }
}

template <class R>
static void vector(VectorTask task) {
    using X = std::conditional_t<WHOLE_SCALES<R>, WholeVector<R>, Vector<R>>;
    const auto of = [&](int i) { return X(const_cast<uint8_t*>(task.x[i]), task.weights->cols); };
    if constexpr (VECTOR_COLS > 1) {
        if (task.n == 3) return vector_rows<R, X, 3>(task, {of(0), of(1), of(2)});
        if (task.n == 2) return vector_rows<R, X, 2>(task, {of(0), of(1)});
    }
    for (; task.n > 0; task.n--) {
        VectorTask one = task;
        one.out[0] = task.out[task.n - 1];
        vector_rows<R, X, 1>(one, {of(task.n - 1)});
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
