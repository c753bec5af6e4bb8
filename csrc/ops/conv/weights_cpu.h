// Weights of the convolutions, laid out as multiply() reads them; `outputs` are the channels out.
#pragma once

#include "ops/conv/rows_cpu.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

// Weights [taps][channels in][channels out] as multiply()'s B for block `block` of output channels and input channels
// [first, first + channels): [taps][groups][columns][kPair], taps in the order given.
template <typename Element, typename Real>
static void pack_weights(int64_t outputs, const Real* weight, int64_t count, const int* taps, int64_t first, int64_t channels,
                         int64_t inputs, int block, int vectors, Element* to) {
  using V = Vec<Real>;
  constexpr int kPair = Mac<Element>::kPair, kStep = V::size * kPair;
  const int64_t groups = ceil_divide(channels, kPair);
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t g = 0; g < groups; ++g) {
      for (int v = 0; v < vectors; ++v, to += kStep) {
        const int64_t o = block * kBlock<Real> + v * V::size;
        typename V::Register rows[kPair];
        for (int k = 0; k < kPair; ++k) {
          const int64_t c = g * kPair + k;
          const bool some = c < channels && o < outputs;
          const Real* from = weight + (taps[t] * inputs + first + c) * outputs + o;
          rows[k] = some ? V::load_part(from, static_cast<int>(least(outputs - o, V::size))) : V::zero();
        }
        if constexpr (kPair == 1) {
          V::store(to, rows[0]);
        } else {
          store_pair<Element>(to, rows[0], rows[1]);
        }
      }
    }
  }
}

#if defined(__AVX512F__)
// 16 x 16 words, rows to columns.
DIPENGINE_INLINE void transpose_words(__m512i* rows) {
  __m512i pairs[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // four words of column 4 lane + k in rows[i + k]
    rows[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
  for (int k = 0; k < 4; ++k) {
    const __m512i a = _mm512_shuffle_i32x4(rows[k], rows[4 + k], 0x88), b = _mm512_shuffle_i32x4(rows[8 + k], rows[12 + k], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(rows[k], rows[4 + k], 0xdd), d = _mm512_shuffle_i32x4(rows[8 + k], rows[12 + k], 0xdd);
    pairs[k] = _mm512_shuffle_i32x4(a, b, 0x88);
    pairs[4 + k] = _mm512_shuffle_i32x4(c, d, 0x88);
    pairs[8 + k] = _mm512_shuffle_i32x4(a, b, 0xdd);
    pairs[12 + k] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
  for (int i = 0; i < 16; ++i) rows[i] = pairs[i];
}

// 16 words of an operand, kPair elements each, from as many values.
DIPENGINE_INLINE __m512i load_words(const float* from, int64_t left, float*) {
  return _mm512_castps_si512(Vec<float>::load_part(from, static_cast<int>(least(left, 16))));
}
#if defined(__AVX512FP16__)
DIPENGINE_INLINE __m512i load_words(const float* from, int64_t left, Half*) {
  const __m512 low = Vec<float>::load_part(from, static_cast<int>(least(left, 16)));
  const __m512 high = left > 16 ? Vec<float>::load_part(from + 16, static_cast<int>(least(left - 16, 16))) : Vec<float>::zero();
  return _mm512_inserti64x4(_mm512_castsi256_si512(Vec<float>::halves(low)), Vec<float>::halves(high), 1);
}
#elif defined(__AVX512BF16__)
DIPENGINE_INLINE __m512i load_words(const float* from, int64_t left, uint16_t*) {
  const __m512 low = Vec<float>::load_part(from, static_cast<int>(least(left, 16)));
  const __m512 high = left > 16 ? Vec<float>::load_part(from + 16, static_cast<int>(least(left - 16, 16))) : Vec<float>::zero();
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}
#endif
#endif

// Transposed weights as multiply()'s B: for block `block` of a source's channels, [taps][groups of channels out][columns][kPair],
// taps in the order given.
template <typename Element, typename Real>
static void pack_transposed(int64_t outputs, const Real* weight, int count, const int* taps, int64_t first, int64_t channels, int64_t inputs,
                     int block, int vectors, Element* to) {
  constexpr int kPair = Mac<Element>::kPair, kWidth = Vec<Real>::size;
  const int64_t groups = ceil_divide(outputs, kPair), columns = vectors * kWidth;
#if defined(__AVX512F__)
  if constexpr (sizeof(Element) * kPair == 4) {
    for (int t = 0; t < count; ++t, to += groups * columns * kPair) {
      for (int64_t n = 0; n < columns; n += 16) {
        const int64_t c = block * kBlock<Real> + n;
        const Real* from = weight + (taps[t] * inputs + first + c) * outputs;
        for (int64_t g = 0; g < groups; g += 16) {
          __m512i words[16];
          for (int i = 0; i < 16; ++i) {
            words[i] = c + i < channels ? load_words(from + i * outputs + g * kPair, outputs - g * kPair, to) : _mm512_setzero_si512();
          }
          transpose_words(words);
          for (int i = 0; i < 16 && g + i < groups; ++i) _mm512_storeu_si512(to + ((g + i) * columns + n) * kPair, words[i]);
        }
      }
    }
    return;
  }
#endif
  Element row[kWidth];
  for (int t = 0; t < count; ++t, to += groups * columns * kPair) {
    for (int64_t n = 0; n < columns; ++n) {
      const int64_t c = block * kBlock<Real> + n;
      const Real* from = weight + (taps[t] * inputs + first + c) * outputs;
      for (int64_t o = 0; o < groups * kPair; o += kWidth) {
        const int64_t left = outputs - o;
        Vec<Real>::store(row, c < channels && left > 0 ? Vec<Real>::load_part(from + o, static_cast<int>(least(left, kWidth)))
                                                       : Vec<Real>::zero());
        for (int64_t k = 0; k < kWidth && o + k < groups * kPair; k += kPair) {
          memcpy(to + ((o + k) / kPair * columns + n) * kPair, row + k, sizeof(Element) * kPair);
        }
      }
    }
  }
}

// A view of 3x3 weights as the B of products, of `rows` by `columns`: tap t of row k at from + t * tap + k * row.
template <typename Real>
struct WeightView {
  const Real* from;
  int64_t tap, row, rows, columns;
  bool turned;  // the kernel is turned around
};

constexpr int64_t kPackedGroups = 16;  // of a task

// The weights of products that are taken tile by tile, for block `block` of the columns and groups [first, first + kPackedGroups)
// of the rows: [kSide * kSide planes][groups][columns][kPair], plane k in place places[k]. Transform::axis(w0, w1, w2, out) makes
// kSide elements of three.
template <template <typename> class Transform, typename Element, typename Real>
static void pack_tiles(const WeightView<Real>& weights, int block, int vectors, int64_t first, const int* places, Element* to) {
  using V = Vec<Real>;
  using Register = typename V::Register;
  constexpr int kPair = Mac<Element>::kPair, kSide = Transform<V>::kSide;
  const int64_t groups = ceil_divide(weights.rows, kPair), step = static_cast<int64_t>(vectors) * V::size * kPair;
  for (int64_t g = first; g < least(first + kPackedGroups, groups); ++g) {
    for (int v = 0; v < vectors; ++v) {
      const int64_t n = block * kBlock<Real> + v * V::size;
      Register planes[kPair][kSide * kSide];
      for (int k = 0; k < kPair; ++k) {
        const int64_t row = g * kPair + k;
        const int lanes = row < weights.rows ? static_cast<int>(most(0, least(weights.columns - n, V::size))) : 0;
        const Real* from = weights.from + row * weights.row + n;
        Register across[3][kSide], down[kSide];
        for (int y = 0; y < 3; ++y) {
          Register w[3];
          for (int x = 0; x < 3; ++x) {
            const int tap = weights.turned ? 8 - (3 * y + x) : 3 * y + x;
            w[x] = lanes > 0 ? V::load_part(from + tap * weights.tap, lanes) : V::zero();
          }
          Transform<V>::axis(w[0], w[1], w[2], across[y]);
        }
        for (int x = 0; x < kSide; ++x) {
          Transform<V>::axis(across[0][x], across[1][x], across[2][x], down);
          for (int y = 0; y < kSide; ++y) planes[k][kSide * y + x] = down[y];
        }
      }
      for (int k = 0; k < kSide * kSide; ++k) {
        Element* at = to + (places[k] * groups + g) * step + v * V::size * kPair;
        if constexpr (kPair == 1) {
          V::store(at, planes[0][k]);
        } else {
          store_pair<Element>(at, planes[0][k], planes[1][k]);
        }
      }
    }
  }
}

// Channels [c, c + 16) of a source, in tap t: weights [9][inputs][outputs], the source's from `first` on, to [9][outputs][row].
template <typename Real>
static void transpose_tap(const Real* weight, int64_t inputs, int64_t first, int64_t channels, int64_t outputs, int64_t t, int64_t c,
                          int64_t row, Real* to) {
  const Real* from = weight + (t * inputs + first + c) * outputs;
  to += t * outputs * row + c;
  const int64_t count = least(16, channels - c);
#if defined(__AVX512F__)
  if constexpr (sizeof(Real) == 4) {
    for (int64_t o = 0; o < outputs; o += 16) {
      __m512i words[16];
      for (int i = 0; i < 16; ++i) {
        words[i] = i < count ? load_words(from + i * outputs + o, outputs - o, to) : _mm512_setzero_si512();
      }
      transpose_words(words);
      for (int i = 0; i < 16 && o + i < outputs; ++i) {
        _mm512_mask_storeu_epi32(to + (o + i) * row, Vec<float>::lanes(static_cast<int>(count)), words[i]);
      }
    }
    return;
  }
#endif
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t i = 0; i < count; ++i) to[o * row + i] = from[i * outputs + o];
  }
}

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
