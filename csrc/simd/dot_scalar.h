// Words of the products, in plain loops: the reading of every operation. Wider tiers give the same bits.
#pragma once
#include <cmath>
#include <cstring>

#include "formats/scalars.h"

namespace quantkit {
namespace QK_TIER {

constexpr bool SIGNED_BYTES = false;  // codes above 127 stay as they are
constexpr int LIMITED = 255;          // a class of codes of its own only where they have a sign
constexpr int LANES = 8;
// By the largest code: vectors of rows of weights that are multiplied with how many rows of x at once, and how many
// chunks of 256 columns of them lie in a tile.
template <int MAX>
constexpr int VECTORS = 1;
template <int MAX>
constexpr int PANEL_COLS = 1;
template <int MAX>
constexpr int STRETCH = 2;
constexpr int VECTOR_COLS = 1;  // rows of x for which a vector product unpacks at once
constexpr int REGISTERS = 0;    // of vectors

struct Bytes {
    uint8_t v[32];
};
struct Floats {
    float v[8];
};

inline Bytes load_bytes(const uint8_t* p) {
    Bytes r;
    std::memcpy(r.v, p, 32);
    return r;
}
inline Bytes set_bytes(uint8_t x) {
    Bytes r;
    for (uint8_t& b : r.v) b = x;
    return r;
}
// 16 bytes: their low nibbles, then their high ones.
inline Bytes nibbles(const uint8_t* p) {
    Bytes r;
    for (int i = 0; i < 16; i++) r.v[i] = p[i] & 15, r.v[i + 16] = p[i] >> 4;
    return r;
}
// 16 bytes: low and high nibble of each in turn.
inline Bytes nibble_pairs(const uint8_t* p) {
    Bytes r;
    for (int i = 0; i < 16; i++) r.v[2 * i] = p[i] & 15, r.v[2 * i + 1] = p[i] >> 4;
    return r;
}
// Bits FROM .. of each byte, as many as MASK has, moved to bits TO ..
template <int FROM, int TO, int MASK>
inline Bytes field(Bytes a) {
    for (uint8_t& b : a.v) b = static_cast<uint8_t>(((b >> FROM) & MASK) << TO);
    return a;
}
// 16 where the bit of the byte's number is set.
inline Bytes sixteens(uint32_t bits) {
    Bytes r;
    for (int i = 0; i < 32; i++) r.v[i] = static_cast<uint8_t>((bits >> i & 1) << 4);
    return r;
}
inline Bytes operator|(Bytes a, Bytes b) {
    for (int i = 0; i < 32; i++) a.v[i] |= b.v[i];
    return a;
}
inline Bytes operator^(Bytes a, Bytes b) {
    for (int i = 0; i < 32; i++) a.v[i] ^= b.v[i];
    return a;
}
inline Bytes look_up(const uint8_t (&table)[16], Bytes index) {
    for (uint8_t& b : index.v) b = table[b];
    return index;
}
// Dword k of row r to row k, place r: eight rows of eight dwords, rows of the result `stride` bytes apart.
inline void store_bytes(uint8_t* p, Bytes a) { std::memcpy(p, a.v, 32); }
inline void store_transposed(const Bytes (&rows)[8], uint8_t* out, int64_t stride) {
    for (int k = 0; k < 8; k++)
        for (int r = 0; r < 8; r++) std::memcpy(out + k * stride + 4 * r, rows[r].v + 4 * k, 4);
}

inline float half(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return f16_to_f32(h);
}
inline Floats set_floats(float x) { return {{x, x, x, x, x, x, x, x}}; }
inline Floats load_floats(const float* p) {
    Floats r;
    std::memcpy(r.v, p, 32);
    return r;
}
inline void store_floats(float* p, Floats a) { std::memcpy(p, a.v, 32); }
inline Floats operator*(Floats a, Floats b) {
    for (int i = 0; i < 8; i++) a.v[i] *= b.v[i];
    return a;
}
inline Floats operator+(Floats a, Floats b) {
    for (int i = 0; i < 8; i++) a.v[i] += b.v[i];
    return a;
}
inline Floats operator-(Floats a, Floats b) {
    for (int i = 0; i < 8; i++) a.v[i] -= b.v[i];
    return a;
}
inline Bytes two_words(uint64_t low, uint64_t high) {  // sixteen bytes
    Bytes r = {};
    for (int i = 0; i < 16; i++) r.v[i] = static_cast<uint8_t>((i < 8 ? low : high) >> 8 * (i % 8));
    return r;
}
inline Bytes widened(Bytes a) {  // the first sixteen, int8, as int16
    Bytes r;
    for (int i = 0; i < 16; i++) {
        const int16_t wide = static_cast<int8_t>(a.v[i]);
        std::memcpy(r.v + 2 * i, &wide, 2);
    }
    return r;
}
// Eight scales and eight minima of six bits, in the twelve bytes after four others; in both halves.
inline Bytes sixes(const uint8_t* p) {
    Bytes r;
    for (int i = 0; i < 16; i++) {
        const uint8_t *low = p + 4 + i / 8 * 4, *last = p + 12;
        const int j = i % 8, nibble = i < 8 ? last[j % 4] & 15 : last[j % 4] >> 4;
        r.v[i] = r.v[i + 16] = static_cast<uint8_t>(j < 4 ? low[j] & 63 : nibble | low[j - 4] >> 6 << 4);
    }
    return r;
}
inline Floats floats_of_bytes(Bytes a) {  // of the first eight, int8
    Floats r;
    for (int i = 0; i < 8; i++) r.v[i] = static_cast<int8_t>(a.v[i]);
    return r;
}
inline Floats same_halves(const uint8_t* p) { return set_floats(half(p)); }  // one in all lanes
inline Floats two_halves(const uint8_t* p) {                                 // two in turn
    Floats r;
    for (int i = 0; i < 8; i++) r.v[i] = half(p + i % 2 * 2);
    return r;
}
inline Floats even(Floats a) {  // lanes 0, 0, 2, 2 ..
    for (int i = 0; i < 8; i += 2) a.v[i + 1] = a.v[i];
    return a;
}
inline Floats odd(Floats a) {  // 1, 1, 3, 3 ..
    for (int i = 0; i < 8; i += 2) a.v[i] = a.v[i + 1];
    return a;
}
inline Floats some_halves(const uint8_t* p, int stride, int count) {  // 0 from count on
    Floats r = set_floats(0);
    for (int i = 0; i < count; i++) r.v[i] = half(p + i * stride);
    return r;
}
template <int STRIDE>
inline Floats eight_halves(const uint8_t* p) {
    return some_halves(p, STRIDE, 8);
}
// The values of eight blocks, 1 << shift of which make a group.
inline Floats each_of_group(const float* p, int shift) {
    Floats r;
    for (int i = 0; i < 8; i++) r.v[i] = p[i >> (shift < 3 ? shift : 3)];
    return r;
}
inline float sum(Floats a) { return ((a.v[0] + a.v[4]) + (a.v[2] + a.v[6])) + ((a.v[1] + a.v[5]) + (a.v[3] + a.v[7])); }

struct Ints {
    int32_t v[8];
};
inline Floats floats(Ints a) {
    Floats r;
    for (int l = 0; l < 8; l++) r.v[l] = static_cast<float>(a.v[l]);
    return r;
}
inline Ints operator+(Ints a, Ints b) {
    for (int l = 0; l < 8; l++) a.v[l] += b.v[l];
    return a;
}
inline Ints load_ints(const int32_t* p) {
    Ints r;
    std::memcpy(r.v, p, 32);
    return r;
}
inline Ints operator-(Ints a, Ints b) {
    for (int l = 0; l < 8; l++) a.v[l] -= b.v[l];
    return a;
}
inline Ints set_ints(int32_t x) { return {{x, x, x, x, x, x, x, x}}; }
template <int BY>
inline Ints times_two_to(Ints a) {
    for (int32_t& v : a.v) v *= 1 << BY;
    return a;
}

// Few rows of x. Lane l of a sum: codes 4 l .. 4 l + 3 (at most MAX; with a sign if that is above 127 and bytes have
// one) times those of x, added to what it has.
template <int MAX>
inline Ints add_dot(Ints to, Bytes codes, const int8_t* x) {
    for (int i = 0; i < 32; i++) to.v[i / 4] += codes.v[i] * x[i];
    return to;
}
// Neighbouring lanes added up, in each half first those of a, then those of b. No lane is beyond LARGEST.
template <int LARGEST>
inline Ints in_twos(Ints a, Ints b) {
    Ints r;
    for (int l = 0; l < 8; l++) {
        const Ints& from = l % 4 < 2 ? a : b;
        r.v[l] = from.v[l / 4 * 4 + l % 2 * 2] + from.v[l / 4 * 4 + l % 2 * 2 + 1];
    }
    return r;
}
inline Ints halves_added(Ints a, Ints b) {  // first those of a
    Ints r;
    for (int l = 0; l < 4; l++) r.v[l] = a.v[l] + a.v[l + 4], r.v[l + 4] = b.v[l] + b.v[l + 4];
    return r;
}
// Of the first sixteen, int8: products with the int16 at x, two in each lane.
inline Ints dot_widened(Bytes a, const int16_t* x) {
    Ints r = {};
    for (int i = 0; i < 16; i++) r.v[i / 2] += static_cast<int8_t>(a.v[i]) * x[i];
    return r;
}
// 16 bytes at p, then 16 at q.
inline Bytes load_two(const uint8_t* p, const uint8_t* q) {
    Bytes r;
    std::memcpy(r.v, p, 16);
    std::memcpy(r.v + 16, q, 16);
    return r;
}
// Dot products times whole scales: two blocks at a time, as in_twos() has their lanes.
struct Scales {
    int8_t v[16];  // of blocks, or of two halves of each
};
// Of int8, sixteen, or eight that are not negative and stand in both halves.
template <int SUBS>
inline Scales scales_of(Bytes bytes) {
    Scales r;
    std::memcpy(r.v, bytes.v, 16);
    return r;
}
struct ScaledSums {
    Ints even = set_ints(0), odd = set_ints(0);
    Ints lanes() const { return in_twos<INT32_MAX>(even, odd); }
};
// Blocks 2 K and 2 K + 1.
template <int MAX, int SUBS, int K>
inline void add_scaled(ScaledSums& to, Bytes first, Bytes second, const int8_t* x, const Scales& scales) {
    for (int i = 0; i < 32; i++) {
        const int sub = SUBS == 2 ? i / 16 : 0;
        to.even.v[i / 4] += first.v[i] * x[i] * scales.v[2 * K * SUBS + sub];
        to.odd.v[i / 4] += second.v[i] * x[i + 32] * scales.v[(2 * K + 1) * SUBS + sub];
    }
}

inline void not_kept(float*&) {}  // a hint to wider tiers

// Activations, 32 at a time.
template <int N>
inline uint32_t largest_magnitude_bits(const float* x) {
    uint32_t r = 0;
    for (int i = 0; i < N; i++) {
        const uint32_t u = f32_bits(x[i]) & 0x7fffffffu;
        r = u > r ? u : r;
    }
    return r;
}
inline void store_codes(const float* x, float inverse, int8_t* q) {  // rounded to nearest, ties to even
    for (int i = 0; i < 32; i++) q[i] = static_cast<int8_t>((x[i] * inverse + 12582912.0f) - 12582912.0f);
}
inline void store_sums(const int8_t* q, int32_t* out) {  // of four
    for (int l = 0; l < 8; l++) out[l] = q[4 * l] + q[4 * l + 1] + q[4 * l + 2] + q[4 * l + 3];
}

// Panels: a lane is a row of weights.
using Sums = Floats;
inline Sums load_sums(const float* p) { return load_floats(p); }
inline void store_sums(float* p, Sums a) { store_floats(p, a); }
inline Sums set_sums(float x) { return set_floats(x); }
inline Sums fused(Sums a, Sums b, Sums c) {  // a * b + c, rounded once
    for (int l = 0; l < 8; l++) c.v[l] = std::fma(a.v[l], b.v[l], c.v[l]);
    return c;
}

using Counts = Ints;
inline Sums with_bits(Counts a) {
    Sums r;
    std::memcpy(r.v, a.v, 32);
    return r;
}
inline Counts load_counts(const int32_t* p) { return load_ints(p); }
inline Counts set_counts(int32_t x) {
    Counts r;
    for (int32_t& v : r.v) v = x;
    return r;
}
// Two whole numbers, shifted right, as the int16 halves of one.
template <int SHIFT>
inline Counts halves_of(Counts low, Counts high) {
    for (int l = 0; l < 8; l++)
        low.v[l] = static_cast<int32_t>((low.v[l] >> SHIFT & 0xffff) | static_cast<uint32_t>(high.v[l] >> SHIFT) << 16);
    return low;
}
// total + a.low * b.low + a.high * b.high
inline Counts add_halves(Counts total, Counts a, Counts b) {
    for (int l = 0; l < 8; l++)
        total.v[l] += static_cast<int16_t>(a.v[l]) * static_cast<int16_t>(b.v[l]) + (a.v[l] >> 16) * (b.v[l] >> 16);
    return total;
}

inline Counts add(Counts a, Counts b) { return a + b; }
inline Counts times(Counts a, Counts b) {
    for (int l = 0; l < 8; l++) a.v[l] *= b.v[l];
    return a;
}
inline Counts low_of(Counts pair) {  // its int16, as whole numbers
    for (int32_t& v : pair.v) v = static_cast<int16_t>(v);
    return pair;
}
inline Counts high_of(Counts pair) {
    for (int32_t& v : pair.v) v >>= 16;
    return pair;
}

// Repacked weights: four bytes of each row in a lane.
using Words = Bytes;
inline Words load_words(const uint8_t* p) { return load_bytes(p); }
inline void store_words(uint8_t* p, Words a) { store_bytes(p, a); }
inline Words set_words(uint8_t x) { return set_bytes(x); }
inline void store_counts(int32_t* p, Counts a) { std::memcpy(p, a.v, 32); }
inline Counts operator|(Counts a, Counts b) {
    for (int l = 0; l < 8; l++) a.v[l] |= b.v[l];
    return a;
}
// Bits FROM .. of each word, as many as MASK has, moved to bits TO ..
template <int FROM, int TO, int MASK>
inline Counts bits(Words a) {
    Counts r;
    for (int l = 0; l < 8; l++) {
        uint32_t word;
        std::memcpy(&word, a.v + 4 * l, 4);
        r.v[l] = static_cast<int32_t>((word >> FROM & MASK) << TO);
    }
    return r;
}
// 16 where bits 4 k .. 4 k + 3 of the lane are set.
inline Words sixteens_of_rows(Words bits, int k) {
    for (int l = 0; l < 8; l++) {
        const int four = bits.v[4 * l + k / 2] >> 4 * (k % 2);
        for (int i = 0; i < 4; i++) bits.v[4 * l + i] = static_cast<uint8_t>((four >> i & 1) << 4);
    }
    return bits;
}
inline int32_t pair(int low, int high) {
    return static_cast<int32_t>((static_cast<uint32_t>(low) & 0xffff) | static_cast<uint32_t>(high) << 16);
}
// Bytes 2 P and 2 P + 1 of a lane as its two int16.
template <int P>
inline Counts pair_of(Words a) {
    Counts r;
    for (int l = 0; l < 8; l++) r.v[l] = pair(a.v[4 * l + 2 * P], a.v[4 * l + 2 * P + 1]);
    return r;
}
template <int P>
inline Counts signed_pair_of(Words a) {
    const auto at = [&](int i) { return static_cast<int8_t>(a.v[i]); };
    Counts r;
    for (int l = 0; l < 8; l++) r.v[l] = pair(at(4 * l + 2 * P), at(4 * l + 2 * P + 1));
    return r;
}
inline Counts pairs_less_32(Counts a) {
    for (int32_t& v : a.v) v = pair((v & 0xffff) - 32, (v >> 16) - 32);
    return a;
}
inline Sums row_halves(const uint8_t* p) { return some_halves(p, 2, 8); }  // one of each row
inline Sums low_halves(Words a) { return some_halves(a.v, 4, 8); }         // of each word
inline Sums high_halves(Words a) { return some_halves(a.v + 2, 4, 8); }
inline Sums row_powers(const uint8_t* p) {  // half_of_e8m0() of a byte of each row
    Sums r;
    for (int l = 0; l < 8; l++) r.v[l] = half_of_e8m0(p[l]);
    return r;
}
// Dot products of rows with one of x, up to eight steps of four codes.
template <int MAX, int COLS>
struct RowDots {
    Counts all;
    void start(int32_t from) { all = set_counts(from); }
    void add(int, Words codes, const uint8_t* x) {
        for (int i = 0; i < 32; i++) all.v[i / 4] += codes.v[i] * static_cast<int8_t>(x[i % 4]);
    }
    Counts total(int) const { return all; }
};

// r[c][0] lane l: start[c] plus the sum over STEPS steps of the four codes of row l times the four of column c.
template <int MAX, int COLS, int STEPS, int V>
inline void dots(const uint8_t* tile, const uint8_t* x, const int32_t* start, Counts (&r)[COLS][V]) {
    for (int c = 0; c < COLS; c++) {
        int32_t s[8];
        for (int32_t& v : s) v = start[c];
        for (int k = 0; k < STEPS; k++)
            for (int l = 0; l < 8; l++)
                for (int i = 0; i < 4; i++)
                    s[l] += tile[k * 32 + 4 * l + i] * static_cast<int8_t>(x[4 * (k * COLS + c) + i]);
        for (int l = 0; l < 8; l++) r[c][0].v[l] = s[l];
    }
}

// total += such sums times the scale of a row, an int16 that scale_of_dots() makes ready. Where bytes have a sign they
// start at 0 (STARTS_APART).
inline Counts scale_of_dots(Counts scale) { return scale; }
template <int MAX, int COLS, int STEPS, int V>
inline void add_scaled_dots(const uint8_t* tile, const uint8_t* x, const int32_t* start, const Counts (&scale)[V],
                            Counts (&total)[COLS][V]) {
    Counts r[COLS][V];
    dots<MAX, COLS, STEPS>(tile, x, start, r);
    for (int c = 0; c < COLS; c++)
        for (int v = 0; v < V; v++) total[c][v] = add(total[c][v], times(r[c][v], scale[v]));
}

}  // namespace QK_TIER
}  // namespace quantkit
