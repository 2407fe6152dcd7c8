#define QK_TIER matmul_avx2
#include "simd/dot_avx2.h"
#include "tier/repacked.inc"
