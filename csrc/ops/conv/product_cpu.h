// Matrix products of the convolutions on a CPU: register tiles over packed operands.
//
//   multiply        C[m][n] (+)= sum_s sum_k A_s[m][k] B[s][k][n]     rows of A anywhere, a constant stride apart
//   multiply_outer  C[m][n] (+)= sum_s sum_k A_s[k][m] B_s[k][n]       both operands packed along k (pixels), in blocks of m, n
//
// k runs in groups of kPair elements, what one multiply-accumulate takes: two bfloat16 (vdpbf16ps) or float16, one float32. A tile
// is kRows x kVectors registers; measured on Zen 4, 8 x 2 with B streaming from the second-level cache reaches the ceiling
// of the unit (234 GFLOP/s bfloat16 on a core), as do 14 x 2 and 4 x 4.
#pragma once

#include "platform/simd.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

// How elements of a packed operand are multiplied: kPair of them with one broadcast, Real sums.
template <typename Element>
struct Mac;

template <typename Real_>
struct PlainMac {
  using Real = Real_;
  static constexpr int kPair = 1;
  using Operand = typename Vec<Real>::Register;
  DIPENGINE_MEMBER Operand load(const Real* p) { return Vec<Real>::load(p); }
  DIPENGINE_MEMBER Operand broadcast(const Real* p) { return Vec<Real>::set(*p); }
  DIPENGINE_MEMBER Operand mac(Operand a, Operand b, Operand c) { return Vec<Real>::fma(a, b, c); }
};
template <>
struct Mac<float> : PlainMac<float> {};
#if defined(DIPENGINE_WITH_FLOAT64)
template <>
struct Mac<double> : PlainMac<double> {};
#endif

#if defined(__AVX512FP16__)
// Operands in float16 have three bits more than bfloat16 images, and are multiplied at twice the rate of float32 ones. Sums are of
// kHalfRun products in float16, then widened and added in float32: their rounding is below that of the images. Lanes alternate
// between the elements of a pair. A float16 ends at 65504 and 2^-24: normalised activations and weights are far from both, and
// gradients are scaled (conv_backward_cpu.cpp).
template <>
struct Mac<Half> {
  using Real = float;
  static constexpr int kPair = 2;
  using Operand = __m512h;
  DIPENGINE_MEMBER Operand load(const Half* p) { return _mm512_castsi512_ph(_mm512_loadu_si512(p)); }
  DIPENGINE_MEMBER Operand broadcast(const Half* p) {
    int pair;
    memcpy(&pair, p, sizeof(pair));
    return _mm512_castsi512_ph(_mm512_set1_epi32(pair));
  }
};
constexpr int kHalfRun = 32;

// MR x NV registers of float16 sums and what they were widened to.
template <int MR, int NV>
struct HalfSums {
  alignas(64) float wide[MR][NV][2][16];
  bool any = false;

  DIPENGINE_MEMBER void widen(__m512h sum, __m512* low, __m512* high) {
    const __m512i bits = _mm512_castph_si512(sum);
    *low = _mm512_cvtxph_ps(_mm256_castsi256_ph(_mm512_castsi512_si256(bits)));
    *high = _mm512_cvtxph_ps(_mm256_castsi256_ph(_mm512_extracti64x4_epi64(bits, 1)));
  }
  __attribute__((always_inline)) inline void add(__m512h (&sum)[MR][NV]) {
    for (int m = 0; m < MR; ++m) {
      for (int v = 0; v < NV; ++v) {
        __m512 low, high;
        widen(sum[m][v], &low, &high);
        if (any) {
          low = _mm512_add_ps(low, _mm512_load_ps(wide[m][v][0]));
          high = _mm512_add_ps(high, _mm512_load_ps(wide[m][v][1]));
        }
        _mm512_store_ps(wide[m][v][0], low);
        _mm512_store_ps(wide[m][v][1], high);
        sum[m][v] = _mm512_setzero_ph();
      }
    }
    any = true;
  }
  // All of one register's columns.
  __attribute__((always_inline)) inline __m512 total(__m512h sum, int m, int v) const {
    __m512 low, high;
    widen(sum, &low, &high);
    if (any) {
      low = _mm512_add_ps(low, _mm512_load_ps(wide[m][v][0]));
      high = _mm512_add_ps(high, _mm512_load_ps(wide[m][v][1]));
    }
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
    return _mm512_add_ps(_mm512_permutex2var_ps(low, even, high), _mm512_permutex2var_ps(low, odd, high));
  }
};
#elif defined(__AVX512BF16__)
template <>
struct Mac<uint16_t> {
  using Real = float;
  static constexpr int kPair = 2;
  using Operand = __m512bh;
  DIPENGINE_MEMBER Operand load(const uint16_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
  DIPENGINE_MEMBER Operand broadcast(const uint16_t* p) {
    int pair;
    memcpy(&pair, p, sizeof(pair));
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  DIPENGINE_MEMBER __m512 mac(Operand a, Operand b, __m512 c) { return _mm512_dpbf16_ps(c, a, b); }
};
#endif

// What images of a stored type are multiplied as.
template <typename Stored>
struct ElementOf {
  using type = Stored;
};
#if defined(__AVX512FP16__)
template <>
struct ElementOf<uint16_t> {
  using type = Half;
};
#elif !defined(__AVX512BF16__)
template <>
struct ElementOf<uint16_t> {
  using type = float;
};
#endif
// Whether the type of an operand has a range so small that gradients are scaled into it.
template <typename Element>
constexpr bool kScaled = false;
#if defined(__AVX512FP16__)
template <>
constexpr bool kScaled<Half> = true;
#endif

#if defined(__AVX512F__)
constexpr int kRows = 8;
#elif defined(__AVX2__)
constexpr int kRows = 6;
#else
constexpr int kRows = 4;
#endif
constexpr int kVectors = 2;
template <typename Real>
constexpr int kBlock = kVectors * Vec<Real>::size;  // columns of a tile

constexpr int kLine = 64;  // bytes of a cache line

// Memory that the rows after those being multiplied will read or write: fetched beside the products, a few lines a register tile,
// as a core's way to memory is idle while it multiplies. More lines at a time get in the way of the products' own loads.
struct Fetch {
  static constexpr int kMost = 16, kLines = 10;
  struct Span {
    const char *next, *past;
  };
  Span spans[kMost];
  int count = 0;

  // Columns [left, right) of row y of an image whose elements have `size` bytes.
  void add(const dipengine_pixels& image, size_t size, int64_t y, int64_t left, int64_t right) {
    const int64_t bytes = static_cast<int64_t>(size), pixel = image.pixel_stride * bytes;
    const char* at = static_cast<const char*>(image.data) + y * image.row_stride * bytes + left * pixel;
    if (count < kMost && left < right) spans[count++] = {at, at + (right - left) * pixel};
  }
  static void some(Fetch* fetch) {
    if (fetch != nullptr) fetch->fetch_lines();
  }

 private:
  __attribute__((noinline)) void fetch_lines() {
    for (int lines = kLines; lines > 0 && count > 0; --lines) {
      Span& span = spans[count - 1];
      __builtin_prefetch(span.next, 0, 2);
      span.next += kLine;
      if (span.next >= span.past) --count;
    }
  }
};

// One operand in several segments: where each starts. Its channels lie side by side, or in blocks of one register's channels,
// block_stride elements apart: [channels / V::size][pixels][V::size].
constexpr int kMaxSegments = DIPENGINE_CONV_MAX_KERNEL * DIPENGINE_CONV_MAX_KERNEL;
template <typename Element>
struct Segments {
  int count;
  const Element* start[kMaxSegments];
  ptrdiff_t block_stride = 0;  // 0: side by side
  Fetch* beside = nullptr;
};

#if defined(__AVX512FP16__)
template <int MR, int NV>
static __attribute__((noinline)) void multiply_tile(const Segments<Half>& a, ptrdiff_t offset, ptrdiff_t row_stride, int groups,
                                                    const Half* b, float* c, ptrdiff_t c_stride, bool accumulate) {
  using M = Mac<Half>;
  using V = Vec<float>;
  constexpr int block = V::size / M::kPair;
  const ptrdiff_t step = a.block_stride == 0 ? V::size : a.block_stride;
  HalfSums<MR, NV> sums;
  __m512h sum[MR][NV];
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) sum[m][v] = _mm512_setzero_ph();
  }
  int s = 0, left = groups, run = 0;
  const Half* start = a.start[0] + offset;
  for (;;) {
    const int count = left < block ? left : block;
    int k = 0;
    do {
      M::Operand column[NV];
      for (int v = 0; v < NV; ++v) column[v] = M::load(b + v * V::size * M::kPair);
      b += NV * V::size * M::kPair;
      for (int m = 0; m < MR; ++m) {
        const M::Operand row = M::broadcast(start + m * row_stride + k * M::kPair);
        for (int v = 0; v < NV; ++v) sum[m][v] = _mm512_fmadd_ph(row, column[v], sum[m][v]);
      }
    } while (++k < count);
    run += count;
    left -= count;
    start += step;
    if (left == 0) {
      if (++s == a.count) break;
      left = groups;
      start = a.start[s] + offset;
    }
    if (run >= kHalfRun) {
      sums.add(sum);
      run = 0;
    }
  }
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) {
      float* to = c + m * c_stride + v * V::size;
      const __m512 total = sums.total(sum[m][v], m, v);
      V::store(to, accumulate ? V::add(V::load(to), total) : total);
    }
  }
}
#endif

template <int MR, int NV, typename Element>
static __attribute__((noinline)) void multiply_tile(const Segments<Element>& a, ptrdiff_t offset, ptrdiff_t row_stride, int groups,
                                                    const Element* b, typename Mac<Element>::Real* c, ptrdiff_t c_stride,
                                                    bool accumulate) {
  using M = Mac<Element>;
  using V = Vec<typename M::Real>;
  typename V::Register sum[MR][NV];
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) sum[m][v] = V::zero();
  }
  if (accumulate) {
    for (int m = 0; m < MR; ++m) {
      for (int v = 0; v < NV; ++v) sum[m][v] = V::load(c + m * c_stride + v * V::size);
    }
  }
  const int block = a.block_stride == 0 ? groups : V::size / M::kPair;
  // One loop over segments and blocks, tested at its end: else the compiler moves the sums about between loops.
  int s = 0, left = groups;
  const Element* start = a.start[0] + offset;
  do {
    const int count = left < block ? left : block;
    int k = 0;
    do {
      typename M::Operand column[NV];
      for (int v = 0; v < NV; ++v) column[v] = M::load(b + v * V::size * M::kPair);
      b += NV * V::size * M::kPair;
      for (int m = 0; m < MR; ++m) {
        const typename M::Operand row = M::broadcast(start + m * row_stride + k * M::kPair);
        for (int v = 0; v < NV; ++v) sum[m][v] = M::mac(row, column[v], sum[m][v]);
      }
    } while (++k < count);
    left -= count;
    start += a.block_stride;
    if (left == 0) {
      left = groups;
      start = ++s < a.count ? a.start[s] + offset : nullptr;
    }
  } while (start != nullptr);
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) V::store(c + m * c_stride + v * V::size, sum[m][v]);
  }
}

template <typename Element, int NV, int MR>
static void multiply_rest(int rows, const Segments<Element>& a, ptrdiff_t offset, ptrdiff_t row_stride, int groups,
                          const Element* b, typename Mac<Element>::Real* c, ptrdiff_t c_stride, bool accumulate) {
  if constexpr (MR > 0) {
    if (rows == MR) return multiply_tile<MR, NV>(a, offset, row_stride, groups, b, c, c_stride, accumulate);
    multiply_rest<Element, NV, MR - 1>(rows, a, offset, row_stride, groups, b, c, c_stride, accumulate);
  }
}

// Tiles of nearly equal height: a last one of few rows would cost as much as a whole one. Beside them what follows b is
// fetched, the panel of the next product as a rule: panels of a layer exceed the second-level cache, and a stream from the
// third is slower than the products.
template <typename Element, int NV>
static void multiply_columns(int64_t rows, const Segments<Element>& a, ptrdiff_t row_stride, int groups, const Element* b,
                             typename Mac<Element>::Real* c, ptrdiff_t c_stride, bool accumulate) {
  constexpr int64_t kGroup = NV * Vec<typename Mac<Element>::Real>::size * Mac<Element>::kPair;
  const int64_t panel = a.count * groups * kGroup * static_cast<int64_t>(sizeof(Element));
  const char *next = reinterpret_cast<const char*>(b) + panel, *past = next + panel;
  for (int64_t m = 0, tiles = (rows + kRows - 1) / kRows; tiles > 0; --tiles) {
    const int height = static_cast<int>((rows - m + tiles - 1) / tiles);
    for (int64_t lines = (past - next) / (tiles * kLine); lines > 0; --lines, next += kLine) __builtin_prefetch(next, 0, 2);
    Fetch::some(a.beside);
    multiply_rest<Element, NV, kRows>(height, a, m * row_stride, row_stride, groups, b, c + m * c_stride, c_stride, accumulate);
    m += height;
  }
}

// C[rows][n] over n < vectors * V::size. A's rows lie row_stride elements apart; b holds [segments][groups][n][kPair].
template <typename Element>
static void multiply(int64_t rows, const Segments<Element>& a, ptrdiff_t row_stride, int groups, const Element* b,
                     int vectors, typename Mac<Element>::Real* c, ptrdiff_t c_stride, bool accumulate) {
  if (a.count == 0) {
    for (int64_t m = 0; m < rows && !accumulate; ++m) {
      memset(c + m * c_stride, 0, static_cast<size_t>(vectors) * Vec<typename Mac<Element>::Real>::size * sizeof(*c));
    }
  } else if (vectors == 2) {
    multiply_columns<Element, 2>(rows, a, row_stride, groups, b, c, c_stride, accumulate);
  } else {
    multiply_columns<Element, 1>(rows, a, row_stride, groups, b, c, c_stride, accumulate);
  }
}

#if defined(__AVX512FP16__)
template <int MR, int NV>
static __attribute__((noinline)) void outer_tile(const Segments<Half>& a, ptrdiff_t a_offset, const Segments<Half>& b,
                                                 ptrdiff_t b_offset, int groups, float* c, ptrdiff_t c_stride, bool accumulate) {
  using M = Mac<Half>;
  using V = Vec<float>;
  constexpr int kStep = V::size * M::kPair;
  HalfSums<MR, NV> sums;
  __m512h sum[MR][NV];
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) {
      sum[m][v] = _mm512_setzero_ph();
      __builtin_prefetch(c + m * c_stride + v * V::size, 1, 3);
    }
  }
  int s = 0, left = groups, room = kHalfRun;
  const Half *row = a.start[0] + a_offset, *column = b.start[0] + b_offset;
  for (;;) {
    const int count = left < room ? left : room;
    int k = 0;
    do {
      M::Operand operand[NV];
      for (int v = 0; v < NV; ++v) operand[v] = M::load(column + v * b.block_stride);
      for (int m = 0; m < MR; ++m) {
        const M::Operand one = M::broadcast(row + m * M::kPair);
        for (int v = 0; v < NV; ++v) sum[m][v] = _mm512_fmadd_ph(one, operand[v], sum[m][v]);
      }
      row += kStep;
      column += kStep;
    } while (++k < count);
    room -= count;
    left -= count;
    if (left == 0) {
      if (++s == a.count) break;
      left = groups;
      row = a.start[s] + a_offset;
      column = b.start[s] + b_offset;
    }
    if (room == 0) {
      sums.add(sum);
      room = kHalfRun;
    }
  }
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) {
      float* to = c + m * c_stride + v * V::size;
      const __m512 total = sums.total(sum[m][v], m, v);
      V::store(to, accumulate ? V::add(V::load(to), total) : total);
    }
  }
}
#endif

// Operands packed along k: element (k, channel) at [channel / V::size][k / kPair][channel % V::size][k % kPair], blocks of
// channels a.block_stride and b.block_stride elements apart, so that what a tile reads is contiguous. C is [MR][NV registers].
template <int MR, int NV, typename Element>
static __attribute__((noinline)) void outer_tile(const Segments<Element>& a, ptrdiff_t a_offset, const Segments<Element>& b,
                                                 ptrdiff_t b_offset, int groups, typename Mac<Element>::Real* c, ptrdiff_t c_stride,
                                                 bool accumulate) {
  using M = Mac<Element>;
  using V = Vec<typename M::Real>;
  constexpr int kStep = V::size * M::kPair;
  typename V::Register sum[MR][NV];
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) {
      sum[m][v] = V::zero();  // C is read at the end, when it need not be waited for
      __builtin_prefetch(c + m * c_stride + v * V::size, 1, 3);
    }
  }
  int s = 0;
  do {
    const Element* row = a.start[s] + a_offset;
    const Element* column = b.start[s] + b_offset;
    int k = 0;
    do {
      typename M::Operand operand[NV];
      for (int v = 0; v < NV; ++v) operand[v] = M::load(column + v * b.block_stride);
      for (int m = 0; m < MR; ++m) {
        const typename M::Operand one = M::broadcast(row + m * M::kPair);
        for (int v = 0; v < NV; ++v) sum[m][v] = M::mac(one, operand[v], sum[m][v]);
      }
      row += kStep;
      column += kStep;
    } while (++k < groups);
  } while (++s < a.count);
  for (int m = 0; m < MR; ++m) {
    for (int v = 0; v < NV; ++v) {
      typename M::Real* to = c + m * c_stride + v * V::size;
      V::store(to, accumulate ? V::add(V::load(to), sum[m][v]) : sum[m][v]);
    }
  }
}

template <typename Element, int NV, int MR>
static void outer_rest(int rows, const Segments<Element>& a, ptrdiff_t a_offset, const Segments<Element>& b, ptrdiff_t b_offset,
                       int groups, typename Mac<Element>::Real* c, ptrdiff_t c_stride, bool accumulate) {
  if constexpr (MR > 0) {
    if (rows == MR) return outer_tile<MR, NV>(a, a_offset, b, b_offset, groups, c, c_stride, accumulate);
    outer_rest<Element, NV, MR - 1>(rows, a, a_offset, b, b_offset, groups, c, c_stride, accumulate);
  }
}

// C[rows][columns] += ... (or = ...); C's rows lie c_stride apart and are padded to whole registers, as are the operands.
template <typename Element>
static void multiply_outer(int rows, int columns, const Segments<Element>& a, const Segments<Element>& b, int groups,
                           typename Mac<Element>::Real* c, ptrdiff_t c_stride, bool accumulate = true) {
  constexpr int kWidth = Vec<typename Mac<Element>::Real>::size, kPair = Mac<Element>::kPair;
  constexpr int kHeight = kWidth >= 16 ? 8 : kWidth >= 4 ? 4 : 2;  // divides a block of channels
  constexpr int kMost = kWidth >= 16 ? 12 : kHeight;               // what registers hold: all rows at once, where they are so few
  const int height = rows <= kMost ? rows : kHeight;
  for (int n = 0; n < columns; n += kBlock<typename Mac<Element>::Real>) {
    const bool wide = columns - n > kWidth;
    const ptrdiff_t b_offset = n / kWidth * b.block_stride;
    for (int m = 0; m < rows; m += height) {
      const int left = rows - m < height ? rows - m : height;
      const ptrdiff_t a_offset = m / kWidth * a.block_stride + m % kWidth * kPair;
      typename Mac<Element>::Real* tile = c + m * c_stride + n;
      Fetch::some(a.beside);
      if (wide) {
        outer_rest<Element, 2, kMost>(left, a, a_offset, b, b_offset, groups, tile, c_stride, accumulate);
      } else {
        outer_rest<Element, 1, kMost>(left, a, a_offset, b, b_offset, groups, tile, c_stride, accumulate);
      }
    }
  }
}

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
