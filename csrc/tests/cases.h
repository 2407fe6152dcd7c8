// Recorded cases (tools/cases.py): named fields of bytes.
#pragma once
#include <cstdint>
#include <cstdio>
#include <map>
#include <string>
#include <vector>

#include "dispatch.h"

namespace quantkit {

using Bytes = std::vector<uint8_t>;

struct Case {
    int64_t index;
    std::map<std::string, Bytes> fields;

    bool has(const std::string& name) const { return fields.count(name) != 0; }
    const Bytes& bytes(const std::string& name) const { return fields.at(name); }
    std::string text(const std::string& name) const;
    int64_t number(const std::string& name) const;
    std::vector<float> floats(const std::string& name) const;
    Format format() const;
};

// Reads until the end of the file; throws std::runtime_error where it is cut short or is no file of cases.
std::vector<Case> read_cases(std::FILE* file);

// What a case is run under.
struct Setting {
    const Tier* tier;
    int threads;
};

// Throws std::runtime_error, naming the first byte that differs.
void expect_same(const uint8_t* found, const Bytes& expected, const std::string& what);

// One function an operation; each throws std::runtime_error where a result is not as recorded.
void check_encode(const Case&, const Setting&);
void check_refusal(const Case&, const Setting&);
void check_decode(const Case&, const Setting&);

}  // namespace quantkit
