// Uniform and normal numbers from random words. Box-Muller with polynomials in float32 and explicit fma.
//
// G. Box, M. Muller, "A note on the generation of random normal deviates", 1958. The polynomials are minimax fits made
// for this file (relative errors: ln 6e-9, sin 4e-9; cos 5e-11 absolute), so float32 rounding dominates.
#pragma once

#include "math/host_device.h"

namespace dipengine {

// Uniform in [0, 1): the upper 24 bits, exact.
DIPENGINE_HD float uniform_from_word(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word >> 8)) * 0x1p-24f;
}

// ln u for a normal float u in (0, 1]; ln 1 is exactly 0. Within 1.5 units in the last place.
//
// u = 2^e m with m in [sqrt(1/2), sqrt(2)); with f = m - 1, ln u = e ln 2 + f - f^2/2 + f^3 Q(f).
DIPENGINE_HD float natural_log(float u) {
  const uint32_t shifted = float_bits(u) - 0x3f3504f3u;  // bits of sqrt(1/2)
  const float e = static_cast<float>(static_cast<int32_t>(shifted) >> 23);
  const float f = float_from_bits((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  float q = fma(-0x1.38b4ccp-4f, f, 0x1.055b46p-3f);
  q = fma(q, f, -0x1.0d8552p-3f);
  q = fma(q, f, 0x1.22da22p-3f);
  q = fma(q, f, -0x1.547244p-3f);
  q = fma(q, f, 0x1.99a008p-3f);
  q = fma(q, f, -0x1.000228p-2f);
  q = fma(q, f, 0x1.555554p-2f);
  const float square = f * f;
  float tail = fma(square * f, q, e * 0x1.7f7d1cp-20f);  // ln 2 in two parts: e times the first is exact
  tail = fma(square, -0.5f, tail);
  return fma(e, 0x1.62e4p-1f, f + tail);
}

struct NormalPair {
  float even, odd;
};

// Two independent standard normals from two words:
// u1 = ((wa >> 8) + 1) 2^-24 in (0, 1], u2 = (wb >> 8) 2^-24, (cos, sin)(2 pi u2) * sqrt(-2 ln u1). At most 5.77.
//
// The angle is reduced in integers, so exactly: 2 pi u2 = (q + t) pi/2 with q the nearest quarter turn, |t| <= 1/2.
DIPENGINE_HD NormalPair normal_pair(uint32_t wa, uint32_t wb) {
  const float u1 = static_cast<float>(static_cast<int32_t>(wa >> 8) + 1) * 0x1p-24f;
  const float radius = square_root(-2.0f * natural_log(u1));
  const int32_t turn = static_cast<int32_t>(wb >> 8);  // 2^24 is a full turn
  const int32_t quarter = (turn + (1 << 21)) >> 22;
  const float t = static_cast<float>(turn - (quarter << 22)) * 0x1p-22f;
  const float square = t * t;
  float s = fma(-0x1.2dd046p-8f, square, 0x1.46603p-4f);
  s = fma(s, square, -0x1.4abbcp-1f);
  s = fma(s, square, -0x1.777a5cp-25f);     // pi/2 in two parts
  s = fma(t, 0x1.921fb6p+0f, t * s);        // sin(t pi/2)
  float c = fma(0x1.d9f7bap-11f, square, -0x1.55c664p-6f);
  c = fma(c, square, 0x1.03c1dep-2f);
  c = fma(c, square, -0x1.3bd3ccp+0f);
  c = fma(c, square, 1.0f);                 // cos(t pi/2)
  const bool swapped = (quarter & 1) != 0;  // each quarter turn maps (cos, sin) to (-sin, cos)
  const uint32_t cosine = float_bits(swapped ? s : c) ^ (static_cast<uint32_t>((quarter + 1) & 2) << 30);
  const uint32_t sine = float_bits(swapped ? c : s) ^ (static_cast<uint32_t>(quarter & 2) << 30);
  return {radius * float_from_bits(cosine), radius * float_from_bits(sine)};
}

}  // namespace dipengine
