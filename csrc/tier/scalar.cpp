#define QK_TIER scalar
#include "simd/scalar.h"
#include "tier/tier.inc"

namespace quantkit {
namespace matmul_scalar {
extern const MatmulKernels KERNELS;
}
namespace scalar {
static bool supported() { return true; }
static const MatmulKernels* matmul_kernels() { return &matmul_scalar::KERNELS; }
extern const Tier TIER;
const Tier TIER = {"scalar", supported,      count_tasks, encode_task, decode_blocks, dot_rows,
                   nullptr,  matmul_kernels, group_tasks, group_task,  read_groups};
}  // namespace scalar
}  // namespace quantkit
