// The float product of few rows of activations with packed rows of weights.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "dispatch.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace quantkit;

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void check(bool ok, const char* what) {
    if (!ok) throw nb::value_error(what);
}

Format format_of(const std::string& name) {
    int found = 0;
    while (found < static_cast<int>(Format::count) && name != FORMATS[found].name) found++;
    check(found < static_cast<int>(Format::count), "unknown format");
    return static_cast<Format>(found);
}

void matmul_few(const std::string& tier_name, const std::string& format_name, Floats x, Bytes packed, int64_t cols,
                FloatsOut out, int threads) {
    const Tier* tier = find_tier(tier_name);
    check(tier, "the tier is not built, or this processor lacks it");
    const Format found = format_of(format_name);
    const FormatRow& format = FORMATS[static_cast<int>(found)];
    const int64_t n = static_cast<int64_t>(x.shape(0)), pitch = static_cast<int64_t>(x.shape(1)),
                  rows = static_cast<int64_t>(out.shape(1));
    check(n <= DOT_ROWS && static_cast<int64_t>(out.shape(0)) == n, "x and out do not have the same few rows");
    check(cols >= 0 && cols % format.block_size == 0, "cols is not a multiple of the format's block size");
    check(pitch == (cols + 31) / 32 * 32, "x does not have cols columns, padded with zeros to a multiple of 32");
    check(static_cast<int64_t>(packed.size()) == rows * (cols / format.block_size) * format.block_bytes,
          "packed does not have rows * row_bytes bytes");
    const DotJob job = {x.data(), n, cols, pitch, packed.data(), rows, out.data()};
    nb::gil_scoped_release release;
    dot(*tier, found, job, threads);
}

using PackedRows = nb::ndarray<const uint8_t, nb::ndim<2>, nb::device::cpu>;
using FloatRows = nb::ndarray<float, nb::ndim<2>, nb::device::cpu>;

std::optional<bool> matmul_panels(const std::string& tier_name, const std::string& format_name, Floats x,
                                  PackedRows packed, FloatRows out, int threads, bool input_major) {
    const Tier* tier = find_tier(tier_name);
    check(tier, "the tier is not built, or this processor lacks it");
    if (!tier->float_panels) return {};
    const Format found = format_of(format_name);
    const FormatRow& format = FORMATS[static_cast<int>(found)];
    const int64_t n = static_cast<int64_t>(x.shape(0)), cols = static_cast<int64_t>(x.shape(1)),
                  rows = static_cast<int64_t>(out.shape(1));
    check(static_cast<int64_t>(out.shape(0)) == n, "out does not have a row for each of x");
    check(cols % format.block_size == 0, "cols is not a multiple of the format's block size");
    check(!input_major || format.block_size == 1, "only single floats lie input-major");
    const int64_t lines = input_major ? cols : rows, width = (input_major ? rows : cols) / format.block_size;
    check(static_cast<int64_t>(packed.shape(0)) == lines,
          "packed has another number of rows than out or x has columns");
    check(static_cast<int64_t>(packed.shape(1)) == width * format.block_bytes,
          "packed does not have row_bytes bytes in a row");
    check(packed.stride(1) == 1 && out.stride(1) == 1, "the rows of packed or out are not whole");
    const FloatJob job = {found,      x.data(),      n,          cols, packed.data(), packed.stride(0), rows,
                          out.data(), out.stride(0), input_major};
    nb::gil_scoped_release release;
    return multiply(*tier, job, threads);
}

}  // namespace

void bind_dot(nb::module_& m) {
    m.attr("DOT_ROWS") = DOT_ROWS;
    m.def(
        "matmul_few", &matmul_few, "tier"_a, "format"_a, "x"_a, "packed"_a, "cols"_a, "out"_a, "threads"_a,
        "out (n, rows) = x (n, cols) times the decoded rows of packed, n <= DOT_ROWS. The columns of x are padded with "
        "zeros to a multiple of 32.");
    m.def(
        "matmul_panels", &matmul_panels, "tier"_a, "format"_a, "x"_a, "packed"_a.noconvert(), "out"_a.noconvert(),
        "threads"_a, "input_major"_a = false,
        "out (n, rows) = x (n, cols) times the decoded rows of packed (rows, row_bytes), in floats. Rows of packed and "
        "out may lie apart. With input_major, which f32, f16 and bf16 may be, packed has a row for each column of x. "
        "Whether out is finite; None, and nothing done: the tier leaves it to BLAS.");
}
