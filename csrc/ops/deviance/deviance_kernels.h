// The CPU kernels of deviance, one table per instruction set.
#pragma once

#include "ops/deviance/deviance.h"
#include "ops/deviance/deviance_math.h"

namespace dipengine {

struct DevianceKernels {
  // The sums of one tile; the workspace is an array of them.
  using Tile = void (*)(const dipengine_deviance_params& params, const DevianceTiling& tiling, int64_t tile,
                        DeviancePartial* partial);
  Tile float32;
  Tile float64;  // only in the portable table
};

}  // namespace dipengine
