// What every door takes: arrays, and names of scalar types and tiers.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <string>

#include "dispatch.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace quantkit;

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using BytesOut = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

inline Scalar scalar_of(const std::string& name) {
    static const char* names[] = {"f32", "f16", "bf16", "f8_e4m3"};
    for (int i = 0; i < static_cast<int>(Scalar::count); i++)
        if (name == names[i]) return static_cast<Scalar>(i);
    throw nb::value_error(("unknown scalar type " + name).c_str());
}

inline const Tier& tier_of(const std::string& name) {
    const Tier* tier = find_tier(name);
    if (!tier) throw nb::value_error(("tier " + name + " is not built, or this processor lacks it").c_str());
    return *tier;
}
