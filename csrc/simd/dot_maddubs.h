// Panels without VNNI. maddubs adds two products u8 * s8 in an int16 that saturates, so codes of up to 63 are u8, and
// added up only RUN times before they are widened; above that, codes are signed, and |x| <= 127 is the u8:
// 2 * 128 * 127 = 32512 fits. Where x is limited, four of its codes that meet here come to at most 258, and two sums
// fit: 258 * 127 = 32766. Included after the words of a tier.
#pragma once

namespace quantkit {
namespace QK_TIER {

constexpr bool SIGNED_BYTES = true;  // codes above 127 are stored minus 128
constexpr int LIMITED = 254;         // a class of codes: signed, of at most 127, with limited x (activations.h)

// Sums of two products that an int16 holds: a power of two, at most 8 (a block of 32 has no more).
template <int MAX>
constexpr int run_length() {
    if (MAX > 127) return MAX == LIMITED ? 2 : 1;
    int run = 8;
    while (run * 2 * 127 * MAX > 32767) run /= 2;
    return run;
}

// Four codes of a row of x, COLS of which lie side by side, for all lanes.
template <int MAX, int COLS>
struct PanelX {
    Counts codes, negative;
    explicit PanelX(const uint8_t* p) {
        int32_t four;
        std::memcpy(&four, p, 4);
        codes = set_counts(four);
        if constexpr (MAX > 127) {
            std::memcpy(&four, p + 4 * COLS, 4);
            negative = set_counts(four);
        }
    }
    Counts products(Counts of_weights) const {
        if constexpr (MAX > 127)
            return byte_products(codes, either(of_weights, negative));
        else
            return byte_products(of_weights, codes);
    }
};

template <int MAX, int COLS>
struct RowDots {
    static constexpr int RUN = run_length<MAX>();
    static_assert(RUN * 2 * 127 * (MAX > 127 ? 128 : MAX) <= 32767, "an int16 overflows");
    Counts all, words;
    void start(int32_t from) { all = set_counts(from); }
    void widen() { all = ::quantkit::QK_TIER::add(all, widened_pairs(words)); }
    void add(int k, Words codes, const uint8_t* x) {
        const Counts two = PanelX<MAX, COLS>(x).products(Counts{codes.v});
        words = k % RUN ? add_words(words, two) : two;
        if ((k + 1) % RUN == 0) widen();
    }
    Counts total(int steps) {
        if (steps % RUN) widen();
        return all;
    }
};

// r += the products; widen(words, v) makes int32 of sums of 16 bits. They come back in registers: a compiler that has
// inlined much in a file may stop before this.
template <int MAX, int COLS, int STEPS, int V, class Widen>
[[gnu::always_inline]] inline void add_dots(const uint8_t* tile, const uint8_t* x, Widen widen, Counts (&r)[COLS][V]) {
    constexpr int RUN = run_length<MAX>() < STEPS ? run_length<MAX>() : STEPS, N = RUN < 2 ? 1 : 2;
    constexpr int X = (MAX > 127 ? 8 : 4) * COLS;  // bytes of a step of x
    static_assert(MAX == LIMITED || RUN * 2 * 127 * (MAX > 127 ? 128 : MAX) <= 32767, "an int16 overflows");
    Counts s[COLS][V], p[COLS][V];
    for (int c = 0; c < COLS; c++)
        for (int v = 0; v < V; v++) s[c][v] = r[c][v];
#pragma GCC unroll 8
    for (int k = 0; k < STEPS; k += N) {
        Counts w[N][V];
        for (int i = 0; i < N; i++)
            for (int v = 0; v < V; v++) w[i][v] = load_codes(tile + 4 * ((k + i) * V + v) * LANES);
#pragma GCC unroll 16
        for (int c = 0; c < COLS; c++) {
            const PanelX<MAX, COLS> first(x + k * X + 4 * c), second(x + (k + N - 1) * X + 4 * c);
            for (int v = 0; v < V; v++) {
                Counts& sum = p[c][v];
                sum = k % RUN ? add_words(sum, first.products(w[0][v])) : first.products(w[0][v]);
                if constexpr (N == 2) sum = add_words(sum, second.products(w[1][v]));
                const bool whole = (k + N) % RUN == 0;
                if (whole) s[c][v] = add(s[c][v], widen(sum, v));
                computed((whole ? s[c][v] : sum).v);
            }
        }
    }
    for (int c = 0; c < COLS; c++)
        for (int v = 0; v < V; v++) r[c][v] = s[c][v];
}

template <int MAX, int COLS, int STEPS, int V>
[[gnu::always_inline]] inline void dots(const uint8_t* tile, const uint8_t* x, const int32_t* start,
                                        Counts (&r)[COLS][V]) {
    for (int c = 0; c < COLS; c++)
        for (int v = 0; v < V; v++) r[c][v] = set_counts(start[c]);
    add_dots<MAX, COLS, STEPS>(tile, x, [](Counts words, int) { return widened_pairs(words); }, r);
}

// A scale costs no more than the ones that widen: it takes their place.
template <int MAX, int COLS, int STEPS, int V>
[[gnu::always_inline]] inline void add_scaled_dots(const uint8_t* tile, const uint8_t* x, const int32_t*,
                                                   const Counts (&scale)[V], Counts (&total)[COLS][V]) {
    add_dots<MAX, COLS, STEPS>(tile, x, [&](Counts words, int v) { return pair_products(words, scale[v]); }, total);
}

}  // namespace QK_TIER
}  // namespace quantkit
