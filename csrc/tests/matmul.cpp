// Products with int8 activations: whatever the tier and the threads, the floats are those that were recorded.
#include "matmul/job.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "tests/cases.h"

namespace quantkit {
namespace {

// A recorded product.
struct Product {
    Exact packed;
    std::vector<float> scales, biases, x;
    std::vector<int64_t> order, starts;
    MatmulJob job;

    explicit Product(const Case& c) : packed(c.bytes("packed"), 1), x(c.floats("x")) {
        Weights w = {};
        w.rows = c.number("rows");
        w.cols = c.number("cols");
        w.codes = packed.data;
        const int64_t experts = c.number("experts");
        w.row_bytes = static_cast<int64_t>(c.bytes("packed").size()) / (experts * w.rows);
        w.format = Format::count;
        if (c.has("bits")) {
            w.bits = static_cast<int>(c.number("bits"));
            w.group_shift = static_cast<int>(c.number("group_shift"));
            w.scales = (scales = c.floats("scales")).data();
            w.biases = (biases = c.floats("biases")).data();
            w.groups = static_cast<int64_t>(scales.size()) / w.rows;
        } else {
            w.format = c.format();
        }
        job = {w, x.data(), c.number("n"), experts, nullptr, nullptr, nullptr};
        if (c.has("order")) {
            job.order = (order = c.words("order")).data();
            job.starts = (starts = c.words("starts")).data();
        }
    }
};

void check_with(const MatmulKernels& kernels, const std::string& name, const Case& c, int threads) {
    Product product(c);
    const Bytes& expected = c.bytes("out");
    std::vector<float> out(expected.size() / 4, std::numeric_limits<float>::quiet_NaN());
    product.job.out = out.data();
    if (!matmul(kernels, product.job, threads).ok()) throw std::runtime_error(name + ": refused");
    expect_same(reinterpret_cast<const uint8_t*>(out.data()), expected, name);

    const int64_t at = c.index * 131 % static_cast<int64_t>(product.x.size());
    product.x[static_cast<size_t>(at)] = std::numeric_limits<float>::infinity();
    const MatmulResult refused = matmul(kernels, product.job, threads);
    if (refused.bad_row * product.job.weights.cols + refused.bad_col != at)
        throw std::runtime_error(name + ": an infinity at " + std::to_string(at) + " was reported at row " +
                                 std::to_string(refused.bad_row) + ", column " + std::to_string(refused.bad_col));
}

// Repacked weights go back to what they were, and give each row of x what plain ones give four of it, bit by bit.
void check_repacked(const MatmulKernels& kernels, const std::string& name, const Case& c, int threads) {
    Product product(c);
    const Weights& w = product.job.weights;
    if (w.format == Format::count) return;
    const int64_t experts = product.job.experts, n = product.job.n;
    MatmulJob job = product.job;
    job.weights.repacked = true;
    Exact repacked(experts * job.weights.rows_apart() * w.row_bytes, 1);
    repack(kernels, job.weights, experts, w.codes, repacked.data, false, threads);
    Exact back(experts * w.rows * w.row_bytes, 3);
    repack(kernels, job.weights, experts, repacked.data, back.data, true, threads);
    expect_same(back.data, c.bytes("packed"), name + ", repacked and back");

    MatmulJob fourfold = product.job;
    std::vector<float> x, expected(static_cast<size_t>(4 * n * w.rows)), out(static_cast<size_t>(n * w.rows));
    std::vector<int64_t> order, starts;
    for (int64_t i = 0; i < 4 * n; i++) {
        x.insert(x.end(), product.x.begin() + i / 4 * w.cols, product.x.begin() + (i / 4 + 1) * w.cols);
        if (job.order) order.push_back(4 * job.order[i / 4] + i % 4);
    }
    for (int64_t e = 0; job.starts && e <= experts; e++) starts.push_back(4 * job.starts[e]);
    fourfold.x = x.data(), fourfold.n = 4 * n, fourfold.out = expected.data();
    if (job.order) fourfold.order = order.data(), fourfold.starts = starts.data();
    job.weights.codes = repacked.data, job.out = out.data();
    if (!matmul(kernels, fourfold, threads).ok() || !matmul(kernels, job, threads).ok())
        throw std::runtime_error(name + ", repacked: refused");
    Bytes wanted(static_cast<size_t>(4 * n * w.rows));
    for (int64_t i = 0; i < n; i++)
        std::memcpy(wanted.data() + 4 * i * w.rows, expected.data() + 4 * i * w.rows, static_cast<size_t>(4 * w.rows));
    expect_same(reinterpret_cast<const uint8_t*>(out.data()), wanted, name + ", repacked");
}

// The product in floats, against doubles: rows of the result lie apart, and what is between them stays.
void check_floats(const Case& c, const Setting& setting) {
    Product product(c);
    const Weights& w = product.job.weights;
    if (!setting.tier->float_panels || w.format == Format::count || product.job.experts != 1) return;
    const int64_t n = product.job.n, stride = w.rows + 3;
    std::vector<float> decoded(static_cast<size_t>(w.rows * w.cols)), out(static_cast<size_t>(n * stride), -1.5f);
    decode(*setting.tier, w.format, w.codes, decoded.data(),
           w.rows * w.cols / FORMATS[static_cast<int>(w.format)].block_size, 1);
    const FloatJob job = {w.format,    product.x.data(), n,          w.cols, w.codes,
                          w.row_bytes, w.rows,           out.data(), stride, false};
    const bool finite = multiply(*setting.tier, job, setting.threads);
    if (finite != std::all_of(out.begin(), out.end(), [](float y) { return std::isfinite(y); }))
        throw std::runtime_error("floats: finite or not is not what is said");
    const double each = static_cast<double>(w.cols + 2) * std::numeric_limits<float>::epsilon();
    for (int64_t i = 0; i < n; i++)
        for (int64_t row = 0; row < stride; row++) {
            double wanted = row < w.rows ? 0 : -1.5, size = 0;
            for (int64_t k = 0; row < w.rows && k < w.cols; k++) {
                const double term = static_cast<double>(product.x[static_cast<size_t>(i * w.cols + k)]) *
                                    static_cast<double>(decoded[static_cast<size_t>(row * w.cols + k)]);
                wanted += term;
                size += std::fabs(term);
            }
            const double got = static_cast<double>(out[static_cast<size_t>(i * stride + row)]);
            if (size < 1e38 && !(std::fabs(got - wanted) <= each * size + 1e-37))
                throw std::runtime_error("floats: row " + std::to_string(i) + ", output " + std::to_string(row) +
                                         " is " + std::to_string(got) + ", not " + std::to_string(wanted));
        }
    // the same weights the other way round
    std::vector<float> turned(decoded.size()), again(out.size(), -1.5f);
    for (int64_t row = 0; row < w.rows; row++)
        for (int64_t k = 0; k < w.cols; k++)
            turned[static_cast<size_t>(k * w.rows + row)] = decoded[static_cast<size_t>(row * w.cols + k)];
    FloatJob other = job;
    other.format = Format::f32;
    other.packed = reinterpret_cast<const uint8_t*>(turned.data());
    other.pitch_bytes = 4 * w.rows;
    other.out = again.data();
    other.input_major = true;
    multiply(*setting.tier, other, setting.threads);
    if (finite && again != out) throw std::runtime_error("floats: input-major weights give other sums");
}

}  // namespace

// The tier's kernels, and those that it takes on processors without VNNI.
void check_matmul(const Case& c, const Setting& setting) {
    const std::string tier = setting.tier->name;
    for (const std::string& name : matmul_names())
        if (name == tier || name.rfind(tier + "-", 0) == 0) {
            check_with(*find_matmul(name), name, c, setting.threads);
            check_repacked(*find_matmul(name), name, c, setting.threads);
        }
    check_floats(c, setting);
}

}  // namespace quantkit
