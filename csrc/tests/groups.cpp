// Groups in MLX's affine layout: whatever the strides, the alignment and the cut, codes, scales and biases are those
// that were recorded.
#include "groups.h"

#include <cstring>
#include <stdexcept>

#include "tests/source.h"

namespace quantkit {
namespace {

// Codes, scales and biases of a matrix.
struct Groups {
    int bits;
    int64_t group_size, row_codes, row_scales;  // bytes of a row
    bool symmetric;
    Scalar scale_type;
    Exact codes, scales, biases;

    Groups(const Case& c, int64_t shift)
        : bits(static_cast<int>(c.number("bits"))),
          group_size(c.number("group_size")),
          row_codes(c.number("cols") / 8 * bits),
          row_scales(0),
          symmetric(c.number("symmetric") != 0),
          scale_type(scalar_of(c.text("scale_type"))),
          codes(c.bytes("codes"), shift),
          scales(c.bytes("scales"), shift),
          biases(c.bytes("biases"), shift) {
        const int64_t rows = c.number("rows");
        row_scales = c.number("cols") / group_size * SCALAR_BYTES[static_cast<int>(scale_type)];
        if (rows * row_codes != static_cast<int64_t>(c.bytes("codes").size()) ||
            rows * row_scales != static_cast<int64_t>(c.bytes("scales").size()) ||
            rows * row_scales != static_cast<int64_t>(c.bytes("biases").size()))
            throw std::runtime_error("cases: codes, scales or biases of another size");
    }

    void spoil(int64_t rows) {
        std::memset(codes.data, 0xa5, static_cast<size_t>(rows * row_codes));
        std::memset(scales.data, 0xa5, static_cast<size_t>(rows * row_scales));
        std::memset(biases.data, 0xa5, static_cast<size_t>(rows * row_scales));
    }
    // From row `first` of the output on.
    GroupJob job(EncodeJob rows, int64_t first) const {
        rows.out = codes.data + first * row_codes;
        return {rows,
                bits,
                group_size,
                symmetric,
                scale_type,
                scales.data + first * row_scales,
                biases.data + first * row_scales};
    }
    void expect(const Case& c, const std::string& what) const {
        expect_same(codes.data, c.bytes("codes"), what + ", codes");
        expect_same(scales.data, c.bytes("scales"), what + ", scales");
        expect_same(biases.data, c.bytes("biases"), what + ", biases");
    }
};

}  // namespace

void check_group_encode(const Case& c, const Setting& setting) {
    for (const Layout& layout : LAYOUTS) {
        const Source source(c, layout);
        Groups out(c, layout.shift);
        out.spoil(source.job.rows);
        if (!quantize_groups(*setting.tier, out.job(source.job, 0), setting.threads).ok())
            throw std::runtime_error(std::string(layout.name) + ": refused");
        out.expect(c, layout.name);

        // the same, cut into two calls
        const int64_t cut = c.index % (source.job.rows + 1);
        out.spoil(source.job.rows);
        for (const GroupJob& part : {out.job(source.rows_before(cut), 0), out.job(source.rows_from(cut), cut)})
            if (part.rows.rows) quantize_groups(*setting.tier, part, setting.threads);
        out.expect(c, std::string(layout.name) + ", cut");
    }
}

// A NaN is refused by its row and column.
void check_group_refusal(const Case& c, const Setting& setting) {
    for (const Layout& layout : LAYOUTS) {
        Source source(c, layout);
        const Groups out(c, 0);
        int64_t row, col;
        source.spoil(c.index, row, col);
        expect_refusal(quantize_groups(*setting.tier, out.job(source.job, 0), setting.threads), row, col, layout.name);
    }
}

void check_group_decode(const Case& c, const Setting& setting) {
    const Bytes& decoded = c.bytes("decoded");
    const int64_t rows = c.number("rows"), cols = c.number("cols");
    if (rows * cols * 4 != static_cast<int64_t>(decoded.size()))
        throw std::runtime_error("cases: decoded values of another size");
    for (int64_t shift : {0, 1}) {
        const Groups in(c, shift);
        const std::unique_ptr<float[]> out(new float[static_cast<size_t>(rows * cols)]);
        dequantize_groups(*setting.tier,
                          {in.codes.data, in.scales.data, in.biases.data, in.scale_type, rows, cols, in.group_size,
                           in.bits, out.get()},
                          setting.threads);
        expect_same(reinterpret_cast<const uint8_t*>(out.get()), decoded, "decoded");
    }
}

}  // namespace quantkit
