// What the convolutions' plans ask of a device.
#include <cstdlib>

#include "conv_layers.h"
#include "ops/conv/conv_data_gradient_cuda.h"
#include "scenarios.h"

using namespace dipengine;
using namespace dipengine::emulator::layers;

namespace {

// The layer's params, over memory that nobody reads.
struct Problem {
  std::vector<dipengine_conv_cuda_source> sources;
  dipengine_conv_cuda_params params{};

  Problem(const Layer& layer, int32_t dtype);
};

Problem::Problem(const Layer& layer, int32_t dtype) {
  static uint16_t memory[8];
  for (const Input& i : layer.inputs) {
    dipengine_conv_cuda_source s{};
    s.height = i.height;
    s.width = i.width;
    s.channels = i.channels;
    s.upsample = i.upsample;
    s.x = {memory, int64_t{1} * i.width * i.channels, i.channels};
    s.slope = 0.2f;
    sources.push_back(s);
  }
  dipengine_conv_cuda_params& p = params;
  p.struct_size = sizeof(p);
  p.source_size = sizeof(sources[0]);
  p.fits = 1;
  p.sources = sources.data();
  p.sources_count = static_cast<int32_t>(sources.size());
  p.dtype = p.raw_dtype = dtype;
  p.kernel = layer.kernel;
  p.stride = layer.stride;
  p.pad = layer.pad;
  p.height = layer.inputs[0].height / layer.stride;
  p.width = layer.inputs[0].width / layer.stride;
  p.channels = layer.channels;
  p.raw = {memory, int64_t{1} * p.width * p.channels, p.channels};
}

void check_plans(const Layer& layer, int32_t dtype, size_t limit) {
  const Problem problem(layer, dtype);
  const dipengine_conv_cuda_params& p = problem.params;
  ConvPlan plan, weights;
  DataPlan data;
  AxisVectors y[2] = {}, x[2] = {};
  CHECK(make_conv_plan(&p, "plan", &plan) == DIPENGINE_OK && make_weight_gradient_plan(&p, "plan", &weights) == DIPENGINE_OK);
  CHECK(make_data_plan(p, p.sources_count - 1, "plan", &data, &y, &x) == DIPENGINE_OK);
  // But for 128 channels where a tile sees four times its pixels, on the smallest, and beside a gathered skip in float32: one
  // block fits there.
  const bool small = limit == 99 * 1024, skip = dtype == DIPENGINE_FLOAT32 && plan.sources_count == 2;
  const bool one = small && (layer.stride == 2 || skip) && plan.tile_channels == 128;
  const bool one_backward = small && layer.inputs.back().upsample != 0 && data.tile_channels == 128;
  CHECK(plan.shared_bytes + 1024 <= (limit + 1024) / (one ? 1 : 2));
  CHECK(data.shared_bytes + 1024 <= (limit + 1024) / (one_backward ? 1 : 2));
  CHECK(weights.shared_bytes <= limit);  // of 256 threads
  if (std::getenv("EMULATOR_PLANS") != nullptr) {
    const auto last = static_cast<size_t>(plan.sources_count - 1);
    std::printf(
        "%zu KB: %d -> %d channels, kernel %d, stride %d, upsampling %d: forward %dx8x%d by %d, %zu bytes; data %dx8x%d by "
        "%d, %zu; "
        "weights by %d, %zu\n",
        limit / 1024, layer.inputs.back().channels, layer.channels, layer.kernel, layer.stride, layer.inputs.back().upsample,
        plan.tile_rows, plan.tile_channels, plan.sources[last].chunk, plan.shared_bytes, data.tile_rows, data.tile_channels,
        data.chunk, data.shared_bytes, weights.sources[last].chunk, weights.shared_bytes);
  }
}

}  // namespace

TEST(plans_of_the_papers_layers_leave_room_for_two_blocks_on_every_device) {
  // [height, width of raw, sources, channels, kernel, stride] at 256 x 256; two blocks on one multiprocessor, so that one
  // can load while the other multiplies. sm_86, 89 and 120; sm_80; sm_90.
  const std::vector<Layer> layers = {{{{256, 256, 32}}, 128, 3, 2, 1},
                                     {{{128, 128, 128}}, 128},
                                     {{{128, 128, 128}}, 128, 3, 2, 1},
                                     {{{256, 256, 32}}, 4, 1, 1, 0},
                                     {{{128, 128, 128}}, 4, 1, 1, 0},
                                     {{{256, 256, 4}, {128, 128, 128, kNearest}}, 128},
                                     {{{256, 256, 4}, {128, 128, 128, kBilinear}}, 128},
                                     {{{256, 256, 128}}, 128, 1, 1, 0},
                                     {{{256, 256, 128}}, 3, 1, 1, 0}};
  for (size_t limit : {99 * 1024, 163 * 1024, 227 * 1024}) {
    emulator::settings().shared_limit = limit;
    for (const Layer& layer : layers) {
      for (int32_t dtype : {DIPENGINE_BFLOAT16, DIPENGINE_FLOAT32}) check_plans(layer, dtype, limit);
    }
  }
  emulator::settings() = emulator::Settings{};
}

// Parts are float32, as large as the layer's weights each (a nearest source's: of 16 taps), and nothing else.
TEST(plans_of_weight_gradients_leave_no_more_parts_than_keep_a_device_busy) {
  const auto parts = [](const Layer& layer, int taps) {
    const Problem problem(layer, DIPENGINE_BFLOAT16);
    size_t bytes = 0;
    CHECK(dipengine_conv_cuda_weight_gradient_workspace(&problem.params, &bytes) == DIPENGINE_OK);
    const size_t one = sizeof(float) * static_cast<size_t>(taps * layer.inputs.back().channels * layer.channels);
    CHECK(bytes % one == 0);
    return bytes / one;
  };
  // Blocks are of 64 x 64 channels, tiles of 128 pixels: four blocks a part here.
  CHECK(parts({{{128, 128, 128}}, 128}, 9) == 32);                           // 128 tiles
  CHECK(parts({{{256, 256, 128}}, 128, 1, 1, 0}, 1) == 32);                  // 512
  CHECK(parts({{{512, 512, 128}}, 128}, 9) == 64);                           // 2048: as many as fill a device twice
  CHECK(parts({{{32, 32, 128}}, 128}, 9) == 4);                              // 8, two a part
  CHECK(parts({{{256, 256, 4}, {128, 128, 128, kNearest}}, 128}, 16) == 8);  // 16 blocks a part, of 128 tiles
  CHECK(parts({{{64, 64, 512}}, 512}, 9) == 2);                              // 64 blocks a part, of 32 tiles
}
