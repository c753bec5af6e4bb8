// bfloat16: the upper half of a float32. Widening is exact, narrowing rounds to nearest even.
//
// Integer arithmetic, not the CPU's vcvtneps2bf16: that instruction flushes subnormals, so its bits would differ from
// those of the other instruction sets.
#pragma once

#include "math/host_device.h"

namespace dipengine {

DIPENGINE_HD float float_from_bf16(uint16_t x) { return float_from_bits(static_cast<uint32_t>(x) << 16); }

// Round to nearest even; overflow becomes infinity, a NaN stays a (quiet) NaN of the same sign.
DIPENGINE_HD uint16_t bf16_from_float(float x) {
  const uint32_t bits = float_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

}  // namespace dipengine
