// Adam's formulas: the scalars of a fit's step, and the update of one parameter.
#pragma once

#include "math/host_device.h"

namespace dipengine {

template <typename Real>
struct AdamScalars {
  Real one_minus_beta1, beta2, one_minus_beta2;
  // With r = sqrt(1 - beta2^t), m / (sqrt(v) / r + eps) is r m / (sqrt(v) + r eps): one division a parameter.
  Real negative_step;  // -r lr / (1 - beta1^t)
  Real eps;            // r eps
};

// base^n by repeated squaring: the same bits on every device, which a library's pow does not promise.
DIPENGINE_HD double integer_power(double base, int64_t n) {
  double power = 1;
  for (; n > 0; n >>= 1) {
    if (n & 1) power *= base;
    base *= base;
  }
  return power;
}

// Scalars of update number `t` (from 1), computed in float64 and rounded once.
template <typename Real>
DIPENGINE_HD AdamScalars<Real> adam_scalars(int64_t t, double learning_rate, double beta1, double beta2, double eps) {
  const double correction1 = 1 - integer_power(beta1, t);
  const double root = square_root(1 - integer_power(beta2, t));
  return {static_cast<Real>(1 - beta1),
          static_cast<Real>(beta2),
          static_cast<Real>(1 - beta2),
          static_cast<Real>(-learning_rate * root / correction1),
          static_cast<Real>(eps * root)};
}

// One parameter; m and v are updated in place, the new parameter is returned.
template <typename Real>
DIPENGINE_HD Real adam_update(const AdamScalars<Real>& s, Real p, Real g, Real& m, Real& v) {
  m = m + s.one_minus_beta1 * (g - m);
  v = v * s.beta2 + s.one_minus_beta2 * g * g;
  return p + s.negative_step * m / (square_root(v) + s.eps);
}

}  // namespace dipengine
