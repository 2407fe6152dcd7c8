// What a tier compiles for products. A panel is some rows of weights, unpacked to bytes a stretch of columns at a time
// and multiplied with tiles of some rows of x; a vector product unpacks in registers.
#pragma once
#include <cstring>

#include "matmul/job.h"

namespace quantkit {

constexpr int64_t PANEL_COLUMNS = 512;  // of x per pass over a panel: its sums stay in the second-level cache
constexpr int VECTOR_ROWS = 3;          // of x at most in one vector product

// n things cut as evenly as parts of at most `width` allow.
struct Cut {
    int64_t count, least, longer;  // the first `longer` parts have one more than `least`
    Cut(int64_t n, int64_t width)
        : count((n + width - 1) / width), least(count ? n / count : 0), longer(count ? n % count : 0) {}
    int64_t first(int64_t part) const { return part * least + (part < longer ? part : longer); }
    int64_t size(int64_t part) const { return least + (part < longer); }
};

// static: what is compiled for one processor must not be taken for another
static inline bool all_finite(const float* p, int64_t n) {
    uint32_t all = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits;
        std::memcpy(&bits, p + i, 4);
        all |= (bits & 0x7fffffffu) + 0x00800000u;  // the top bit where the exponent is the largest
    }
    return !(all >> 31);
}

struct PanelTask {
    const Weights* weights;
    int64_t first_row, n_rows;  // of the stacked matrix; at most a panel, or many, repacked, with few rows of x
    const uint8_t* x;           // the expert's prepared rows of x
    int64_t n;                  // how many of them
    int64_t first_tile, last_tile;
    const int64_t* order;  // of the expert's rows, or null
    int64_t out_row;       // the row of `out` of the expert's first, when order is null
    float* out;            // at the column of first_row
    int64_t out_stride;
    uint8_t* scratch;  // 64-byte aligned
};

struct VectorTask {
    const Weights* weights;
    int64_t first_row, n_rows;
    const uint8_t* x[VECTOR_ROWS];  // prepared
    float* out[VECTOR_ROWS];        // at the column of first_row
    int n;
};

struct PanelShape {
    int64_t rows, cols;  // of weights, and of x in a tile at most, if there are more than VECTOR_ROWS
    int64_t bytes;       // of a prepared row of x
    int64_t scratch;     // bytes for a panel
};

struct MatmulKernels {
    PanelShape (*panel_shape)(const Weights&);
    int64_t (*vector_bytes)(const Weights&);  // of a prepared row of x
    // False: an element is not finite. A tile's rows interleaved; scratch holds vector_bytes for each of them.
    bool (*prepare_panel)(const Weights&, const float* const* x, int n, int64_t first, int64_t total, uint8_t* out,
                          uint8_t* scratch);
    bool (*prepare_vector)(const Weights&, const float* x, uint8_t* out);
    bool (*panel)(const PanelTask&);  // whether all that came out is finite
    void (*vector)(const VectorTask&);
    // Sixteen rows to repacked ones, or back; block formats.
    void (*repack)(const Weights&, const uint8_t* from, uint8_t* to, bool back);
};

}  // namespace quantkit
