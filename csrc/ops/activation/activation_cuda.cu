// The gradient of the output sigmoid on a CUDA device, an element a thread: two reads and a write of float32, bound by memory.
#include "ops/activation/activation_cuda.h"

#include "ops/activation/activation_math.h"
#include "platform/cuda/launch.h"
#include "platform/pixels.h"

namespace dipengine {
namespace {

using Params = dipengine_sigmoid_backward_cuda_params;

constexpr int kThreads = 256;

DIPENGINE_DEVICE float* at(const dipengine_pixels& image, int64_t fit_offset, int64_t row, int64_t pixel, int64_t channel) {
  return static_cast<float*>(image.data) + fit_offset + row * image.row_stride + pixel * image.pixel_stride + channel;
}

DIPENGINE_KERNEL(kThreads, 4) sigmoid_backward_kernel(DIPENGINE_PARAMS(Params) p) {
  const int64_t fit = cuda::block_y();
  cuda::wait_for_launches();
  cuda::let_next_begin();
  if (p.active != nullptr && p.active[fit] == 0) return;
  const int64_t longest = p.width * p.channels, index = static_cast<int64_t>(cuda::block_x()) * kThreads + cuda::thread_index();
  const int64_t y = index / longest, element = index % longest;
  const int64_t height = p.sizes == nullptr ? p.height : p.sizes[2 * fit];
  const int64_t row = p.sizes == nullptr ? longest : p.sizes[2 * fit + 1];
  if (y >= height || element >= row) return;
  const int32_t pixel = static_cast<int32_t>(element) / static_cast<int32_t>(p.channels);
  const int32_t channel = static_cast<int32_t>(element) % static_cast<int32_t>(p.channels);
  const float x = *at(p.x, fit * p.x_fit_stride, y, pixel, channel), d_x = *at(p.d_x, fit * p.d_x_fit_stride, y, pixel, channel);
  *at(p.d_raw, fit * p.d_raw_fit_stride, y, pixel, channel) = sigmoid_gradient(d_x, x);
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_sigmoid_backward_cuda(const dipengine_sigmoid_backward_cuda_params* params) {
  using namespace dipengine;
  const char* const op = "dipengine_sigmoid_backward_cuda";
  DIPENGINE_TRY(check_struct(params, op));
  const dipengine_sigmoid_backward_cuda_params& p = *params;
  DIPENGINE_TRY(check_size(p.height, p.width, p.channels, op));
  constexpr int64_t most = int64_t{1} << 30;
  DIPENGINE_REQUIRE(p.fits >= 1 && p.width <= most / p.channels && p.height <= most,
                    "%s was given %lld fits of %lld rows of %lld pixels; give at least one fit, and rows of at most 2^30 elements.", op,
                    static_cast<long long>(p.fits), static_cast<long long>(p.height), static_cast<long long>(p.width));
  DIPENGINE_TRY(check_pixels(p.x, p.width, p.channels, op, "x"));
  DIPENGINE_TRY(check_pixels(p.d_x, p.width, p.channels, op, "d_x"));
  DIPENGINE_TRY(check_pixels(p.d_raw, p.width, p.channels, op, "d_raw"));
  DIPENGINE_REQUIRE(p.fits == 1 || p.d_raw_fit_stride != 0, "%s cannot write d_raw of several fits into one place; space them.", op);
  return cuda::launch(sigmoid_backward_kernel, "sigmoid_backward",
                      {(p.height * p.width * p.channels + kThreads - 1) / kThreads, p.fits, 1, kThreads, 0}, p, p.stream);
}

}  // extern "C"
