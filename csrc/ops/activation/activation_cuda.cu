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
  const int64_t fit = cuda::block_z(), y = cuda::block_y();
  if (p.active != nullptr && p.active[fit] == 0) return;
  const int64_t height = p.sizes == nullptr ? p.height : p.sizes[2 * fit];
  const int64_t row = p.sizes == nullptr ? p.width * p.channels : p.sizes[2 * fit + 1];
  const int64_t element = static_cast<int64_t>(cuda::block_x()) * kThreads + cuda::thread_index();
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
  DIPENGINE_REQUIRE(p.fits >= 1 && p.width <= (int64_t{1} << 30) / p.channels,
                    "%s was given %lld fits and rows of %lld pixels; give at least one fit, and rows of at most 2^30 elements.", op,
                    static_cast<long long>(p.fits), static_cast<long long>(p.width));
  DIPENGINE_TRY(check_pixels(p.x, p.width, p.channels, op, "x"));
  DIPENGINE_TRY(check_pixels(p.d_x, p.width, p.channels, op, "d_x"));
  DIPENGINE_TRY(check_pixels(p.d_raw, p.width, p.channels, op, "d_raw"));
  DIPENGINE_REQUIRE(p.fits == 1 || p.d_raw_fit_stride != 0, "%s cannot write d_raw of several fits into one place; space them.", op);
  return cuda::launch(sigmoid_backward_kernel, "sigmoid_backward",
                      {(p.width * p.channels + kThreads - 1) / kThreads, p.height, p.fits, kThreads, 0}, p, p.stream);
}

}  // extern "C"
