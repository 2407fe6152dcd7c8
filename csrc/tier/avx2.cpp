#define QK_TIER avx2
#include "simd/avx2.h"

#include "cpu.h"
#include "tier/tier.inc"

namespace quantkit {
namespace matmul_avx2 {
extern const MatmulKernels KERNELS;
}
namespace avx2 {
static const MatmulKernels* matmul_kernels() { return &matmul_avx2::KERNELS; }
extern const Tier TIER;
const Tier TIER = {"avx2",       has_avx2,       count_tasks, encode_task, decode_blocks, dot_rows,
                   float_panels, matmul_kernels, group_tasks, group_task,  read_groups};
}  // namespace avx2
}  // namespace quantkit
