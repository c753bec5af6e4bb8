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
#if defined(__AVX512BF16__)
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

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
