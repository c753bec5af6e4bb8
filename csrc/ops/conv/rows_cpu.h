// Rows of the convolutions on a CPU: what is folded into loading an operand and into storing a result.
//
//   Prologue       x -> outer(leaky_relu(inner(x))), per channel
//   load_row       a row of a source, normalised, as elements of an operand
//   store_raw      a row of sums: bias, rounding, BatchNorm's moments of what was stored
//
// Their counterparts of the backward pass are in gradient_rows_cpu.h.
//
// Channels are padded to whole registers with zeros, in buffers and in coefficient arrays.
#pragma once

#include "ops/conv/product_cpu.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

DIPENGINE_INLINE int64_t round_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }
DIPENGINE_INLINE int64_t ceil_divide(int64_t n, int64_t step) { return (n + step - 1) / step; }
DIPENGINE_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
DIPENGINE_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Hands out pieces of the workspace, 64-byte aligned; with a null base it only counts.
class Carver {
 public:
  explicit Carver(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* take(int64_t count) {
    char* piece = base_ == nullptr ? nullptr : base_ + used_;
    used_ += static_cast<size_t>(round_up(count * static_cast<int64_t>(sizeof(T)), 64));
    return reinterpret_cast<T*>(piece);
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

template <typename Real>
struct Prologue {
  bool has_inner, has_outer;
  Real slope;
  Real *inner_scale, *inner_shift, *outer_scale, *outer_shift;  // [channels padded]

  void carve(Carver& carver, int64_t padded) {
    for (Real** array : {&inner_scale, &inner_shift, &outer_scale, &outer_shift}) *array = carver.take<Real>(padded);
  }

  void fill(const dipengine_conv_source& source, int64_t padded) {
    has_inner = source.inner.scale != nullptr || source.slope != 1;
    has_outer = source.outer.scale != nullptr;
    slope = static_cast<Real>(source.slope);
    fill_affine(source.inner, source.channels, padded, inner_scale, inner_shift);
    fill_affine(source.outer, source.channels, padded, outer_scale, outer_shift);
  }

 private:
  static void fill_affine(const dipengine_affine& affine, int64_t channels, int64_t padded, Real* scale, Real* shift) {
    for (int64_t c = 0; c < padded; ++c) {
      const bool given = affine.scale != nullptr && c < channels;
      scale[c] = given ? static_cast<Real>(affine.scale[c]) : Real(c < channels);
      shift[c] = given ? static_cast<Real>(affine.shift[c]) : Real(0);
    }
  }
};

template <typename Real, bool kInner, bool kOuter>
DIPENGINE_INLINE typename Vec<Real>::Register normalise(const Prologue<Real>& p, typename Vec<Real>::Register x, int64_t c) {
  using V = Vec<Real>;
  if (kInner) {
    x = V::fma(x, V::load(p.inner_scale + c), V::load(p.inner_shift + c));
    x = V::where_positive(x, x, V::mul(x, V::set(p.slope)));
  }
  if (kOuter) x = V::fma(x, V::load(p.outer_scale + c), V::load(p.outer_shift + c));
  return x;
}

template <typename Real, bool kInner, bool kOuter, typename Stored, typename Element>
DIPENGINE_INLINE void load_pixel_as(const Prologue<Real>& p, const Stored* from, int64_t channels, Element* to,
                                    int64_t block_stride) {
  using V = Vec<Real>;
  int64_t c = 0;
  for (; c + V::size <= channels; c += V::size, to += block_stride) {
    V::store(to, normalise<Real, kInner, kOuter>(p, V::load(from + c), c));
  }
  if (c < channels) V::store(to, normalise<Real, kInner, kOuter>(p, V::load_part(from + c, static_cast<int>(channels - c)), c));
}

template <typename Real, typename Stored, typename Element>
DIPENGINE_INLINE void load_pixel(const Prologue<Real>& p, const Stored* from, int64_t channels, Element* to,
                                 int64_t block_stride) {
  if (p.has_inner && p.has_outer) return load_pixel_as<Real, true, true>(p, from, channels, to, block_stride);
  if (p.has_inner) return load_pixel_as<Real, true, false>(p, from, channels, to, block_stride);
  if (p.has_outer) return load_pixel_as<Real, false, true>(p, from, channels, to, block_stride);
  load_pixel_as<Real, false, false>(p, from, channels, to, block_stride);
}

// Fetches a pixel's `bytes` at `ahead` of one that is being read: rows are read from memory or the third-level cache, whose latency
// the hardware hides within a page only.
constexpr int64_t kAhead = 4096;
DIPENGINE_INLINE void fetch_ahead(const void* pixel, int64_t bytes) {
  const char* at = static_cast<const char*>(pixel) + kAhead;
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(at + i, 0, 2);
}

// How the pixels of a row are laid out: a register of channels after the other, block_stride elements apart.
struct RowLayout {
  int64_t pixel_stride, block_stride;
};
template <typename Real>
DIPENGINE_INLINE RowLayout side_by_side(int64_t padded) {
  return {padded, Vec<Real>::size};
}
template <typename Real>
DIPENGINE_INLINE RowLayout in_blocks(int64_t pixels) {
  return {Vec<Real>::size, pixels * Vec<Real>::size};
}

// Every step-th of padded columns [begin, end) of padded row `y` of a source, normalised.
template <typename Real, typename Stored, typename Element>
static void load_row(const dipengine_conv_source& s, const Prologue<Real>& p, int padding, int64_t y, int64_t begin, int64_t end,
                     int64_t step, Element* to, RowLayout layout) {
  const int64_t row = padded_index(y, s.height, padding);
  const Stored* from = static_cast<const Stored*>(s.x.data) + row * s.x.row_stride;
  for (int64_t u = begin; u < end; u += step, to += layout.pixel_stride) {
    const int64_t i = padded_index(u, s.width, padding);
    if (row < 0 || i < 0) {
      for (int64_t c = 0; c < s.channels; c += Vec<Real>::size) {
        memset(to + c / Vec<Real>::size * layout.block_stride, 0, Vec<Real>::size * sizeof(Element));
      }
    } else {
      fetch_ahead(from + i * s.x.pixel_stride, s.channels * static_cast<int64_t>(sizeof(Stored)));
      load_pixel(p, from + i * s.x.pixel_stride, s.channels, to, layout.block_stride);
    }
  }
}

// Two pixels' registers of an operand packed along pixels, interleaved.
template <typename Element>
DIPENGINE_INLINE void store_pair([[maybe_unused]] Element* to, [[maybe_unused]] typename Vec<typename Mac<Element>::Real>::Register one,
                                 [[maybe_unused]] typename Vec<typename Mac<Element>::Real>::Register two) {
#if defined(__AVX512FP16__)
  if constexpr (Mac<Element>::kPair == 2) {
    const __m512i low = _mm512_cvtepu16_epi32(Vec<float>::halves(one)), high = _mm512_cvtepu16_epi32(Vec<float>::halves(two));
    _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
#elif defined(__AVX512BF16__)
  if constexpr (Mac<Element>::kPair == 2) {
    alignas(64) static constexpr uint16_t kInterleave[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                             8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(two, one);  // `one` in the lower half
    _mm512_storeu_si512(to, _mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), both));
  }
#endif
}

// Means and centred squares of channels over the pixels of a chunk, merged row by row (T. Chan, G. Golub, R. LeVeque 1979).
struct Moments {
  double *mean, *m2;  // [channels padded]
};

DIPENGINE_INLINE void merge_moments(double count_a, double* mean_a, double* m2_a, double count_b, double mean_b, double m2_b) {
  const double total = count_a + count_b, delta = mean_b - *mean_a;
  *mean_a += delta * (count_b / total);
  *m2_a += m2_b + delta * delta * (count_a * count_b / total);
}

// kCount registers' columns of a row of sums: [pixels], `stride` apart; the last has `lanes` channels. `before` pixels were
// merged into the moments.
template <int kCount, typename Real, typename Raw>
DIPENGINE_INLINE void store_raw_lanes(const Real* sums, ptrdiff_t stride, int64_t pixels, int lanes, const Real* bias, Raw* raw,
                                      int64_t pixel_stride, int64_t before, double* mean, double* m2) {
  using V = Vec<Real>;
  using Register = typename V::Register;
  const bool whole = lanes == V::size;
  Register shift_out[kCount];
  for (int v = 0; v < kCount; ++v) shift_out[v] = bias == nullptr ? V::zero() : V::load(bias + v * V::size);
  // Stores pixel w and yields what was stored.
  auto put = [&](int64_t w, int v) {
    const Register x = V::add(V::load(sums + w * stride + v * V::size), shift_out[v]);
    Raw* to = raw + w * pixel_stride + v * V::size;
    if (v == 0) __builtin_prefetch(to + 16 * pixel_stride, 1, 3);
    if (v + 1 < kCount || whole) {
      V::store(to, x);
      return V::rounded(x, to);
    }
    V::store_part(to, x, lanes);
    return V::load_part(to, lanes);
  };
  if (mean == nullptr) {
    for (int64_t w = 0; w < pixels; ++w) {
      for (int v = 0; v < kCount; ++v) put(w, v);
    }
    return;
  }
  // Sums about a value near the mean: neither cancels where |mean| is far above the standard deviation.
  const int channels = (kCount - 1) * V::size + lanes;
  Real near[kCount * V::size];
  for (int v = 0; v < kCount; ++v) V::store(near + v * V::size, put(0, v));
  if (before > 0) {
    for (int i = 0; i < channels; ++i) near[i] = static_cast<Real>(mean[i]);
  }
  Register centre[kCount], first[kCount], second[kCount];
  for (int v = 0; v < kCount; ++v) {
    centre[v] = V::load(near + v * V::size);
    first[v] = second[v] = V::zero();
  }
  for (int64_t w = 0; w < pixels; ++w) {
    for (int v = 0; v < kCount; ++v) {
      const Register x = V::sub(put(w, v), centre[v]);
      first[v] = V::add(first[v], x);
      second[v] = V::fma(x, x, second[v]);
    }
  }
  Real sum[kCount * V::size], square[kCount * V::size];
  for (int v = 0; v < kCount; ++v) {
    V::store(sum + v * V::size, first[v]);
    V::store(square + v * V::size, second[v]);
  }
  const double n = static_cast<double>(pixels);
  for (int i = 0; i < channels; ++i) {
    const double offset = static_cast<double>(sum[i]) / n;
    const double row_m2 = static_cast<double>(square[i]) - offset * offset * n;
    merge_moments(static_cast<double>(before), mean + i, m2 + i, n, static_cast<double>(near[i]) + offset,
                  row_m2 > 0 ? row_m2 : 0);
  }
}

// A row of sums [pixels][kBlock] as `columns` channels of raw; bias and moments at their first channel, or null.
template <typename Real, typename Raw>
static void store_raw(const Real* sums, int64_t pixels, int columns, const Real* bias, Raw* raw, int64_t pixel_stride,
                      int64_t before, Moments moments) {
  constexpr int kWidth = Vec<Real>::size;
  static_assert(kVectors == 2, "the columns are one or two registers");
  if (columns > kWidth) {
    store_raw_lanes<2>(sums, kBlock<Real>, pixels, columns - kWidth, bias, raw, pixel_stride, before, moments.mean, moments.m2);
  } else {
    store_raw_lanes<1>(sums, kBlock<Real>, pixels, columns, bias, raw, pixel_stride, before, moments.mean, moments.m2);
  }
}

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
