// Validation, tiling and dispatch of sigmoid_backward.
#include "ops/activation/activation.h"

#include "ops/activation/activation_kernels.h"
#include "platform/cpu_dispatch.h"
#include "platform/pixels.h"
#include "platform/thread_pool.h"

namespace dipengine {

DIPENGINE_TABLES(ActivationKernels, activation_kernels, kTables)

namespace {

constexpr int64_t kTaskElements = 16384;  // about; whole rows

dipengine_status check(const dipengine_sigmoid_backward_params* params) {
  const char* op = "dipengine_sigmoid_backward";
  DIPENGINE_TRY(check_struct(params, op));
  const auto& p = *params;
  DIPENGINE_TRY(check_size(p.height, p.width, p.channels, op));
  DIPENGINE_TRY(check_real(p.dtype, op));
  DIPENGINE_TRY(check_pixels(p.x, p.width, p.channels, op, "x"));
  DIPENGINE_TRY(check_pixels(p.d_x, p.width, p.channels, op, "d_x"));
  return check_pixels(p.d_raw, p.width, p.channels, op, "d_raw");
}

}  // namespace
}  // namespace dipengine

extern "C" dipengine_status dipengine_sigmoid_backward(const dipengine_sigmoid_backward_params* params) {
  using namespace dipengine;
  DIPENGINE_TRY(check(params));
  const auto& p = *params;
  const ActivationKernels* kernels;
  DIPENGINE_TRY(kTables.choose(&kernels));
  const auto rows = p.dtype == DIPENGINE_FLOAT64 ? kTables.by_isa[0]->float64 : kernels->float32;
  const int64_t rows_per_task = 1 + (kTaskElements - 1) / (p.width * p.channels);
  run_tasks(p.pool, (p.height + rows_per_task - 1) / rows_per_task, [&](int64_t task) {
    const int64_t first = task * rows_per_task, past = first + rows_per_task;
    rows(p, first, past < p.height ? past : p.height);
  });
  return DIPENGINE_OK;
}
