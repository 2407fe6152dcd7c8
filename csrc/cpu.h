// What this processor and its operating system offer. Compiled for the baseline, so that asking never runs into an
// instruction that is not there.
#pragma once

namespace quantkit {

bool has_avx2();    // and F16C
bool has_avx512();  // F, BW, VL and DQ, and all of the above
bool has_vnni();    // AVX512_VNNI on top of has_avx512(): dot products of bytes

}  // namespace quantkit
