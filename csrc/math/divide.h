// Division of many numbers by one: a product and a shift in place of some thirty instructions each, on a GPU.
#pragma once

#include "math/host_device.h"

namespace dipengine {

// n / d = divided(n, divider(d)) for 0 <= n and 1 <= d with n d < 2^31.
DIPENGINE_HD uint32_t divider(int32_t d) { return 0x80000000u / static_cast<uint32_t>(d) + 1; }
DIPENGINE_HD int32_t divided(int32_t n, uint32_t by) {
  return static_cast<int32_t>(static_cast<uint64_t>(static_cast<uint32_t>(n)) * by >> 31);
}

}  // namespace dipengine
