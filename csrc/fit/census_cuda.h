// What is in an array of a CUDA device, asked before a fit begins with it.
#pragma once

#include <cstdint>

#include "dipengine/dipengine.h"

namespace dipengine {

// Of an array's values: how many are finite, 0, and 1.
struct Census {
  double finite, zeros, ones;
};

constexpr int kCensusBlocks = 16;

// found: [kCensusBlocks] in device memory, the parts of it that blocks have seen; to be added up.
dipengine_status launch_census(const float* values, int64_t count, Census* found, void* stream);

}  // namespace dipengine
