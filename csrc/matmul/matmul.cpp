// One static split of a product over tasks: (expert, panel of weights, stretch of x) where an expert has many rows of
// x, (expert, run of rows) where it has few.
#include "matmul/job.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "dispatch.h"
#include "matmul/kernels.h"
#include "threads.h"

namespace quantkit {
namespace {

// Grown once a thread and kept: fresh pages would cost more than the work on them.
class Workspace {
  public:
    uint8_t* at_least(int64_t bytes) {
        if (static_cast<int64_t>(memory_.size()) < bytes + 64)
            memory_ = std::vector<uint8_t>(static_cast<size_t>(bytes + 64));
        return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory_.data()) + 63) & ~uintptr_t{63});
    }

  private:
    std::vector<uint8_t> memory_;
};

thread_local Workspace of_job, of_task;

struct Split {
    const MatmulJob& job;
    const MatmulKernels& kernels;
    PanelShape panel;
    int64_t vector_bytes;

    int64_t start(int64_t expert) const { return job.starts ? job.starts[expert] : expert ? job.n : 0; }
    int64_t count(int64_t expert) const { return start(expert + 1) - start(expert); }
    bool few(int64_t expert) const { return count(expert) <= VECTOR_ROWS; }
    bool vector(int64_t expert) const { return few(expert) && !job.weights.repacked; }
    int64_t tile(int64_t expert) const { return vector(expert) ? 1 : few(expert) ? VECTOR_ROWS : panel.cols; }
    Cut tiles(int64_t expert) const { return Cut(count(expert), tile(expert)); }
    const float* x(int64_t i) const { return job.x + (job.order ? job.order[i] : i) * job.weights.cols; }
    int64_t place() const { return panel.bytes > vector_bytes ? panel.bytes : vector_bytes; }
};

struct Tile {
    int64_t expert, first, n;
};
struct Task {
    int64_t expert, first_row, n_rows, first_tile, last_tile;
};

constexpr int64_t LEAST_RUN = 16;  // of rows, with few rows of x

std::vector<Tile> tiles_of(const Split& split) {
    std::vector<Tile> tiles;
    for (int64_t e = 0; e < split.job.experts; e++) {
        const Cut cut = split.tiles(e);
        for (int64_t t = 0; t < cut.count; t++) tiles.push_back({e, split.start(e) + cut.first(t), cut.size(t)});
    }
    return tiles;
}

// With few rows of x, one run of rows for one thread, otherwise long ones first and short ones last: memory is read in
// order, and threads should end together.
std::vector<Task> tasks_of(const Split& split, int threads) {
    std::vector<Task> tasks;
    const int64_t rows = split.job.weights.rows, step = split.panel.rows;
    for (int64_t e = 0; e < split.job.experts; e++) {
        if (split.few(e)) {
            for (int64_t row = 0, n; split.count(e) && row < rows; row += n) {
                n = threads == 1 ? rows : std::max(LEAST_RUN, (rows - row) / (2 * threads));
                n = std::min((n + 15) / 16 * 16, rows - row);
                tasks.push_back({e, row, n, 0, split.tiles(e).count});
            }
            continue;
        }
        const Cut runs(split.tiles(e).count, PANEL_COLUMNS / split.panel.cols);  // of tiles
        for (int64_t run = 0; run < runs.count; run++)
            for (int64_t row = 0; row < rows; row += step)
                tasks.push_back({e, row, std::min(step, rows - row), runs.first(run), runs.first(run + 1)});
    }
    return tasks;
}

bool prepare(const Split& split, const Tile& tile, uint8_t* prepared) {
    const Weights& w = split.job.weights;
    uint8_t* out = prepared + tile.first * split.place();
    if (split.vector(tile.expert)) return split.kernels.prepare_vector(w, split.x(tile.first), out);
    const float* x[64];
    for (int64_t i = 0; i < tile.n; i++) x[i] = split.x(tile.first + i);
    const int64_t start = split.start(tile.expert);
    return split.kernels.prepare_panel(w, x, static_cast<int>(tile.n), tile.first - start, split.count(tile.expert),
                                       prepared + start * split.place(), of_task.at_least(tile.n * split.vector_bytes));
}

// Whether all that came out is finite.
bool run(const Split& split, const Task& task, const uint8_t* prepared) {
    const MatmulJob& job = split.job;
    const int64_t start = split.start(task.expert), n = split.count(task.expert), rows = job.weights.rows;
    const uint8_t* x = prepared + start * split.place();
    const int64_t row = task.expert * job.weights.rows_apart() + task.first_row;
    const int64_t* order = job.order ? job.order + start : nullptr;
    if (!split.vector(task.expert))
        return split.kernels.panel({&job.weights, row, task.n_rows, x, n, task.first_tile, task.last_tile, order, start,
                                    job.out + task.first_row, rows, of_task.at_least(split.panel.scratch)});
    VectorTask vector = {&job.weights, row, task.n_rows, {}, {}, static_cast<int>(n)};
    for (int64_t i = 0; i < n; i++) {
        vector.x[i] = x + i * split.place();
        vector.out[i] = job.out + (order ? order[i] : start + i) * rows + task.first_row;
    }
    split.kernels.vector(vector);
    bool finite = true;
    for (int64_t i = 0; i < n; i++) finite = all_finite(vector.out[i], task.n_rows) && finite;
    return finite;
}

MatmulResult first_bad(const MatmulJob& job) {
    for (int64_t i = 0; i < job.n * job.weights.cols; i++)
        if (!std::isfinite(job.x[i])) return {i / job.weights.cols, i % job.weights.cols, job.x[i], false};
    return {};
}

}  // namespace

#if defined(QUANTKIT_X86)
namespace matmul_avx512 {
extern const MatmulKernels KERNELS;
}
#endif

const MatmulKernels* find_matmul(const std::string& name) {
#if defined(QUANTKIT_X86)
    if (name == "avx512-maddubs") return find_tier("avx512") ? &matmul_avx512::KERNELS : nullptr;
#endif
    const Tier* tier = find_tier(name);
    return tier ? tier->matmul() : nullptr;
}

std::vector<std::string> matmul_names() {
    std::vector<std::string> names;
    for (const Tier* tier : tiers_built())
        if (tier->supported()) names.push_back(tier->name);
    if (find_matmul("avx512-maddubs")) names.push_back("avx512-maddubs");
    return names;
}

MatmulResult matmul(const MatmulKernels& kernels, const MatmulJob& job, int threads) {
    const Split split = {job, kernels, kernels.panel_shape(job.weights), kernels.vector_bytes(job.weights)};
    uint8_t* prepared = of_job.at_least(job.n * split.place());
    const std::vector<Tile> tiles = tiles_of(split);
    std::atomic<bool> bad{false};
    const auto prepare_tile = [&](int64_t i) {
        if (!prepare(split, tiles[static_cast<size_t>(i)], prepared)) bad = true;
    };
    parallel_for(static_cast<int64_t>(tiles.size()), threads, prepare_tile, After::look);
    if (bad) return first_bad(job);
    const std::vector<Task> tasks = tasks_of(split, threads > 0 ? threads : hardware_threads());
    std::atomic<bool> beyond{false};
    const auto run_task = [&](int64_t i) {
        if (!run(split, tasks[static_cast<size_t>(i)], prepared)) beyond = true;
    };
    parallel_for(static_cast<int64_t>(tasks.size()), threads, run_task, After::look);
    MatmulResult result;
    result.finite = !beyond;
    return result;
}

void repack(const MatmulKernels& kernels, const Weights& w, int64_t experts, const uint8_t* from, uint8_t* to,
            bool back, int threads) {
    const int64_t groups = w.rows_apart() / 16;
    const auto sixteen = [&](int64_t i) {
        const int64_t row = i % groups * 16, n = std::min<int64_t>(16, w.rows - row);
        const int64_t plain = (i / groups * w.rows + row) * w.row_bytes, repacked = i * 16 * w.row_bytes;
        if (n == 16) return kernels.repack(w, from + (back ? repacked : plain), to + (back ? plain : repacked), back);
        uint8_t* rows = of_task.at_least(16 * w.row_bytes);
        const size_t n_bytes = static_cast<size_t>(n * w.row_bytes);
        if (back) {
            kernels.repack(w, from + repacked, rows, back);
            std::memcpy(to + plain, rows, n_bytes);
            return;
        }
        std::memcpy(rows, from + plain, n_bytes);
        std::memset(rows + n_bytes, 0, static_cast<size_t>((16 - n) * w.row_bytes));
        kernels.repack(w, rows, to + repacked, back);
    };
    parallel_for(experts * groups, threads, sixteen);
}

}  // namespace quantkit
