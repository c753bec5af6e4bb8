// Packing of convolutions' weights as jobs of a table in device memory: those of many layers in one launch. One layer's alone are
// packed by dipengine_conv_cuda_pack and dipengine_conv_cuda_data_pack.
#pragma once

#include <vector>

#include "ops/conv/conv_data_gradient_cuda.h"

namespace dipengine {

// A forward pass's weights; or those of a data gradient, of one source and phase.
struct PackJob {
  int64_t first_block;  // of the launch
  int64_t lanes;        // of a fit, 16 bytes each
  const float* weight;
  int64_t weight_fit_stride;
  unsigned char* packed;
  int32_t is_data;
  ConvPlan forward;
  // of a data gradient
  int32_t tile_channels, products_n, chunk, matrices, matrices_x;
  int32_t channels, first_channel, input_channels, out_channels, kernel;
  int64_t tile_lanes;                // of a channel tile, in this phase
  int64_t tile_stride, fit_stride;   // lanes from a channel tile, and from a fit, to the next, all phases
  AxisVectors y, x;                  // of the phase
};

// Appends what dipengine_conv_cuda_pack or dipengine_conv_cuda_data_pack would do. `op`: for its sentences.
dipengine_status add_forward_pack(const dipengine_conv_cuda_params& params, const char* op, std::vector<PackJob>* jobs);
dipengine_status add_data_packs(const dipengine_conv_cuda_params& params, const char* op, std::vector<PackJob>* jobs);

// Shares out the blocks of a launch among jobs; how many there are.
int64_t share_blocks(std::vector<PackJob>* jobs);

struct PackTable {
  const PackJob* jobs;  // device memory, with their blocks shared out
  int32_t count;
  int64_t blocks;
  const uint8_t* active;  // as in the params
};
dipengine_status launch_packs(const PackTable& table, int32_t dtype, int64_t fits, void* stream);

}  // namespace dipengine
