// A bias's gradient, the sum of d_raw over pixels. A block takes 1024 pixels of 32 channels, a lane a channel; its warps'
// sums are added in their order, and the blocks' by the last of them or by launch_sums. Bound by memory: d_raw is read once.
#include "ops/conv/conv_bias_gradient_cuda.h"

#include "ops/norm/parts_merge_cuda.h"
#include "platform/cuda/launch.h"

namespace dipengine {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / cuda::kWarp;
constexpr int kPixels = 1024;

struct BiasLaunch {
  GradientSource d_raw;
  int32_t height, width, channels;
  const uint8_t* active;
  PartSums* parts;
  int64_t count;
  SumsLaunch add;
  PartTree tree;
};

template <typename Element>
DIPENGINE_KERNEL(kThreads, 2)
conv_bias_gradient_kernel(DIPENGINE_PARAMS(BiasLaunch) l) {
  const int64_t fit = cuda::block_z();
  cuda::wait_for_launches();
  if (l.active != nullptr && l.active[fit] == 0) return;
  const int channel = cuda::block_y() * cuda::kWarp + cuda::lane_index();
  const int64_t pixels = static_cast<int64_t>(l.height) * l.width, begin = static_cast<int64_t>(cuda::block_x()) * kPixels;
  const int64_t end = begin + kPixels < pixels ? begin + kPixels : pixels;
  float sum = 0;
  for (int64_t at = begin + cuda::warp_index(); at < end && channel < l.channels; at += kWarps) {
    sum += d_raw_at<Element>(l.d_raw, fit, at / l.width, at % l.width, channel);
  }
  cuda::let_next_begin();
  float* shared = reinterpret_cast<float*>(cuda::shared_memory());
  shared[cuda::thread_index()] = sum;
  cuda::sync_threads();
  if (cuda::warp_index() == 0 && channel < l.channels) {
    for (int warp = 1; warp < kWarps; ++warp) sum += shared[warp * cuda::kWarp + cuda::lane_index()];
    l.parts[(fit * l.count + cuda::block_x()) * l.channels + channel] = {sum, 0};
  }
  if (l.tree.tickets == nullptr) return;
  merge_by_blocks<kThreads, cuda::kWarp>(l.tree, SumsMerge{l.add}, fit, cuda::block_y(), cuda::block_x());
}

int64_t parts_of(const dipengine_conv_cuda_params& p) {
  return (static_cast<int64_t>(p.height) * p.width + kPixels - 1) / kPixels;
}

PartTree tree_of(const dipengine_conv_cuda_params& p) {
  return make_part_tree(parts_of(p), 1, (p.channels + cuda::kWarp - 1) / cuda::kWarp);
}

}  // namespace

size_t bias_gradient_workspace(const dipengine_conv_cuda_params& p) {
  return p.d_bias == nullptr ? 0 : merge_bytes(tree_of(p), p.fits, p.channels);
}

int64_t bias_gradient_tickets(const dipengine_conv_cuda_params& p) {
  return p.d_bias == nullptr ? 0 : tickets_of(tree_of(p), p.fits);
}

dipengine_status launch_bias_gradient(const dipengine_conv_cuda_params& p) {
  auto* const parts = static_cast<PartSums*>(p.workspace);
  const SumsLaunch add = {
      parts_of(p), p.channels, parts, p.active, p.fits == 1 ? 0 : p.parameters_fit_stride, p.d_bias, nullptr, 0, {}};
  const BiasLaunch l = {gradient_source(p), p.height, p.width, p.channels, p.active, parts, parts_of(p), add,
                        place_part_tree(tree_of(p), p.fits, p.channels, p.workspace, p.tickets)};
  const cuda::Grid grid = {l.count, (p.channels + cuda::kWarp - 1) / cuda::kWarp, p.fits, kThreads,
                           p.tickets == nullptr ? kThreads * sizeof(float) : merge_shared_bytes(kThreads)};
  DIPENGINE_TRY(cuda::with_element(p.dtype, [&](auto element) {
    return cuda::launch(conv_bias_gradient_kernel<decltype(element)>, "conv_bias_gradient", grid, l, p.stream);
  }));
  return p.tickets != nullptr ? DIPENGINE_OK : launch_sums(add, p.fits, p.stream);
}

}  // namespace dipengine
