#include "cpu.h"

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif

namespace quantkit {
namespace {

struct Registers {
    uint32_t a, b, c, d;
};

Registers cpuid(uint32_t leaf) {
#if defined(_MSC_VER)
    int r[4];
    __cpuidex(r, static_cast<int>(leaf), 0);
    return {static_cast<uint32_t>(r[0]), static_cast<uint32_t>(r[1]), static_cast<uint32_t>(r[2]),
            static_cast<uint32_t>(r[3])};
#else
    Registers r;
    __cpuid_count(leaf, 0, r.a, r.b, r.c, r.d);
    return r;
#endif
}

// Which registers the operating system saves when it switches threads (XCR0).
uint64_t saved_state() {
#if defined(_MSC_VER)
    return _xgetbv(0);
#else
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<uint64_t>(high) << 32 | low;
#endif
}

constexpr bool has(uint32_t word, int bit) { return word >> bit & 1; }

struct Features {
    bool avx2 = false, avx512 = false, vnni = false;

    Features() {
        if (cpuid(0).a < 7) return;
        const Registers one = cpuid(1), seven = cpuid(7);
        constexpr uint64_t YMM = 0x6, ZMM = 0xe6;  // XMM and upper halves; masks, ZMM's upper halves, ZMM 16-31
        const uint64_t saved = has(one.c, 27) ? saved_state() : 0;
        avx2 = (saved & YMM) == YMM && has(one.c, 12) && has(one.c, 28) && has(one.c, 29) &&
               has(seven.b, 5);  // FMA, AVX, F16C, AVX2
        avx512 = avx2 && (saved & ZMM) == ZMM && has(seven.b, 16) && has(seven.b, 17) && has(seven.b, 30) &&
                 has(seven.b, 31);  // F, DQ, BW, VL
        vnni = avx512 && has(seven.c, 11);
    }
};

const Features& features() {
    static const Features found;
    return found;
}

}  // namespace

bool has_avx2() { return features().avx2; }
bool has_avx512() { return features().avx512; }
bool has_vnni() { return features().vnni; }

}  // namespace quantkit

#else

namespace quantkit {
bool has_avx2() { return false; }
bool has_avx512() { return false; }
bool has_vnni() { return false; }
}  // namespace quantkit

#endif
