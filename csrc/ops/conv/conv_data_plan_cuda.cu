// The choice of tiles of a convolution's data gradient.
#include <algorithm>

#include "ops/conv/conv_data_gradient_cuda.h"
#include "platform/cuda/device.h"
#include "platform/cuda/element.h"
#include "platform/cuda/launch.h"

namespace dipengine {
dipengine_status make_data_plan(const dipengine_conv_cuda_params& p, int source, const char* op, DataPlan* plan,
                                AxisVectors (*y)[2], AxisVectors (*x)[2]) {
  const dipengine_conv_cuda_source& s = p.sources[source];
  *plan = DataPlan{};
  plan->phases = p.stride;
  plan->height = s.height;
  plan->width = s.width;
  plan->channels = s.channels;
  plan->out_height = p.height;
  plan->out_width = p.width;
  plan->out_channels = p.channels;
  plan->kernel = p.kernel;
  for (int i = 0; i < p.sources_count; ++i) {
    if (i < source) plan->first_channel += p.sources[i].channels;
    plan->input_channels += p.sources[i].channels;
  }
  const int grid_height = (s.height + p.stride - 1) / p.stride, grid_width = (s.width + p.stride - 1) / p.stride;
  // As in the forward pass: narrower where few blocks would come of it, by the layer's shape alone.
  const int64_t tiles = static_cast<int64_t>((grid_height + 15) / 16) * ((grid_width + 7) / 8) * p.stride * p.stride;
  set_tile(plan, p.head.weight != nullptr ? kHeadKind : choose_tile(tiles, s.channels, cuda::few_blocks()));
  plan->tiles_y = (grid_height + plan->tile_rows - 1) / plan->tile_rows;
  plan->tiles_x = (grid_width + kTileColumns - 1) / kTileColumns;
  plan->channel_tiles = (s.channels + plan->tile_channels - 1) / plan->tile_channels;
  int rows = 0, columns = 0;
  for (int phase = 0; phase < p.stride; ++phase) {
    const bool made =
        make_axis({s.height, s.upsample, p.kernel, p.stride, p.pad, p.padding}, phase, &plan->y[phase], &(*y)[phase]) &&
        make_axis({s.width, s.upsample, p.kernel, p.stride, p.pad, p.padding}, phase, &plan->x[phase], &(*x)[phase]);
    if (!made)
      return fail(DIPENGINE_UNSUPPORTED, "%s has no data gradient of kernel %d with pad %d; pad by half the kernel at most.", op,
                  p.kernel, p.pad);
    const int r = plan->y[phase].step * (plan->tile_rows - 1) + plan->y[phase].high - plan->y[phase].low + 1;
    const int c = plan->x[phase].step * (kTileColumns - 1) + plan->x[phase].high - plan->x[phase].low + 1;
    rows = r > rows ? r : rows;
    columns = c > columns ? c : columns;
  }
  size_t limit = 0;
  DIPENGINE_TRY(cuda::shared_memory_limit(&limit));
  const int bytes = p.dtype == DIPENGINE_FLOAT32 ? cuda::Float32::kBytes : cuda::Bfloat16::kBytes;
  const int depth = p.dtype == DIPENGINE_FLOAT32 ? cuda::Float32::kDepth : cuda::Bfloat16::kDepth;
  const int all = (p.channels + depth - 1) / depth * depth;
  for (size_t budget : {chunk_budget(plan->round, limit), limit}) {
    for (int chunk_bytes : kChunkBytes) {
      const int chunk = chunk_bytes / bytes;
      if (chunk > depth && chunk / 2 >= all) continue;
      plan->chunk = chunk;
      plan->chunks = (p.channels + chunk - 1) / chunk;
      plan->pitch = chunk_bytes + kPitchMargin;
      plan->head_bytes =
          p.head.weight == nullptr ? 0 : plan->chunks * (chunk_bytes / 16) * gradient_head_pitch(bytes);
      plan->shared_bytes = std::max(static_cast<size_t>(plan->weight_bytes + kListsBytes + plan->head_bytes) +
                                        static_cast<size_t>(rows * columns + 1) * static_cast<size_t>(plan->pitch),
                                    static_cast<size_t>(plan->sum_bytes));
      if (plan->shared_bytes > budget) continue;
      for (int phase = 0; phase < p.stride * p.stride; ++phase) {
        const int64_t matrices = static_cast<int64_t>(plan->y[phase / p.stride].vectors) * plan->x[phase % p.stride].vectors;
        int64_t products = 0;
        for (int c = 0; c < plan->chunks; ++c) products += chunk_products(*plan, c, depth);
        plan->phase_blocks[phase + 1] = plan->phase_blocks[phase] + matrices * products;
        // Blocks are numbered by divisions of 31 bits (math/divide.h): all of them times those of a chunk.
        const int64_t entries = static_cast<int64_t>(plan->y[phase / p.stride].count) * plan->x[phase % p.stride].count;
        const int64_t of_chunk = entries * chunk_products(*plan, 0, depth) + plan->round;
        DIPENGINE_REQUIRE(of_chunk * of_chunk * plan->chunks <= INT32_MAX, "%s has too many channels for its kernel; use fewer.", op);
      }
      return DIPENGINE_OK;
    }
  }
  return fail(DIPENGINE_UNSUPPORTED, "%s needs %zu bytes of shared memory where the device has %zu; use a smaller kernel.", op,
              plan->shared_bytes, limit);
}

}  // namespace dipengine
