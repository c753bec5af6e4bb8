// Checks of a CUDA convolution's params, and the choice of its tiles.
#include <algorithm>

#include "ops/conv/conv_cuda_plan.h"
#include "platform/cuda/device.h"
#include "platform/cuda/element.h"
#include "platform/cuda/launch.h"
#include "platform/pixels.h"

namespace dipengine {
namespace {

using Params = dipengine_conv_cuda_params;

dipengine_status check_source(const Params& p, const dipengine_conv_cuda_source& s, int index, const char* op) {
  DIPENGINE_TRY(check_size(s.height, s.width, s.channels, op));
  DIPENGINE_TRY(check_pixels(s.x, s.width, s.channels, op, "x of a source"));
  DIPENGINE_REQUIRE(p.fits == 1 || s.x_fit_stride >= (s.height - 1) * s.x.row_stride + s.width * s.x.pixel_stride,
                    "%s was given overlapping fits in source %d; space them further apart.", op, index);
  DIPENGINE_REQUIRE(s.upsample >= DIPENGINE_UPSAMPLE_NONE && s.upsample <= DIPENGINE_UPSAMPLE_BILINEAR,
                    "%s has no upsampling %d.", op, s.upsample);
  DIPENGINE_REQUIRE(s.upsample == DIPENGINE_UPSAMPLE_NONE || (p.kernel == 3 && p.stride == 1 && p.pad == 1),
                    "%s upsamples in front of kernel 3, stride 1 and pad 1 alone.", op);
  DIPENGINE_REQUIRE(
      (s.inner.scale == nullptr) == (s.inner.shift == nullptr) && (s.outer.scale == nullptr) == (s.outer.shift == nullptr),
      "%s needs scale and shift of a map, or neither; source %d has one.", op, index);
  DIPENGINE_REQUIRE(s.slope <= 1, "%s has no leaky ReLU of slope %g in front of source %d; slopes are 1 at most.", op,
                    static_cast<double>(s.slope), index);
  const int factor = s.upsample == DIPENGINE_UPSAMPLE_NONE ? 1 : 2;
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t side = static_cast<int64_t>(factor) * (axis == 0 ? s.height : s.width), out = axis == 0 ? p.height : p.width;
    DIPENGINE_REQUIRE(side + 2 * p.pad >= p.kernel && (side + 2 * p.pad - p.kernel) / p.stride + 1 == out,
                      "%s: source %d of side %lld does not give a raw of side %lld.", op, index, static_cast<long long>(side),
                      static_cast<long long>(out));
    DIPENGINE_REQUIRE(p.pad < side || p.padding == DIPENGINE_PADDING_ZERO,
                      "%s: pad %d reflects further than side %lld of source %d.", op, p.pad, static_cast<long long>(side), index);
  }
  return DIPENGINE_OK;
}

dipengine_status check(const Params* params, const char* op) {
  DIPENGINE_TRY(check_struct(params, op));
  const Params& p = *params;
  DIPENGINE_REQUIRE(p.source_size == sizeof(dipengine_conv_cuda_source),
                    "%s was given source_size %zu where this library has %zu; build the host against its headers.", op,
                    p.source_size, sizeof(dipengine_conv_cuda_source));
  DIPENGINE_REQUIRE(p.fits >= 1 && p.sources != nullptr && p.sources_count >= 1 && p.sources_count <= DIPENGINE_CONV_MAX_SOURCES,
                    "%s needs at least one fit, and one or two sources.", op);
  DIPENGINE_REQUIRE(p.kernel >= 1 && p.kernel <= DIPENGINE_CONV_MAX_KERNEL && (p.stride == 1 || p.stride == 2) && p.pad >= 0,
                    "%s takes kernels of 1 to %d and stride 1 or 2; it was given kernel %d, stride %d, pad %d.", op,
                    DIPENGINE_CONV_MAX_KERNEL, p.kernel, p.stride, p.pad);
  DIPENGINE_REQUIRE(p.padding == DIPENGINE_PADDING_REFLECTION || p.padding == DIPENGINE_PADDING_ZERO, "%s has no padding %d.", op,
                    p.padding);
  DIPENGINE_REQUIRE(p.raw_dtype == DIPENGINE_BFLOAT16 || p.raw_dtype == DIPENGINE_FLOAT32,
                    "%s writes bfloat16 or float32, not dtype %d.", op, p.raw_dtype);
  DIPENGINE_REQUIRE(p.dtype == DIPENGINE_BFLOAT16 || p.dtype == DIPENGINE_FLOAT32,
                    "%s takes images in bfloat16 or float32, not dtype %d.", op, p.dtype);
  DIPENGINE_REQUIRE(p.dtype == DIPENGINE_BFLOAT16 || p.raw_dtype == DIPENGINE_FLOAT32,
                    "%s writes float32 images of float32 ones alone; ask for raw in float32.", op);
  DIPENGINE_TRY(check_size(p.height, p.width, p.channels, op));
  if (p.raw.data != nullptr) DIPENGINE_TRY(check_pixels(p.raw, p.width, p.channels, op, "raw"));  // backward may need none
  DIPENGINE_REQUIRE(p.fits == 1 || p.raw_fit_stride >= (p.height - 1) * p.raw.row_stride + p.width * p.raw.pixel_stride,
                    "%s was given overlapping fits of raw; space them further apart.", op);
  int upsampled = 0;
  for (int i = 0; i < p.sources_count; ++i) {
    DIPENGINE_TRY(check_source(p, p.sources[i], i, op));
    upsampled += p.sources[i].upsample != DIPENGINE_UPSAMPLE_NONE;
  }
  DIPENGINE_REQUIRE(upsampled <= 1, "%s takes at most one upsampled source.", op);
  DIPENGINE_REQUIRE((p.mean == nullptr) == (p.variance == nullptr) && (p.scale == nullptr) == (p.shift == nullptr) &&
                        (p.scale == nullptr || p.mean != nullptr),
                    "%s needs mean and variance both or neither, and them beside scale and shift.", op);
  return DIPENGINE_OK;
}

int round_up(int value, int to) { return (value + to - 1) / to * to; }

// How rows of shared memory are made up: bytes of a value, channels of a product, bytes behind the data.
struct RowShape {
  int bytes, depth, margin;
};

RowShape forward_shape(const Params& p) {
  if (p.dtype == DIPENGINE_FLOAT32) return {cuda::Float32::kBytes, cuda::Float32::kDepth, kPitchMargin};
  return {cuda::Bfloat16::kBytes, cuda::Bfloat16::kDepth, kPitchMargin};
}

RowShape gradient_shape(const Params& p) {
  const int bytes = forward_shape(p).bytes;
  return {bytes, kGradientDepth, gradient_margin(bytes)};
}

// Of one source: all but chunks, which depend on how much shared memory there is.
SourcePlan plan_source(const Params& p, const dipengine_conv_cuda_source& s, int phases, int tile_rows, int bytes) {
  SourcePlan plan{};
  plan.x = s.x.data;
  plan.x_fit_stride = p.fits == 1 ? 0 : s.x_fit_stride;
  plan.row_stride = s.x.row_stride;
  plan.pixel_stride = s.x.pixel_stride;
  plan.inner = s.inner;
  plan.outer = s.outer;
  plan.slope = s.slope;
  plan.height = s.height;
  plan.width = s.width;
  plan.channels = s.channels;
  plan.upsample = s.upsample;
  const bool nearest = s.upsample == DIPENGINE_UPSAMPLE_NEAREST;
  plan.stride = nearest ? 1 : phases == 2 ? 2 : p.stride;
  plan.taps = nearest ? 2 : p.kernel;
  plan.gathered = s.upsample == DIPENGINE_UPSAMPLE_NONE && p.kernel > 1 && s.channels <= kMostGathered &&
                  s.channels * p.kernel * p.kernel * bytes <= kMostGatheredBytes;
  plan.rows = (tile_rows - 1) * plan.stride + plan.taps;
  plan.columns = (kTileColumns - 1) * plan.stride + plan.taps;
  plan.half = (plan.columns + 1) / 2;
  plan.aligned = s.channels % values_in_16_bytes(p.dtype) == 0 && in_sixteens(p.dtype, plan.x_fit_stride, s.x);
  plan.copied = plan.aligned != 0 && p.dtype == DIPENGINE_BFLOAT16 && s.inner.scale == nullptr && s.outer.scale == nullptr &&
                s.slope == 1.0f && s.upsample != DIPENGINE_UPSAMPLE_BILINEAR;
  return plan;
}

// Bytes of shared memory that the source's inputs take with `chunk` channels at a time; fixes its chunks.
size_t set_chunk(SourcePlan* s, int chunk, int pixels, int round, const RowShape& shape) {
  if (s->gathered != 0) {
    s->chunk = s->channels;
    s->chunks = 1;
    s->pitch = shape.bytes * round_up(s->taps * s->taps * s->channels, shape.depth) + shape.margin;
    s->chunk_blocks = round_up(chunk_blocks(*s, 0, shape.depth), round);
    return static_cast<size_t>(pixels) * static_cast<size_t>(s->pitch);
  }
  const int all = round_up(s->channels, shape.depth);
  s->chunk = chunk;
  while (s->chunk > shape.depth && s->chunk / 2 >= all) s->chunk /= 2;
  s->chunks = (s->channels + s->chunk - 1) / s->chunk;
  s->pitch = shape.bytes * s->chunk + shape.margin;
  s->chunk_blocks = round_up(chunk_blocks(*s, 0, shape.depth), round);
  return static_cast<size_t>(s->rows * s->columns) * static_cast<size_t>(s->pitch);
}

// Gives every source chunks of `chunk` channels, and the stream its blocks; returns the bytes that the largest source takes. `largest`:
// the one of most channels comes first, as the first one is brought while registers hold no sums.
size_t set_chunks(const Params& p, ConvPlan* plan, int chunk, const RowShape& shape, bool largest) {
  size_t inputs = 0;
  plan->blocks = plan->input_channels = 0;
  const bool turned = largest && p.sources_count == 2 && p.sources[1].channels > p.sources[0].channels;
  for (int i = 0; i < p.sources_count; ++i) {
    const int given = turned ? 1 - i : i;
    SourcePlan& s = plan->sources[i] = plan_source(p, p.sources[given], plan->phases, plan->tile_rows, shape.bytes);
    const size_t own = set_chunk(&s, chunk, plan->tile_rows * kTileColumns, plan->round, shape);
    inputs = own > inputs ? own : inputs;
    s.first_channel = given == 1 ? p.sources[0].channels : 0;
    s.first_block = plan->blocks;
    plan->input_channels += s.channels;
    // Nothing has to begin with a round behind the last chunk.
    const int round = i + 1 < p.sources_count ? plan->round : 2;
    plan->blocks += (s.chunks - 1) * s.chunk_blocks + round_up(chunk_blocks(s, s.chunks - 1, shape.depth), round);
  }
  return inputs;
}

// All but tiles of channels and chunks.
dipengine_status begin_plan(const dipengine_conv_cuda_params* params, const char* op, ConvPlan* plan) {
  DIPENGINE_TRY(check(params, op));
  const Params& p = *params;
  *plan = ConvPlan{};
  plan->phases = 1;
  for (int i = 0; i < p.sources_count; ++i) {
    if (p.sources[i].upsample == DIPENGINE_UPSAMPLE_NEAREST) plan->phases = 2;
  }
  plan->sources_count = p.sources_count;
  plan->kernel = p.kernel;
  plan->conv_stride = p.stride;
  plan->pad = p.pad;
  plan->padding = p.padding;
  plan->channels = p.channels;
  plan->grid_height = p.height / plan->phases;
  plan->grid_width = p.width / plan->phases;
  return DIPENGINE_OK;
}

void cut_grid(ConvPlan* plan) {
  plan->tiles_y = (plan->grid_height + plan->tile_rows - 1) / plan->tile_rows;
  plan->tiles_x = (plan->grid_width + kTileColumns - 1) / kTileColumns;
  plan->channel_tiles = (plan->channels + plan->tile_channels - 1) / plan->tile_channels;
}

}  // namespace

dipengine_status make_weight_gradient_plan(const dipengine_conv_cuda_params* params, const char* op, ConvPlan* plan) {
  DIPENGINE_TRY(begin_plan(params, op, plan));
  const RowShape shape = gradient_shape(*params);
  plan->tile_rows = gradient_tile_rows(shape.bytes);
  plan->tile_channels = kGradientChannels;
  plan->round = 2;
  cut_grid(plan);
  size_t limit = 0;
  DIPENGINE_TRY(cuda::shared_memory_limit(&limit));
  for (int chunk : {64, 32, 16}) {
    plan->shared_bytes = set_chunks(*params, plan, chunk, shape, false) +
                         static_cast<size_t>(kGradientOffsets + plan->tile_rows * kTileColumns * gradient_pitch(shape.bytes)) +
                         static_cast<size_t>(params->head.weight != nullptr ? gradient_head_bytes(shape.bytes) : 0);
    if (plan->shared_bytes <= limit) return DIPENGINE_OK;
  }
  return fail(DIPENGINE_UNSUPPORTED, "%s needs %zu bytes of shared memory where the device has %zu; use a smaller kernel.", op,
              plan->shared_bytes, limit);
}

dipengine_status make_conv_plan(const dipengine_conv_cuda_params* params, const char* op, ConvPlan* plan) {
  DIPENGINE_TRY(begin_plan(params, op, plan));
  const int64_t tiles =
      (static_cast<int64_t>(plan->grid_height) + 15) / 16 * ((plan->grid_width + 7) / 8) * plan->phases * plan->phases;
  set_tile(plan, choose_tile(tiles, params->channels, cuda::few_blocks()));
  cut_grid(plan);
  size_t limit = 0;
  DIPENGINE_TRY(cuda::shared_memory_limit(&limit));
  const size_t stages = static_cast<size_t>(plan->weight_bytes);
  const RowShape shape = forward_shape(*params);
  for (size_t budget : {chunk_budget(plan->round, limit), limit}) {
    for (int bytes : kChunkBytes) {
      plan->shared_bytes =
          std::max(stages + set_chunks(*params, plan, bytes / shape.bytes, shape, true), static_cast<size_t>(plan->sum_bytes));
      if (plan->shared_bytes > budget) continue;
      DIPENGINE_REQUIRE(static_cast<int64_t>(plan->blocks) * plan->tile_channels * 32 <= INT32_MAX,
                        "%s takes up to 2 GB of weights of a tile's channels; use fewer channels.", op);
      return DIPENGINE_OK;
    }
  }
  return fail(DIPENGINE_UNSUPPORTED, "%s needs %zu bytes of shared memory where the device has %zu; use a smaller kernel.", op,
              plan->shared_bytes, limit);
}

}  // namespace dipengine

extern "C" {

dipengine_status dipengine_conv_cuda_packed_bytes(const dipengine_conv_cuda_params* params, size_t* bytes) {
  dipengine::ConvPlan plan;
  DIPENGINE_TRY(dipengine::make_conv_plan(params, "dipengine_conv_cuda_packed_bytes", &plan));
  DIPENGINE_REQUIRE(bytes != nullptr, "dipengine_conv_cuda_packed_bytes was given no place for its answer.");
  *bytes = static_cast<size_t>(params->fits * dipengine::packed_bytes(plan));
  return DIPENGINE_OK;
}

dipengine_status dipengine_conv_cuda_workspace(const dipengine_conv_cuda_params* params, size_t* bytes) {
  dipengine::ConvPlan plan;
  DIPENGINE_TRY(dipengine::make_conv_plan(params, "dipengine_conv_cuda_workspace", &plan));
  DIPENGINE_REQUIRE(bytes != nullptr, "dipengine_conv_cuda_workspace was given no place for its answer.");
  *bytes = params->mean == nullptr ? 0 : dipengine::merge_bytes(part_tree_of(plan), params->fits, plan.channels);
  return DIPENGINE_OK;
}

}  // extern "C"
