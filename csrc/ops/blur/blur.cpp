// Validation, tiling and dispatch of blur.
#include "ops/blur/blur.h"

#include "ops/blur/blur_kernels.h"
#include "platform/cpu_dispatch.h"
#include "platform/pixels.h"
#include "platform/thread_pool.h"

namespace dipengine {

DIPENGINE_TABLES(BlurKernels, blur_kernels, kTables)

namespace {

using Params = dipengine_blur_params;

constexpr int64_t kMost = int64_t{1} << 30;
constexpr int64_t kTaskProducts = int64_t{1} << 20;  // in a task, about; whole register tiles

BlurLayout layout_of(const Params& p, bool backward) {
  return blur_layout(p.height, p.width, p.channels, p.kernel_height, p.kernel_width, backward);
}

dipengine_status check_dims(const Params* params, const char* op) {
  DIPENGINE_TRY(check_struct(params, op));
  const Params& p = *params;
  DIPENGINE_TRY(check_size(p.height, p.width, p.channels, op));
  DIPENGINE_REQUIRE(p.kernel_height >= 1 && p.kernel_width >= 1 && p.kernel_height <= kMost && p.kernel_width <= kMost,
                    "%s was given a kernel of %lld x %lld; each must be at least 1.", op,
                    static_cast<long long>(p.kernel_height), static_cast<long long>(p.kernel_width));
  return check_real(p.dtype, op);
}

// The weights come first, then the padded image.
size_t weights_bytes(const Params& p, size_t element) {
  return (static_cast<size_t>(p.kernel_height * p.kernel_width) * element + 63) / 64 * 64;
}

size_t workspace_bytes(const Params& p) {
  const size_t element = p.dtype == DIPENGINE_FLOAT64 ? sizeof(double) : sizeof(float);
  const auto padded = [&](bool backward) {
    const BlurLayout l = layout_of(p, backward);
    return static_cast<size_t>((l.last_row - l.first_row) * l.pitch) * element;
  };
  const size_t forward = padded(false), backward = padded(true);
  return weights_bytes(p, element) + (forward > backward ? forward : backward);
}

dipengine_status check(const Params* params, const char* op) {
  DIPENGINE_TRY(check_dims(params, op));
  DIPENGINE_REQUIRE(params->kernel != nullptr, "%s was given no kernel; point it at its weights.", op);
  return check_workspace(params->workspace, params->workspace_bytes, workspace_bytes(*params), "dipengine_blur");
}

template <typename Real>
void correlate(const Params& p, const BlurKernels::Set& kernels, bool backward) {
  const BlurLayout l = layout_of(p, backward);
  const int64_t taps = p.kernel_height * p.kernel_width;
  Real* weights = static_cast<Real*>(p.workspace);
  for (int64_t i = 0; i < taps; ++i) weights[i] = static_cast<Real>(p.kernel[backward ? i : taps - 1 - i]);
  void* padded = static_cast<char*>(p.workspace) + weights_bytes(p, sizeof(Real));
  const dipengine_pixels &from = backward ? p.d_out : p.image, &to = backward ? p.d_image : p.out;

  const int64_t data_rows = l.last_row - l.first_row, rows_in_task = 1 + kTaskProducts / 64 / l.pitch;
  run_tasks(p.pool, (data_rows + rows_in_task - 1) / rows_in_task, [&](int64_t task) {
    for (int64_t row = task * rows_in_task; row < data_rows && row < (task + 1) * rows_in_task; ++row) {
      kernels.pad(l, p.channels, from, row, padded);
    }
  });
  const int64_t tiles = (l.height + kBlurRows - 1) / kBlurRows;
  const int64_t tiles_in_task = 1 + kTaskProducts / (kBlurRows * l.width * p.channels * taps);
  run_tasks(p.pool, (tiles + tiles_in_task - 1) / tiles_in_task, [&](int64_t task) {
    for (int64_t tile = task * tiles_in_task; tile < tiles && tile < (task + 1) * tiles_in_task; ++tile) {
      kernels.correlate(l, p.channels, p.kernel_height, p.kernel_width, padded, weights, tile * kBlurRows, to);
    }
  });
}

dipengine_status run(const Params& p, bool backward) {
  const BlurKernels* kernels;
  DIPENGINE_TRY(kTables.choose(&kernels));
  if (p.dtype == DIPENGINE_FLOAT64) {
    correlate<double>(p, kTables.by_isa[0]->float64, backward);
  } else {
    correlate<float>(p, kernels->float32, backward);
  }
  return DIPENGINE_OK;
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_blur_workspace(const dipengine_blur_params* params, size_t* bytes) {
  DIPENGINE_TRY(dipengine::check_dims(params, "dipengine_blur"));
  DIPENGINE_REQUIRE(bytes != nullptr, "dipengine_blur_workspace was given no place for its answer.");
  *bytes = dipengine::workspace_bytes(*params);
  return DIPENGINE_OK;
}

dipengine_status dipengine_blur(const dipengine_blur_params* params) {
  using namespace dipengine;
  const char* op = "dipengine_blur";
  DIPENGINE_TRY(check(params, op));
  const auto& p = *params;
  DIPENGINE_TRY(check_pixels(p.image, p.width + p.kernel_width - 1, p.channels, op, "image"));
  DIPENGINE_TRY(check_pixels(p.out, p.width, p.channels, op, "out"));
  return run(p, false);
}

dipengine_status dipengine_blur_backward(const dipengine_blur_params* params) {
  using namespace dipengine;
  const char* op = "dipengine_blur_backward";
  DIPENGINE_TRY(check(params, op));
  const auto& p = *params;
  DIPENGINE_TRY(check_pixels(p.d_out, p.width, p.channels, op, "d_out"));
  DIPENGINE_TRY(check_pixels(p.d_image, p.width + p.kernel_width - 1, p.channels, op, "d_image"));
  return run(p, true);
}

}  // extern "C"
