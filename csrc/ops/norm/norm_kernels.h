// The CPU kernels of the norm passes, one table per instruction set.
#pragma once

#include "ops/norm/norm.h"

namespace dipengine {

struct NormKernels {
  size_t (*workspace)(const dipengine_norm_params& params);
  void (*statistics)(const dipengine_norm_params& params);
  void (*apply)(const dipengine_norm_params& params);
  void (*backward)(const dipengine_norm_params& params);
};

struct NormTable {
  NormKernels float32, bfloat16;
  NormKernels float64;  // only in the portable table
};

}  // namespace dipengine
