// The CPU kernels of the convolutions, one table per instruction set.
#pragma once

#include "ops/conv/conv.h"

namespace dipengine {

// Per image dtype: bytes of workspace, and the op itself on valid params.
struct ConvKernels {
  size_t (*workspace)(const dipengine_conv_params& params);
  void (*run)(const dipengine_conv_params& params);
};

struct ConvTable {
  ConvKernels float32, bfloat16;
  ConvKernels float64;  // only in the portable table
};

}  // namespace dipengine
