// What blocks of a CUDA kernel leave for each channel, and the kernels that merge it in a fixed order: moments of a raw
// output, sums of a gradient. Parts are [fits, parts, channels] in a workspace.
#pragma once

#include "dipengine/dipengine.h"
#include "math/host_device.h"

namespace dipengine {

// Mean and sum of squared differences from it, of one part.
struct PartMoments {
  float mean, m2;
};

// Sum of g and of its product with the activation, of one part.
struct PartSums {
  float sum, product;
};

// How many pixels each part is of. The warps of tiles of 8 columns, or (warps = 0) `tile_rows` pixels in a row.
struct PartPixels {
  int32_t height, width;  // outputs of a phase; or all pixels, 1
  int32_t tiles_y, tiles_x, tile_rows, warps;
};

DIPENGINE_HD int part_pixels(const PartPixels& p, int64_t part) {
  if (p.warps == 0) {
    const int left = p.height - static_cast<int>(part) * p.tile_rows;
    return left < p.tile_rows ? left : p.tile_rows;
  }
  const int warp = static_cast<int>(part % p.warps), tile = static_cast<int>(part / p.warps % (p.tiles_y * p.tiles_x));
  const int most = p.tile_rows / p.warps;
  const int rows = p.height - (tile / p.tiles_x * p.tile_rows + warp * most), columns = p.width - tile % p.tiles_x * 8;
  return (rows < 0 ? 0 : rows < most ? rows : most) * (columns < 8 ? columns : 8);
}

// mean and variance of all parts' pixels; and, unless NULL, the fold of a norm: scale = gamma / sqrt(variance + eps),
// shift = beta - mean * scale. Inactive fits are left as they are.
struct MomentsLaunch {
  PartPixels pixels;
  int64_t count;  // parts of a fit
  int32_t channels;
  const PartMoments* parts;
  const uint8_t* active;
  int64_t numbers_fit_stride, parameters_fit_stride;
  float *mean, *variance;
  const float *gamma, *beta;
  double eps;
  float *scale, *shift;
};
dipengine_status launch_moments(const MomentsLaunch& launch, int64_t fits, void* stream);

struct SumsLaunch {
  int64_t count;  // parts of a fit
  int32_t channels;
  const PartSums* parts;
  const uint8_t* active;
  int64_t numbers_fit_stride;
  float *sum, *product;  // product may be NULL
};
dipengine_status launch_sums(const SumsLaunch& launch, int64_t fits, void* stream);

}  // namespace dipengine
