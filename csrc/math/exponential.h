// exp and the logistic sigmoid by polynomials with explicit fma: the same bits on every instruction set and device.
#pragma once

#include "math/host_device.h"

#include <cmath>

namespace dipengine {

// e^x for x in [-87, 0] (below -87 the value at -87, 1.6e-38; NaN stays NaN), relative error under 1.2e-7.
//
// x = n ln 2 + r with |r| <= ln 2 / 2, e^x = 2^n (1 + r + r^2 P(r)); P is a minimax fit (relative error of e^r 3.3e-9).
// n is rounded by adding 1.5 * 2^23, whose low mantissa bits then hold it: no float-to-integer conversion, which would
// be undefined for NaN.
DIPENGINE_HD float exp_nonpositive(float x) {
  x = x < -87.0f ? -87.0f : x;
  const float shifted = fma(x, 0x1.715476p+0f, 0x1.8p+23f);
  const float n = shifted - 0x1.8p+23f;
  float r = fma(n, -0x1.62e4p-1f, x);  // ln 2 in two parts: n times the first is exact
  r = fma(n, -0x1.7f7d1cp-20f, r);
  float p = fma(0x1.6a1a6ep-10f, r, 0x1.123fc6p-7f);
  p = fma(p, r, 0x1.555916p-5f);
  p = fma(p, r, 0x1.55548ap-3f);
  p = fma(p, r, 0x1.fffffcp-2f);
  const float e = fma(r * r, p, r) + 1.0f;
  return e * float_from_bits((float_bits(shifted) << 23) + 0x3f800000u);
}
DIPENGINE_HD double exp_nonpositive(double x) { return std::exp(x); }

template <typename Real>
struct Sigmoid {
  Real value;  // 1 / (1 + e^-x)
  Real slope;  // value * (1 - value), without the cancellation of that formula where value is near 1
};

template <typename Real>
DIPENGINE_HD Sigmoid<Real> sigmoid(Real x) {
  const Real e = exp_nonpositive(x > 0 ? -x : x);
  const Real q = Real(1) / (Real(1) + e);
  return {x > 0 ? q : e * q, e * q * q};
}

}  // namespace dipengine
