// The door of `fast` products.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <utility>

#include "matmul/job.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace quantkit;

namespace {

template <class T>
using Flat = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

void check(bool ok, const char* what) {
    if (!ok) throw nb::value_error(what);
}

template <class Array>
int64_t length(const Array& a) {
    return static_cast<int64_t>(a.size());
}

Format block_format(const std::string& name) {
    for (int i = 0; i < static_cast<int>(Format::count); i++)
        if (name == FORMATS[i].name && FORMATS[i].block_size > 1) return static_cast<Format>(i);
    throw nb::value_error((name + " is no block format").c_str());
}

Weights block_weights(const std::string& name, const uint8_t* packed, int64_t n_bytes, int64_t experts, int64_t rows,
                      int64_t cols, bool repacked) {
    check(rows >= 0 && cols > 0 && experts > 0, "rows, cols or the number of experts are out of range");
    const Format format = block_format(name);
    const FormatRow& f = FORMATS[static_cast<int>(format)];
    check(cols % f.block_size == 0, "cols is not a multiple of the format's block size");
    const int64_t row_bytes = cols / f.block_size * f.block_bytes;
    const Weights weights = {format, 0, packed, row_bytes, nullptr, nullptr, 0, 0, rows, cols, repacked};
    check(n_bytes == experts * weights.rows_apart() * row_bytes, "packed does not have rows * row_bytes bytes");
    return weights;
}

// Whether the result is finite.
bool run(const std::string& tier_name, const MatmulJob& job, int64_t n_x, int64_t n_out, int threads) {
    const MatmulKernels* kernels = find_matmul(tier_name);
    if (!kernels) throw nb::value_error(("tier " + tier_name + " is not built, or this processor lacks it").c_str());
    check(n_x == job.n * job.weights.cols, "x does not have n rows of cols values");
    check(n_out == job.n * job.weights.rows, "out does not have n rows of as many values as weights have rows");
    MatmulResult result;
    {
        nb::gil_scoped_release release;
        if (job.n && job.weights.rows) result = matmul(*kernels, job, threads);
    }
    if (!result.ok())
        throw nb::value_error(("activation " + std::to_string(result.bad_value) + " at row " +
                               std::to_string(result.bad_row) + ", column " + std::to_string(result.bad_col) +
                               " is not finite")
                                  .c_str());
    return result.finite;
}

bool matmul_fast(const std::string& tier, const std::string& format, Flat<float> x, Flat<uint8_t> packed, int64_t rows,
                 int64_t cols, FloatsOut out, int threads, bool repacked) {
    const Weights weights = block_weights(format, packed.data(), length(packed), 1, rows, cols, repacked);
    return run(tier, {weights, x.data(), length(x) / cols, 1, nullptr, nullptr, out.data()}, length(x), length(out),
               threads);
}

template <class T>
using Rows = nb::ndarray<T, nb::c_contig, nb::device::cpu>;

bool matmul_direct(const std::string& tier, const std::string& format, Rows<const float> x, Rows<const uint8_t> packed,
                   Rows<float> out, int threads, std::optional<int64_t> repacked_rows) {
    check(packed.ndim() == 2 && x.ndim() == out.ndim() && (x.ndim() == 1 || x.ndim() == 2), "dimensions do not fit");
    check(x.ndim() == 1 || x.shape(0) == out.shape(0), "out has another number of rows than x");
    const FormatRow& f = FORMATS[static_cast<int>(block_format(format))];
    const int64_t rows = repacked_rows.value_or(static_cast<int64_t>(packed.shape(0))), n_bytes = length(packed);
    const int64_t cols = static_cast<int64_t>(packed.shape(1)) / f.block_bytes * f.block_size;
    check(threads >= 0 && static_cast<int64_t>(x.shape(x.ndim() - 1)) == cols, "x has another number of columns");
    check(static_cast<int64_t>(out.shape(out.ndim() - 1)) == rows, "out has another number of columns");
    const Weights weights = block_weights(format, packed.data(), n_bytes, 1, rows, cols, repacked_rows.has_value());
    const int64_t n = length(x) / cols;
    return run(tier, {weights, x.data(), n, 1, nullptr, nullptr, out.data()}, length(x), length(out), threads);
}

bool matmul_fast_groups(const std::string& tier, int bits, int64_t group_size, Flat<float> x, Flat<uint32_t> words,
                        Flat<float> scales, Flat<float> biases, int64_t rows, int64_t cols, FloatsOut out,
                        int threads) {
    check(bits == 4 || bits == 8, "bits is 4 or 8");
    check(rows >= 0 && cols > 0 && cols % 32 == 0, "cols is not a multiple of 32");
    int shift = 0;
    while (shift < 2 && (32 << shift) < group_size) shift++;
    check(group_size == cols || (group_size == (32 << shift) && cols % group_size == 0),
          "group_size is 32, 64, 128 or cols, and a whole number of them make a row");
    if (group_size == cols) shift = 40;
    const int64_t groups = cols / group_size, row_bytes = cols / 8 * bits;
    check(length(words) == rows * row_bytes / 4, "words do not have rows * cols * bits / 32 values");
    check(length(scales) == rows * groups && length(biases) == rows * groups,
          "scales or biases do not have one value a group");
    const Weights weights = {Format::count, bits,          reinterpret_cast<const uint8_t*>(words.data()),
                             row_bytes,     scales.data(), biases.data(),
                             groups,        shift,         rows,
                             cols};
    return run(tier, {weights, x.data(), length(x) / cols, 1, nullptr, nullptr, out.data()}, length(x), length(out),
               threads);
}

bool matmul_fast_experts(const std::string& tier, const std::string& format, Flat<float> x, Flat<uint8_t> packed,
                         int64_t experts, int64_t rows, int64_t cols, Flat<int64_t> order, Flat<int64_t> starts,
                         FloatsOut out, int threads, bool repacked) {
    const Weights weights = block_weights(format, packed.data(), length(packed), experts, rows, cols, repacked);
    const int64_t n = length(x) / cols;
    check(length(order) == n && length(starts) == experts + 1, "order or starts have another length");
    for (int64_t i = 0; i < n; i++) check(order.data()[i] >= 0 && order.data()[i] < n, "order names no row of x");
    check(starts.data()[0] == 0 && starts.data()[experts] == n, "starts do not go from 0 to n");
    for (int64_t e = 0; e < experts; e++) check(starts.data()[e] <= starts.data()[e + 1], "starts are not in order");
    return run(tier, {weights, x.data(), n, experts, order.data(), starts.data(), out.data()}, length(x), length(out),
               threads);
}

void repack_rows(const std::string& tier, const std::string& format, Flat<uint8_t> from, int64_t experts, int64_t rows,
                 int64_t cols, nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu> to, bool back,
                 int threads) {
    const auto& [plain, repacked] = back ? std::pair(length(to), length(from)) : std::pair(length(from), length(to));
    block_weights(format, from.data(), plain, experts, rows, cols, false);
    const Weights weights = block_weights(format, from.data(), repacked, experts, rows, cols, true);
    const MatmulKernels* kernels = find_matmul(tier);
    if (!kernels) throw nb::value_error(("tier " + tier + " is not built, or this processor lacks it").c_str());
    nb::gil_scoped_release release;
    repack(*kernels, weights, experts, from.data(), to.data(), back, threads);
}

}  // namespace

void bind_matmul(nb::module_& m) {
    m.def("matmul_tiers", &matmul_names,
          "What matmul_fast takes as tier here: the supported tiers, and their variants.");
    m.def("matmul_fast", &matmul_fast, "tier"_a, "format"_a, "x"_a, "packed"_a, "rows"_a, "cols"_a, "out"_a,
          "threads"_a, "repacked"_a = false,
          "out (n, rows) = x (n, cols) times the rows of packed, with x quantized to int8. False: not all of it is "
          "finite.");
    m.def(
        "matmul_direct", &matmul_direct, "tier"_a, "format"_a, "x"_a.noconvert(), "packed"_a.noconvert(),
        "out"_a.noconvert(), "threads"_a, "repacked_rows"_a = nb::none(),
        "matmul_fast with arrays in their own shapes; ValueError or TypeError, and nothing done, if they do not fit.");
    m.def("matmul_fast_groups", &matmul_fast_groups, "tier"_a, "bits"_a, "group_size"_a, "x"_a, "words"_a, "scales"_a,
          "biases"_a, "rows"_a, "cols"_a, "out"_a, "threads"_a, "The same for affine groups, w = scale * code + bias.");
    m.def("matmul_fast_experts", &matmul_fast_experts, "tier"_a, "format"_a, "x"_a, "packed"_a, "n_experts"_a, "rows"_a,
          "cols"_a, "order"_a, "starts"_a, "out"_a, "threads"_a, "repacked"_a = false,
          "The same for stacked experts: rows order[starts[e]:starts[e + 1]] of x belong to expert e.");
    m.def("repack", &repack_rows, "tier"_a, "format"_a, "source"_a, "n_experts"_a, "rows"_a, "cols"_a, "out"_a,
          "back"_a, "threads"_a,
          "Rows of each expert to sixteen side by side, the last filled up with zeros: what the products take as "
          "repacked. Or back.");
}
