// Enumerations over the list of formats, and the scalar types of sources.
#pragma once
#include <cstdint>

namespace quantkit {

enum class Format : int {
    f32,
    f16,
    bf16,
#define QK_FORMAT(name, ggml, elements, bytes) name,
#include "formats/formats.def"
#undef QK_FORMAT
    count
};

struct FormatRow {
    const char* name;
    int ggml_type;
    int block_size;  // elements
    int block_bytes;
    float max_abs;  // a larger magnitude cannot be stored: the f16 scale would overflow
};

constexpr float F16_MAX = 65504.0f;
constexpr float F32_MAX = 3.40282347e38f;
constexpr float BF16_MAX = 3.38953139e38f;

// Formats without an f16 scale hold any float.
constexpr bool has_f16_scale(int ggml_type) { return ggml_type != 39; }

constexpr FormatRow FORMATS[] = {
    {"f32", 0, 1, 4, F32_MAX},
    {"f16", 1, 1, 2, F16_MAX},
    {"bf16", 30, 1, 2, BF16_MAX},
#define QK_FORMAT(name, ggml, elements, bytes) {#name, ggml, elements, bytes, has_f16_scale(ggml) ? F16_MAX : F32_MAX},
#include "formats/formats.def"
#undef QK_FORMAT
};
static_assert(sizeof(FORMATS) / sizeof(FORMATS[0]) == static_cast<int>(Format::count), "one row per format");

enum class Scalar : int { f32, f16, bf16, f8_e4m3, count };
constexpr int SCALAR_BYTES[] = {4, 2, 2, 1};

}  // namespace quantkit
