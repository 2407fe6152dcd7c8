// Few rows of x with repacked weights (rows_block.h).
#pragma once
#include <utility>

#include "matmul/super_panel.h"

namespace quantkit {
namespace QK_TIER {

// Compilers must not read a block from its end to its beginning: processors look ahead of what is read in order.
inline void in_order() {
#if defined(__GNUC__)
    __asm__ volatile("" ::: "memory");
#endif
}

inline int32_t load_i32(const uint8_t* p) { return static_cast<int32_t>(load_u32(p)); }
inline Sums same_sums(const uint8_t* p) {
    float f;
    std::memcpy(&f, p, 4);
    return set_sums(f);
}

// Whether the words of a block of 32 have the codes of steps k and k + 4, or of one step.
template <class R>
constexpr bool TWO_STEPS = R::SUPER ? IN_TWOS<R> : WORDS<R> < 8;

// Block J, with COLS rows of x.
template <class R, int J, int COLS>
[[gnu::always_inline]] inline void dots_of_block(const RowsBlock<R>& block, const uint8_t* x, Counts (&found)[COLS]) {
    constexpr int X = FOUR<R::MAX> * COLS;  // bytes of a step
    RowDots<R::MAX, COLS> sums[COLS];
    for (int c = 0; c < COLS; c++)
        sums[c].start(STARTS_APART<R> ? 0 : load_i32(x + 8 * X + (R::SUPER ? 0 : 4 * COLS) + 4 * c));
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        const int k = TWO_STEPS<R> ? i / 2 + i % 2 * 4 : i;
        const Words codes = block.template codes<J>(k);
        for (int c = 0; c < COLS; c++) sums[c].add(i, codes, x + k * X + 4 * c);
    }
    for (int c = 0; c < COLS; c++) found[c] = sums[c].total(8);
}

// sums += a block of 32 columns times COLS rows of x, as prepare_panel() lays them.
template <class R, int COLS>
[[gnu::always_inline]] inline void add_block(const RowsBlock<R>& block, const uint8_t* x, Sums (&sums)[COLS]) {
    const uint8_t *step = x + 8 * FOUR<R::MAX> * COLS, *less = step + 8 * COLS;
    Counts dots[COLS];
    dots_of_block<R, 0>(block, x, dots);
    const RowScales scales = block.scales();
    for (int c = 0; c < COLS; c++) {
        Sums scaled = times_scale<R::HALF_SCALES>(dots[c], scales.scale);
        if (R::MINS) scaled = fused(scales.min, same_sums(less + 4 * c), scaled);
        sums[c] = fused(scaled, same_sums(step + 4 * c), sums[c]);
    }
}

// Steps FROM .. FROM + STEPS of blocks FIRST + J.
template <class R, int FROM, int STEPS, int FIRST, int COLS, int N, int... J>
[[gnu::always_inline]] inline void dots_of_steps(const RowsBlock<R>& block, const uint8_t* x, Counts (&found)[N][COLS],
                                                 std::integer_sequence<int, J...>) {
    static_assert(!STARTS_APART<R>, "sums would start at what is no start");
    constexpr int X = FOUR<R::MAX> * COLS, EACH = bytes_of_block<R>() * COLS;
    RowDots<R::MAX, COLS> sums[N][COLS];
    for (int j = 0; j < N; j++)
        for (int c = 0; c < COLS; c++)
            sums[j][c].start(load_i32(x + j * EACH + 8 * X + FROM / STEPS * 4 * COLS + 4 * c));
    const auto add = [&](int k, RowDots<R::MAX, COLS>(&to)[COLS], Words codes, const uint8_t* from) {
        for (int c = 0; c < COLS; c++) to[c].add(k, codes, from + (FROM + k) * X + 4 * c);
    };
#pragma GCC unroll 8
    for (int k = 0; k < STEPS; k++) {
        (add(k, sums[J], block.template codes<FIRST + J>(FROM + k), x + J * EACH), ...);
        in_order();
    }
    for (int j = 0; j < N; j++)
        for (int c = 0; c < COLS; c++) found[j][c] = sums[j][c].total(STEPS);
}

// The blocks of group G of a super-block.
template <class R, int G, int COLS>
[[gnu::always_inline]] inline void add_group(const RowsBlock<R>& block, const uint8_t* x, const Counts* scales,
                                             Counts (&total)[COLS]) {
    constexpr int N = 8 / R::GROUPS, FIRST = G * N, STEPS = 8 / R::SUBS, EACH = bytes_of_block<R>() * COLS;
    Counts found[R::SUBS][N][COLS];
    x += FIRST * EACH;
    if constexpr (TWO_STEPS<R>) {
        dots_of_block<R, FIRST>(block, x, found[0][0]);
        in_order();
        dots_of_block<R, FIRST + 1>(block, x + EACH, found[0][1]);
        in_order();
    } else {
        constexpr auto BLOCKS = std::make_integer_sequence<int, N>();
        dots_of_steps<R, 0, STEPS, FIRST>(block, x, found[0], BLOCKS);
        if constexpr (R::SUBS == 2) dots_of_steps<R, STEPS, STEPS, FIRST>(block, x, found[1], BLOCKS);
    }
    for (int p = 0; p < N * R::SUBS / 2; p++)
        for (int c = 0; c < COLS; c++) {
            const Counts low = R::SUBS == 1 ? found[0][2 * p][c] : found[0][p][c];
            const Counts high = R::SUBS == 1 ? found[0][2 * p + 1][c] : found[1][p][c];
            const Counts scale = scales[FIRST * R::SUBS / 2 + p];
            if constexpr (LIMITED_X<R>)
                total[c] = add(total[c], add(times(low, low_of(scale)), times(high, high_of(scale))));
            else
                total[c] = add_halves(total[c], halves_of<shift_of<R>()>(low, high), scale);
        }
}

template <class R, int COLS, int... G>
[[gnu::always_inline]] inline void add_groups(const RowsBlock<R>& block, const uint8_t* x, const Counts* scales,
                                              Counts (&total)[COLS], std::integer_sequence<int, G...>) {
    (add_group<R, G>(block, x, scales, total), ...);
}

// ... a super-block, as prepare_super_panel() lays them.
template <class R, int COLS>
[[gnu::always_inline]] inline void add_super_block(const RowsBlock<R>& block, const uint8_t* x, Sums (&sums)[COLS]) {
    constexpr int PAIRS = 4 * R::SUBS;
    Counts scales[PAIRS], mins[PAIRS], total[COLS];
    block.pairs(scales, mins);
    const RowScales d = block.scales();
    in_order();
    const uint8_t *step = x + 8 * bytes_of_block<R>() * COLS, *two = step + 4 * COLS;
    const auto with_sums = [&](const Counts(&pairs)[PAIRS], int c) {
        Counts sum = set_counts(0);
        for (int p = 0; p < PAIRS; p++) sum = add_halves(sum, pairs[p], set_counts(load_i32(two + 4 * (p * COLS + c))));
        return sum;
    };
    for (int c = 0; c < COLS; c++) total[c] = STARTS_APART<R> ? with_sums(scales, c) : set_counts(0);
    add_groups<R>(block, x, scales, total, std::make_integer_sequence<int, R::GROUPS>());
    for (int c = 0; c < COLS; c++) {
        Sums all = floats(total[c]) * (d.scale * set_sums(1 << shift_of<R>()));
        if constexpr (R::MINS) all = all - floats(with_sums(mins, c)) * d.min;
        sums[c] = sums[c] + all * same_sums(step + 4 * c);
    }
}

// All COLS rows of the expert's x, with sixteen rows of weights at r, r + apart ..: G times.
template <class R, int COLS, int G>
static bool repacked_sixteens(const PanelTask& task, int64_t r, int64_t apart) {
    const Weights& w = *task.weights;
    const int64_t blocks = w.cols / 32;
    constexpr int STEP = BLOCK<R> / 32, HALVES = 16 / LANES;
    RowsBlock<R> block[G];
    Sums sums[G][HALVES][COLS];
    for (int g = 0; g < G; g++) {
        block[g] = rows_block<R>(w, task.first_row + r + g * apart, 0);
        for (auto& half : sums[g])
            for (Sums& sum : half) sum = set_sums(0);
    }
    const uint8_t* x = nullptr;
    for (int64_t b = 0; b < blocks; b += STEP, x += bytes_of_blocks<R>(STEP) * COLS) {
        if (b % (8 * STRETCH<R::MAX>) == 0) x = task.x + place_of<R>(COLS, 0, b, blocks);
        for (int g = 0; g < G; g++) {
            for (int h = 0; h < HALVES; h++) {
                block[g].lane = h * LANES;
                if constexpr (R::SUPER)
                    add_super_block(block[g], x, sums[g][h]);
                else
                    add_block(block[g], x, sums[g][h]);
            }
            block[g].step();
        }
    }
    bool finite = true;
    for (int g = 0; g < G; g++)
        for (int c = 0; c < COLS; c++) {
            float all[16];
            for (int h = 0; h < HALVES; h++) store_sums(all + h * LANES, sums[g][h][c]);
            const int64_t at = r + g * apart, row = task.order ? task.order[c] : task.out_row + c;
            const int64_t n = task.n_rows - at < 16 ? task.n_rows - at : 16;
            std::memcpy(task.out + row * task.out_stride + at, all, static_cast<size_t>(n) * sizeof(float));
            finite = all_finite(all, 16) && finite;  // rows that fill up to sixteen give zeros
        }
    return finite;
}

// Several at once as in vector.h; super-blocks are read in two passes with AVX2, and lose by it.
template <class R, int COLS>
static bool repacked_rows(const PanelTask& task) {
    constexpr int G = COLS == 1 && REGISTERS == 16 && !R::SUPER ? 4 : 1;
    const int64_t part = task.n_rows / 16 / G * 16;
    bool finite = true;
    for (int64_t r = 0; r < part; r += 16) finite = repacked_sixteens<R, COLS, G>(task, r, part) && finite;
    for (int64_t r = G * part; r < task.n_rows; r += 16) finite = repacked_sixteens<R, COLS, 1>(task, r, 0) && finite;
    return finite;
}

template <class R, int COLS>
inline bool repacked_some(int cols, const PanelTask& task) {
    if constexpr (COLS > 1)
        if (cols < COLS) return repacked_some<R, COLS - 1>(cols, task);
    return repacked_rows<R, COLS>(task);
}

template <class R>
static bool repacked(const PanelTask& task) {
    return repacked_some<R, VECTOR_ROWS>(static_cast<int>(task.n), task);
}

}  // namespace QK_TIER
}  // namespace quantkit
