#define QK_TIER scalar
#include "simd/scalar.h"
#include "tier/tier.inc"

namespace quantkit {
namespace scalar {
static bool supported() { return true; }
extern const Tier TIER;
const Tier TIER = {"scalar", supported, count_tasks, encode_task, decode_blocks};
}  // namespace scalar
}  // namespace quantkit
