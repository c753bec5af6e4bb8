// The data gradient of a source of few channels, such as a skip, through a kernel of several taps: one product of d_raw's pixels by all
// taps of all its channels, then the sum of what each pixel has in all of them. The kernel of other sources (conv_data_gradient_cuda.cu)
// multiplies once for every tap, by at least 16 channels; here a pixel's d_raw is read from shared memory once.
#pragma once

#include "ops/conv/conv_cuda.h"
#include "ops/norm/parts_cuda.h"

namespace dipengine {

constexpr int kMostFew = 8, kMostFewColumns = 48;  // channels; and channels times taps
constexpr int kMostFewKernel = 3;

struct FewPlan {
  int32_t height, width, channels, first_channel, input_channels;  // of the source; of the weight
  int32_t out_height, out_width, out_channels;                     // of d_raw
  int32_t kernel, pad, reflects;
  int32_t tiles_y, tiles_x;
  int32_t rows, columns;        // of d_raw that a tile sees
  int32_t chunk, chunks, pitch;  // channels of d_raw at a time; bytes of a row of shared memory, of d_raw or weights
  int32_t sums_pitch;           // floats from a pixel's sums to the next one's
};

// Whether it is for source `source`: not upsampled, stride 1, a pad of half the kernel at most.
bool is_few(const dipengine_conv_cuda_params& p, int source);
FewPlan make_few_plan(const dipengine_conv_cuda_params& p, int source);

static inline PartTree part_tree_of(const FewPlan& p) { return make_part_tree(static_cast<int64_t>(p.tiles_y) * p.tiles_x, 1, 1); }

// d_x of the source, with its sums: merged by the last block where there are tickets, else by a second launch.
dipengine_status launch_few_gradient(const dipengine_conv_cuda_params& p, int source, uint32_t* tickets, const char* op);

}  // namespace dipengine
