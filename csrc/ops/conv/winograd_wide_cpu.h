// Winograd's F(4x4, 3x3) for stride-1 convolutions on a CPU: 36 products a 4x4 tile of outputs instead of 144 (A. Lavin,
// S. Gray, CVPR 2016). Its error is about four times that of F(2x2, 3x3), 1e-6 in float32: it serves where products are taken in
// float32 (float64) of images in a coarser type, whose own rounding is 2^-9.
//
// The data gradient is the same with the kernel turned around. Its tiles begin one sample before the image and the last ends one
// after it, so that what falls on reflected samples is in the tile of those that they show; to that end the last tile
// overlaps the one before, which leaves it the two samples that both have.
#pragma once

#include "ops/conv/winograd_cpu.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {

constexpr int kWidePlanes = 36;
constexpr int64_t kWideLeastSide = 32;  // for the products saved to be worth the larger transform of the weights

template <typename Stored>
DIPENGINE_INLINE bool wide_suits(const dipengine_conv_params& p) {
  using Element = typename ElementOf<Stored>::type;
  return winograd_suits(p) && sizeof(Stored) != sizeof(float) && Mac<Element>::kPair == 1 && p.height % 4 == 0 && p.width % 4 == 0 &&
         p.height >= kWideLeastSide && p.width >= kWideLeastSide;
}

// The tiles of the data gradient along one axis of n samples.
struct WideAxis {
  int64_t n;
  int64_t tiles() const { return n / 4 + 1; }
  int64_t start(int64_t t) const { return t + 1 == tiles() ? n - 3 : 4 * t - 1; }  // first sample, -1 for the first tile
  int64_t taken(int64_t t) const { return t + 2 == tiles() ? 2 : 4; }              // samples that are not left to the last tile
  int64_t first(int64_t t) const { return t == tiles() ? n : most(0, start(t)); }  // of the image, that tile t (or later ones) has
};

template <typename V>
struct WideWeights {
  static constexpr int kSide = 6;
  using Register = typename V::Register;
  DIPENGINE_MEMBER void axis(Register g0, Register g1, Register g2, Register* out) {
    const Register sixth = V::set(typename V::Real(-1) / 6), rest = V::set(typename V::Real(1) / 24);
    const Register even = V::add(g0, g2), far = V::fma(V::set(4), g2, g0), odd = V::mul(V::set(2), g1);
    out[0] = V::mul(g0, V::set(0.25f));
    out[1] = V::mul(V::add(even, g1), sixth);
    out[2] = V::mul(V::sub(even, g1), sixth);
    out[3] = V::mul(V::add(far, odd), rest);
    out[4] = V::mul(V::sub(far, odd), rest);
    out[5] = g2;
  }
};

// The weights' gradient from that of U, along one axis.
template <typename Real>
DIPENGINE_INLINE void wide_weight_axis(const typename Vec<Real>::Register* u, typename Vec<Real>::Register* g) {
  using V = Vec<Real>;
  const typename V::Register sixth = V::set(Real(-1) / 6), quarter = V::set(Real(0.25)), half = V::set(Real(-0.5));
  const typename V::Register near = V::add(u[1], u[2]), far = V::add(u[3], u[4]);
  g[0] = V::fma(u[0], quarter, V::mul(sixth, V::sub(near, V::mul(quarter, far))));
  g[1] = V::mul(sixth, V::fma(V::sub(u[3], u[4]), half, V::sub(u[1], u[2])));
  g[2] = V::add(u[5], V::mul(sixth, V::sub(near, far)));
}

// V of a row of tiles, to planes.put(): load.at(channel)(row 0..5, column); tile t's first column is start(t).
template <typename Real, typename Load, typename Start, typename Planes>
static void wide_input(const Load& load, const Start& start, int64_t tiles, int64_t padded, Planes& planes) {
  using V = Vec<Real>;
  const typename V::Register two = V::set(Real(2)), four = V::set(Real(4)), five = V::set(Real(-5));
  auto axis = [&](const typename V::Register* d, typename V::Register* out) {
    const typename V::Register a = V::sub(d[4], d[2]), b = V::mul(two, V::sub(d[3], d[1]));
    out[0] = V::fma(four, d[0], V::fma(five, d[2], d[4]));
    out[1] = V::sub(V::add(d[3], d[4]), V::mul(four, V::add(d[1], d[2])));
    out[2] = V::fma(four, V::sub(d[1], d[2]), V::sub(d[4], d[3]));
    out[3] = V::add(a, b);
    out[4] = V::sub(a, b);
    out[5] = V::fma(four, d[1], V::fma(five, d[3], d[5]));
  };
  for (int64_t c = 0; c < padded; c += V::size) {
    const auto at = load.at(c);
    typename V::Register window[6][6];  // [vertical product][column]
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = start(t);
      const bool follows = t > 0 && first == start(t - 1) + 4;
      for (int y = 0; y < 6 && follows; ++y) {
        window[y][0] = window[y][4];
        window[y][1] = window[y][5];
      }
      for (int i = follows ? 2 : 0; i < 6; ++i) {
        typename V::Register d[6], out[6];
        for (int y = 0; y < 6; ++y) d[y] = at(y, first + i);
        axis(d, out);
        for (int y = 0; y < 6; ++y) window[y][i] = out[y];
      }
      for (int y = 0; y < 6; ++y) {
        typename V::Register products[6];
        axis(window[y], products);
        planes.put(c, t, 6 * y, 6, products);
      }
    }
  }
}

// Planes of the weight gradient's other operand. load.at(channel)(row 0..3, column) gives a sample; of tile t those from column
// start(t) on, `down` rows and across(t) columns of them, the others counting as zero.
template <typename Real, typename Load, typename Start, typename Across, typename Planes>
static void wide_samples(const Load& load, const Start& start, int64_t down, const Across& across, int64_t tiles, int64_t padded,
                         Planes& planes) {
  using V = Vec<Real>;
  const typename V::Register two = V::set(Real(2)), four = V::set(Real(4));
  auto axis = [&](const typename V::Register* x, typename V::Register* out) {
    const typename V::Register even = V::add(x[0], x[2]), odd = V::add(x[1], x[3]);
    const typename V::Register far_even = V::fma(four, x[2], x[0]), far_odd = V::mul(two, V::fma(four, x[3], x[1]));
    out[0] = x[0];
    out[1] = V::add(even, odd);
    out[2] = V::sub(even, odd);
    out[3] = V::add(far_even, far_odd);
    out[4] = V::sub(far_even, far_odd);
    out[5] = x[3];
  };
  for (int64_t c = 0; c < padded; c += V::size) {
    const auto at = load.at(c);
    for (int64_t t = 0; t < tiles; ++t) {
      typename V::Register columns[6][4], row[6];  // [vertical][column]
      const int64_t begin = start(t), taken = across(t);
      const bool whole = down == 4 && taken == 4;
      for (int i = 0; i < 4; ++i) {
        typename V::Register x[4], out[6];
        for (int y = 0; y < 4; ++y) x[y] = whole || (y < down && i < taken) ? at(y, begin + i) : V::zero();
        axis(x, out);
        for (int y = 0; y < 6; ++y) columns[y][i] = out[y];
      }
      for (int y = 0; y < 6; ++y) {
        axis(columns[y], row);
        planes.put(c, t, 6 * y, 6, row);
      }
    }
  }
}

// One block of channels: from the products of a row of tiles, planes `size` apart, four rows of outputs, row_size elements
// apart; tile t's four columns from place(t) on, later tiles over earlier ones.
template <typename Real, typename Place>
static void wide_outputs(const Real* products, int64_t size, int64_t tiles, int vectors, Real* rows, int64_t row_size, const Place& place) {
  using V = Vec<Real>;
  const typename V::Register two = V::set(Real(2)), four = V::set(Real(4)), eight = V::set(Real(8));
  auto axis = [&](const typename V::Register* m, typename V::Register* y) {
    const typename V::Register s = V::add(m[1], m[2]), d = V::sub(m[1], m[2]), e = V::add(m[3], m[4]), f = V::sub(m[3], m[4]);
    y[0] = V::add(V::add(m[0], s), e);
    y[1] = V::fma(two, f, d);
    y[2] = V::fma(four, e, s);
    y[3] = V::add(V::fma(eight, f, d), m[5]);
  };
  tiles_to_rows<6, 4>(products, size, tiles, vectors, rows, row_size, axis, place);
}

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
