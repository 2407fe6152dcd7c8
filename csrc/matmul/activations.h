// Rows of x as the products read them: int8 codes of blocks of 32 columns (or 256: super-blocks), x ~ step * code with
// step = max |x| / 127 (more where LIMITED_X), and the sums of codes that formats with an offset or a minimum need. A
// block below 2^-100 counts as zero.
#pragma once
#include <cmath>

#include "matmul/kernels.h"
#include "matmul/nibbles.h"

namespace quantkit {
namespace QK_TIER {

// Codes as they are multiplied, and what they are too large by, negated.
template <class R>
inline Bytes stored(Bytes codes) {
    return SIGNED_BYTES && R::MAX > 127 ? codes ^ set_bytes(128) : codes;
}
template <class R>
constexpr int start_factor() {
    return (SIGNED_BYTES && R::MAX > 127 ? 128 : 0) - R::OFFSET;
}

// Of (sub-)block s of a super-block, from its sums of four.
template <int SUBS>
inline int16_t sum_of(const int32_t* fours, int s) {
    int32_t sum = 0;
    for (int l = 0; l < 8 / SUBS; l++) sum += fours[8 / SUBS * s + l];
    return static_cast<int16_t>(sum);
}

// Four codes of a row of x in a panel: as they are or, for signed codes of weights, magnitudes, and bytes of ones where
// x is negative. Those turn w into -w - 1 by an exclusive or, which more units of a processor can do than a change of
// sign; the sums start with what the ones take away.
template <int MAX>
constexpr int FOUR = SIGNED_BYTES && MAX > 127 ? 8 : 4;  // bytes

template <class R>
struct PanelCodes {
    static constexpr bool APART = FOUR<R::MAX> == 8;
    const int8_t* codes;
    int8_t magnitudes[32], negative[32];
    int32_t fours[8], taken[8] = {};  // sums of four

    explicit PanelCodes(const int8_t* from) : codes(from) {
        store_sums(codes, fours);
        if constexpr (APART) {
            for (int i = 0; i < 32; i++) {
                negative[i] = static_cast<int8_t>(codes[i] < 0 ? -1 : 0);
                magnitudes[i] = static_cast<int8_t>(codes[i] < 0 ? -codes[i] : codes[i]);
            }
            store_sums(magnitudes, taken);
            for (int i = 0; i < 8; i++) taken[i] = (taken[i] - fours[i]) / 2;
        }
    }
    template <class Put>
    void put_codes(Put put) const {
        for (int k = 0; k < 8; k++) {
            put((APART ? magnitudes : codes) + 4 * k);
            if (APART) put(negative + 4 * k);
        }
    }
    int32_t sum(int s) const { return sum_of<R::SUBS>(fours, s); }
    int32_t start(int s) const { return sum(s) * start_factor<R>() + sum_of<R::SUBS>(taken, s); }
};

// Where scales are f16, sums of products start at the bits of 1.5 * 2^23, a float whose last bits are whole numbers.
// Its product with an f16 is exact, so that one multiply-add takes it away again: nothing is converted.
constexpr int32_t COUNT_FROM = 0x4b400000;
template <bool HALVES>
inline Sums times_scale(Counts sum, Sums scale) {
    return HALVES ? fused(with_bits(sum), scale, scale * set_sums(-12582912.0f)) : floats(sum) * scale;
}

inline int64_t chunks_of(int64_t cols) { return (cols + 255) / 256; }

// How few rows of x take a format: scales of super-blocks as whole numbers, where sums of two products fit in 16 bits
// beside them; otherwise blocks, or two of them where a byte has two codes (nibbles.h), and scales as floats.
template <class R>
constexpr bool WHOLE_SCALES = R::SUPER && R::MAX <= 63;
template <class R>
constexpr int VECTOR_OFFSET = -start_factor<R>();

// One row for a vector product: codes; for each chunk of 256 columns the scales of its blocks, then (MINS) scale * sum
// of codes, then (an offset) what their dot products are too large by; all padded with zeros to whole chunks. It is
// small, so that it stays in the first-level cache while weights pass through.
template <class R>
struct Vector {
    static constexpr int OFFSETS = R::MINS ? 16 : 8, EACH = OFFSETS + (VECTOR_OFFSET<R> != 0 ? 8 : 0);
    int8_t* codes;
    float* scale;

    float* scales(int64_t chunk) const { return scale + chunk * EACH; }
    float* sums(int64_t chunk) const { return scales(chunk) + 8; }
    int32_t* offsets(int64_t chunk) const { return reinterpret_cast<int32_t*>(scales(chunk) + OFFSETS); }
    static int64_t bytes(int64_t cols) { return chunks_of(cols) * (256 + 4 * EACH); }
    Vector(uint8_t* p, int64_t cols) {
        codes = reinterpret_cast<int8_t*>(p);
        scale = reinterpret_cast<float*>(p + chunks_of(cols) * 256);
    }
};

// ... where scales are whole: codes, the sums of each (sub-)block, eight zeros before them if they are eight, and the
// step of a chunk.
template <class R>
struct WholeVector {
    int8_t* codes;
    int16_t* sums;
    float* step;

    static int64_t bytes(int64_t cols) { return cols / 256 * (256 + 32 + 4); }
    WholeVector(uint8_t* p, int64_t cols) {
        codes = reinterpret_cast<int8_t*>(p);
        sums = reinterpret_cast<int16_t*>(p + cols);
        step = reinterpret_cast<float*>(sums + cols / 16);
    }
};

// Whether the codes of four columns, 0, 1, 4 and 5, or 2, 3, 6 and 7, of eight come to at most 258: without VNNI they
// are multiplied with codes of up to 127 into sums of 16 bits. Of 256 columns one is large already, so that steps are
// seldom much larger by it. On every tier, since all give the same.
template <class R>
constexpr bool LIMITED_X = R::SUPER && R::MAX > 127;

// A quarter of the largest sum of magnitudes of four such columns.
static float quarter_of_largest_four(const float* x) {
    float twos[128], fours[64], largest;
    for (int i = 0; i < 128; i++) twos[i] = std::fabs(x[2 * i]) * 0.25f + std::fabs(x[2 * i + 1]) * 0.25f;
    for (int i = 0; i < 32; i++) {
        fours[2 * i] = twos[4 * i] + twos[4 * i + 2];
        fours[2 * i + 1] = twos[4 * i + 1] + twos[4 * i + 3];
    }
    const uint32_t bits = largest_magnitude_bits<64>(fours);
    std::memcpy(&largest, &bits, 4);
    return largest;
}

// Codes, and their sums of four, of blocks of 32 with one step. False: an element is not finite.
template <int BLOCKS, bool LIMIT = false>
static bool quantize_block(const float* x, int8_t* codes, int32_t* fours, float& step) {
    const uint32_t bits = largest_magnitude_bits<32 * BLOCKS>(x);
    if (bits >= 0x7f800000u) return false;
    if (bits < 0x0d800000u) {
        std::memset(codes, 0, 32 * BLOCKS);
        std::memset(fours, 0, 32 * BLOCKS);
        step = 0;
        return true;
    }
    float largest, code = 127.0f;
    std::memcpy(&largest, &bits, 4);
    if constexpr (LIMIT) {
        const float quarter = quarter_of_largest_four(x);
        if (quarter / 64.0f > largest / 127.0f) largest = quarter, code = 64.0f;
    }
    step = largest / code;
    for (int b = 0; b < BLOCKS; b++) {
        store_codes(x + 32 * b, code / largest, codes + 32 * b);
        store_sums(codes + 32 * b, fours + 8 * b);
    }
    return true;
}

template <class R>
static bool quantize_row(const float* x, int64_t cols, uint8_t* out) {
    std::memset(out, 0, static_cast<size_t>(Vector<R>::bytes(cols)));
    const Vector<R> to(out, cols);
    for (int64_t b = 0; b < cols / 32; b++) {
        const int lane = lane_of<R>(b % 8);
        float* step = to.scales(b / 8) + lane;
        int32_t fours[8];
        if (!quantize_block<1>(x + 32 * b, to.codes + 32 * b, fours, *step)) return false;
        int32_t total = 0;
        for (int32_t four : fours) total += four;
        if (R::MINS) to.sums(b / 8)[lane] = *step * static_cast<float>(total);
        if (VECTOR_OFFSET<R> != 0) to.offsets(b / 8)[lane] = VECTOR_OFFSET<R> * total;
    }
    return true;
}

template <class R>
static bool prepare_vector(const float* x, int64_t cols, uint8_t* out) {
    if (!quantize_row<R>(x, cols, out)) return false;
    if constexpr (IN_TWOS<R>)
        for (int64_t c = 0; c < chunks_of(cols); c++) order_twos<R>(Vector<R>(out, cols).codes + 256 * c);
    return true;
}

template <class R>
static bool prepare_whole_vector(const float* x, int64_t cols, uint8_t* out) {
    const WholeVector<R> to(out, cols);
    for (int64_t c = 0; c < cols / 256; c++) {
        int32_t fours[64];
        if (!quantize_block<8>(x + 256 * c, to.codes + 256 * c, fours, to.step[c])) return false;
        constexpr int FIRST = 16 - 8 * R::SUBS;
        for (int s = 0; s < 16; s++) to.sums[16 * c + s] = s < FIRST ? int16_t{0} : sum_of<R::SUBS>(fours, s - FIRST);
    }
    return true;
}

// One block of a tile of n rows for a panel: step k's four codes of each row (k = 0..7), the rows' scales, what their
// products start at, and (MINS) their sums of codes, negated.
//
// Eight blocks of super-blocks: of each block the codes, and what products start at, which rounds the shift as well;
// then the rows' steps, and (MINS) the sums, two in a word, or such words of starts (STARTS_APART).
template <class R>
constexpr bool STARTS_APART = LIMITED_X<R> && SIGNED_BYTES;
template <class R>
constexpr int bytes_of_block() {
    if (STARTS_APART<R>) return 8 * FOUR<R::MAX>;
    return 8 * FOUR<R::MAX> + (R::SUPER ? 4 * R::SUBS : R::MINS ? 12 : 8);
}
template <class R>
constexpr int bytes_after_blocks() {  // of a super-block
    return 4 + (R::MINS || STARTS_APART<R> ? 16 * R::SUBS : 0);
}
template <class R>
constexpr int64_t bytes_of_blocks(int64_t blocks) {
    return blocks * bytes_of_block<R>() + (R::SUPER ? blocks / 8 * bytes_after_blocks<R>() : 0);
}

// Where tile `first` .. of an expert's rows begins in a stretch of blocks, those of all its tiles side by side.
template <class R>
inline int64_t place_of(int64_t total, int64_t first, int64_t block, int64_t blocks) {
    constexpr int MOST = 8 * STRETCH<R::MAX>;
    const int64_t length = blocks - block < MOST ? blocks - block : MOST;
    return total * bytes_of_blocks<R>(block) + first * bytes_of_blocks<R>(length);
}

// Rows first .. first + n of an expert's `total`.
template <class R>
static bool prepare_panel(const float* const* x, int n, int64_t first, int64_t total, int64_t cols, uint8_t* out,
                          uint8_t* scratch) {
    const int64_t row = Vector<R>::bytes(cols);
    for (int c = 0; c < n; c++)
        if (!quantize_row<R>(x[c], cols, scratch + c * row)) return false;
    for (int c = 0; c < n; c++) {
        const Vector<R> from(scratch + c * row, cols);
        uint8_t* to = nullptr;
        for (int64_t b = 0; b < cols / 32; b++) {
            if (b % (8 * STRETCH<R::MAX>) == 0) to = out + place_of<R>(total, first, b, cols / 32) + 4 * c;
            const auto put = [&](const void* p) {
                std::memcpy(to, p, 4);
                to += 4 * n;
            };
            const PanelCodes<R> block(from.codes + 32 * b);
            block.put_codes(put);
            put(from.scales(b / 8) + b % 8);
            static_assert(!R::HALF_SCALES || 32 * 127 * R::MAX < 1 << 22, "sums are not the last bits of COUNT_FROM");
            const int32_t start = block.start(0) + (R::HALF_SCALES ? COUNT_FROM : 0);
            put(&start);
            const float less = -static_cast<float>(block.sum(0));
            if (R::MINS) put(&less);
        }
    }
    return true;
}

// Sums of (sub-)blocks of super-blocks are shifted right, so that two go into a word; not those of LIMITED_X.
template <class R>
constexpr int shift_of() {
    if (LIMITED_X<R>) return 0;
    const int largest = 127 * 32 / R::SUBS * (R::MAX - R::OFFSET > R::OFFSET ? R::MAX - R::OFFSET : R::OFFSET);
    int shift = 0;
    while ((largest + (1 << shift) / 2) >> shift > 32767) shift++;
    return shift;
}

template <class R>
static bool prepare_super_panel(const float* const* x, int n, int64_t first, int64_t total, int64_t cols,
                                uint8_t* out) {
    constexpr int SUBS = R::SUBS, ROUND = (1 << shift_of<R>()) / 2;
    for (int c = 0; c < n; c++) {
        uint8_t* to = nullptr;
        for (int64_t b = 0; b < cols / 32; b += 8) {
            if (b % (8 * STRETCH<R::MAX>) == 0) to = out + place_of<R>(total, first, b, cols / 32) + 4 * c;
            const auto put = [&](const void* p) {
                std::memcpy(to, p, 4);
                to += 4 * n;
            };
            int8_t codes[256];
            int32_t fours[64];
            int16_t sums[8 * SUBS];
            float step;
            if (!quantize_block<8, LIMITED_X<R>>(x[c] + 32 * b, codes, fours, step)) return false;
            for (int i = 0; i < 8; i++) {
                const PanelCodes<R> block(codes + 32 * i);
                block.put_codes(put);
                for (int s = 0; s < SUBS; s++) {
                    sums[SUBS * i + s] = static_cast<int16_t>(STARTS_APART<R> ? block.start(s) : block.sum(s));
                    if (STARTS_APART<R>) continue;
                    // a half goes up in one and down in the next: all up would add up
                    const int32_t start = block.start(s) + (ROUND ? ROUND - (SUBS * i + s) % 2 : 0);
                    put(&start);
                }
            }
            put(&step);
            for (int s = 0; (R::MINS || STARTS_APART<R>) && s < 8 * SUBS; s += 2) put(sums + s);
        }
    }
    return true;
}

}  // namespace QK_TIER
}  // namespace quantkit
