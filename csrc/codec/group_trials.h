// Where the search for a group's scale and bias starts: sets of points that together come closest to the best of a fine
// grid, on groups of 64 normal and Student weights with even and log-normal importance.
#pragma once
#include "codec/ends.h"

namespace quantkit {
namespace QK_TIER {

struct EndsList {
    const Ends* ends;
    int count;  // even
    bool clamped;
};

constexpr Ends QUICK_ENDS[] = {{-0.4f, 0.0f}, {0.0f, -0.4f}};  // no code needs clamping
constexpr Ends QUICK_ENDS_3[] = {{-0.6f, -0.6f}, {-0.2f, -0.8f}, {-0.8f, -0.4f}, {-0.4f, -0.6f}};
constexpr Ends QUICK_ENDS_2[] = {{-0.8f, -0.8f}, {-1.2f, -0.6f}, {-0.6f, -1.2f}, {-0.2f, -1.2f}};
constexpr Ends ENDS_2[] = {{-0.8f, -0.8f}, {-0.4f, -1.2f}, {-1.2f, -0.4f}, {-0.8f, -1.2f},
                           {-1.2f, -0.8f}, {-1.2f, 0.0f},  {0.0f, -1.2f},  {-0.6f, -0.4f},
                           {-0.4f, -0.8f}, {-1.2f, -1.2f}, {-1.2f, -0.6f}, {-0.2f, -1.2f}};
constexpr Ends ENDS_3[] = {{-0.6f, -0.6f}, {-0.2f, -1.0f}, {-0.8f, -0.2f}, {-0.4f, -0.8f},
                           {-1.2f, -1.0f}, {-1.2f, -0.2f}, {0.0f, -1.2f},  {-0.4f, -0.2f},
                           {-0.8f, -1.2f}, {-1.2f, -0.6f}, {-0.2f, -0.4f}, {-1.0f, -1.0f}};
constexpr Ends ENDS_6[] = {{-0.2f, -0.2f}, {-0.2f, 0.8f},  {-0.6f, 0.0f}, {0.2f, -0.4f}, {1.0f, 1.0f},  {0.4f, 1.0f},
                           {1.0f, 0.4f},   {-0.4f, -0.2f}, {0.2f, 0.2f},  {0.0f, -0.8f}, {0.0f, -0.4f}, {0.2f, 1.0f}};
constexpr Ends ENDS_8[] = {{-0.2f, 0.8f}, {0.8f, 0.8f}, {-0.2f, 0.3f}, {0.3f, -0.2f}, {0.05f, 0.8f}, {0.8f, 0.3f}};

template <int N>
inline EndsList list_ends(const Ends (&ends)[N], bool clamped = true) {
    static_assert(N % 2 == 0, "two at a time");
    return {ends, N, clamped};
}

inline EndsList ends_for(int bits, bool quick) {
    switch (bits) {
        case 2:
            return quick ? list_ends(QUICK_ENDS_2) : list_ends(ENDS_2);
        case 3:
            return quick ? list_ends(QUICK_ENDS_3) : list_ends(ENDS_3);
        case 4:
            return quick ? list_ends(QUICK_ENDS, false) : list_ends(Trials<15>::ENDS);
        case 5:
            return quick ? list_ends(QUICK_ENDS, false) : list_ends(Trials<31>::ENDS);
        case 6:
            return quick ? list_ends(QUICK_ENDS, false) : list_ends(ENDS_6);
        default:
            return quick ? list_ends(QUICK_ENDS, false) : list_ends(ENDS_8);
    }
}

// In a symmetric group: the code, counted from the middle, at which the largest magnitude lands. At the lower end there
// is one code more, so that the sign of the scale matters.
struct StepsList {
    const float* steps;
    int count;
};
constexpr float STEPS_2[] = {2.7f, -2.5f, 2.9f, 2.3f, -3.0f, 2.0f};
constexpr float STEPS_3[] = {4.7f, 4.1f, 5.3f, 4.4f, -4.4f, 5.0f, 3.8f, 5.6f};
constexpr float STEPS_4[] = {8.4f,  9.0f,  8.0f,  8.6f,  -7.25f, 9.4f, 7.8f,  8.2f,
                             10.0f, 11.0f, -8.6f, -9.4f, 7.4f,   6.8f, 10.5f, -8.0f};
constexpr float STEPS_5[] = {16.4f, 16.0f, -15.3f, 15.6f, 16.8f, 17.2f, 15.2f, -16.2f, 17.8f, 18.4f, 14.4f, -16.8f};
constexpr float STEPS_6[] = {32.2f, 31.0f, -30.0f, 32.6f, 31.8f, -29.25f, -31.25f, -30.75f};
constexpr float STEPS_8[] = {127.5f, -126.2f, 127.0f, 128.375f, 127.75f, -126.8f};

template <int N>
inline StepsList list_steps(const float (&steps)[N], bool quick, int few) {
    return {steps, quick ? few : N};
}

inline StepsList list_of_steps(int bits, bool quick) {
    switch (bits) {
        case 2:
            return list_steps(STEPS_2, quick, 3);
        case 3:
            return list_steps(STEPS_3, quick, 3);
        case 4:
            return list_steps(STEPS_4, quick, 3);
        case 5:
            return list_steps(STEPS_5, quick, 3);
        case 6:
            return list_steps(STEPS_6, quick, 3);
        default:
            return list_steps(STEPS_8, quick, 2);
    }
}

}  // namespace QK_TIER
}  // namespace quantkit
