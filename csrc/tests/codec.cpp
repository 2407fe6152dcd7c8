// Encoding and decoding: whatever the strides, the alignment and the cut, the bytes are those that were recorded.
#include <cstring>
#include <memory>
#include <stdexcept>

#include "tests/cases.h"

namespace quantkit {
namespace {

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

Scalar scalar_of(const std::string& name) {
    constexpr const char* NAMES[] = {"f32", "f16", "bf16", "f8_e4m3"};
    for (int i = 0; i < static_cast<int>(Scalar::count); i++)
        if (name == NAMES[i]) return static_cast<Scalar>(i);
    throw std::runtime_error("cases: no scalar type " + name);
}

Weighting weighting_of(const std::string& name) {
    constexpr const char* NAMES[] = {"plain", "magnitude", "unbiased"};
    for (int i = 0; i < 3; i++)
        if (name == NAMES[i]) return static_cast<Weighting>(i);
    throw std::runtime_error("cases: no weighting " + name);
}

// A recorded encoding, its source laid out as asked.
struct Encoding {
    EncodeJob job;
    Format format;
    int64_t size, row_bytes;
    Exact source;
    std::vector<float> scale, importance;

    Encoding(const Case& c, const Layout& layout)
        : job(job_of(c, layout)),
          format(c.format()),
          size(SCALAR_BYTES[static_cast<int>(job.scalar)]),
          row_bytes(job.cols / FORMATS[static_cast<int>(format)].block_size *
                    FORMATS[static_cast<int>(format)].block_bytes),
          source((layout.offset + (job.rows - 1) * job.row_stride + (job.cols - 1) * job.col_stride + 1) * size,
                 layout.shift) {
        const Bytes& values = c.bytes("source");
        job.source = source.data + layout.offset * size;
        for (int64_t row = 0; row < job.rows; row++)
            for (int64_t col = 0; col < job.cols; col++)
                std::memcpy(element(row, col), values.data() + (row * job.cols + col) * size,
                            static_cast<size_t>(size));
        if (c.has("scale")) job.row_scale = (scale = c.floats("scale")).data();
        if (c.has("importance")) job.importance = (importance = c.floats("importance")).data();
    }

    uint8_t* element(int64_t row, int64_t col) {
        return const_cast<uint8_t*>(job.source) + (row * job.row_stride + col * job.col_stride) * size;
    }

  private:
    static EncodeJob job_of(const Case& c, const Layout& layout) {
        EncodeJob job = {};
        job.scalar = scalar_of(c.text("scalar"));
        job.rows = c.number("rows");
        job.cols = c.number("cols");
        job.row_stride = layout.transposed ? 1 : job.cols + layout.pad;
        job.col_stride = layout.transposed ? job.rows + layout.pad : 1;
        job.weighting = weighting_of(c.text("weighting"));
        return job;
    }
};

}  // namespace

void check_encode(const Case& c, const Setting& setting) {
    const Bytes& expected = c.bytes("expected");
    for (const Layout& layout : LAYOUTS) {
        Encoding e(c, layout);
        if (e.job.rows * e.row_bytes != static_cast<int64_t>(expected.size()))
            throw std::runtime_error("cases: expected bytes of another size");
        const Exact out(e.job.rows * e.row_bytes, layout.shift);
        e.job.out = out.data;
        if (!encode(*setting.tier, e.format, e.job, setting.threads).ok())
            throw std::runtime_error(std::string(layout.name) + ": refused");
        expect_same(out.data, expected, layout.name);

        // the same, cut into two calls
        const int64_t cut = c.index % (e.job.rows + 1);
        std::memset(out.data, 0xa5, expected.size());
        EncodeJob first = e.job, second = e.job;
        first.rows = cut;
        second.rows = e.job.rows - cut;
        second.source += cut * e.job.row_stride * e.size;
        second.out += cut * e.row_bytes;
        if (second.row_scale) second.row_scale += cut;
        for (const EncodeJob& part : {first, second})
            if (part.rows) encode(*setting.tier, e.format, part, setting.threads);
        expect_same(out.data, expected, std::string(layout.name) + ", cut");
    }
}

// A NaN is refused by its row and column.
void check_refusal(const Case& c, const Setting& setting) {
    for (const Layout& layout : LAYOUTS) {
        Encoding e(c, layout);
        const int64_t row = c.index * 7 % e.job.rows, col = c.index * 31 % e.job.cols;
        constexpr uint32_t NANS[] = {0x7fc00000u, 0x7e00u, 0x7fc0u, 0x7fu};
        std::memcpy(e.element(row, col), &NANS[static_cast<int>(e.job.scalar)], static_cast<size_t>(e.size));
        const Exact out(e.job.rows * e.row_bytes, 0);
        e.job.out = out.data;
        const EncodeResult result = encode(*setting.tier, e.format, e.job, setting.threads);
        if (result.bad_row != row || result.bad_col != col || result.bad_value == result.bad_value)
            throw std::runtime_error(std::string(layout.name) + ": a NaN at " + std::to_string(row) + ", " +
                                     std::to_string(col) + " was reported at " + std::to_string(result.bad_row) + ", " +
                                     std::to_string(result.bad_col));
    }
}

void check_decode(const Case& c, const Setting& setting) {
    const Format format = c.format();
    const Bytes &packed = c.bytes("expected"), &decoded = c.bytes("decoded");
    const FormatRow& row = FORMATS[static_cast<int>(format)];
    const int64_t blocks = static_cast<int64_t>(packed.size()) / row.block_bytes;
    if (blocks * row.block_size * 4 != static_cast<int64_t>(decoded.size()))
        throw std::runtime_error("cases: decoded values of another size");
    for (int64_t shift : {0, 1}) {
        const Exact in(packed, shift);
        const std::unique_ptr<float[]> out(new float[static_cast<size_t>(blocks * row.block_size)]);
        decode(*setting.tier, format, in.data, out.get(), blocks, setting.threads);
        expect_same(reinterpret_cast<const uint8_t*>(out.get()), decoded, "decoded");
    }
}

}  // namespace quantkit
