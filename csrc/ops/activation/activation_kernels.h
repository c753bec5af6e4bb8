// The CPU kernels of sigmoid_backward, one table per instruction set.
#pragma once

#include "ops/activation/activation.h"

namespace dipengine {

struct ActivationKernels {
  using Rows = void (*)(const dipengine_sigmoid_backward_params& params, int64_t first_row, int64_t last_row);
  Rows float32;
  Rows float64;  // only in the portable table
};

}  // namespace dipengine
