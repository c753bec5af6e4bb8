// Validation, dispatch and the final sums of deviance.
#include "ops/deviance/deviance.h"

#include <cmath>

#include "ops/deviance/deviance_kernels.h"
#include "platform/cpu_dispatch.h"
#include "platform/pixels.h"
#include "platform/thread_pool.h"

namespace dipengine {

DIPENGINE_TABLES(DevianceKernels, deviance_kernels, kTables)

namespace {

using Params = dipengine_deviance_params;
const char* const kOp = "dipengine_deviance";

dipengine_status check_dims(const Params* params) {
  DIPENGINE_TRY(check_struct(params, kOp));
  return check_size(params->height, params->width, params->channels, kOp);
}

int64_t tiles_of(const DevianceTiling& tiling) { return tiling.row_blocks * tiling.pieces; }

size_t workspace_bytes(const Params& p) {
  return static_cast<size_t>(tiles_of(deviance_tiling(p.height, p.width * p.channels))) * sizeof(DeviancePartial);
}

dipengine_status check(const Params* params) {
  DIPENGINE_TRY(check_dims(params));
  const Params& p = *params;
  DIPENGINE_TRY(check_real(p.dtype, kOp));
  DIPENGINE_TRY(check_pixels(p.image, p.width, p.channels, kOp, "image"));
  DIPENGINE_TRY(check_pixels(p.target, p.width, p.channels, kOp, "target"));
  if (p.mask.data != nullptr) DIPENGINE_TRY(check_pixels(p.mask, p.width, 1, kOp, "mask"));
  if (p.d_image.data != nullptr) DIPENGINE_TRY(check_pixels(p.d_image, p.width, p.channels, kOp, "d_image"));
  DIPENGINE_REQUIRE(std::isfinite(p.scale) && std::isfinite(p.shift), "%s was given scale %g and shift %g; both must be finite.",
                    kOp, p.scale, p.shift);
  DIPENGINE_REQUIRE(p.read_variance >= 0 && p.floor > 0 && std::isfinite(p.read_variance + p.floor),
                    "%s was given read_variance %g and floor %g; give at least 0, and above 0.", kOp, p.read_variance, p.floor);
  DIPENGINE_REQUIRE(p.normaliser > 0, "%s was given normaliser %g; it must be positive.", kOp, p.normaliser);
  DIPENGINE_REQUIRE(p.loss != nullptr, "%s was given no place for the loss; point loss at it.", kOp);
  return check_workspace(p.workspace, p.workspace_bytes, workspace_bytes(p), kOp);
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_deviance_workspace(const dipengine_deviance_params* params, size_t* bytes) {
  DIPENGINE_TRY(dipengine::check_dims(params));
  DIPENGINE_REQUIRE(bytes != nullptr, "dipengine_deviance_workspace was given no place for its answer.");
  *bytes = dipengine::workspace_bytes(*params);
  return DIPENGINE_OK;
}

dipengine_status dipengine_deviance(const dipengine_deviance_params* params) {
  using namespace dipengine;
  DIPENGINE_TRY(check(params));
  const Params& p = *params;
  const DevianceKernels* kernels;
  DIPENGINE_TRY(kTables.choose(&kernels));
  const auto kernel = p.dtype == DIPENGINE_FLOAT64 ? kTables.by_isa[0]->float64 : kernels->float32;
  const DevianceTiling tiling = deviance_tiling(p.height, p.width * p.channels);
  DeviancePartial* partials = static_cast<DeviancePartial*>(p.workspace);
  run_tasks(p.pool, tiles_of(tiling), [&](int64_t tile) { kernel(p, tiling, tile, &partials[tile]); });

  DeviancePartial sums{};
  for (int64_t tile = 0; tile < tiles_of(tiling); ++tile) add_sums(sums, partials[tile]);
  *p.loss = sums.loss / p.normaliser;
  if (p.discrepancy != nullptr) *p.discrepancy = discrepancy_of(sums, p.normaliser);
  return DIPENGINE_OK;
}

}  // extern "C"
