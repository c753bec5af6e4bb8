// Validation, tiling and dispatch of downsampling.
#include "ops/resample/resample.h"

#include "ops/resample/resample_checks.h"
#include "ops/resample/resample_kernels.h"
#include "platform/cpu_dispatch.h"
#include "platform/pixels.h"
#include "platform/thread_pool.h"

namespace dipengine {

DIPENGINE_TABLES(ResampleKernels, resample_kernels, kTables)

namespace {

using Params = dipengine_downsample_params;

constexpr int64_t kTaskElements = 16384;  // of the image, about; whole rows

size_t slot_bytes(const Params& p) {
  const ResampleScratch scratch = resample_scratch(p);
  return static_cast<size_t>(scratch.row + scratch.phases) * sizeof(double);
}

size_t workspace_bytes(const Params& p) { return slot_bytes(p) * static_cast<size_t>(dipengine_pool_size(p.pool)); }

dipengine_status check(const Params* params, const char* op) {
  DIPENGINE_TRY(check_resample_dims(params, op));
  const Params& p = *params;
  DIPENGINE_TRY(check_real(p.dtype, op));
  DIPENGINE_TRY(check_resample_taps(p, op));
  return check_workspace(p.workspace, p.workspace_bytes, workspace_bytes(p), "dipengine_downsample");
}

// Run a kernel over `rows` rows, of which each costs about `elements`.
dipengine_status run(const Params& p, int64_t rows, int64_t elements, ResampleKernels::Rows ResampleKernels::Pair::*member) {
  const ResampleKernels* kernels;
  DIPENGINE_TRY(kTables.choose(&kernels));
  const auto kernel = (p.dtype == DIPENGINE_FLOAT64 ? kTables.by_isa[0]->float64 : kernels->float32).*member;
  const int64_t rows_per_task = 1 + (kTaskElements - 1) / elements;
  run_tasks_with_scratch(p.pool, (rows + rows_per_task - 1) / rows_per_task, [&](int64_t task, int slot) {
    const int64_t first = task * rows_per_task, past = first + rows_per_task;
    char* scratch = static_cast<char*>(p.workspace) + static_cast<size_t>(slot) * slot_bytes(p);
    kernel(p, first, past < rows ? past : rows, scratch);
  });
  return DIPENGINE_OK;
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_downsample_workspace(const dipengine_downsample_params* params, size_t* bytes) {
  DIPENGINE_TRY(dipengine::check_resample_dims(params, "dipengine_downsample"));
  DIPENGINE_REQUIRE(bytes != nullptr, "dipengine_downsample_workspace was given no place for its answer.");
  *bytes = dipengine::workspace_bytes(*params);
  return DIPENGINE_OK;
}

dipengine_status dipengine_downsample(const dipengine_downsample_params* params) {
  using namespace dipengine;
  const char* op = "dipengine_downsample";
  DIPENGINE_TRY(check(params, op));
  const auto& p = *params;
  DIPENGINE_TRY(check_pixels(p.image, p.width, p.channels, op, "image"));
  DIPENGINE_TRY(check_pixels(p.out, outputs_of(horizontal_axis(p)), p.channels, op, "out"));
  return run(p, outputs_of(vertical_axis(p)), p.width * p.channels * p.factor, &ResampleKernels::Pair::forward);
}

dipengine_status dipengine_downsample_backward(const dipengine_downsample_params* params) {
  using namespace dipengine;
  const char* op = "dipengine_downsample_backward";
  DIPENGINE_TRY(check(params, op));
  const auto& p = *params;
  DIPENGINE_TRY(check_pixels(p.d_out, outputs_of(horizontal_axis(p)), p.channels, op, "d_out"));
  DIPENGINE_TRY(check_pixels(p.d_image, p.width, p.channels, op, "d_image"));
  return run(p, p.height, p.width * p.channels, &ResampleKernels::Pair::backward);
}

}  // extern "C"
