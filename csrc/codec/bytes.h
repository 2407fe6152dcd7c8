// Little-endian pieces of blocks.
#pragma once
#include <cstdint>

#include "formats/scalars.h"

namespace quantkit {

inline uint16_t read_u16(const uint8_t* p) { return static_cast<uint16_t>(p[0] | (p[1] << 8)); }
inline uint32_t read_u32(const uint8_t* p) { return read_u16(p) | (static_cast<uint32_t>(read_u16(p + 2)) << 16); }

namespace QK_TIER {

// The low 16 bits of each lane, at `offset` of each lane's block.
inline void store_u16(I v, uint8_t* const* out, int offset) {
    int32_t x[L];
    store(x, v);
    for (int l = 0; l < L; l++) {
        out[l][offset] = static_cast<uint8_t>(x[l]);
        out[l][offset + 1] = static_cast<uint8_t>(x[l] >> 8);
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
