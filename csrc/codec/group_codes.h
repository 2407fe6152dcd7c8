// Codes of groups as a stream of bits, the first code lowest: eight codes fill BITS bytes.
#pragma once
#include "codec/bytes.h"

namespace quantkit {
namespace QK_TIER {

constexpr int CODES_AT_ONCE = 32;

// The part of code K of eight that lies in byte BYTE.
template <int BITS, int BYTE, int K>
inline I part_of_byte(const I* q) {
    constexpr int AT = K * BITS - BYTE * 8;  // where the code begins
    if constexpr (AT <= -BITS || AT >= 8)
        return set1i(0);
    else if constexpr (AT > 0)
        return shl<AT>(q[K]);
    else if constexpr (AT < 0)
        return shr<-AT>(q[K]);
    else
        return q[K];
}

template <int BITS, int BYTE>
inline I byte_of_codes(const I* q) {
    const I low = part_of_byte<BITS, BYTE, 0>(q) | part_of_byte<BITS, BYTE, 1>(q) | part_of_byte<BITS, BYTE, 2>(q) |
                  part_of_byte<BITS, BYTE, 3>(q);
    const I high = part_of_byte<BITS, BYTE, 4>(q) | part_of_byte<BITS, BYTE, 5>(q) | part_of_byte<BITS, BYTE, 6>(q) |
                   part_of_byte<BITS, BYTE, 7>(q);
    return (low | high) & set1i(255);
}

template <int BITS>
inline void pack_codes(const I* q, uint8_t* const* out, int offset) {
    constexpr int BYTES = CODES_AT_ONCE / 8 * BITS;
    I bytes[CODES_AT_ONCE];
    for (int k = 0; k < CODES_AT_ONCE / 8; k++) {
        const I* eight = q + 8 * k;
        I* to = bytes + BITS * k;
        to[0] = byte_of_codes<BITS, 0>(eight);
        to[1] = byte_of_codes<BITS, 1>(eight);
        if constexpr (BITS > 2) to[2] = byte_of_codes<BITS, 2>(eight);
        if constexpr (BITS > 3) to[3] = byte_of_codes<BITS, 3>(eight);
        if constexpr (BITS > 4) to[4] = byte_of_codes<BITS, 4>(eight);
        if constexpr (BITS > 5) to[5] = byte_of_codes<BITS, 5>(eight);
        if constexpr (BITS > 6) to[6] = byte_of_codes<BITS, 6>(eight);
        if constexpr (BITS > 7) to[7] = byte_of_codes<BITS, 7>(eight);
    }
    if constexpr (BYTES % 8 == 0) {
        store_bytes(bytes, BYTES, out, offset);
    } else {  // the vocabulary stores eight at a time, and what follows is another's
        constexpr int WHOLE = BYTES + 8 - BYTES % 8;
        for (int k = BYTES; k < WHOLE; k++) bytes[k] = set1i(0);
        uint8_t spill[L][WHOLE];
        uint8_t* to[L];
        for (int l = 0; l < L; l++) to[l] = spill[l];
        store_bytes(bytes, WHOLE, to, 0);
        for (int l = 0; l < L; l++) std::memcpy(out[l] + offset, spill[l], BYTES);
    }
}

// CODES_AT_ONCE codes of each lane to bytes [offset ..) of its group.
inline void store_codes(int bits, const I* q, uint8_t* const* out, int offset) {
    switch (bits) {
        case 2:
            return pack_codes<2>(q, out, offset);
        case 3:
            return pack_codes<3>(q, out, offset);
        case 4:
            return pack_codes<4>(q, out, offset);
        case 5:
            return pack_codes<5>(q, out, offset);
        case 6:
            return pack_codes<6>(q, out, offset);
        default:
            return pack_codes<8>(q, out, offset);
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
