// Packs the weights of a data gradient: one matrix for each pair of coefficient vectors of the two axes, in float32 sums of
// the raw taps, rounded once; in the order of conv_data_gradient_cuda.h. A thread makes the 16 bytes of one lane.
#include "ops/conv/conv_data_gradient_cuda.h"
#include "platform/cuda/element.h"
#include "platform/cuda/launch.h"

namespace dipengine {
namespace {

constexpr int kPackThreads = 256;

struct PackLaunch {
  DataPlan plan;
  AxisVectors y, x;  // of the phase
  int32_t phase;
  const float* weight;
  int64_t parameters_fit_stride;
  unsigned char* packed;
  const uint8_t* active;
  int64_t lanes;  // of a channel tile, in this phase
};

template <typename Element>
DIPENGINE_KERNEL(kPackThreads, 2)
conv_data_pack_kernel(DIPENGINE_PARAMS(PackLaunch) l) {
  const DataPlan& p = l.plan;
  const int64_t fit = cuda::block_z(), index = static_cast<int64_t>(cuda::block_x()) * kPackThreads + cuda::thread_index();
  if (index >= l.lanes || (l.active != nullptr && l.active[fit] == 0)) return;
  const int lane = static_cast<int>(index % 32), groups = p.tile_channels / 16;
  const int group = static_cast<int>(index / 32 % groups);
  const int64_t block = index / 32 / groups;
  const int xs = p.x[l.phase % p.phases].vectors, matrices = p.y[l.phase / p.phases].vectors * xs;
  const int64_t chunk_blocks = static_cast<int64_t>(matrices) * (p.chunk / Element::kDepth);
  const int chunk = static_cast<int>(block / chunk_blocks), within = static_cast<int>(block % chunk_blocks);
  const int products = chunk_products(p, chunk, Element::kDepth), matrix = within / products;
  const float* weight = l.weight + fit * l.parameters_fit_stride;
  cuda::Bytes16 out{};
  DIPENGINE_UNROLL
  for (int i = 0; i < Element::kEach; ++i) {
    constexpr int kHalf = Element::kEach / 2;  // of one of the two products
    const int k = Element::weight_row(lane % 4, i % kHalf);
    const int w = group / p.products_n, j = group % p.products_n * 2 + i / kHalf;
    const int to = cuda::block_y() * p.tile_channels + tile_channel(p.products_n, w, j, lane / 4);
    const int from = chunk * p.chunk + within % products * Element::kDepth + k;
    float sum = 0;
    if (to < p.channels && from < p.out_channels) {
      for (int t = 0; t < p.kernel * p.kernel; ++t) {
        const float share = l.y.of[matrix / xs][t / p.kernel] * l.x.of[matrix % xs][t % p.kernel];
        if (share != 0) {
          sum = fma(share, weight[(static_cast<int64_t>(t) * p.input_channels + p.first_channel + to) * p.out_channels + from],
                    sum);
        }
      }
    }
    Element::put(out, i, Element::operand(sum));
  }
  const int64_t phases_blocks = p.phase_blocks[p.phases * p.phases];
  const int64_t first = ((fit * p.channel_tiles + cuda::block_y()) * phases_blocks + p.phase_blocks[l.phase]) * groups * 32;
  cuda::store16(l.packed + (first + index) * 16, out);
}

}  // namespace

dipengine_status launch_data_pack(const dipengine_conv_cuda_params& p, const DataPlan& plan, const AxisVectors (&y)[2],
                                  const AxisVectors (&x)[2]) {
  for (int phase = 0; phase < plan.phases * plan.phases; ++phase) {
    const int64_t lanes = (plan.phase_blocks[phase + 1] - plan.phase_blocks[phase]) * (plan.tile_channels / 16) * 32;
    if (lanes == 0) continue;
    const PackLaunch pack = {plan,
                             y[phase / plan.phases],
                             x[phase % plan.phases],
                             phase,
                             p.weight,
                             p.fits == 1 ? 0 : p.parameters_fit_stride,
                             static_cast<unsigned char*>(p.packed),
                             p.active,
                             lanes};
    const cuda::Grid grid = {(lanes + kPackThreads - 1) / kPackThreads, plan.channel_tiles, p.fits, kPackThreads, 0};
    DIPENGINE_TRY(cuda::with_element(p.dtype, [&](auto element) {
      return cuda::launch(conv_data_pack_kernel<decltype(element)>, "conv_data_pack", grid, pack, p.stream);
    }));
  }
  return DIPENGINE_OK;
}

}  // namespace dipengine
