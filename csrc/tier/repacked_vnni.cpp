#define QK_TIER matmul_vnni
#define QK_VNNI
#include "simd/dot_avx512.h"
#include "tier/repacked.inc"
