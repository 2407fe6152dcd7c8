#define QK_TIER avx2
#include "simd/avx2.h"

#include "cpu.h"
#include "tier/tier.inc"

namespace quantkit {
namespace avx2 {
extern const Tier TIER;
const Tier TIER = {"avx2", has_avx2, count_tasks, encode_task, decode_blocks};
}  // namespace avx2
}  // namespace quantkit
