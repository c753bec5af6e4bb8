// Philox4x32-10: four 32-bit random words from a 128-bit counter and a 64-bit key.
//
// J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11. A round multiplies two
// counter words by two constants and mixes the halves with the key; the key is bumped by two Weyl constants a round.
// 20 32x32->64 multiplications for 16 random bytes.
#pragma once

#include "math/host_device.h"

namespace dipengine {

constexpr uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;

struct PhiloxBlock {
  uint32_t w0, w1, w2, w3;
};

DIPENGINE_HD PhiloxBlock philox_round(PhiloxBlock c, uint32_t k0, uint32_t k1) {
  const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c.w0;
  const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c.w2;
  return {static_cast<uint32_t>(p1 >> 32) ^ c.w1 ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.w3 ^ k1, static_cast<uint32_t>(p0)};
}

// The block of random words at counter `c` under key (k0, k1).
// The rounds are written out: a loop here would keep compilers from vectorising the loop over counters around it.
DIPENGINE_HD PhiloxBlock philox(PhiloxBlock c, uint32_t k0, uint32_t k1) {
  c = philox_round(c, k0, k1);
  c = philox_round(c, k0 + 1 * kPhiloxWeyl0, k1 + 1 * kPhiloxWeyl1);
  c = philox_round(c, k0 + 2 * kPhiloxWeyl0, k1 + 2 * kPhiloxWeyl1);
  c = philox_round(c, k0 + 3 * kPhiloxWeyl0, k1 + 3 * kPhiloxWeyl1);
  c = philox_round(c, k0 + 4 * kPhiloxWeyl0, k1 + 4 * kPhiloxWeyl1);
  c = philox_round(c, k0 + 5 * kPhiloxWeyl0, k1 + 5 * kPhiloxWeyl1);
  c = philox_round(c, k0 + 6 * kPhiloxWeyl0, k1 + 6 * kPhiloxWeyl1);
  c = philox_round(c, k0 + 7 * kPhiloxWeyl0, k1 + 7 * kPhiloxWeyl1);
  c = philox_round(c, k0 + 8 * kPhiloxWeyl0, k1 + 8 * kPhiloxWeyl1);
  return philox_round(c, k0 + 9 * kPhiloxWeyl0, k1 + 9 * kPhiloxWeyl1);
}

}  // namespace dipengine
