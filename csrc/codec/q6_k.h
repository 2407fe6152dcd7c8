// q6_k: 6.5625 bits a weight, 256 per super-block of 16 x 16. Layout: low nibbles ql[128], high pairs qh[64], int8
// scales[16], f16 d; x = d * scale * (q - 32). Element 128 n + 32 g + l has its nibble in ql[64 n + 32 (g & 1) + l],
// low for g < 2, and its pair of bits 2 g in qh[32 n + l].
#pragma once
#include "codec/super_block.h"

namespace quantkit {
namespace QK_TIER {

struct q6_k {
    static constexpr int N = 256, BYTES = 210;
    using Search = SuperBlock<Uniform<32>, 16, -128, 127>;

    static Search search(const Batch<N>& x, Ones w) {
        static constexpr float STEPS[] = {-32.5f, -32.1f, -31.8f, -31.35f, -31, -30.75f,
                                          -30.2f, -29.8f, -29.1f, -28.8f,  -28, -27.2f};
        static constexpr float DIVISORS[] = {-120, -116, -110, -104};
        return Search::run<STEPS>(x, w, DIVISORS, 1);
    }
    static Search search(const Batch<N>& x, Given w) {
        static constexpr float STEPS[] = {-33.4f, -32.65f, -32.15f, -31.85f, -31.2f, -30.9f, -30.25f, -29.75f,
                                          -29,    -28,     -27,     -26.1f,  -25,    -24,    -23,     -21};
        static constexpr float DIVISORS[] = {-120, -116, -110, -104};
        return Search::run<STEPS>(x, w, DIVISORS, 1);
    }

    template <class W>
    static void encode(const Batch<N>& x, W w, uint8_t* const* out) {
        const Search found = search(x, w);
        I q[N], byte[128];
        const F d = found.codes(x, w, q);
        const I nibble = set1i(15);
        for (int n = 0; n < 2; n++)
            for (int k = 0; k < 64; k++) {
                const I a = q[128 * n + k], b = q[128 * n + 64 + k];
                byte[64 * n + k] = (a & nibble) | shl<4>(b & nibble);
            }
        store_bytes(byte, 128, out, 0);
        for (int n = 0; n < 2; n++)
            for (int l = 0; l < 32; l++) {
                const I* p = q + 128 * n + l;
                byte[32 * n + l] = shr<4>(p[0]) | shl<2>(shr<4>(p[32])) | shl<4>(shr<4>(p[64])) | shl<6>(shr<4>(p[96]));
            }
        store_bytes(byte, 64, out, 128);
        for (int j = 0; j < 16; j++) byte[j] = to_int(found.scale[j]) & set1i(255);
        store_bytes(byte, 16, out, 192);
        store_u16(f16_bits(d), out, 208);
    }

    static void decode(const uint8_t* in, float* out) {
        const float d = f16_to_f32(read_u16(in + 208));
        for (int j = 0; j < 16; j++) {
            const int n = j / 8, g = j % 8 / 2, l = 16 * (j & 1);
            const F scale = set1(d * static_cast<float>(static_cast<int8_t>(in[192 + j])));
            const uint8_t *low = in + 64 * n + 32 * (g & 1) + l, *high = in + 128 + 32 * n + l;
            const I nibble = set1i(4 * (g >> 1)), pair = set1i(2 * g);
            for (int i = 0; i < 16; i += L) {
                const I q =
                    (shr(load_u8(low + i), nibble) & set1i(15)) | shl<4>(shr(load_u8(high + i), pair) & set1i(3));
                store(out + 16 * j + i, scale * to_float(q - set1i(32)));
            }
        }
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
