// The gradient of a convolution's bias on a CUDA device; part of dipengine_conv_cuda_weight_gradient.
#pragma once

#include "ops/conv/conv_gradient_cuda.h"
#include "ops/norm/parts_cuda.h"

namespace dipengine {

// Bytes; 0 where no d_bias is wanted.
size_t bias_gradient_workspace(const dipengine_conv_cuda_params& params);
int64_t bias_gradient_tickets(const dipengine_conv_cuda_params& params);
dipengine_status launch_bias_gradient(const dipengine_conv_cuda_params& params);

}  // namespace dipengine
