// Rows of a correlation on a CPU.
//
// A register tile is 4 rows of the result by a few vectors along a row, channels interleaved: a neighbouring tap is an
// offset of `channels` elements. An input row serves all rows of the tile that it meets, so with V vectors a tap costs V
// loads and 4 weights for 4 V multiply-adds. Along a row the tile's inputs stay in the first-level cache.
#include "ops/blur/blur_kernels.h"
#include "platform/pixels.h"
#include "platform/simd.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {
namespace {

#if defined(__AVX512F__)
constexpr int kMostVectors = 6;  // 4 x 6 sums, 6 inputs, a weight: 31 of 32 registers
#elif defined(__AVX2__)
constexpr int kMostVectors = 3;  // 12 sums, 3 inputs, a weight: all 16 registers
#else
constexpr int kMostVectors = 2;  // 8 sums, 2 inputs, a weight, products
#endif

constexpr int kRows = static_cast<int>(kBlurRows);
static_assert(kMostVectors * Vec<float>::size <= kBlurSlack, "a tile reads no further than the slack");

// Two levels of sums behind those in registers; see blur.h.
template <typename Real>
struct alignas(64) Sums {
  static constexpr int kWidth = kMostVectors * Vec<Real>::size;
  Real runs[kRows][kWidth];
  Real all[kRows][kWidth];
  int64_t count = 0;

  void clear() {
    for (auto& row : runs) for (Real& x : row) x = 0;
    for (auto& row : all) for (Real& x : row) x = 0;
  }
  void put_away() {
    for (int k = 0; k < kRows; ++k) {
      for (int i = 0; i < kWidth; ++i) {
        all[k][i] += runs[k][i];
        runs[k][i] = 0;
      }
    }
    count = 0;
  }
};

// A run: sums.runs[first + k] += over `rows` input rows and `taps` neighbouring taps, for Count rows of the result. The
// weights of result row k lie k kernel rows before those of row 0.
template <typename Real, int Count, int Vectors>
void add_run(const Real* input, int64_t pitch, int64_t channels, const Real* weights, int64_t kernel_width, int64_t rows,
             int64_t taps, Real (*runs)[Sums<Real>::kWidth]) {
  using V = Vec<Real>;
  typename V::Register sum[Count][Vectors];
  for (int k = 0; k < Count; ++k) {
    for (int v = 0; v < Vectors; ++v) sum[k][v] = V::zero();
  }
  for (int64_t row = 0; row < rows; ++row) {
    const Real *from = input + row * pitch, *w = weights + row * kernel_width;
    for (int64_t b = 0; b < taps; ++b, from += channels, ++w) {
      typename V::Register x[Vectors];
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) x[v] = V::load(from + v * V::size);
#pragma GCC unroll 4
      for (int k = 0; k < Count; ++k) {
        const auto weight = V::set(w[-k * kernel_width]);
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) sum[k][v] = V::fma(weight, x[v], sum[k][v]);
      }
    }
  }
  for (int k = 0; k < Count; ++k) {
    for (int v = 0; v < Vectors; ++v) {
      Real* at = runs[k] + v * V::size;
      V::store(at, V::add(V::load(at), sum[k][v]));
    }
  }
}

template <typename Real>
using AddRun = void (*)(const Real*, int64_t, int64_t, const Real*, int64_t, int64_t, int64_t, Real (*)[Sums<Real>::kWidth]);

template <typename Real, int Vectors>
AddRun<Real> choose_count(int count) {
  switch (count) {
    case 1: return add_run<Real, 1, Vectors>;
    case 2: return add_run<Real, 2, Vectors>;
    case 3: return add_run<Real, 3, Vectors>;
    default: return add_run<Real, 4, Vectors>;
  }
}

// The kernel for `count` rows of the result and `vectors` along a row.
template <typename Real>
AddRun<Real> choose(int count, int vectors) {
  switch (vectors) {
    case 1: return choose_count<Real, 1>(count);
#if defined(__AVX2__)
    case 2: return choose_count<Real, 2>(count);
#endif
#if defined(__AVX512F__)
    case 3: return choose_count<Real, 3>(count);
    case 4: return choose_count<Real, 4>(count);
    case 5: return choose_count<Real, 5>(count);
#endif
    default: return choose_count<Real, kMostVectors>(count);
  }
}

template <typename Real>
void pad(const BlurLayout& l, int64_t channels, const dipengine_pixels& from, int64_t row, void* padded) {
  Real* to = static_cast<Real*>(padded) + row * l.pitch;
  const Real* pixel = row_of<const Real>(from, row);
  const int64_t begin = l.left * channels, end = begin + l.data_width * channels;
  for (int64_t i = 0; i < begin; ++i) to[i] = 0;
  for (int64_t i = end; i < l.pitch; ++i) to[i] = 0;
  if (from.pixel_stride == channels) {
    memcpy(to + begin, pixel, static_cast<size_t>(end - begin) * sizeof(Real));
    return;
  }
  for (Real* at = to + begin; at < to + end; at += channels, pixel += from.pixel_stride) {
    for (int64_t c = 0; c < channels; ++c) at[c] = pixel[c];
  }
}

int64_t at_most(int64_t x, int64_t most) { return x < most ? x : most; }
int64_t at_least(int64_t x, int64_t least) { return x > least ? x : least; }

// Elements [begin, begin + n) of one row of the result, from sums
template <typename Real>
void store(const Real* sums, int64_t channels, int64_t begin, int64_t n, int64_t pixel_stride, Real* row) {
  if (pixel_stride == channels) {
    memcpy(row + begin, sums, static_cast<size_t>(n) * sizeof(Real));
    return;
  }
  int64_t pixel = begin / channels, channel = begin % channels;
  for (int64_t i = 0; i < n; ++i) {
    row[pixel * pixel_stride + channel] = sums[i];
    if (++channel == channels) {
      channel = 0;
      ++pixel;
    }
  }
}

template <typename Real>
void correlate(const BlurLayout& l, int64_t channels, int64_t kernel_height, int64_t kernel_width, const void* padded,
               const void* weights, int64_t first, const dipengine_pixels& to) {
  const Real* w = static_cast<const Real*>(weights);
  const int64_t count = at_most(kBlurRows, l.height - first), elements = l.width * channels;
  const int64_t rows_in_run = at_least(kBlurRun / kernel_width, 1);
  // Input rows that any row of the tile meets, less those of zeros.
  const int64_t begin_row = at_least(first, l.first_row), end_row = at_most(first + count - 1 + kernel_height, l.last_row);
  Sums<Real> sums;
  for (int64_t begin = 0; begin < elements; begin += Sums<Real>::kWidth) {
    const int64_t n = at_most(elements - begin, Sums<Real>::kWidth);
    const int vectors = static_cast<int>((n + Vec<Real>::size - 1) / Vec<Real>::size);
    sums.clear();
    for (int64_t row = begin_row; row < end_row;) {
      // Rows low to high of the tile meet this input row; so they do the next ones, while no row joins or leaves.
      const int64_t low = at_least(row - first - kernel_height + 1, 0), high = at_most(row - first, count - 1);
      int64_t rows = 1;
      if (high == count - 1 && low == 0) {
        rows = at_least(at_most(at_most(rows_in_run, end_row - row), first + kernel_height - row), 1);
      }
      const AddRun<Real> add = choose<Real>(static_cast<int>(high - low + 1), vectors);
      for (int64_t b = 0; b < kernel_width; b += kBlurRun) {
        const int64_t taps = at_most(kernel_width - b, kBlurRun);
        const Real* from = static_cast<const Real*>(padded) + (row - l.first_row) * l.pitch + begin + b * channels;
        add(from, l.pitch, channels, w + (row - first - low) * kernel_width + b, kernel_width, rows, taps, sums.runs + low);
        if (++sums.count == kBlurRuns) sums.put_away();
      }
      row += rows;
    }
    sums.put_away();
    for (int64_t k = 0; k < count; ++k) {
      store(sums.all[k], channels, begin, n, to.pixel_stride, row_of<Real>(to, first + k));
    }
  }
}

}  // namespace

extern const BlurKernels blur_kernels;
#if defined(DIPENGINE_WITH_FLOAT64)
const BlurKernels blur_kernels = {{pad<float>, correlate<float>}, {pad<double>, correlate<double>}};
#else
const BlurKernels blur_kernels = {{pad<float>, correlate<float>}, {nullptr, nullptr}};
#endif

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
