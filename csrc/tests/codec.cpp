// Encoding and decoding: whatever the strides, the alignment and the cut, the bytes are those that were recorded.
#include <cstring>
#include <memory>
#include <stdexcept>

#include "tests/source.h"

namespace quantkit {
namespace {

Weighting weighting_of(const std::string& name) {
    constexpr const char* NAMES[] = {"plain", "magnitude", "unbiased"};
    for (int i = 0; i < 3; i++)
        if (name == NAMES[i]) return static_cast<Weighting>(i);
    throw std::runtime_error("cases: no weighting " + name);
}

struct Encoding : Source {
    Format format;
    int64_t row_bytes;

    Encoding(const Case& c, const Layout& layout)
        : Source(c, layout),
          format(c.format()),
          row_bytes(job.cols / FORMATS[static_cast<int>(format)].block_size *
                    FORMATS[static_cast<int>(format)].block_bytes) {
        job.weighting = weighting_of(c.text("weighting"));
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
        EncodeJob first = e.rows_before(cut), second = e.rows_from(cut);
        second.out += cut * e.row_bytes;
        for (const EncodeJob& part : {first, second})
            if (part.rows) encode(*setting.tier, e.format, part, setting.threads);
        expect_same(out.data, expected, std::string(layout.name) + ", cut");
    }
}

// A NaN is refused by its row and column.
void check_refusal(const Case& c, const Setting& setting) {
    for (const Layout& layout : LAYOUTS) {
        Encoding e(c, layout);
        int64_t row, col;
        e.spoil(c.index, row, col);
        const Exact out(e.job.rows * e.row_bytes, 0);
        e.job.out = out.data;
        expect_refusal(encode(*setting.tier, e.format, e.job, setting.threads), row, col, layout.name);
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
