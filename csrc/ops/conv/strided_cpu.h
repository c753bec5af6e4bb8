// Convolutions of kernel 3, stride 2, pad 1 on a CPU, two by two outputs at a time: 25 products a tile instead of 36.
//
// Per axis the odd samples o[j] = x[2j-1] meet the outer taps, a kernel of two taps that F(2, 2) at 0, 1 and infinity
// (S. Winograd 1980) takes in three products instead of four, and the even ones e[j] = x[2j] the middle one. For outputs a and
// a + 1, of the samples q = x[2a-1 .. 2a+3]:
//
//   D = (q0 - q2, q1, q2, q4 - q2, q3)      U = (w0, w1, w0 + w2, w2, w1)
//   P = (D0 U0 + D1 U1, D2 U2, D3 U3 + D4 U4)      y[a] = P0 + P1,  y[a+1] = P1 + P2
//
// which are the sums of paired_gradient_cpu.h. Backward, x[2j] receives w1 g[j], and x[2j+1] w2 g[j] + w0 g[j+1]. Of
// d = g[a .. a+2], to x[2a .. 2a+3], these are the products of upsampled_cpu.h:
//
//   V = (d0 - d1, d0, d1, d2 - d1)      U = (w2, w1, w0 + w2, w1, w0)      m = (U0 V0, U1 V1, U2 V2, U3 V2, U4 V3)
//   d_x = (m1, m0 + m2, m3, m2 + m4)
//
// and, this being trilinear, the gradient of U_k is the sum of V times X = (x1, x0, x1 + x3, x2, x3) of those four samples.
// These tiles begin one output before the image, so that what falls on the sample x[-1] is in the tile of x[1], which it repeats.
#pragma once

#include "ops/conv/paired_gradient_cpu.h"
#include "ops/conv/upsampled_cpu.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

constexpr int kStridedPlanes = 25;
constexpr int64_t kStridedLeastSide = 32;  // for the products saved to be worth the transform of the weights

DIPENGINE_INLINE bool strided_suits(const dipengine_conv_params& p) {
  const dipengine_conv_source& s = p.sources[0];
  return p.sources_count == 1 && s.upsample == DIPENGINE_UPSAMPLE_NONE && p.kernel == 3 && p.stride == 2 && p.pad == 1 &&
         p.height % 2 == 0 && p.width % 2 == 0 && s.height == 2 * p.height && s.width == 2 * p.width &&
         p.height >= kStridedLeastSide && p.width >= kStridedLeastSide && p.channels >= kWinogradLeastChannels &&
         s.channels >= kWinogradLeastChannels;
}

template <typename V>
struct StridedWeights {
  static constexpr int kSide = 5;
  using Register = typename V::Register;
  DIPENGINE_MEMBER void axis(Register w0, Register w1, Register w2, Register* out) {
    out[0] = w0;
    out[1] = w1;
    out[2] = V::add(w0, w2);
    out[3] = w2;
    out[4] = w1;
  }
};

template <typename V>
struct StridedGradientWeights {
  static constexpr int kSide = 5;
  using Register = typename V::Register;
  DIPENGINE_MEMBER void axis(Register w0, Register w1, Register w2, Register* out) {
    out[0] = w2;
    out[1] = w1;
    out[2] = V::add(w0, w2);
    out[3] = w1;
    out[4] = w0;
  }
};

// D of a row of tiles, to planes.put(): load.at(channel)(row 0..4, column); the first tile's q0 is column `first`.
template <typename Real, typename Load, typename Planes>
static void strided_input(const Load& load, int64_t first, int64_t tiles, int64_t padded, Planes& planes) {
  using V = Vec<Real>;
  auto axis = [](const typename V::Register* q, typename V::Register* out) {
    out[0] = V::sub(q[0], q[2]);
    out[1] = q[1];
    out[2] = q[2];
    out[3] = V::sub(q[4], q[2]);
    out[4] = q[3];
  };
  for (int64_t c = 0; c < padded; c += V::size) {
    const auto at = load.at(c);
    typename V::Register window[5][5];  // [vertical product][column]
    auto column = [&](int64_t u, int place) {
      typename V::Register q[5], out[5];
      for (int i = 0; i < 5; ++i) q[i] = at(i, u);
      axis(q, out);
      for (int y = 0; y < 5; ++y) window[y][place] = out[y];
    };
    column(first, 0);
    for (int64_t t = 0; t < tiles; ++t) {
      for (int i = 1; i < 5; ++i) column(first + 4 * t + i, i);
      for (int y = 0; y < 5; ++y) {
        typename V::Register products[5];
        axis(window[y], products);
        planes.put(c, t, 5 * y, 5, products);
        window[y][0] = window[y][4];
      }
    }
  }
}

// V of a row of tiles: load.at(channel)(row 0..2, column) gives d; the first tile's d0 is column `first`.
template <typename Real, typename Load, typename Planes>
static void strided_gradient_input(const Load& load, int64_t first, int64_t tiles, int64_t padded, Planes& planes) {
  using V = Vec<Real>;
  auto axis = [](typename V::Register d0, typename V::Register d1, typename V::Register d2, typename V::Register* out) {
    out[0] = V::sub(d0, d1);
    out[1] = d0;
    out[2] = d1;
    out[3] = V::sub(d2, d1);
  };
  for (int64_t c = 0; c < padded; c += V::size) {
    const auto at = load.at(c);
    typename V::Register window[3][4];  // [column][vertical product]
    auto column = [&](int64_t u, int place) { axis(at(0, u), at(1, u), at(2, u), window[place]); };
    column(first, 0);
    for (int64_t t = 0; t < tiles; ++t) {
      column(first + 2 * t + 1, 1);
      column(first + 2 * t + 2, 2);
      for (int y = 0; y < 4; ++y) {
        typename V::Register products[4];
        axis(window[0][y], window[1][y], window[2][y], products);
        planes.put(c, t, 4 * y, 4, products);
        window[0][y] = window[2][y];
      }
    }
  }
}

// X of a row of tiles: load.at(channel)(row 0..3, column) gives the samples; the first tile's is column `first`.
template <typename Real, typename Load, typename Planes>
static void strided_samples(const Load& load, int64_t first, int64_t tiles, int64_t padded, Planes& planes) {
  using V = Vec<Real>;
  auto axis = [](const typename V::Register* x, typename V::Register* out) {
    out[0] = x[1];
    out[1] = x[0];
    out[2] = V::add(x[1], x[3]);
    out[3] = x[2];
    out[4] = x[3];
  };
  for (int64_t c = 0; c < padded; c += V::size) {
    const auto at = load.at(c);
    for (int64_t t = 0; t < tiles; ++t) {
      typename V::Register columns[5][4];  // [vertical][column]
      for (int i = 0; i < 4; ++i) {
        typename V::Register x[4], out[5];
        for (int y = 0; y < 4; ++y) x[y] = at(y, first + 4 * t + i);
        axis(x, out);
        for (int y = 0; y < 5; ++y) columns[y][i] = out[y];
      }
      for (int y = 0; y < 5; ++y) {
        typename V::Register row[5];
        axis(columns[y], row);
        planes.put(c, t, 5 * y, 5, row);
      }
    }
  }
}

// The weights' gradient from that of U (backward), along one axis.
template <typename V>
DIPENGINE_INLINE void strided_weight_axis(const typename V::Register* u, typename V::Register* w) {
  w[0] = V::add(u[2], u[4]);
  w[1] = V::add(u[1], u[3]);
  w[2] = V::add(u[0], u[2]);
}

// From the products of a row of tiles, planes `size` apart, four rows of samples [4 tiles][kBlock], row_size elements apart.
template <typename Real>
static void strided_gradient_rows(const Real* products, int64_t size, int64_t tiles, int vectors, Real* rows, int64_t row_size) {
  using V = Vec<Real>;
  auto axis = [](const typename V::Register* m, typename V::Register* y) {
    y[0] = m[1];
    y[1] = V::add(m[0], m[2]);
    y[2] = m[3];
    y[3] = V::add(m[2], m[4]);
  };
  tiles_to_rows<5, 4>(products, size, tiles, vectors, rows, row_size, axis, [](int64_t t) { return 4 * t; });
}

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
