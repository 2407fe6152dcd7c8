#define QK_TIER matmul_avx512
#include "simd/dot_avx512.h"
#include "tier/repacked.inc"
