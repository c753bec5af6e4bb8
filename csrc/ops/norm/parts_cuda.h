// What blocks of a CUDA kernel leave for each channel, merged in a fixed order: moments of a raw output, sums of a gradient. Parts are
// [fits, parts, channels] in a workspace. Either a launch behind the kernel merges them, or, where it is given tickets, the kernel's own
// blocks do (parts_merge_cuda.h).
#pragma once

#include "dipengine/dipengine.h"
#include "math/host_device.h"
#include "ops/norm/norm_cuda.h"

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

// Merged parts: count, mean and m2, or sum, product and nothing.
struct Merged {
  double of[3];
};

// How a kernel's blocks merge the parts of a fit's channel tile: those of `each` blocks by the last of them, and what these leave by
// the last of all. By the layer's shape alone.
struct PartTree {
  uint32_t* tickets;  // [fits, channel tiles, groups + 1], zeros before and after; NULL: a launch behind the kernel merges
  Merged* merged;     // [fits, groups, channels]
  int32_t blocks, each, groups;
  int32_t parts, channel_tiles;  // parts: of a block, one behind the other
};

static inline PartTree make_part_tree(int64_t blocks, int32_t parts, int32_t channel_tiles) {
  constexpr int kFew = 32;
  PartTree t{};
  t.blocks = t.each = static_cast<int32_t>(blocks);
  if (blocks > kFew) {
    for (t.each = 1; static_cast<int64_t>(t.each) * t.each < blocks;) ++t.each;
  }
  t.groups = (t.blocks + t.each - 1) / t.each;
  t.parts = parts;
  t.channel_tiles = channel_tiles;
  return t;
}

static inline int64_t tickets_of(const PartTree& t, int64_t fits) { return fits * t.channel_tiles * (t.groups + 1); }

// Bytes of a workspace: of parts, and of what groups of them are merged to. Where the latter begin.
static inline size_t parts_bytes(const PartTree& t, int64_t fits, int64_t channels) {
  return (static_cast<size_t>(fits * t.blocks * t.parts * channels) * sizeof(PartSums) + 15) / 16 * 16;
}
static inline size_t merge_bytes(const PartTree& t, int64_t fits, int64_t channels) {
  return parts_bytes(t, fits, channels) + (t.groups == 1 ? 0 : static_cast<size_t>(fits * t.groups * channels) * sizeof(Merged));
}
static inline PartTree place_part_tree(PartTree t, int64_t fits, int64_t channels, void* workspace, uint32_t* tickets) {
  t.merged = reinterpret_cast<Merged*>(static_cast<char*>(workspace) + parts_bytes(t, fits, channels));
  t.tickets = tickets;
  return t;
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
// Of the op whose params have that norm.
template <typename Params>
MomentsLaunch moments_launch(const Params& p, const PartPixels& pixels, int64_t count, int32_t channels, const PartMoments* parts) {
  const bool single = p.fits == 1;
  return {pixels,  count,      channels, parts,  p.active, single ? 0 : p.numbers_fit_stride, single ? 0 : p.parameters_fit_stride,
          p.mean,  p.variance, p.gamma,  p.beta, p.eps,    p.scale,                           p.shift};
}
dipengine_status launch_moments(const MomentsLaunch& launch, int64_t fits, void* stream);

struct SumsLaunch {
  int64_t count;  // parts of a fit
  int32_t channels;
  const PartSums* parts;
  const uint8_t* active;
  int64_t numbers_fit_stride;
  float *sum, *product;  // product may be NULL
  int32_t folds;         // into A, B and C of the norm whose sums they are
  dipengine_norm_cuda_gradient fold;
};
dipengine_status launch_sums(const SumsLaunch& launch, int64_t fits, void* stream);

// Into launch->fold, with the sums and fits of `launch`; NULL: nothing.
dipengine_status set_fold(const dipengine_norm_cuda_gradient* fold, const char* op, SumsLaunch* launch);

}  // namespace dipengine
