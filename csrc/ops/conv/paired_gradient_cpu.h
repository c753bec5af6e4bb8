// Both gradients of the convolution (kernel 3, pad 1) of a nearest x2 upsampled source on a CPU, two low-resolution samples
// at a time: 25 products a 2x2 tile of them, each used for data and weights, instead of 36 (and of 144 on the upsampled image).
//
// Per axis, sample i receives (w1 + w2) e[i] + w0 e[i+1] + (w0 + w1) o[i] + w2 o[i-1] of the even and odd outputs e, o: two
// kernels of two taps, which as polynomials agree at 1. Both interpolated at 0, 1 and infinity share a product. For samples
// a, a + 1 and outputs q = d_raw[2a - 1 .. 2a + 4]:
//
//   D = (q1 - q3, q0 - q2, q2 + q3, q5 - q3, q4 - q2)      U = (w1 + w2, w2, w0 + w1 + w2, w0, w0 + w1)
//   P = (D0 U0 + D1 U1, D2 U2, D3 U3 + D4 U4)              d_x[a] = P0 + P1,  d_x[a+1] = P1 + P2
//
// and, this being trilinear, the gradient of U_k is the sum of D_k times X = (x[a], x[a], x[a] + x[a+1], x[a+1], x[a+1]).
// Tiles begin one sample before the image, so that what falls on a repeated border sample is in the tile of that sample.
#pragma once

#include "ops/conv/winograd_cpu.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

constexpr int kPairedGradientPlanes = 25;
constexpr int kPairedSums[5] = {0, 0, 1, 2, 2};        // the element of P, and of X, that each product of an axis belongs to
constexpr int kPairedFirst[4] = {0, 2, 3, 5};          // the products of each element of P

// Where each product's weights lie: those of one element of P together.
static void paired_gradient_places(int* places) {
  int place = 0;
  for (int y = 0; y < 3; ++y) {
    for (int x = 0; x < 3; ++x) {
      for (int ky = kPairedFirst[y]; ky < kPairedFirst[y + 1]; ++ky) {
        for (int kx = kPairedFirst[x]; kx < kPairedFirst[x + 1]; ++kx) places[5 * ky + kx] = place++;
      }
    }
  }
}

template <typename V>
struct PairedGradientWeights {
  static constexpr int kSide = 5;
  using Register = typename V::Register;
  DIPENGINE_MEMBER void axis(Register w0, Register w1, Register w2, Register* out) {
    out[0] = V::add(w1, w2);
    out[1] = w2;
    out[2] = V::add(w0, out[0]);
    out[3] = w0;
    out[4] = V::add(w0, w1);
  }
};

// The weights' gradient from that of U, along one axis.
template <typename V>
DIPENGINE_INLINE void paired_weight_axis(const typename V::Register* u, typename V::Register* w) {
  w[0] = V::add(V::add(u[2], u[3]), u[4]);
  w[1] = V::add(V::add(u[0], u[2]), u[4]);
  w[2] = V::add(V::add(u[0], u[1]), u[2]);
}

// D of a row of tiles, to planes.put(). load.at(channel)(row 0..5, column) gives q of the tile row's samples; the first tile's q0
// is column `first`.
template <typename Real, typename Load, typename Planes>
static void paired_gradient_input(const Load& load, int64_t first, int64_t tiles, int64_t padded, Planes& planes) {
  using V = Vec<Real>;
  auto axis = [](const typename V::Register* q, typename V::Register* out) {
    out[0] = V::sub(q[1], q[3]);
    out[1] = V::sub(q[0], q[2]);
    out[2] = V::add(q[2], q[3]);
    out[3] = V::sub(q[5], q[3]);
    out[4] = V::sub(q[4], q[2]);
  };
  for (int64_t c = 0; c < padded; c += V::size) {
    const auto at = load.at(c);
    typename V::Register window[5][6];  // [vertical product][column]
    auto column = [&](int64_t u, int place) {
      typename V::Register q[6], out[5];
      for (int i = 0; i < 6; ++i) q[i] = at(i, u);
      axis(q, out);
      for (int y = 0; y < 5; ++y) window[y][place] = out[y];
    };
    column(first, 0);
    column(first + 1, 1);
    for (int64_t t = 0; t < tiles; ++t) {
      for (int i = 2; i < 6; ++i) column(first + 4 * t + i, i);
      for (int y = 0; y < 5; ++y) {
        typename V::Register products[5];
        axis(window[y], products);
        planes.put(c, t, 5 * y, 5, products);
        window[y][0] = window[y][4];
        window[y][1] = window[y][5];
      }
    }
  }
}

// X of a row of tiles: load.at(channel)(row 0..1, column); nine planes, those of an axis being (x[a], x[a] + x[a+1], x[a+1]).
template <typename Real, typename Load, typename Planes>
static void paired_gradient_samples(const Load& load, int64_t first, int64_t tiles, int64_t padded, Planes& planes) {
  using V = Vec<Real>;
  for (int64_t c = 0; c < padded; c += V::size) {
    const auto at = load.at(c);
    for (int64_t t = 0; t < tiles; ++t) {
      typename V::Register left[3], right[3];
      const int64_t u = first + 2 * t;
      left[0] = at(0, u), left[2] = at(1, u), left[1] = V::add(left[0], left[2]);
      right[0] = at(0, u + 1), right[2] = at(1, u + 1), right[1] = V::add(right[0], right[2]);
      for (int y = 0; y < 3; ++y) {
        const typename V::Register row[3] = {left[y], V::add(left[y], right[y]), right[y]};
        planes.put(c, t, 3 * y, 3, row);
      }
    }
  }
}

// One block of channels: products of D with the packed U (panel, by paired_gradient_places) to P [9][tiles][kBlock].
template <typename Element>
static void multiply_paired_gradient(const Element* d, int64_t plane, int64_t tiles, int groups, const Element* panel, int vectors,
                                     typename Mac<Element>::Real* products) {
  using Real = typename Mac<Element>::Real;
  using V = Vec<Real>;
  const int64_t size = tiles * kBlock<Real>, panel_size = static_cast<int64_t>(groups) * vectors * V::size * Mac<Element>::kPair;
  Segments<Element> segments;
  segments.count = 1;  // several would do, but the panel of one stays in the first-level cache
  segments.block_stride = tiles * V::size;
  for (int k = 0; k < 9; ++k) {
    const int y = k / 3, x = k % 3;
    for (int ky = kPairedFirst[y]; ky < kPairedFirst[y + 1]; ++ky) {
      for (int kx = kPairedFirst[x]; kx < kPairedFirst[x + 1]; ++kx, panel += panel_size) {
        segments.start[0] = d + (5 * ky + kx) * plane;
        multiply<Element>(tiles, segments, V::size, groups, panel, vectors, products + k * size, kBlock<Real>,
                          ky > kPairedFirst[y] || kx > kPairedFirst[x]);
      }
    }
  }
}

// From P of a row of tiles, planes `size` apart, two rows of samples [2 tiles][kBlock].
template <typename Real>
static void paired_gradient_rows(const Real* products, int64_t size, int64_t tiles, int vectors, Real* top, Real* bottom) {
  using V = Vec<Real>;
  for (int64_t t = 0; t < tiles; ++t) {
    for (int lane = 0; lane < vectors * V::size; lane += V::size) {
      const Real* m = products + t * kBlock<Real> + lane;
      typename V::Register upper[3], lower[3];
      for (int x = 0; x < 3; ++x) {
        const typename V::Register middle = V::load(m + (3 + x) * size);
        upper[x] = V::add(V::load(m + x * size), middle);
        lower[x] = V::add(middle, V::load(m + (6 + x) * size));
      }
      Real *one = top + 2 * t * kBlock<Real> + lane, *two = bottom + 2 * t * kBlock<Real> + lane;
      V::store(one, V::add(upper[0], upper[1]));
      V::store(one + kBlock<Real>, V::add(upper[1], upper[2]));
      V::store(two, V::add(lower[0], lower[1]));
      V::store(two + kBlock<Real>, V::add(lower[1], lower[2]));
    }
  }
}

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
