#include "tests/source.h"

#include <stdexcept>

namespace quantkit {

Scalar scalar_of(const std::string& name) {
    constexpr const char* NAMES[] = {"f32", "f16", "bf16", "f8_e4m3"};
    for (int i = 0; i < static_cast<int>(Scalar::count); i++)
        if (name == NAMES[i]) return static_cast<Scalar>(i);
    throw std::runtime_error("cases: no scalar type " + name);
}

static EncodeJob job_of(const Case& c, const Layout& layout) {
    EncodeJob job = {};
    job.scalar = scalar_of(c.text("scalar"));
    job.rows = c.number("rows");
    job.cols = c.number("cols");
    job.row_stride = layout.transposed ? 1 : job.cols + layout.pad;
    job.col_stride = layout.transposed ? job.rows + layout.pad : 1;
    return job;
}

Source::Source(const Case& c, const Layout& layout)
    : job(job_of(c, layout)),
      size(SCALAR_BYTES[static_cast<int>(job.scalar)]),
      memory((layout.offset + (job.rows - 1) * job.row_stride + (job.cols - 1) * job.col_stride + 1) * size,
             layout.shift) {
    const Bytes& values = c.bytes("source");
    job.source = memory.data + layout.offset * size;
    for (int64_t row = 0; row < job.rows; row++)
        for (int64_t col = 0; col < job.cols; col++)
            std::memcpy(element(row, col), values.data() + (row * job.cols + col) * size, static_cast<size_t>(size));
    if (c.has("scale")) job.row_scale = (scale = c.floats("scale")).data();
    if (c.has("importance")) job.importance = (importance = c.floats("importance")).data();
}

void Source::spoil(int64_t index, int64_t& row, int64_t& col) {
    constexpr uint32_t NANS[] = {0x7fc00000u, 0x7e00u, 0x7fc0u, 0x7fu};
    row = index * 7 % job.rows;
    col = index * 31 % job.cols;
    std::memcpy(element(row, col), &NANS[static_cast<int>(job.scalar)], static_cast<size_t>(size));
}

EncodeJob Source::rows_before(int64_t cut) const {
    EncodeJob part = job;
    part.rows = cut;
    return part;
}

EncodeJob Source::rows_from(int64_t cut) const {
    EncodeJob part = job;
    part.rows = job.rows - cut;
    part.source += cut * job.row_stride * size;
    if (part.row_scale) part.row_scale += cut;
    return part;
}

void expect_refusal(const EncodeResult& result, int64_t row, int64_t col, const char* layout) {
    if (result.bad_row != row || result.bad_col != col || result.bad_value == result.bad_value)
        throw std::runtime_error(std::string(layout) + ": a NaN at " + std::to_string(row) + ", " +
                                 std::to_string(col) + " was reported at " + std::to_string(result.bad_row) + ", " +
                                 std::to_string(result.bad_col));
}

}  // namespace quantkit
