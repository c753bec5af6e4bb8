// Kernels with a 2x2 mean made part of them, and their gradients: a thread an element of what is written, weights alone are moved.
#include "ops/conv/conv_mean_cuda.h"

#include "ops/conv/conv.h"
#include "platform/cuda/launch.h"

namespace dipengine {
namespace {

using Params = dipengine_conv_mean_cuda_params;

constexpr int kThreads = 256;

// A thread's element: tap (y, x) of a kernel of `side`, pair of channels.
struct Element {
  int64_t fit, tap, pair;
  int y, x;
  bool there;
};

DIPENGINE_DEVICE Element element_of(const Params& p, int64_t side) {
  Element e{};
  e.fit = cuda::block_y();
  const int64_t index = static_cast<int64_t>(cuda::block_x()) * kThreads + cuda::thread_index();
  e.there = index < side * side * p.pairs && (p.active == nullptr || p.active[e.fit] != 0);
  e.tap = index / p.pairs;
  e.pair = index % p.pairs;
  e.y = static_cast<int>(e.tap / side);
  e.x = static_cast<int>(e.tap % side);
  return e;
}

DIPENGINE_KERNEL(kThreads, 4) conv_widen_kernel(DIPENGINE_PARAMS(Params) p) {
  cuda::wait_for_launches();
  cuda::let_next_begin();
  const Element e = element_of(p, p.kernel + 1);
  if (!e.there) return;
  const float* weight = p.weight + e.fit * p.weight_fit_stride + e.pair;
  float sum = 0;
  for (int corner = 0; corner < 4; ++corner) {
    const int y = e.y - corner / 2, x = e.x - corner % 2;
    if (y >= 0 && x >= 0 && y < p.kernel && x < p.kernel) sum += weight[(y * p.kernel + x) * p.pairs] / 4;
  }
  p.wide[e.fit * p.wide_fit_stride + e.tap * p.pairs + e.pair] = sum;
}

DIPENGINE_KERNEL(kThreads, 4) conv_narrow_kernel(DIPENGINE_PARAMS(Params) p) {
  cuda::wait_for_launches();
  cuda::let_next_begin();
  const Element e = element_of(p, p.kernel);
  if (!e.there) return;
  const float* corner = p.wide + e.fit * p.wide_fit_stride + (e.y * (p.kernel + 1) + e.x) * p.pairs + e.pair;
  const int64_t down = (p.kernel + 1) * p.pairs;
  p.weight[e.fit * p.weight_fit_stride + e.tap * p.pairs + e.pair] =
      (corner[0] + corner[p.pairs] + corner[down] + corner[down + p.pairs]) / 4;
}

dipengine_status run(const Params* params, const char* op, void (*kernel)(Params), const char* name, int64_t more) {
  DIPENGINE_TRY(check_struct(params, op));
  const Params& p = *params;
  DIPENGINE_REQUIRE(p.fits >= 1 && p.kernel >= 1 && p.kernel < DIPENGINE_CONV_MAX_KERNEL && p.pairs >= 1,
                    "%s takes at least one fit and pair of channels, and kernels of 1 to %d.", op, DIPENGINE_CONV_MAX_KERNEL - 1);
  DIPENGINE_REQUIRE(p.weight != nullptr && p.wide != nullptr, "%s needs weight and wide in device memory; one of them is NULL.", op);
  const int64_t side = p.kernel + more;
  return cuda::launch(kernel, name, {(side * side * p.pairs + kThreads - 1) / kThreads, p.fits, 1, kThreads, 0}, p, p.stream);
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_conv_mean_cuda_widen(const dipengine_conv_mean_cuda_params* params) {
  return dipengine::run(params, "dipengine_conv_mean_cuda_widen", dipengine::conv_widen_kernel, "conv_widen", 1);
}

dipengine_status dipengine_conv_mean_cuda_narrow(const dipengine_conv_mean_cuda_params* params) {
  return dipengine::run(params, "dipengine_conv_mean_cuda_narrow", dipengine::conv_narrow_kernel, "conv_narrow", 0);
}

}  // extern "C"
