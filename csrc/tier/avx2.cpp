#define QK_TIER avx2
#include "simd/avx2.h"
#include "tier/tier.inc"

#if defined(_MSC_VER)
#include <intrin.h>
#endif

namespace quantkit {
namespace avx2 {
static bool supported() {
#if defined(_MSC_VER)
    int r[4];
    __cpuid(r, 1);
    const bool f16c = r[2] & (1 << 29), osxsave = r[2] & (1 << 27);
    __cpuidex(r, 7, 0);
    return f16c && osxsave && (r[1] & (1 << 5)) && (_xgetbv(0) & 6) == 6;
#else
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
#endif
}
extern const Tier TIER;
const Tier TIER = {"avx2", supported, count_tasks, encode_task, decode_blocks};
}  // namespace avx2
}  // namespace quantkit
