#define QK_TIER avx512
#include "simd/avx512.h"

#include "cpu.h"
#include "tier/tier.inc"

namespace quantkit {
namespace avx512 {
extern const Tier TIER;
const Tier TIER = {"avx512", has_avx512, count_tasks, encode_task, decode_blocks};
}  // namespace avx512
}  // namespace quantkit
