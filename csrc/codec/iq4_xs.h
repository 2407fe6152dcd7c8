// iq4_xs: 4.25 bits a weight, 256 per super-block of 8 x 32. Layout: f16 d, u16 high pairs of the scales, their low
// nibbles[4], nibbles q[128] (in each sub-block element i low, i + 16 high); x = d * (scale - 32) * VALUES[q].
#pragma once
#include "codec/super_block.h"

namespace quantkit {
namespace QK_TIER {

struct iq4_xs {
    static constexpr int N = 256, BYTES = 136;
    using Search = SuperBlock<Nonlinear, 8, -32, 31>;

    static Search search(const Batch<N>& x, Ones w) {
        static constexpr float STEPS[] = {-142, -137, -133,   -129.5f, -125.5f, -120.5f,
                                          -109, -103, 107.5f, 113,     117.5f,  123};
        static constexpr float DIVISORS[] = {-36, -34, -32, -31, -30, -29, -28, -27, -26, -25, -24, -22};
        return Search::run<STEPS>(x, w, DIVISORS, 1);
    }
    static Search search(const Batch<N>& x, Given w) {
        static constexpr float STEPS[] = {-178, -156,  -145,   -137, -132, -127,   -120.5f, -109,
                                          -103, 91.5f, 107.5f, 114,  120,  126.5f, 135.5f,  151.5f};
        static constexpr float DIVISORS[] = {-36, -34, -32, -31, -30, -29, -28, -27, -26, -25, -24, -22};
        return Search::run<STEPS>(x, w, DIVISORS, 2);
    }

    template <class W>
    static void encode(const Batch<N>& x, W w, uint8_t* const* out) {
        const Search found = search(x, w);
        I q[N], byte[128], high = set1i(0), low[4];
        for (int j = 7; j >= 0; j--) {
            const I s = to_int(found.scale[j] + set1(32.0f)), nibble = s & set1i(15);
            high = shl<2>(high) | shr<4>(s);
            low[j / 2] = j % 2 ? shl<4>(nibble) : low[j / 2] | nibble;
        }
        store_u16(f16_bits(found.codes(x, w, q)), out, 0);
        store_u16(high, out, 2);
        store_u16(low[0] | shl<8>(low[1]), out, 4);
        store_u16(low[2] | shl<8>(low[3]), out, 6);
        for (int k = 0; k < 128; k++) {
            const I* p = q + k / 16 * 32 + k % 16;
            byte[k] = p[0] | shl<4>(p[16]);
        }
        store_bytes(byte, 128, out, 8);
    }

    static void decode(const uint8_t* in, float* out) {
        const float d = f16_to_f32(read_u16(in));
        const int high = read_u16(in + 2);
        for (int j = 0; j < 8; j++) {
            const int scale = ((in[4 + j / 2] >> (4 * (j % 2))) & 15) | (((high >> (2 * j)) & 3) << 4);
            const F step = set1(d * static_cast<float>(scale - 32));
            for (int i = 0; i < 16; i += L) {
                const I pair = load_u8(in + 8 + 16 * j + i);
                store(out + 32 * j + i, step * look_up(Nonlinear::VALUES, pair & set1i(15)));
                store(out + 32 * j + i + 16, step * look_up(Nonlinear::VALUES, shr<4>(pair)));
            }
        }
    }
};

}  // namespace QK_TIER
}  // namespace quantkit
