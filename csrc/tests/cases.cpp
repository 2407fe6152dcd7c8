#include "tests/cases.h"

#include <cstring>
#include <stdexcept>

namespace quantkit {
namespace {

constexpr char MAGIC[] = "QKCASES1";

bool read(std::FILE* file, void* to, size_t n) { return std::fread(to, 1, n, file) == n; }

Bytes read_sized(std::FILE* file) {
    uint64_t n;
    if (!read(file, &n, 8) || n > (uint64_t{1} << 32)) throw std::runtime_error("cases: no size where one is due");
    Bytes bytes(n);
    if (!read(file, bytes.data(), n)) throw std::runtime_error("cases: the file is cut short");
    return bytes;
}

template <class T>
std::vector<T> values_of(const Bytes& bytes) {
    std::vector<T> values(bytes.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
    return values;
}

}  // namespace

std::string Case::text(const std::string& name) const {
    const Bytes& b = bytes(name);
    return std::string(b.begin(), b.end());
}

int64_t Case::number(const std::string& name) const { return std::stoll(text(name)); }

std::vector<float> Case::floats(const std::string& name) const { return values_of<float>(bytes(name)); }

std::vector<int64_t> Case::words(const std::string& name) const { return values_of<int64_t>(bytes(name)); }

Format Case::format() const {
    const std::string name = text("format");
    for (int i = 0; i < static_cast<int>(Format::count); i++)
        if (name == FORMATS[i].name) return static_cast<Format>(i);
    throw std::runtime_error("cases: no format " + name);
}

std::vector<Case> read_cases(std::FILE* file) {
    char magic[8];
    if (!read(file, magic, 8) || std::memcmp(magic, MAGIC, 8) != 0) throw std::runtime_error("not a file of cases");
    std::vector<Case> cases;
    for (uint64_t fields; read(file, &fields, 8);) {
        Case c;
        c.index = static_cast<int64_t>(cases.size());
        for (uint64_t i = 0; i < fields; i++) {
            const Bytes name = read_sized(file);
            c.fields[std::string(name.begin(), name.end())] = read_sized(file);
        }
        cases.push_back(std::move(c));
    }
    return cases;
}

void expect_same(const uint8_t* found, const Bytes& expected, const std::string& what) {
    for (size_t i = 0; i < expected.size(); i++)
        if (found[i] != expected[i])
            throw std::runtime_error(what + ": byte " + std::to_string(i) + " of " + std::to_string(expected.size()) +
                                     " is " + std::to_string(found[i]) + ", expected " + std::to_string(expected[i]));
}

}  // namespace quantkit
