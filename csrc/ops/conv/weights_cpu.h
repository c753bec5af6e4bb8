// Weights of the convolutions, laid out as multiply() reads them; `outputs` are the channels out.
#pragma once

#include "ops/conv/rows_cpu.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

// Weights [taps][channels in][channels out] as multiply()'s B for block `block` of output channels and input channels
// [first, first + channels): [taps][groups][columns][kPair].
template <typename Element, typename Real>
static void pack_weights(int64_t outputs, const Real* weight, int64_t taps, int64_t first, int64_t channels, int64_t inputs, int block,
                  int vectors, Element* to) {
  constexpr int kPair = Mac<Element>::kPair, kWidth = Vec<Real>::size;
  const int64_t groups = ceil_divide(channels, kPair);
  Element buffer[kPair][kBlock<Real>];
  for (int64_t t = 0; t < taps; ++t) {
    for (int64_t g = 0; g < groups; ++g, to += vectors * kWidth * kPair) {
      for (int k = 0; k < kPair; ++k) {
        const int64_t c = g * kPair + k;
        const Real* row = weight + (t * inputs + first + c) * outputs + block * kBlock<Real>;
        for (int v = 0; v < vectors; ++v) {
          const int64_t left = outputs - block * kBlock<Real> - v * kWidth;
          const bool some = c < channels && left > 0;
          Vec<Real>::store(buffer[k] + v * kWidth, some ? Vec<Real>::load_part(row + v * kWidth, static_cast<int>(least(left, kWidth)))
                                                        : Vec<Real>::zero());
        }
      }
      for (int n = 0; n < vectors * kWidth; ++n) {
        for (int k = 0; k < kPair; ++k) to[n * kPair + k] = buffer[k][n];
      }
    }
  }
}

// Transposed weights as multiply()'s B: for block `block` of a source's channels, [taps][groups of channels out][columns][kPair],
// taps in the order given.
template <typename Element, typename Real>
static void pack_transposed(int64_t outputs, const Real* weight, int count, const int* taps, int64_t first, int64_t channels, int64_t inputs,
                     int block, int vectors, Element* to) {
  constexpr int kPair = Mac<Element>::kPair, kWidth = Vec<Real>::size;
  const int64_t groups = ceil_divide(outputs, kPair), columns = vectors * kWidth;
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
