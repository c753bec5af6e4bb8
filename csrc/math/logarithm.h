// u - ln(1 + u) in float64 by a series, without the cancellation of that formula: the same bits on every instruction set.
#pragma once

#include "math/host_device.h"

namespace dipengine {

// h = u - ln(y) and l = ln(y) for a positive normal y = 1 + u, which is given beside u so that neither need lose digits.
struct LogarithmExcess {
  double excess, logarithm;
};

// y = 2^n m with m in [sqrt(1/2), sqrt(2)); with f = m - 1 (f = u where n = 0) and s = f / (2 + f), so |s| < 0.172,
//
//   f - ln(1 + f) = s f - 2 s^3 (1/3 + s^2/5 + s^4/7 + ...)
//
// whose two terms differ by a factor of 10 or more. Relative errors under 1e-14; the excess of NaN is NaN. Products are
// rounded: a fused multiply-add in float64 is a call on plain x86-64.
DIPENGINE_HD LogarithmExcess logarithm_excess(double u, double y) {
  uint64_t bits;
  memcpy(&bits, &y, sizeof(bits));
  const uint64_t shifted = bits - 0x3fe6a09e667f3bcdu + 0x3ff0000000000000u;  // sqrt(1/2) to 1, n + 1023 in the exponent
  const uint64_t exponent = (shifted >> 52) | 0x4330000000000000u;            // 2^52 + n + 1023
  const uint64_t mantissa = (shifted & 0x000fffffffffffffu) + 0x3fe6a09e667f3bcdu;
  double n, m;
  memcpy(&n, &exponent, sizeof(n));
  memcpy(&m, &mantissa, sizeof(m));
  n -= 0x1p52 + 1023;
  const double f = n == 0 ? u : m - 1;
  const double s = f / (2 + f), z = s * s;
  double p = z * (1.0 / 21) + 1.0 / 19;
  p = z * p + 1.0 / 17;
  p = z * p + 1.0 / 15;
  p = z * p + 1.0 / 13;
  p = z * p + 1.0 / 11;
  p = z * p + 1.0 / 9;
  p = z * p + 1.0 / 7;
  p = z * p + 1.0 / 5;
  p = z * p + 1.0 / 3;
  const double excess = s * f - 2 * (s * z) * p;                          // f - ln(1 + f)
  const double rest = (u - f) - n * 0x1.62e42fefa38p-1;                   // ln 2 in two parts: n times the first is exact
  const double low = n * 0x1.ef35793c7673p-45;
  return {(rest - low) + excess, n * 0x1.62e42fefa38p-1 + (low + (f - excess))};
}

}  // namespace dipengine
