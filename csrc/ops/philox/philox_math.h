// From (seed, stream, step, block index) to random words: the layout of key and counter.
#pragma once

#include "math/philox.h"

namespace dipengine {

struct PhiloxSequence {
  uint64_t seed;
  uint32_t stream;
  uint32_t step;
};

DIPENGINE_HD PhiloxBlock philox_block(PhiloxSequence sequence, uint64_t block) {
  const PhiloxBlock counter = {static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), sequence.step,
                               sequence.stream};
  return philox(counter, static_cast<uint32_t>(sequence.seed), static_cast<uint32_t>(sequence.seed >> 32));
}

}  // namespace dipengine
