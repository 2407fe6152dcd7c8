// Codes 0..QMAX over an offset, and where a search for scale and offset starts.
#pragma once
#include "codec/search.h"

namespace quantkit {
namespace QK_TIER {

// At which codes the smallest and the largest element land: `first` and QMAX - `last`. Sets of points that together
// come closest to the best of a fine grid, on blocks of normal, Student and Laplace weights.
struct Ends {
    float first, last;
};
template <int QMAX>
struct Trials;
template <>
struct Trials<15> {
    static constexpr Ends ENDS[] = {{-1.0f, 0.0f}, {-0.9f, -0.3f}, {-0.6f, -0.4f}, {-0.5f, 0.1f},
                                    {-0.3f, 0.0f}, {-0.2f, -0.7f}, {-0.2f, -0.4f}, {-0.2f, -0.1f},
                                    {0.1f, -0.8f}, {0.1f, 0.3f},   {0.1f, 0.8f},   {0.2f, -0.3f},
                                    {0.2f, 0.0f},  {0.7f, 0.0f},   {0.9f, -0.1f},  {0.9f, 0.9f}};
};
template <>
struct Trials<31> {
    static constexpr Ends ENDS[] = {{-0.7f, 0.2f}, {-0.4f, -0.4f}, {-0.4f, 0.1f}, {-0.1f, -0.7f},
                                    {-0.1f, 0.1f}, {0.1f, 0.0f},   {0.2f, -0.3f}, {0.2f, 0.8f},
                                    {0.8f, 1.0f},  {0.9f, 0.2f},   {1.0f, -0.1f}, {1.0f, 0.8f}};
};
template <>
struct Trials<3> {
    static constexpr Ends ENDS[] = {{-1.0f, 0.1f},  {-0.9f, -0.6f}, {-0.7f, -0.9f}, {-0.6f, 0.0f},
                                    {-0.4f, -0.1f}, {-0.3f, -0.9f}, {-0.3f, -0.3f}, {-0.2f, -0.4f},
                                    {0.1f, -1.0f},  {0.1f, -0.4f},  {0.1f, 0.1f},   {0.8f, -0.2f}};
};

// Where time is short: two that need no clamping.
template <int QMAX>
struct QuickTrials {
    static constexpr Ends ENDS[] = {{-0.4f, 0.0f}, {0.0f, -0.4f}};
};

// Where a search by actual errors lands the largest element: on each code, for weights that lie on a grid, and side by
// side around the last.
template <int QMAX>
constexpr auto CLOSE_STEPS = [] {
    std::array<float, QMAX + 36> steps{};
    for (int k = 0; k < QMAX - 1; k++) steps[k] = static_cast<float>(k + 1);
    for (int k = 0; k < 37; k++) steps[QMAX - 1 + k] = QMAX + 0.05f * static_cast<float>(k - 18);
    return steps;
}();

template <int QMAX>
inline F affine_code(F above, F inverse) {  // of an element that lies `above` the offset
    return max(min(round(above * inverse), set1(QMAX)), set1(0.0f));
}

}  // namespace QK_TIER
}  // namespace quantkit
