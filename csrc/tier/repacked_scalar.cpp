#define QK_TIER matmul_scalar
#include "simd/dot_scalar.h"
#include "tier/repacked.inc"
