// Weights repacked for few rows of x: sixteen rows side by side, so that a lane is a row and no sum crosses lanes, and
// memory is read strictly in the order of its addresses. A block has first what is beside its words of four bytes (a
// byte or a half in front of 32 columns, a half behind 256), of sixteen rows each; then its words, of sixteen rows
// each: those without codes first, then those that are needed together. The last rows are filled up to sixteen with
// zeros. Sums are those of the panels, bit by bit.
#pragma once
#include "matmul/activations.h"

namespace quantkit {
namespace QK_TIER {

template <class R>
constexpr int BLOCK = R::SUPER ? 256 : 32;  // columns
template <class R>
constexpr int BLOCK_BYTES = R::CHUNK_BYTES / (256 / BLOCK<R>);
template <class R>
constexpr int WORDS = BLOCK_BYTES<R> / 4;
template <class R>
constexpr int ODD = BLOCK_BYTES<R> % 4;  // bytes beside the words

// A word's place among those of its block.
template <class R>
constexpr int place_of_word(int word) {
    if constexpr (R::SUPER) {
        constexpr int FIRST = R::FIRST / 4, CODES = 8 * R::RUNS;
        if (word < FIRST) return word;
        if (word >= FIRST + CODES) return word - CODES;
        const int run = (word - FIRST) / 8, group = R::group_of(run);
        int before = 0;  // of its group
        for (int r = 0; r < run; r++) before += R::group_of(r) == group;
        return WORDS<R> - CODES + (8 * group + (word - FIRST) % 8) * (R::RUNS / R::GROUPS) + before;
    }
    return word;
}

// A block of LANES of sixteen rows.
template <class R>
struct RowsBlock {
    const uint8_t* p;  // of all sixteen
    int lane;          // the first of LANES

    const uint8_t* word(int i) const { return p + 16 * ODD<R> + 64 * place_of_word<R>(i); }
    Words at(int i) const { return load_words(word(i) + 4 * lane); }
    template <int J>
    [[gnu::always_inline]] Words codes(int k) const {
        const Words codes = R::template rows_code<J>(k, [this](int i) { return at(i); });
        return SIGNED_BYTES && R::MAX > 127 ? codes ^ set_words(128) : codes;
    }
    RowScales scales() const {
        return R::rows_scales(p + ODD<R> * lane, [this](int i) { return at(i); });
    }
    void pairs(Counts* scales, Counts* mins) const {
        R::rows_pairs([this](int i) { return at(i); }, scales, mins);
    }
    void step() { p += 16 * BLOCK_BYTES<R>; }
};

// LANES rows from `row` on, in their sixteen.
template <class R>
inline RowsBlock<R> rows_block(const Weights& w, int64_t row, int64_t col) {
    return {w.codes + row / 16 * 16 * w.row_bytes + col / BLOCK<R> * 16 * BLOCK_BYTES<R>, static_cast<int>(row % 16)};
}

// Sixteen rows; `back`: to plain ones.
template <class R>
static void repack(const uint8_t* from, uint8_t* to, int64_t cols, bool back) {
    RowsBlock<R> block = {back ? from : to, 0};
    const uint8_t* start = block.p;
    for (int64_t b = 0; b < cols / BLOCK<R>; b++, block.step())
        for (int r = 0; r < 16; r++) {
            const int64_t plain = (r * cols / BLOCK<R> + b) * BLOCK_BYTES<R>;
            const auto move = [&](int64_t at, const uint8_t* place, int64_t n) {
                const int64_t repacked = place - start;
                std::memcpy(to + (back ? plain + at : repacked), from + (back ? repacked : plain + at),
                            static_cast<size_t>(n));
            };
            constexpr int FIRST = R::SUPER ? 0 : ODD<R>;  // word
            if (ODD<R>) move(R::SUPER ? 4 * WORDS<R> : 0, block.p + r * ODD<R>, ODD<R>);
            for (int i = 0; i < WORDS<R>; i++) move(FIRST + 4 * i, block.word(i) + 4 * r, 4);
        }
}

}  // namespace QK_TIER
}  // namespace quantkit
