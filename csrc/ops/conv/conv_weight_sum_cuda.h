// The sum of what blocks of a weight gradient leave.
#pragma once

#include "ops/conv/conv_cuda_plan.h"

namespace dipengine {

// d_weight of source `source` of `plan`, from parts [fits, splits, phase, tap, channel of the source, channel of raw], the fits' fit_parts
// elements apart: in float64, in their order.
dipengine_status launch_weight_sum(const dipengine_conv_cuda_params& p, const ConvPlan& plan, int source, int splits, const float* parts,
                                   int64_t fit_parts);

}  // namespace dipengine
