// The CPU kernels of masked_mse, one table per instruction set.
#pragma once

#include "ops/masked_mse/masked_mse.h"
#include "ops/masked_mse/masked_mse_math.h"

namespace dipengine {

// Sums of one tile of one fit; the workspace is [fits, tiles] of them.
struct MaskedMsePartial {
  double loss, d2;
};

struct MaskedMseKernels {
  using Tile = void (*)(const dipengine_masked_mse_params& params, const MaskedMseTiling& tiling, int64_t fit,
                        int64_t tile, MaskedMsePartial* partial);
  Tile float32, bfloat16;
  Tile float64;  // only in the portable table
};

}  // namespace dipengine
