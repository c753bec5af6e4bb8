// What the tests of image operations share: guarded memory, bfloat16, sums that know how large their terms were.
#pragma once

#include <cstdlib>
#include <cstring>

#include "check.h"
#include "math/bf16.h"

namespace check {

template <typename Stored>
Stored stored(double value) {
  if constexpr (sizeof(Stored) == 2) return dipengine::bf16_from_float(static_cast<float>(value));
  else return static_cast<Stored>(value);
}

template <typename Stored>
double widen(Stored value) {
  if constexpr (sizeof(Stored) == 2) return dipengine::float_from_bf16(value);
  else return static_cast<double>(value);
}

// `count` values, 64-byte aligned, full of NaN, with bytes around them that nobody may write. Where the address sanitizer
// watches, the memory ends with the last value, so that it also sees reads.
template <typename T>
class Guarded {
 public:
  explicit Guarded(int64_t count) : bytes_(static_cast<size_t>(count) * sizeof(T)) {
    if (posix_memalign(reinterpret_cast<void**>(&memory_), 64, 64 + bytes_ + kBehind) != 0) std::abort();
    memset(memory_, 0xff, 64 + bytes_ + kBehind);  // NaN in every float
  }
  ~Guarded() { std::free(memory_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  T* data() { return reinterpret_cast<T*>(memory_ + 64); }
  T& operator[](int64_t i) { return data()[i]; }
  size_t bytes() const { return bytes_; }
  bool intact() const {
    for (size_t i = 0; i < 64 + kBehind; ++i) {
      if (memory_[i < 64 ? i : bytes_ + i] != 0xff) return false;
    }
    return true;
  }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kBehind = 0;
#else
  static constexpr size_t kBehind = 64;
#endif
  size_t bytes_;
  unsigned char* memory_;
};

// A sum in float64 and that of its terms' absolute values: rounding errors are in proportion to the latter.
struct Sum {
  double value = 0, size = 0;
  void add(double term) { add(term, std::fabs(term)); }
  void add(double term, double term_size) {
    value += term;
    size += term_size;
  }
  void add(const Sum& other, double factor) { add(other.value * factor, other.size * std::fabs(factor)); }
};

// Whether `got` is within tolerance * size of a sum; false for NaN.
inline bool near(double got, const Sum& expected, double tolerance) {
  return std::fabs(got - expected.value) <= tolerance * expected.size;
}

// What an upsampled axis reads: sample q of 2n is a sum of two of n samples (half-pixel centres), or one of itself.
struct Two {
  int64_t index[2];
  double weight[2];
};
inline Two upsampled_sample(int64_t q, int64_t n, int upsample) {
  if (upsample == 0) return {{q, q}, {1, 0}};
  if (upsample == 1) return {{q / 2, q / 2}, {1, 0}};
  const double position = std::fmax(0, (static_cast<double>(q) + 0.5) / 2 - 0.5);
  const int64_t low = static_cast<int64_t>(position);
  const double high_share = position - static_cast<double>(low);
  return {{low, low + 1 < n ? low + 1 : low}, {1 - high_share, high_share}};
}

}  // namespace check
