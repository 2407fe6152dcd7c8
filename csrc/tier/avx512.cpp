#define QK_TIER avx512
#include "simd/avx512.h"

#include "cpu.h"
#include "tier/tier.inc"

namespace quantkit {
namespace matmul_avx512 {
extern const MatmulKernels KERNELS;
}
namespace matmul_vnni {
extern const MatmulKernels KERNELS;
}
namespace avx512 {
static const MatmulKernels* matmul_kernels() { return has_vnni() ? &matmul_vnni::KERNELS : &matmul_avx512::KERNELS; }
extern const Tier TIER;
const Tier TIER = {"avx512",     has_avx512,     count_tasks, encode_task, decode_blocks, dot_rows,
                   float_panels, matmul_kernels, group_tasks, group_task,  read_groups};
}  // namespace avx512
}  // namespace quantkit
