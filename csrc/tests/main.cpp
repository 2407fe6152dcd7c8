// The machine room without Python: recorded cases from standard input, over tiers and threads. Exit status 0 when all
// are as recorded.
//
//     machine_tests [--tier NAME ...] [--threads N ...] < CASES
//
// Tiers: all that this processor supports when none is named; one that is named must be supported.
#include <cstring>
#include <exception>
#include <stdexcept>

#include "cpu.h"
#include "tests/cases.h"

using namespace quantkit;

namespace {

struct Check {
    const char* op;
    const char* name;
    void (*run)(const Case&, const Setting&);
};
constexpr Check CHECKS[] = {
    {"encode", "encode", check_encode},       {"encode", "refuse", check_refusal},
    {"encode", "decode", check_decode},       {"matmul", "matmul", check_matmul},
    {"groups", "encode", check_group_encode}, {"groups", "refuse", check_group_refusal},
    {"groups", "decode", check_group_decode},
};

int run(const std::vector<const Tier*>& tiers, const std::vector<int>& threads) {
    const std::vector<Case> cases = read_cases(stdin);
    int64_t runs = 0, failures = 0;
    for (const Case& c : cases)
        for (const Check& check : CHECKS) {
            if (c.text("op") != check.op) continue;
            for (const Tier* tier : tiers)
                for (int n : threads) {
                    runs++;
                    try {
                        check.run(c, {tier, n});
                    } catch (const std::exception& e) {
                        if (++failures <= 20)
                            std::printf("FAILED: case %lld, %s %s, tier %s, %d threads: %s\n",
                                        static_cast<long long>(c.index), check.name, c.text("format").c_str(),
                                        tier->name, n, e.what());
                    }
                }
        }
    std::printf("%lld cases, %lld runs, %lld failures; tiers", static_cast<long long>(cases.size()),
                static_cast<long long>(runs), static_cast<long long>(failures));
    for (const Tier* tier : tiers) std::printf(" %s", tier->name);
    std::printf("; processor: avx2 %d avx512 %d vnni %d\n", has_avx2(), has_avx512(), has_vnni());
    return runs == 0 || failures != 0;
}

}  // namespace

int main(int argc, char** argv) {
    std::vector<const Tier*> tiers;
    std::vector<int> threads;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!std::strcmp(argv[i], "--tier")) {
            tiers.push_back(find_tier(argv[i + 1]));
            if (!tiers.back()) {
                std::printf("FAILED: tier %s is not built, or this processor lacks it\n", argv[i + 1]);
                return 1;
            }
        } else if (!std::strcmp(argv[i], "--threads")) {
            threads.push_back(std::stoi(argv[i + 1]));
        } else {
            std::printf("FAILED: %s is not an option\n", argv[i]);
            return 2;
        }
    }
    if (tiers.empty())
        for (const Tier* tier : tiers_built())
            if (tier->supported()) tiers.push_back(tier);
    if (threads.empty()) threads = {1, 3};
    try {
        return run(tiers, threads);
    } catch (const std::exception& e) {
        std::printf("FAILED: %s\n", e.what());
        return 1;
    }
}
