// Rows of the convolutions' backward pass on a CPU: d_raw while loading, the source's gradient while storing, and packing.
#pragma once

#include "ops/conv/rows_cpu.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

// d_raw = A g + B raw + C, coefficients [channels padded]; without B the gradient is g itself.
template <typename Real>
struct GradientMap {
  bool folded;
  Real unit = 1, inverse = 1;  // what d_raw is multiplied by for operands of a small range, a power of two, and to have it back
  Real *gradient_scale, *raw_scale, *shift;

  void carve(Carver& carver, int64_t padded) {
    for (Real** array : {&gradient_scale, &raw_scale, &shift}) *array = carver.take<Real>(padded);
  }

  void fill(const dipengine_conv_params& p, int64_t padded) {
    folded = p.raw_scale != nullptr;
    for (int64_t c = 0; c < padded; ++c) {
      const bool given = folded && c < p.channels;
      gradient_scale[c] = given ? unit * static_cast<Real>(p.gradient_scale[c]) : Real(0);
      raw_scale[c] = given ? unit * static_cast<Real>(p.raw_scale[c]) : Real(0);
      shift[c] = given ? unit * static_cast<Real>(p.gradient_shift[c]) : Real(0);
    }
  }
};

template <typename Real, typename Gradient, typename Stored>
DIPENGINE_INLINE typename Vec<Real>::Register d_raw_lanes(const GradientMap<Real>& map, const Gradient* g, const Stored* raw,
                                                          int64_t c, int lanes) {
  using V = Vec<Real>;
  const bool whole = lanes == V::size;
  const typename V::Register gradient = whole ? V::load(g + c) : V::load_part(g + c, lanes);
  if (!map.folded) return V::mul(gradient, V::set(map.unit));
  const typename V::Register x = whole ? V::load(raw + c) : V::load_part(raw + c, lanes);
  return V::fma(V::load(map.gradient_scale + c), gradient, V::fma(V::load(map.raw_scale + c), x, V::load(map.shift + c)));
}

// Columns [begin, end) of row r of d_raw, zero outside the image; to [padded channels / V::size][end - begin][V::size].
template <typename Real, typename Gradient, typename Stored, typename Element>
static void load_gradient_row(const dipengine_conv_params& p, const GradientMap<Real>& map, int64_t r, int64_t begin, int64_t end,
                              Element* to) {
  using V = Vec<Real>;
  const int64_t block = (end - begin) * V::size;
  const bool inside = r >= 0 && r < p.height;
  const Gradient* g = static_cast<const Gradient*>(p.gradient.data) + r * p.gradient.row_stride;
  const Stored* raw = static_cast<const Stored*>(p.raw.data) + (map.folded ? r * p.raw.row_stride : 0);
  for (int64_t q = begin; q < end; ++q, to += V::size) {
    Element* out = to;
    if (!inside || q < 0 || q >= p.width) {
      for (int64_t c = 0; c < p.channels; c += V::size, out += block) memset(out, 0, V::size * sizeof(Element));
      continue;
    }
    const Gradient* at = g + q * p.gradient.pixel_stride;
    const Stored* beside = map.folded ? raw + q * p.raw.pixel_stride : raw;
    fetch_ahead(at, p.channels * static_cast<int64_t>(sizeof(Gradient)));
    if (map.folded) fetch_ahead(beside, p.channels * static_cast<int64_t>(sizeof(Stored)));
    int64_t c = 0;
    for (; c + V::size <= p.channels; c += V::size, out += block) V::store(out, d_raw_lanes(map, at, beside, c, V::size));
    if (c < p.channels) V::store(out, d_raw_lanes(map, at, beside, c, static_cast<int>(p.channels - c)));
  }
}

// sum[c] += d_raw over row r.
template <typename Real, typename Gradient, typename Stored>
static void add_gradient_row(const dipengine_conv_params& p, const GradientMap<Real>& map, int64_t r, double* sum) {
  using V = Vec<Real>;
  const Gradient* g = static_cast<const Gradient*>(p.gradient.data) + r * p.gradient.row_stride;
  const Stored* raw = static_cast<const Stored*>(p.raw.data) + (map.folded ? r * p.raw.row_stride : 0);
  for (int64_t c = 0; c < p.channels; c += V::size) {
    const int lanes = static_cast<int>(least(V::size, p.channels - c));
    typename V::Register row = V::zero();
    for (int64_t q = 0; q < p.width; ++q) {
      const Stored* beside = map.folded ? raw + q * p.raw.pixel_stride : raw;
      row = V::add(row, d_raw_lanes(map, g + q * p.gradient.pixel_stride, beside, c, lanes));
    }
    Real values[V::size];
    V::store(values, row);
    for (int i = 0; i < lanes; ++i) sum[c + i] += static_cast<double>(values[i]);
  }
}

// One register's columns of a row of du, in parts of `unit`. x: the source's raw values; sums in float64 per chunk, or null.
template <typename Real, typename Stored>
DIPENGINE_INLINE void store_gradient_lanes(const dipengine_conv_source& s, const Prologue<Real>& prologue, const Real* centre,
                                           const Real* du, Real unit, ptrdiff_t stride, int64_t pixels, int64_t c, int lanes,
                                           const Stored* x, Stored* d_x, double* sum, double* product) {
  using V = Vec<Real>;
  const bool whole = lanes == V::size;
  const typename V::Register scale = V::load(prologue.inner_scale + c), shift = V::load(prologue.inner_shift + c);
  const typename V::Register slope = V::set(prologue.slope), one = V::set(Real(1)), middle = V::load(centre + c);
  typename V::Register first = V::zero(), second = V::zero();
  const bool needs_x = sum != nullptr || (!prologue.has_outer && prologue.has_inner);
  for (int64_t w = 0; w < pixels; ++w) {
    typename V::Register g = V::mul(V::load(du + w * stride), V::set(unit));
    typename V::Register other = V::zero();
    if (needs_x) {
      const Stored* at = x + w * s.x.pixel_stride + c;
      const typename V::Register value = whole ? V::load(at) : V::load_part(at, lanes);
      const typename V::Register inner = V::fma(value, scale, shift);
      if (prologue.has_outer) {
        other = V::where_positive(inner, inner, V::mul(inner, slope));
      } else {
        g = V::mul(g, V::where_positive(inner, one, slope));
        other = V::sub(value, middle);
      }
    }
    Stored* to = d_x + w * s.d_x.pixel_stride + c;
    __builtin_prefetch(to + 16 * s.d_x.pixel_stride, 1, 3);
    if (needs_x) __builtin_prefetch(x + (w + 16) * s.x.pixel_stride + c, 0, 3);
    if (s.accumulate != 0) g = V::add(g, whole ? V::load(to) : V::load_part(to, lanes));
    if (whole) {
      V::store(to, g);
    } else {
      V::store_part(to, g, lanes);
    }
    first = V::add(first, g);
    second = V::fma(g, other, second);
  }
  if (sum == nullptr) return;
  Real values[V::size], products[V::size];
  V::store(values, first);
  V::store(products, second);
  for (int i = 0; i < lanes; ++i) {
    sum[c + i] += static_cast<double>(values[i]);
    product[c + i] += static_cast<double>(products[i]);
  }
}

// Pixels as multiply_outer() reads them, [padded / V::size][groups][V::size][kPair], blocks of channels block_stride apart; a missing
// last pixel as zero. Single pixels in blocks are that already.
template <typename Element>
static void pack_pixels([[maybe_unused]] const Element* from, [[maybe_unused]] RowLayout layout, [[maybe_unused]] int64_t pixels,
                        [[maybe_unused]] int64_t padded, [[maybe_unused]] Element* to, [[maybe_unused]] int64_t block_stride) {
#if defined(__AVX512BF16__)  // which the set of float16 has too
  if constexpr (Mac<Element>::kPair == 2) {
    for (int64_t c = 0; c < padded; c += 16, from += layout.block_stride, to += block_stride) {
      for (int64_t w = 0; w < pixels; w += 2) {
        const Element* one = from + w * layout.pixel_stride;
        const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(one));
        const __m256i b =
            w + 1 < pixels ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(one + layout.pixel_stride)) : _mm256_setzero_si256();
        const __m512i low = _mm512_cvtepu16_epi32(a), high = _mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16);
        _mm512_storeu_si512(to + w * 16, _mm512_or_si512(low, high));
      }
    }
  }
#endif
}

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
