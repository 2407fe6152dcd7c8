// Recorded cases (tools/cases.py): named fields of bytes.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>
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
    std::vector<int64_t> words(const std::string& name) const;
    Format format() const;
};

// Reads until the end of the file; throws std::runtime_error where it is cut short or is no file of cases.
std::vector<Case> read_cases(std::FILE* file);

// Memory that ends where its last byte is, so that a sanitizer sees the next; `shift` bytes spoil its alignment.
struct Exact {
    std::unique_ptr<uint8_t[]> memory;
    uint8_t* data;

    Exact(int64_t n, int64_t shift) : memory(new uint8_t[static_cast<size_t>(n + shift)]), data(memory.get() + shift) {}
    Exact(const Bytes& bytes, int64_t shift) : Exact(static_cast<int64_t>(bytes.size()), shift) {
        std::memcpy(data, bytes.data(), bytes.size());
    }
};

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
void check_matmul(const Case&, const Setting&);
void check_group_encode(const Case&, const Setting&);
void check_group_refusal(const Case&, const Setting&);
void check_group_decode(const Case&, const Setting&);

}  // namespace quantkit
