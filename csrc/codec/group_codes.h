// Codes of groups as a stream of bits, the first code lowest: eight codes fill BITS bytes.
#pragma once
#include <utility>

#include "codec/batch.h"

namespace quantkit {
namespace QK_TIER {

constexpr int CODES_AT_ONCE = 32;

// How the elements of a batch become codes: by the inverse of the scale or, in lanes whose line is MLX's, by division.
struct Coder {
    F bias, inverse, divisor, last;  // the last code, on WHOLE
    M divided;
    bool divide;                                 // in any lane
    static constexpr float WHOLE = 12582912.0f;  // what is added to it loses its fraction; codes are in its lowest bits

    Coder(F scale, F bias, M inherited, float steps) : bias(bias), last(set1(WHOLE + steps)) {
        const F one = set1(1.0f);
        divided = inherited | (abs(scale) < set1(7.8886091e-31f));
        divide = any(divided);
        inverse = one / select(divided, one, scale);
        divisor = safe_divisor(scale);
    }

    // 0 / 0 would be no code.
    static F safe_divisor(F scale) { return select(scale == set1(0.0f), set1(3e38f), scale); }

    template <bool DIVIDE>
    I code(F x) const {
        const F above = x - bias;
        F t = above * inverse;
        if (DIVIDE) t = select(divided, above / divisor, t);
        return bits(max(min(t + set1(WHOLE), last), set1(WHOLE))) & set1i(255);
    }
};

// The part that a code which begins at bit AT of a word has in it.
template <int AT>
inline I part_of_word(I code) {
    if constexpr (AT > 0)
        return shl<AT>(code);
    else if constexpr (AT < 0)
        return shr<-AT>(code);
    else
        return code;
}

template <int BITS, bool DIVIDE, int WORD, std::size_t... k>
inline I word_of_codes(const float* x, const Coder& coder, std::index_sequence<k...>) {
    constexpr int FIRST = 32 * WORD / BITS;
    return (
        part_of_word<(FIRST + static_cast<int>(k)) * BITS - 32 * WORD>(coder.code<DIVIDE>(load(x + (FIRST + k) * L))) |
        ...);
}

// CODES_AT_ONCE codes of each lane fill BITS words.
template <int BITS, bool DIVIDE, std::size_t... word>
inline void store_some_codes(const float* x, const Coder& coder, uint8_t* const* out, int offset,
                             std::index_sequence<word...>) {
    const I words[BITS] = {word_of_codes<BITS, DIVIDE, word>(
        x, coder, std::make_index_sequence<(32 * word + 31) / BITS - 32 * word / BITS + 1>())...};
    store_words(words, BITS, out, offset);
}

// The codes of n elements of each lane.
template <int BITS>
void store_codes(const float* x, int n, const Coder& coder, uint8_t* const* out) {
    constexpr auto WORDS = std::make_index_sequence<BITS>();
    for (int i = 0; i < n; i += CODES_AT_ONCE, x += CODES_AT_ONCE * L) {
        if (coder.divide)
            store_some_codes<BITS, true>(x, coder, out, i / 8 * BITS, WORDS);
        else
            store_some_codes<BITS, false>(x, coder, out, i / 8 * BITS, WORDS);
    }
}

inline void store_codes(int bits, const float* x, int n, const Coder& coder, uint8_t* const* out) {
    switch (bits) {
        case 2:
            return store_codes<2>(x, n, coder, out);
        case 3:
            return store_codes<3>(x, n, coder, out);
        case 4:
            return store_codes<4>(x, n, coder, out);
        case 5:
            return store_codes<5>(x, n, coder, out);
        case 6:
            return store_codes<6>(x, n, coder, out);
        default:
            return store_codes<8>(x, n, coder, out);
    }
}

// Eight codes from BITS bytes.
template <int BITS>
inline void read_eight(const uint8_t* in, uint8_t* out) {
    if constexpr (BITS == 8) {
        std::memcpy(out, in, 8);
    } else if constexpr (BITS == 4) {
        for (int k = 0; k < 4; k++) {
            out[2 * k] = in[k] & 15;
            out[2 * k + 1] = in[k] >> 4;
        }
    } else {
        uint64_t stream = 0;
        for (int k = 0; k < BITS; k++) stream |= static_cast<uint64_t>(in[k]) << (8 * k);
        for (int k = 0; k < 8; k++) out[k] = static_cast<uint8_t>((stream >> (k * BITS)) & ((1u << BITS) - 1));
    }
}

template <int BITS>
inline void read_group(const uint8_t* in, int64_t n, float scale, float bias, float* out) {
    uint8_t codes[CODES_AT_ONCE];
    for (int64_t i = 0; i < n; i += CODES_AT_ONCE) {
        for (int k = 0; k < CODES_AT_ONCE; k += 8) read_eight<BITS>(in + (i + k) / 8 * BITS, codes + k);
        for (int k = 0; k < CODES_AT_ONCE; k++) out[i + k] = scale * static_cast<float>(codes[k]) + bias;
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
