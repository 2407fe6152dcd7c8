// Group quantization in MLX's affine layout: each group of a row has codes 0 .. 2^bits - 1, a scale and a bias, and
// means scale * code + bias. A row's codes are one stream of bits, the first code in the lowest bits of the first byte.
#pragma once
#include "dispatch.h"

namespace quantkit {

struct GroupJob {
    EncodeJob rows;      // the source; its `out` takes the codes: (rows, cols * bits / 8)
    int bits;            // 2, 3, 4, 5, 6 or 8
    int64_t group_size;  // a multiple of 32 that divides cols
    bool symmetric;      // bias = -2^(bits - 1) * scale
    Scalar scale_type;   // f32, f16 or bf16; of scales and biases: (rows, cols / group_size)
    uint8_t *scales, *biases;
};

struct GroupReadJob {
    const uint8_t *codes, *scales, *biases;
    Scalar scale_type;
    int64_t rows, cols, group_size;
    int bits;
    float* out;  // (rows, cols)
};

// The largest magnitude of a weight: scale, bias and 2^bits steps from end to end have to be finite.
constexpr float group_limit(Scalar scale_type) { return scale_type == Scalar::f16 ? F16_MAX : 4.2535296e37f; }

EncodeResult quantize_groups(const Tier&, const GroupJob&, int threads);
void dequantize_groups(const Tier&, const GroupReadJob&, int threads);

}  // namespace quantkit
