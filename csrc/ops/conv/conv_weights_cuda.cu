// Packs a convolution's float32 weights into the stream of bfloat16 or tf32 operands that the CUDA kernels consume.
//
// For nearest upsampling, the taps of each phase are sums of the raw ones (design 3.1): per axis phase 0 sees w0 at i - 1
// and w1 + w2 at i, phase 1 sees w0 + w1 at i and w2 at i + 1. Summed in float32, rounded once. A thread makes
// the 16 bytes of one lane.
#include "ops/conv/conv_cuda_plan.h"
#include "platform/cuda/element.h"
#include "platform/cuda/launch.h"

namespace dipengine {
namespace {

constexpr int kThreads = 256;

struct PackLaunch {
  ConvPlan plan;
  const float* weight;
  int64_t parameters_fit_stride;
  unsigned char* packed;
  const uint8_t* active;
  int64_t lanes;  // of a fit
};

// Raw taps [first, last] that tap `tap` of a phase sums.
struct TapRange {
  int first, last;
};
DIPENGINE_DEVICE TapRange raw_taps(bool nearest, int phase, int tap) {
  if (!nearest) return {tap, tap};
  if (phase == 0) return tap == 0 ? TapRange{0, 0} : TapRange{1, 2};
  return tap == 0 ? TapRange{0, 1} : TapRange{2, 2};
}

DIPENGINE_DEVICE float packed_weight(const ConvPlan& p, const SourcePlan& s, const float* weight, int phase, int tap, int channel,
                                     int out) {
  if (channel >= s.channels || out >= p.channels) return 0;
  const bool nearest = s.upsample == DIPENGINE_UPSAMPLE_NEAREST;
  const TapRange y = raw_taps(nearest, phase / p.phases, tap / s.taps), x = raw_taps(nearest, phase % p.phases, tap % s.taps);
  float sum = 0;
  for (int ty = y.first; ty <= y.last; ++ty) {
    for (int tx = x.first; tx <= x.last; ++tx) {
      sum += weight[(static_cast<int64_t>(ty * p.kernel + tx) * p.input_channels + s.first_channel + channel) * p.channels + out];
    }
  }
  return sum;
}

template <typename Element>
DIPENGINE_KERNEL(kThreads, 2)
conv_pack_kernel(DIPENGINE_PARAMS(PackLaunch) launch) {
  constexpr int kDepth = Element::kDepth, kHalf = Element::kEach / 2;  // values of one of a lane's two products
  const ConvPlan& p = launch.plan;
  const int64_t fit = cuda::block_y(), index = static_cast<int64_t>(cuda::block_x()) * kThreads + cuda::thread_index();
  if (index >= launch.lanes || (launch.active != nullptr && launch.active[fit] == 0)) return;
  const int lane = static_cast<int>(index % 32), groups = p.tile_channels / 16;
  int64_t rest = index / 32;
  const int group = static_cast<int>(rest % groups);
  rest /= groups;
  int block = static_cast<int>(rest % p.blocks);
  rest /= p.blocks;
  const int phase = static_cast<int>(rest % (p.phases * p.phases)), channel_tile = static_cast<int>(rest / (p.phases * p.phases));

  const SourcePlan& s = p.sources[p.sources_count == 2 && block >= p.sources[1].first_block ? 1 : 0];
  block -= s.first_block;
  const int chunk = block / s.chunk_blocks, within = block % s.chunk_blocks, products = chunk_products(s, chunk, kDepth);
  const float* weight = launch.weight + fit * launch.parameters_fit_stride;
  cuda::Bytes16 out{};
  DIPENGINE_UNROLL
  for (int i = 0; i < Element::kEach; ++i) {
    const int k = Element::weight_row(lane % 4, i % kHalf);
    const int w = group / p.products_n, j = group % p.products_n * 2 + i / kHalf;
    const int to = channel_tile * p.tile_channels + tile_channel(p.products_n, w, j, lane / 4);
    int tap = within / products, channel = chunk * s.chunk + within % products * kDepth + k;
    if (s.gathered != 0) {
      tap = (within * kDepth + k) / s.channels;
      channel = (within * kDepth + k) % s.channels;
    }
    const float value = tap < s.taps * s.taps ? packed_weight(p, s, weight, phase, tap, channel, to) : 0.0f;
    Element::put(out, i, Element::operand(value));
  }
  cuda::store16(launch.packed + (fit * launch.lanes + index) * 16, out);
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_conv_cuda_pack(const dipengine_conv_cuda_params* params) {
  using namespace dipengine;
  ConvPlan plan;
  DIPENGINE_TRY(make_conv_plan(params, "dipengine_conv_cuda_pack", &plan));
  const size_t needed = static_cast<size_t>(params->fits * packed_bytes(plan));
  DIPENGINE_REQUIRE(params->weight != nullptr && params->packed != nullptr &&
                        reinterpret_cast<uintptr_t>(params->packed) % 16 == 0 && params->packed_bytes >= needed,
                    "dipengine_conv_cuda_pack needs weight, and %zu bytes for packed, 16-byte aligned.", needed);
  const int64_t lanes = packed_bytes(plan) / 16;
  const PackLaunch launch = {plan,
                             params->weight,
                             params->fits == 1 ? 0 : params->parameters_fit_stride,
                             static_cast<unsigned char*>(params->packed),
                             params->active,
                             lanes};
  const cuda::Grid grid = {(lanes + kThreads - 1) / kThreads, params->fits, 1, kThreads, 0};
  return cuda::with_element(params->dtype, [&](auto element) {
    return cuda::launch(conv_pack_kernel<decltype(element)>, "conv_pack", grid, launch, params->stream);
  });
}

}  // extern "C"
