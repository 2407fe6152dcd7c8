// Group quantization in MLX's affine layout.
#include "groups.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include "bind/arguments.h"

static Scalar scale_type_of(const std::string& name) {
    const Scalar type = scalar_of(name);
    if (type == Scalar::f8_e4m3) throw nb::value_error("scales are f32, f16 or bf16");
    return type;
}

static void check_groups(int64_t rows, int64_t cols, int64_t group_size, int bits, Scalar scale_type, size_t codes,
                         size_t scales, size_t biases) {
    if ((bits < 2 || bits > 6) && bits != 8) throw nb::value_error("bits are 2, 3, 4, 5, 6 or 8");
    if (rows < 0 || cols < 0) throw nb::value_error("negative size");
    if (group_size <= 0 || group_size % 32 || group_size > (1 << 24) || cols % group_size)
        throw nb::value_error("group_size is a multiple of 32 that divides cols");
    if (rows * (cols / 8 * bits) != static_cast<int64_t>(codes)) throw nb::value_error("codes have the wrong size");
    const int64_t expected = rows * (cols / group_size) * SCALAR_BYTES[static_cast<int>(scale_type)];
    if (expected != static_cast<int64_t>(scales) || expected != static_cast<int64_t>(biases))
        throw nb::value_error("scales or biases have the wrong size");
}

static std::optional<std::tuple<int64_t, int64_t, float>> encode_groups(
    const std::string& tier_name, Bytes source, const std::string& scalar_name, int64_t rows, int64_t cols,
    int64_t row_stride, int64_t col_stride, std::optional<Floats> importance, int bits, int64_t group_size,
    bool symmetric, const std::string& scale_type_name, BytesOut codes, BytesOut scales, BytesOut biases, int threads) {
    const Tier& tier = tier_of(tier_name);
    const Scalar scalar = scalar_of(scalar_name), scale_type = scale_type_of(scale_type_name);
    check_groups(rows, cols, group_size, bits, scale_type, codes.size(), scales.size(), biases.size());
    if (scalar == Scalar::f8_e4m3) throw nb::value_error("weights are f32, f16 or bf16");
    if (row_stride < 0 || col_stride < 0) throw nb::value_error("negative stride");
    const int64_t size = SCALAR_BYTES[static_cast<int>(scalar)];
    const int64_t last = rows && cols ? (rows - 1) * row_stride + (cols - 1) * col_stride + 1 : 0;
    if (last * size > static_cast<int64_t>(source.size()))
        throw nb::value_error("the rows reach beyond the source buffer");
    if (importance && static_cast<int64_t>(importance->size()) != cols)
        throw nb::value_error("importance does not have one value a column");
    const EncodeJob source_rows = {source.data(),    scalar,      rows,    cols,
                                   row_stride,       col_stride,  nullptr, importance ? importance->data() : nullptr,
                                   Weighting::plain, codes.data()};
    const GroupJob job = {source_rows, bits, group_size, symmetric, scale_type, scales.data(), biases.data()};
    EncodeResult result;
    {
        nb::gil_scoped_release release;
        if (rows && cols) result = quantize_groups(tier, job, threads);
    }
    if (result.ok()) return std::nullopt;
    return std::make_tuple(result.bad_row, result.bad_col, result.bad_value);
}

static void decode_groups(const std::string& tier_name, Bytes codes, Bytes scales, Bytes biases,
                          const std::string& scale_type_name, int64_t rows, int64_t cols, int64_t group_size, int bits,
                          FloatsOut out, int threads) {
    const Tier& tier = tier_of(tier_name);
    const Scalar scale_type = scale_type_of(scale_type_name);
    check_groups(rows, cols, group_size, bits, scale_type, codes.size(), scales.size(), biases.size());
    if (rows * cols != static_cast<int64_t>(out.size())) throw nb::value_error("out has the wrong size");
    const GroupReadJob job = {codes.data(), scales.data(), biases.data(), scale_type, rows,
                              cols,         group_size,    bits,          out.data()};
    nb::gil_scoped_release release;
    dequantize_groups(tier, job, threads);
}

void bind_groups(nb::module_& m) {
    m.def(
        "group_limit", [](const std::string& scale_type) { return group_limit(scale_type_of(scale_type)); },
        "scale_type"_a, "The largest magnitude of a weight with scales of that type.");
    m.def("encode_groups", &encode_groups, "tier"_a, "source"_a, "scalar"_a, "rows"_a, "cols"_a, "row_stride"_a,
          "col_stride"_a, "importance"_a.none(), "bits"_a, "group_size"_a, "symmetric"_a, "scale_type"_a, "codes"_a,
          "scales"_a, "biases"_a, "threads"_a,
          "None, or (row, column, value) of the first element that cannot be encoded.");
    m.def("decode_groups", &decode_groups, "tier"_a, "codes"_a, "scales"_a, "biases"_a, "scale_type"_a, "rows"_a,
          "cols"_a, "group_size"_a, "bits"_a, "out"_a, "threads"_a);
}
