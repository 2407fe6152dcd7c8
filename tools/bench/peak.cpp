// What this machine can do at most: multiply-adds from registers, reads and writes of memory.
//
//     peak MEGABYTES
//
// Prints the names of what it can measure on a line. Then, for every line "THREADS NAME SECONDS" on stdin, one number:
// operations a second (a multiply-add counts as two) of that kind of instruction, or bytes a second of reading or writing
// MEGABYTES in all. All threads together, over the time of the slowest. Compiled at run time by ceilings.py.

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

using Clock = std::chrono::steady_clock;
// Keeps a value in a register of its own without letting the compiler know what becomes of it.
#if defined(__x86_64__)
#define OPAQUE(value) asm volatile("" : "+v"(value))
#else
#define OPAQUE(value) asm volatile("" : "+w"(value))
#endif

constexpr int kSteps = 4096;  // of each loop, per call

// Every loop has more independent accumulators than latency × ports and touches no memory. The accumulators are named one
// by one: an array of them would live on the stack.
#define EACH_8(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7)
#define EACH_12(DO) EACH_8(DO) DO(8) DO(9) DO(10) DO(11)
#define START(i) auto sum##i = zero;
#define KEEP(i) OPAQUE(sum##i);
#define REGISTER_LOOP(name, attribute, count, zero_value, one_value, STEP) \
    attribute static double name() {                                       \
        const auto zero = zero_value;                                      \
        auto a = one_value, b = one_value;                                 \
        OPAQUE(a);                                                         \
        OPAQUE(b);                                                         \
        EACH_##count(START) for (int i = 0; i < kSteps; ++i) {             \
            EACH_##count(STEP) EACH_##count(KEEP)                          \
        }                                                                  \
        return double(kSteps) * count * 2;                                 \
    }

#if defined(__x86_64__)
#define TARGET(features) __attribute__((target(features), noinline))
// maddubs, madd with ones, add: the three instructions of an int8 dot product without VNNI. An operand that is opaque in
// every step keeps the products from being hoisted out of the loop.
#define MADDUBS_256(i) \
    OPAQUE(a);         \
    sum##i = _mm256_add_epi32(sum##i, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
#define MADDUBS_512(i) \
    OPAQUE(a);         \
    sum##i = _mm512_add_epi32(sum##i, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), ones));
#define FMA_256(i) sum##i = _mm256_fmadd_ps(a, b, sum##i);
#define FMA_512(i) sum##i = _mm512_fmadd_ps(a, b, sum##i);
#define DPBUSD_512(i) sum##i = _mm512_dpbusd_epi32(sum##i, a, b);
#define ones _mm256_set1_epi16(1)
REGISTER_LOOP(maddubs_256, TARGET("avx2"), 8, _mm256_setzero_si256(), _mm256_set1_epi8(1), MADDUBS_256)
#undef ones
#define ones _mm512_set1_epi16(1)
REGISTER_LOOP(maddubs_512, TARGET("avx512f,avx512bw"), 12, _mm512_setzero_si512(), _mm512_set1_epi8(1), MADDUBS_512)
REGISTER_LOOP(fma_256, TARGET("avx2,fma"), 12, _mm256_setzero_ps(), _mm256_set1_ps(1.0f), FMA_256)
REGISTER_LOOP(fma_512, TARGET("avx512f"), 12, _mm512_setzero_ps(), _mm512_set1_ps(1.0f), FMA_512)
REGISTER_LOOP(dpbusd_512, TARGET("avx512f,avx512bw,avx512vnni"), 12, _mm512_setzero_si512(), _mm512_set1_epi8(1),
              DPBUSD_512)
#elif defined(__aarch64__)
#define FMA_NEON(i) sum##i = vfmaq_f32(sum##i, a, b);
#define SDOT_NEON(i) sum##i = vdotq_s32(sum##i, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
#define SMMLA_NEON(i) sum##i = vmmlaq_s32(sum##i, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
REGISTER_LOOP(fma_neon, , 12, vdupq_n_f32(0), vdupq_n_f32(1), FMA_NEON)
#if defined(__ARM_FEATURE_DOTPROD)
REGISTER_LOOP(sdot_neon, , 12, vdupq_n_s32(0), vdupq_n_s32(1), SDOT_NEON)
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
REGISTER_LOOP(smmla_neon, , 12, vdupq_n_s32(0), vdupq_n_s32(1), SMMLA_NEON)
#endif
#endif

struct Loop {
    const char* name;
    double lanes;  // multiply-adds in one step
    double (*run)();
};

static std::vector<Loop> loops() {
    std::vector<Loop> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) found.push_back({"int8_maddubs_256", 32, maddubs_256});
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back({"f32_fma_256", 8, fma_256});
    if (__builtin_cpu_supports("avx512bw")) found.push_back({"int8_maddubs_512", 64, maddubs_512});
    if (__builtin_cpu_supports("avx512vnni")) found.push_back({"int8_dpbusd_512", 64, dpbusd_512});
    if (__builtin_cpu_supports("avx512f")) found.push_back({"f32_fma_512", 16, fma_512});
#elif defined(__aarch64__)
    found.push_back({"f32_fma_neon", 4, fma_neon});
#if defined(__ARM_FEATURE_DOTPROD)
    found.push_back({"int8_sdot_neon", 16, sdot_neon});
#endif
#if defined(__ARM_FEATURE_MATMUL_INT8)
    found.push_back({"int8_smmla_neon", 32, smmla_neon});
#endif
#endif
    return found;
}

// Work per second of `threads` threads that all start together: total work over the time of the slowest.
static double together(int threads, const std::function<double(int)>& work) {
    std::atomic<int> waiting{threads};
    std::vector<double> done(threads), seconds(threads);
    std::vector<std::thread> others;
    auto body = [&](int index) {
        --waiting;
        while (waiting.load() > 0) {
        }
        const auto start = Clock::now();
        done[index] = work(index);
        seconds[index] = std::chrono::duration<double>(Clock::now() - start).count();
    };
    for (int i = 1; i < threads; ++i) others.emplace_back(body, i);
    body(0);
    for (auto& other : others) other.join();
    double total = 0, slowest = 0;
    for (int i = 0; i < threads; ++i) {
        total += done[i];
        slowest = seconds[i] > slowest ? seconds[i] : slowest;
    }
    return total / slowest;
}

static volatile uint64_t sink;

static double read_slice(const uint64_t* at, size_t n_words) {
    uint64_t sums[16] = {};
    for (size_t i = 0; i + 16 <= n_words; i += 16) {
        // as far ahead as the kernels fetch: what the processor does by itself is not all that memory gives
        __builtin_prefetch(at + i + 512);
        __builtin_prefetch(at + i + 520);
        for (int j = 0; j < 16; ++j) sums[j] += at[i + j];
    }
    uint64_t total = 0;
    for (uint64_t sum : sums) total += sum;
    sink = total;
    return 8.0 * n_words;
}

static double measure(int threads, const char* name, double seconds, uint64_t* memory, size_t all_words) {
    const size_t words = all_words / threads / 16 * 16;
    if (std::strcmp(name, "read") == 0)
        return together(threads, [&](int index) { return read_slice(memory + words * index, words); });
    if (std::strcmp(name, "write") == 0)
        return together(threads, [&](int index) {
            std::memset(memory + words * index, index, 8 * words);
            return 8.0 * words;
        });
    for (const Loop& loop : loops())
        if (std::strcmp(name, loop.name) == 0)
            return together(threads, [&](int) {
                const auto start = Clock::now();
                double done = 0;
                do
                    for (int i = 0; i < 16; ++i) done += loop.run() * loop.lanes;
                while (std::chrono::duration<double>(Clock::now() - start).count() < seconds);
                return done;
            });
    return 0;
}

int main(int argc, char** argv) {
    if (argc != 2) {
        std::fprintf(stderr, "peak MEGABYTES\n");
        return 2;
    }
    const size_t words = size_t(std::atoi(argv[1])) * 1000000 / 8, huge = size_t(1) << 21;
    auto* memory = static_cast<uint64_t*>(std::aligned_alloc(huge, (8 * words + huge - 1) / huge * huge));
    if (memory == nullptr) return 1;
#if defined(__linux__)
    madvise(memory, 8 * words, MADV_HUGEPAGE);  // as numpy asks for its arrays
#endif
    std::memset(memory, 1, 8 * words);
    std::printf("read write");
    for (const Loop& loop : loops()) std::printf(" %s", loop.name);
    std::printf("\n");
    std::fflush(stdout);
    char name[64];
    int threads = 0;
    double seconds = 0;
    while (std::scanf("%d %63s %lf", &threads, name, &seconds) == 3 && threads > 0) {
        std::printf("%.6g\n", measure(threads, name, seconds, memory, words));
        std::fflush(stdout);
    }
}
