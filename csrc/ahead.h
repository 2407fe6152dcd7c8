// Memory that is needed next, asked for while something else is computed.
#pragma once
#include <cstdint>

namespace quantkit {
namespace QK_TIER {

inline void fetch_ahead(const uint8_t* from) {
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch(from);
#else
    (void)from;
#endif
}

// `count` runs of bytes, `pitch` apart, a few lines with each of `steps` steps: they lie far apart, and memory is
// slower than their use.
class Ahead {
  public:
    Ahead(const uint8_t* first, int64_t pitch, int64_t n_bytes, int64_t count, int64_t steps)
        : run_(first - reinterpret_cast<uintptr_t>(first) % 64),
          pitch_(pitch),
          lines_((first - run_ + n_bytes + 63) / 64),
          runs_(n_bytes > 0 ? count : 0),
          each_(count * lines_ / steps + 1) {}
    void fetch() {
        for (int64_t i = 0; i < each_ && runs_; i++) {
            fetch_ahead(run_ + 64 * line_);
            if (++line_ == lines_) line_ = 0, run_ += pitch_, runs_--;
        }
    }

  private:
    const uint8_t* run_;
    int64_t pitch_, lines_, runs_, each_, line_ = 0;
};

}  // namespace QK_TIER
}  // namespace quantkit
