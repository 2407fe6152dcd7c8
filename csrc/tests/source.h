// The source of a recorded encoding, laid out in memory as asked.
#pragma once
#include "tests/cases.h"

namespace quantkit {

struct Layout {
    const char* name;
    bool transposed;
    int64_t pad, offset, shift;  // elements between rows (or columns), elements before the first, bytes off alignment
};
constexpr Layout LAYOUTS[] = {
    {"rows", false, 0, 0, 0},
    {"rows of a wider array", false, 5, 3, 1},
    {"columns", true, 0, 0, 0},
    {"columns of a taller array", true, 3, 1, 1},
};

Scalar scalar_of(const std::string& name);

// `job` lacks its weighting, and where its output goes.
struct Source {
    EncodeJob job;
    int64_t size;  // bytes of a scalar
    Exact memory;
    std::vector<float> scale, importance;

    Source(const Case&, const Layout&);

    uint8_t* element(int64_t row, int64_t col) {
        return const_cast<uint8_t*>(job.source) + (row * job.row_stride + col * job.col_stride) * size;
    }
    // Puts a NaN somewhere, and says where.
    void spoil(int64_t index, int64_t& row, int64_t& col);
    // The rows before and from `cut`; where their output goes is left to the caller.
    EncodeJob rows_before(int64_t cut) const;
    EncodeJob rows_from(int64_t cut) const;
};

// Throws std::runtime_error unless the result names the place of the NaN.
void expect_refusal(const EncodeResult&, int64_t row, int64_t col, const char* layout);

}  // namespace quantkit
