// Arrays of other libraries, by DLPack. numpy's own importer knows no bfloat16, which is what most weights are.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace nb = nanobind;
using namespace nb::literals;

using Code = nb::dlpack::dtype_code;
using Any = nb::ndarray<nb::ro>;
using Numpy = nb::ndarray<nb::numpy, nb::ro>;

static std::string dtype_name(nb::dlpack::dtype dtype) {
    static const char* kinds[] = {"int",
                                  "uint",
                                  "float",
                                  "opaque",
                                  "bfloat",
                                  "complex",
                                  "bool",
                                  "float8_e3m4",
                                  "float8_e4m3",
                                  "float8_e4m3b11fnuz",
                                  "float8_e4m3fn",
                                  "float8_e4m3fnuz",
                                  "float8_e5m2",
                                  "float8_e5m2fnuz",
                                  "float8_e8m0fnu",
                                  "float6_e2m3fn",
                                  "float6_e3m2fn",
                                  "float4_e2m1fn"};
    const bool known = dtype.code < sizeof kinds / sizeof *kinds;
    const std::string kind = known ? kinds[dtype.code] : "dtype code " + std::to_string(dtype.code);
    const std::string bits = dtype.code < 6 && dtype.bits ? std::to_string(dtype.bits) : "";
    return kind + bits + (dtype.lanes == 1 ? "" : " x " + std::to_string(dtype.lanes));
}

static bool known_to_numpy(nb::dlpack::dtype dtype) {
    if (dtype.lanes != 1) return false;
    switch (static_cast<Code>(dtype.code)) {
        case Code::Int:
        case Code::UInt:
            return dtype.bits == 8 || dtype.bits == 16 || dtype.bits == 32 || dtype.bits == 64;
        case Code::Float:
            return dtype.bits == 16 || dtype.bits == 32 || dtype.bits == 64;
        case Code::Bool:
            return dtype.bits == 8;
        default:
            return false;
    }
}

// The processor can read plain memory (1), and what CUDA (3) and ROCm (11) have pinned in it.
static bool in_host_memory(int device_type) { return device_type == 1 || device_type == 3 || device_type == 11; }

static std::tuple<std::optional<Numpy>, std::string, int> from_dlpack(Any array) {
    nb::dlpack::dtype dtype = array.dtype();
    const std::string name = dtype_name(dtype);
    const int device = array.device_type();
    if (dtype.code == static_cast<uint8_t>(Code::Bfloat) && dtype.bits == 16)
        dtype = {uint8_t(Code::UInt), 16, dtype.lanes};
    if (!in_host_memory(device) || !known_to_numpy(dtype)) return {std::nullopt, name, device};
    const size_t ndim = array.ndim();
    std::vector<size_t> shape(ndim);
    std::vector<int64_t> strides(ndim);
    for (size_t i = 0; i < ndim; i++) shape[i] = array.shape(i), strides[i] = array.stride(i);
    const void* data = array.data();
    auto held = std::make_unique<Any>(std::move(array));
    nb::capsule owner(held.get(), [](void* p) noexcept { delete static_cast<Any*>(p); });
    held.release();
    return {Numpy(data, ndim, shape.data(), owner, strides.data(), dtype), name, device};
}

void bind_array(nb::module_& m) {
    m.def(
        "from_dlpack", &from_dlpack, "capsule"_a,
        "(array, dtype, device type) of a DLPack capsule, without a copy. bfloat16 arrives as its bits in uint16; the "
        "array is None when it lies on another device or numpy lacks its type.");
}
