// Panels without VNNI. maddubs adds two products u8 * s8 in an int16 that saturates, so codes of up to 63 are u8, and
// added up only RUN times before they are widened; above that, codes are signed (|w| <= 128) and x takes their sign:
// |x| <= 127, and 2 * 128 * 127 = 32512 fits. Included after the words of a tier.
#pragma once

namespace quantkit {
namespace QK_TIER {

constexpr bool SIGNED_BYTES = true;  // codes above 127 are stored minus 128

// Sums of two products that an int16 holds: a power of two, at most 8 (a block of 32 has no more).
template <int MAX>
constexpr int run_length() {
    if (MAX > 127) return 1;
    int run = 8;
    while (run * 2 * 127 * MAX > 32767) run /= 2;
    return run;
}

template <int MAX>
struct RowDots {
    static constexpr int RUN = run_length<MAX>();
    static_assert(RUN * 2 * 127 * (MAX > 127 ? 128 : MAX) <= 32767, "an int16 overflows");
    Counts all, words;
    void start(int32_t from) { all = set_counts(from); }
    void widen() { all = ::quantkit::QK_TIER::add(all, widened_pairs(words)); }
    void add(int k, Words codes, const uint8_t* x) {
        int32_t four;
        std::memcpy(&four, x, 4);
        const Counts two = products<MAX>(Counts{codes.v}, set_counts(four));
        words = k % RUN ? add_words(words, two) : two;
        if ((k + 1) % RUN == 0) widen();
    }
    Counts total(int steps) {
        if (steps % RUN) widen();
        return all;
    }
};

// Sums come back in registers: a compiler that has inlined much in a file may stop before this.
template <int MAX, int COLS, int STEPS>
[[gnu::always_inline]] inline void dots(const uint8_t* tile, const uint8_t* x, const int32_t* start,
                                        Counts (&r)[COLS][VECTORS]) {
    constexpr int RUN = run_length<MAX>() < STEPS ? run_length<MAX>() : STEPS, N = RUN < 2 ? 1 : 2;
    static_assert(RUN * 2 * 127 * (MAX > 127 ? 128 : MAX) <= 32767, "an int16 overflows");
    Counts s[COLS][VECTORS], p[COLS][VECTORS];
    for (int c = 0; c < COLS; c++)
        for (int v = 0; v < VECTORS; v++) s[c][v] = set_counts(start[c]);
#pragma GCC unroll 8
    for (int k = 0; k < STEPS; k += N) {
        Counts w[N][VECTORS];
        for (int i = 0; i < N; i++)
            for (int v = 0; v < VECTORS; v++)
                w[i][v] = load_codes(tile + ((k + i) * VECTORS + v) * static_cast<int>(sizeof(Counts)));
#pragma GCC unroll 16
        for (int c = 0; c < COLS; c++) {
            Counts xs[N];
            for (int i = 0; i < N; i++) {
                int32_t four;
                std::memcpy(&four, x + 4 * ((k + i) * COLS + c), 4);
                xs[i] = set_counts(four);
            }
            for (int v = 0; v < VECTORS; v++) {
                Counts& sum = p[c][v];
                sum = k % RUN ? add_words(sum, products<MAX>(w[0][v], xs[0])) : products<MAX>(w[0][v], xs[0]);
                if constexpr (N == 2) sum = add_words(sum, products<MAX>(w[1][v], xs[1]));
                const bool whole = (k + N) % RUN == 0;
                if (whole) s[c][v] = add(s[c][v], widened_pairs(sum));
                computed((whole ? s[c][v] : sum).v);
            }
        }
    }
    for (int c = 0; c < COLS; c++)
        for (int v = 0; v < VECTORS; v++) r[c][v] = s[c][v];
}

}  // namespace QK_TIER
}  // namespace quantkit
