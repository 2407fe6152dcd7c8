// q3_k: 3.4375 bits a weight, 256 per super-block of 16 x 16. Layout: high bits hmask[32], low pairs qs[64], 6-bit
// scales[12], f16 d; x = d * (scale - 32) * (q - 4). Element i has its bit i / 32 in hmask[i % 32], its pair
// 2 (i % 128 / 32) in qs[32 (i / 128) + i % 32]; scale j its low nibble in scales[j % 8], its high pair in scales[8 + j
// % 4].
#pragma once
#include "codec/super_block.h"

namespace quantkit {
namespace QK_TIER {

struct q3_k {
    static constexpr int N = 256, BYTES = 110;
    using Search = SuperBlock<Uniform<4>, 16, -32, 31>;

    static Search search(const Batch<N>& x, Ones w) {
        static constexpr float STEPS[] = {-4.8f, -4.5f, -4.2f, -3.95f, -3.7f, -3.15f};
        static constexpr float DIVISORS[] = {-36, -34, -32, -30, -28, -26, -24, -22};
        return Search::run<STEPS>(x, w, DIVISORS, 1);
    }
    static Search search(const Batch<N>& x, Given w) {
        static constexpr float STEPS[] = {-7,    -5.8f,  -5.1f,  -4.55f, -4.15f, -3.85f,
                                          -3.3f, -2.95f, -2.15f, 4,      4.6f,   5.35f};
        static constexpr float DIVISORS[] = {-36, -34, -32, -30, -28, -26, -24, -22};
        return Search::run<STEPS>(x, w, DIVISORS, 2);
    }

    template <class W>
    static void encode(const Batch<N>& x, W w, uint8_t* const* out) {
        const Search found = search(x, w);
        I q[N], byte[64];
        const F d = found.codes(x, w, q);
        for (int l = 0; l < 32; l++) {
            I bits = set1i(0);
            for (int k = 7; k >= 0; k--) bits = shl<1>(bits) | shr<2>(q[32 * k + l]);
            byte[l] = bits;
        }
        store_bytes(byte, 32, out, 0);
        const I pair = set1i(3);
        for (int k = 0; k < 64; k++) {
            const I* p = q + k / 32 * 128 + k % 32;
            byte[k] = (p[0] & pair) | shl<2>(p[32] & pair) | shl<4>(p[64] & pair) | shl<6>(p[96] & pair);
        }
        store_bytes(byte, 64, out, 32);
        I s[16];
        for (int j = 0; j < 16; j++) s[j] = to_int(found.scale[j] + set1(32.0f));
        for (int j = 0; j < 8; j++) byte[j] = (s[j] & set1i(15)) | shl<4>(s[j + 8] & set1i(15));
        store_bytes(byte, 8, out, 96);
        I high[4];
        for (int j = 0; j < 4; j++)
            high[j] = shr<4>(s[j]) | shl<2>(shr<4>(s[j + 4])) | shl<4>(shr<4>(s[j + 8])) | shl<6>(shr<4>(s[j + 12]));
        store_u16(high[0] | shl<8>(high[1]), out, 104);
        store_u16(high[2] | shl<8>(high[3]), out, 106);
        store_u16(f16_bits(d), out, 108);
    }

    static void decode(const uint8_t* in, float* out) {
        const float d = f16_to_f32(read_u16(in + 108));
        for (int j = 0; j < 16; j++) {
            const int s = ((in[96 + j % 8] >> (4 * (j / 8))) & 15) | (((in[104 + j % 4] >> (2 * (j / 4))) & 3) << 4);
            const F scale = set1(d * static_cast<float>(s - 32));
            const uint8_t *high = in + 16 * (j & 1), *low = in + 32 + 32 * (j / 8) + 16 * (j & 1);
            const I bit = set1i(j / 2), pair = set1i(2 * (j % 8 / 2));
            for (int i = 0; i < 16; i += L) {
                const I q = (shr(load_u8(low + i), pair) & set1i(3)) | shl<2>(shr(load_u8(high + i), bit) & set1i(1));
                store(out + 16 * j + i, scale * to_float(q - set1i(4)));
            }
        }
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
