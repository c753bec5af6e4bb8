// Both gradients of a 1x1 convolution in front of a head, in one launch: the gradient between them is formed, and x formed, once, where the
// kernels of each (conv_weight_gradient_cuda.cu, conv_data_gradient_cuda.cu) would each bring all of it.
#pragma once

#include "ops/conv/conv_cuda.h"
#include "ops/norm/parts_cuda.h"

namespace dipengine {

struct JointPlan {
  int32_t height, width, inputs, channels;  // of x; of raw
  int32_t tiles_y, tiles_x;
  int32_t splits, each;  // blocks, and how many tiles each goes over
  int32_t warps_m;       // parts of a block
  int32_t tile_channels, tile_pixels;
  size_t shared_bytes, tile_bytes;  // without room for another tile; of that, which lies behind all else,
  int32_t ahead;                    // so many bytes behind a tile's own
};

// Whether it is for that layer: bfloat16, one source of up to 128 channels, as many of raw, both multiples of 8, whose pixels begin at
// multiples of 16 bytes, and a d_x with its sums that nothing is there of already; and its plan. Params have been checked.
bool make_joint_plan(const dipengine_conv_cuda_params& p, size_t shared_limit, JointPlan* plan);

static inline PartTree part_tree_of(const JointPlan& p) { return make_part_tree(p.splits, p.warps_m, 1); }

}  // namespace dipengine
