// The door of `fast` products: y = x W^T with W in blocks or groups, x quantized to int8 in blocks of 32 or 256
// columns.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "formats/formats.h"

namespace quantkit {

struct MatmulKernels;  // matmul/kernels.h

// A matrix, or several of the same shape on top of each other (experts). Either a block format, or groups: codes of
// 4 or 8 bits, element i of a row in bits (bits * i) .. of the row's bit stream, w = scale * code + bias.
struct Weights {
    Format format;          // Format::count: groups
    int bits;               // of a group's code
    const uint8_t* codes;   // (rows, row_bytes)
    int64_t row_bytes;      //
    const float* scales;    // (rows, groups a row), groups only
    const float* biases;    //
    int64_t groups;         // a row
    int group_shift;        // a group is 32 << group_shift columns
    int64_t rows, cols;     // of one expert; cols is a multiple of 32, or of the block
    bool repacked = false;  // sixteen rows side by side (matmul/rows_block.h); block formats only

    int64_t rows_apart() const { return repacked ? (rows + 15) / 16 * 16 : rows; }  // from one expert to the next
};

struct MatmulJob {
    Weights weights;
    const float* x;  // (n, cols)
    int64_t n;
    int64_t experts;        // 1 for a plain product
    const int64_t* order;   // (n,) rows of x sorted by expert; null: as they come
    const int64_t* starts;  // (experts + 1,) where each expert's rows start in `order`; null: one expert has all
    float* out;             // (n, rows)
};

struct MatmulResult {
    int64_t bad_row = -1, bad_col = -1;  // the first element of x that is not finite
    float bad_value = 0;
    bool finite = true;  // all of `out`
    bool ok() const { return bad_row < 0; }
};

// Of a tier; or "avx512-maddubs", what the tier avx512 takes on a processor without VNNI. Null when not supported here.
const MatmulKernels* find_matmul(const std::string& name);
std::vector<std::string> matmul_names();  // supported here

MatmulResult matmul(const MatmulKernels&, const MatmulJob&, int threads);

// Plain rows of w, w.rows of each expert, to repacked ones, w.rows_apart() of each; or `back`.
void repack(const MatmulKernels&, const Weights& w, int64_t experts, const uint8_t* from, uint8_t* to, bool back,
            int threads);

}  // namespace quantkit
