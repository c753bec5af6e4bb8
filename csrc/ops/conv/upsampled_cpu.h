// The convolution (kernel 3, pad 1) of a nearest x2 upsampled source on a CPU, two low-resolution samples at a time: 25
// products a 2x2 tile of them, which is 4x4 outputs, instead of 36 (and of 144 on the upsampled image).
//
// Per axis, output 2i is w0 x[i-1] + (w1 + w2) x[i] and output 2i + 1 is (w0 + w1) x[i] + w2 x[i+1], indices clamped (or
// zero beyond the borders, with zero padding): two kernels of two taps, which as polynomials agree at 1. Both interpolated
// at 0 or infinity, 1 and -1 (S. Winograd 1980) then share a product and, of the samples d = x[2t-1 .. 2t+2], what
// Winograd's F(2, 3) makes of them:
//
//   V = (d0 - d2, d1 + d2, d2 - d1, d1 - d3)
//   U = (w0, (w0 + w1 + w2) / 2, (w0 - w1 - w2) / 2, (w0 + w1 - w2) / 2, w2)        m = (U0 V0, U1 V1, U2 V2, U3 V2, U4 V3)
//   y = (m0 + m1 + m2, m1 - m3, m1 - m2, m1 + m3 - m4)                              outputs 4t .. 4t+3
#pragma once

#include "ops/conv/winograd_cpu.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

constexpr int kPairedPlanes = 25;
constexpr int kPairedInput[5] = {0, 1, 2, 2, 3};  // the element of V that each product of an axis takes

DIPENGINE_INLINE bool paired_suits(const dipengine_conv_params& p, const dipengine_conv_source& s) {
  return s.upsample == DIPENGINE_UPSAMPLE_NEAREST && s.height % 2 == 0 && s.width % 2 == 0 && s.width >= 2 * kWinogradLeastTiles &&
         p.channels >= kWinogradLeastChannels && s.channels >= kWinogradLeastChannels;
}

template <typename V>
struct PairedWeights {
  static constexpr int kSide = 5;
  using Register = typename V::Register;
  DIPENGINE_MEMBER void axis(Register w0, Register w1, Register w2, Register* out) {
    const Register half = V::set(0.5f), both = V::add(w0, w1), rest = V::add(w1, w2);
    out[0] = w0;
    out[1] = V::mul(V::add(w0, rest), half);
    out[2] = V::mul(V::sub(w0, rest), half);
    out[3] = V::mul(V::sub(both, w2), half);
    out[4] = w2;
  }
};

// One block of channels out: products of V (TilePlanes' rows) with the packed U (panel): to [25][tiles][kBlock].
template <typename Element>
static void multiply_pairs(const Element* v, int64_t plane, int64_t tiles, int groups, const Element* panel, int vectors,
                           typename Mac<Element>::Real* products, Fetch* beside = nullptr) {
  for (int k = 0; k < kPairedPlanes; ++k) {
    const int64_t panel_size = static_cast<int64_t>(groups) * vectors * Vec<typename Mac<Element>::Real>::size * Mac<Element>::kPair;
    multiply_planes(1, v + (4 * kPairedInput[k / 5] + kPairedInput[k % 5]) * plane, plane, tiles, groups, panel + k * panel_size,
                    vectors, products + k * tiles * kBlock<typename Mac<Element>::Real>, beside);
  }
}

// From the products of a row of tiles, planes `size` apart, four rows of outputs [4 tiles][kBlock], row_size elements apart.
template <typename Real>
static void paired_rows(const Real* products, int64_t size, int64_t tiles, int vectors, Real* rows, int64_t row_size) {
  using V = Vec<Real>;
  auto axis = [](const typename V::Register* m, typename V::Register* y) {
    y[0] = V::add(V::add(m[0], m[1]), m[2]);
    y[1] = V::sub(m[1], m[3]);
    y[2] = V::sub(m[1], m[2]);
    y[3] = V::sub(V::add(m[1], m[3]), m[4]);
  };
  tiles_to_rows<5, 4>(products, size, tiles, vectors, rows, row_size, axis, [](int64_t t) { return 4 * t; });
}

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
