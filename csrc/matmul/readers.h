// How each format's codes and scales are read for products: w = scale * (code - OFFSET) - min, code <= MAX.
//   codes<J>(chunk)       block J of a chunk of 256 columns: 32 codes in order
//   scales(row, chunk, m, scale, min)   of its first m blocks; 0 (min: +0) for the blocks after them
// and of LANES rows that are repacked (repacked.h):
//   rows_code<0>(k, at)      step k of a block: four codes of each row, where at(i) are word i of each
//   rows_scales(odd, at)     scale and min of each row, where at odd are their bytes beside whole words
#pragma once
#include <cstring>
#include <type_traits>

#include "formats/scalars.h"
#include "matmul/job.h"

namespace quantkit {
namespace QK_TIER {

struct Row {
    const uint8_t* codes;
    const float *scales, *biases;
    int group_shift;
};

inline Row row_of(const Weights& w, int64_t row) {
    return {w.codes + row * w.row_bytes, w.scales + row * w.groups, w.biases + row * w.groups, w.group_shift};
}

inline uint32_t load_u32(const uint8_t* p) {
    uint32_t x;
    std::memcpy(&x, p, 4);
    return x;
}

// m halves STRIDE bytes apart, 0 after them.
template <int STRIDE>
inline Floats halves(const uint8_t* p, int m) {
    return m == 8 ? eight_halves<STRIDE>(p) : some_halves(p, STRIDE, m);
}

struct RowScales {
    Sums scale, min = set_sums(0);
};

// MAX, OFFSET, SUBS and MINS of a format, and the bytes of 256 columns.
template <int MAX_, int OFFSET_, int SUBS_, bool MINS_, int CHUNK_BYTES_>
struct Shape {
    static constexpr int MAX = MAX_, OFFSET = OFFSET_, SUBS = SUBS_, CHUNK_BYTES = CHUNK_BYTES_;
    static constexpr bool MINS = MINS_, HALF_SCALES = false, SUPER = false;  // a super-block, see super_readers.h
};

// Formats of 32 with one f16 scale at the start of a block.
template <int MAX, int OFFSET, int BLOCK_BYTES>
struct OneScale : Shape<MAX, OFFSET, 1, false, 8 * BLOCK_BYTES> {
    static constexpr bool HALF_SCALES = true;
    static void scales(const Row& row, int64_t chunk, int m, float* scale, float*) {
        store_floats(scale, halves<BLOCK_BYTES>(row.codes + chunk * 8 * BLOCK_BYTES, m));
    }
    template <class At>
    static RowScales rows_scales(const uint8_t* odd, At) {
        return {row_halves(odd)};
    }
};

template <class R>
constexpr bool ONE_SCALE = std::is_base_of_v<OneScale<R::MAX, R::OFFSET, R::CHUNK_BYTES / 8>, R>;

// ... and the f16 value of code 0 after it.
template <int MAX, int BLOCK_BYTES>
struct ScaleAndMin : Shape<MAX, 0, 1, true, 8 * BLOCK_BYTES> {
    static constexpr bool HALF_SCALES = true;
    static void scales(const Row& row, int64_t chunk, int m, float* scale, float* min) {
        const uint8_t* p = row.codes + chunk * 8 * BLOCK_BYTES;
        store_floats(scale, halves<BLOCK_BYTES>(p, m));
        store_floats(min, set_floats(0) - halves<BLOCK_BYTES>(p + 2, m));
    }
    template <class At>
    static RowScales rows_scales(const uint8_t*, At at) {
        return {low_halves(at(0)), set_sums(0) - high_halves(at(0))};
    }
};

// Words FROM .. FROM + 3 of a block of 32: the low nibbles of its bytes, then the high ones.
template <int FROM, class At>
inline auto nibbles_of_rows(int k, At at) {
    return k < 4 ? field<0, 0, 15>(at(FROM + k)) : field<4, 0, 15>(at(FROM + k - 4));
}

struct q4_0_reader : OneScale<15, 8, 18> {
    template <int J>
    static Bytes codes(const uint8_t* p) {
        return nibbles(p + 18 * J + 2);
    }
    template <int J, class At>
    static auto rows_code(int k, At at) {
        return nibbles_of_rows<0>(k, at);
    }
};

struct q4_1_reader : ScaleAndMin<15, 20> {
    template <int J>
    static Bytes codes(const uint8_t* p) {
        return nibbles(p + 20 * J + 4);
    }
    template <int J, class At>
    static auto rows_code(int k, At at) {
        return nibbles_of_rows<1>(k, at);
    }
};

struct q5_0_reader : OneScale<31, 16, 22> {
    template <int J>
    static Bytes codes(const uint8_t* p) {
        return nibbles(p + 22 * J + 6) | sixteens(load_u32(p + 22 * J + 2));
    }
    template <int J, class At>
    static auto rows_code(int k, At at) {
        return nibbles_of_rows<1>(k, at) | sixteens_of_rows(at(0), k);
    }
};

struct q5_1_reader : ScaleAndMin<31, 24> {
    template <int J>
    static Bytes codes(const uint8_t* p) {
        return nibbles(p + 24 * J + 8) | sixteens(load_u32(p + 24 * J + 4));
    }
    template <int J, class At>
    static auto rows_code(int k, At at) {
        return nibbles_of_rows<2>(k, at) | sixteens_of_rows(at(1), k);
    }
};

struct q8_0_reader : OneScale<255, 128, 34> {
    template <int J>
    static Bytes codes(const uint8_t* p) {
        return load_bytes(p + 34 * J + 2) ^ set_bytes(128);
    }
    template <int J, class At>
    static auto rows_code(int k, At at) {
        return at(k) ^ set_words(128);
    }
};

// The values of iq4_nl and iq4_xs plus 128, those of mxfp4 (E2M1 doubled) plus 12.
alignas(16) static constexpr uint8_t NONLINEAR[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                      129, 141, 153, 166, 181, 197, 217, 241};
alignas(16) static constexpr uint8_t E2M1[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};

struct iq4_nl_reader : OneScale<255, 128, 18> {
    template <int J>
    static Bytes codes(const uint8_t* p) {
        return look_up(NONLINEAR, nibbles(p + 18 * J + 2));
    }
    template <int J, class At>
    static auto rows_code(int k, At at) {
        return look_up(NONLINEAR, nibbles_of_rows<0>(k, at));
    }
};

struct mxfp4_reader : Shape<24, 12, 1, false, 136> {
    template <int J>
    static Bytes codes(const uint8_t* p) {
        return look_up(E2M1, nibbles(p + 17 * J + 1));
    }
    static void scales(const Row& row, int64_t chunk, int m, float* scale, float*) {
        for (int j = 0; j < 8; j++) scale[j] = j < m ? half_of_e8m0(row.codes[chunk * 136 + 17 * j]) : 0.0f;
    }
    template <class At>
    static RowScales rows_scales(const uint8_t* odd, At) {
        return {row_powers(odd)};
    }
    template <int J, class At>
    static auto rows_code(int k, At at) {
        return look_up(E2M1, nibbles_of_rows<0>(k, at));
    }
};

// MLX's affine groups; w = scale * code + bias.
template <int BITS>
struct Groups : Shape<(1 << BITS) - 1, 0, 1, true, 32 * BITS> {
    template <int J>
    static Bytes codes(const uint8_t* p) {
        if constexpr (BITS == 4)
            return nibble_pairs(p + 16 * J);
        else
            return load_bytes(p + 32 * J);
    }
    static void scales(const Row& row, int64_t chunk, int m, float* scale, float* min) {
        if (m == 8) {
            const int64_t group = 8 * chunk >> row.group_shift;
            store_floats(scale, each_of_group(row.scales + group, row.group_shift));
            store_floats(min, set_floats(0) - each_of_group(row.biases + group, row.group_shift));
            return;
        }
        for (int j = 0; j < 8; j++) {
            const int64_t group = (8 * chunk + j) >> row.group_shift;
            scale[j] = j < m ? row.scales[group] : 0.0f;
            min[j] = j < m ? 0.0f - row.biases[group] : 0.0f;
        }
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
