// The only room that knows Python: shapes, dtypes and errors are checked here or one step above, in quantkit.kernels.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include "bind/arguments.h"
#include "cpu.h"
#include "threads.h"

static Format format_of(const std::string& name) {
    for (int i = 0; i < static_cast<int>(Format::count); i++)
        if (name == FORMATS[i].name) return static_cast<Format>(i);
    throw nb::value_error(("unknown format " + name).c_str());
}

static Weighting weighting_of(const std::string& name) {
    if (name == "plain") return Weighting::plain;
    if (name == "magnitude") return Weighting::magnitude;
    if (name == "unbiased") return Weighting::unbiased;
    throw nb::value_error(("unknown weighting " + name).c_str());
}

static nb::list format_rows() {
    nb::list rows;
    for (const FormatRow& f : FORMATS)
        rows.append(nb::make_tuple(f.name, f.ggml_type, f.block_size, f.block_bytes, f.max_abs));
    return rows;
}

static std::optional<std::tuple<int64_t, int64_t, float>> encode_bytes(
    const std::string& tier_name, const std::string& format_name, Bytes source, const std::string& scalar_name,
    int64_t offset, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride, std::optional<Floats> row_scale,
    std::optional<Floats> importance, const std::string& weighting, BytesOut out, int threads) {
    const Tier& tier = tier_of(tier_name);
    const Format format = format_of(format_name);
    const Scalar scalar = scalar_of(scalar_name);
    const FormatRow& row = FORMATS[static_cast<int>(format)];
    if (rows < 0 || cols < 0 || offset < 0 || row_stride < 0 || col_stride < 0)
        throw nb::value_error("negative size or stride");
    if (cols % row.block_size) throw nb::value_error("cols is not a multiple of the format's block size");
    const int64_t size = SCALAR_BYTES[static_cast<int>(scalar)];
    const int64_t last = rows && cols ? offset + (rows - 1) * row_stride + (cols - 1) * col_stride + 1 : 0;
    if (last * size > static_cast<int64_t>(source.size()))
        throw nb::value_error("the rows reach beyond the source buffer");
    if (rows * (cols / row.block_size) * row.block_bytes != static_cast<int64_t>(out.size()))
        throw nb::value_error("out does not have rows * row_bytes bytes");
    if (row_scale && static_cast<int64_t>(row_scale->size()) != rows)
        throw nb::value_error("scale does not have one value a row");
    if (importance && static_cast<int64_t>(importance->size()) != cols)
        throw nb::value_error("importance does not have one value a column");
    const EncodeJob job = {source.data() + offset * size,
                           scalar,
                           rows,
                           cols,
                           row_stride,
                           col_stride,
                           row_scale ? row_scale->data() : nullptr,
                           importance ? importance->data() : nullptr,
                           weighting_of(weighting),
                           out.data()};
    EncodeResult result;
    {
        nb::gil_scoped_release release;
        if (rows && cols) result = encode(tier, format, job, threads);
    }
    if (result.ok()) return std::nullopt;
    return std::make_tuple(result.bad_row, result.bad_col, result.bad_value);
}

static void decode_bytes(const std::string& tier_name, const std::string& format_name, Bytes in, FloatsOut out,
                         int threads) {
    const Tier& tier = tier_of(tier_name);
    const Format format = format_of(format_name);
    const FormatRow& row = FORMATS[static_cast<int>(format)];
    const int64_t blocks = static_cast<int64_t>(in.size()) / row.block_bytes;
    if (blocks * row.block_bytes != static_cast<int64_t>(in.size()) ||
        blocks * row.block_size != static_cast<int64_t>(out.size()))
        throw nb::value_error("the sizes of input and output do not agree");
    nb::gil_scoped_release release;
    decode(tier, format, in.data(), out.data(), blocks, threads);
}

static nb::dict build_info() {
    nb::dict info;
#if defined(__clang__)
    info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
    info["compiler"] = "gcc " __VERSION__;
#elif defined(_MSC_VER)
    info["compiler"] = "msvc " + std::to_string(_MSC_VER);
#else
    info["compiler"] = "unknown";
#endif
    nb::list built, supported;
    for (const Tier* tier : tiers_built()) {
        built.append(tier->name);
        if (tier->supported()) supported.append(tier->name);
    }
    info["tiers_built"] = built;
    info["tiers_supported"] = supported;
    info["vnni"] = has_vnni();
    info["threads"] = hardware_threads();
    return info;
}

void bind_array(nb::module_&);
void bind_dot(nb::module_&);
void bind_matmul(nb::module_&);
void bind_groups(nb::module_&);

NB_MODULE(_machine, m) {
    m.doc() = "The machine room of quantkit. Use quantkit.kernels, which checks and explains what goes in.";
    m.def("formats", &format_rows, "Rows (name, ggml type, elements per block, bytes per block, largest magnitude).");
    m.def("encode", &encode_bytes, "tier"_a, "format"_a, "source"_a, "scalar"_a, "offset"_a, "rows"_a, "cols"_a,
          "row_stride"_a, "col_stride"_a, "row_scale"_a.none(), "importance"_a.none(), "weighting"_a, "out"_a,
          "threads"_a, "None, or (row, column, value) of the first element that cannot be encoded.");
    m.def("decode", &decode_bytes, "tier"_a, "format"_a, "packed"_a, "out"_a, "threads"_a);
    m.def("build_info", &build_info,
          "Compiler, tiers built, tiers this processor supports, whether it has AVX512_VNNI, threads.");
    bind_array(m);
    bind_dot(m);
    bind_matmul(m);
    bind_groups(m);
}
