// The machine room's door: jobs in, bytes out. Knows no Python; errors come back as values.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "formats/formats.h"

namespace quantkit {

struct MatmulKernels;

// How importance becomes the weight w of an element x in the squared error that an encoder minimises.
enum class Weighting : int {
    plain,      // w = importance of the column
    magnitude,  // w = importance * sqrt(mean square of the block + x^2)
    unbiased,   // as plain; then the scales are stretched until sum w x y, y as decoded, is sum w x^2
};

struct EncodeJob {
    const uint8_t* source;  // rows x cols scalars; strides in elements, one of them 1
    Scalar scalar;
    int64_t rows, cols, row_stride, col_stride;
    const float* row_scale;   // (rows,) or null: multiplied into each row, for fp8 sources
    const float* importance;  // (cols,); null: every weight counts the same, and a quicker search is used
    Weighting weighting;
    uint8_t* out;  // (rows, row bytes)
};

struct EncodeResult {
    int64_t bad_row = -1, bad_col = -1;  // the first element that is not finite or beyond the format's range
    float bad_value = 0;
    bool ok() const { return bad_row < 0; }
};

struct GroupJob;  // groups.h
struct GroupReadJob;
constexpr int DOT_ROWS = 8;  // of x at most

// The float product of few rows of x with the decoded weights.
struct DotJob {
    const float* x;  // (n, pitch): pitch is cols up to a multiple of 32, and what is beyond cols is zero
    int64_t n, cols, pitch;
    const uint8_t* packed;  // (rows, row bytes)
    int64_t rows;
    float* out;  // (n, rows)
};

// The float product of many rows of x with the decoded weights.
struct FloatJob {
    Format format;
    const float* x;  // (n, cols)
    int64_t n, cols;
    const uint8_t* packed;  // (rows, row bytes)
    int64_t pitch_bytes;    // from one row to the next
    int64_t rows;
    float* out;  // (n, rows), rows of it out_stride apart
    int64_t out_stride;
    bool input_major;  // f32, f16, bf16 alone: packed is (cols, rows), pitch_bytes from one column to the next
};
constexpr int64_t FLOAT_PANEL = 48;  // rows of weights: a multiple of what a tier multiplies together
constexpr int64_t float_panels_scratch(int64_t panels) { return 256 * 512 + FLOAT_PANEL * (384 + 512 * panels); }

// One instruction set: every operation, compiled once per tier from the same sources.
struct Tier {
    const char* name;
    bool (*supported)();
    int64_t (*encode_tasks)(Format, const EncodeJob&);
    bool (*encode_task)(Format, const EncodeJob&, int64_t task);  // false: an element out of range was met
    void (*decode_blocks)(Format, const uint8_t* in, float* out, int64_t blocks);
    void (*dot_rows)(Format, const DotJob&, int64_t first, int64_t last);
    bool (*float_panels)(const FloatJob&, int64_t first, int64_t last, float* scratch);  // rows; null: left to BLAS
    const MatmulKernels* (*matmul)();                                                    // matmul/kernels.h
    int64_t (*group_tasks)(const GroupJob&);
    bool (*group_task)(const GroupJob&, int64_t task);  // false: an element out of range was met
    void (*read_groups)(const GroupReadJob&, int64_t row);
};

std::vector<const Tier*> tiers_built();          // best last
const Tier* find_tier(const std::string& name);  // null when not built or not supported here
const Tier* best_tier();

// The first element in row order that is not finite or beyond the limit.
EncodeResult first_bad(const EncodeJob&, float limit);

EncodeResult encode(const Tier&, Format, const EncodeJob&, int threads);
void decode(const Tier&, Format, const uint8_t* in, float* out, int64_t blocks, int threads);
void dot(const Tier&, Format, const DotJob&, int threads);
bool multiply(const Tier&, const FloatJob&, int threads);  // whether all that comes out is finite

}  // namespace quantkit
