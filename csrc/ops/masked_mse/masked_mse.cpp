// Validation, dispatch and the final sums of masked_mse.
#include "ops/masked_mse/masked_mse.h"

#include "ops/masked_mse/masked_mse_kernels.h"
#include "platform/cpu_dispatch.h"
#include "platform/thread_pool.h"

namespace dipengine {

DIPENGINE_TABLES(MaskedMseKernels, masked_mse_kernels, kTables)

namespace {

using Params = dipengine_masked_mse_params;

dipengine_status check_dims(const Params* p) {
  DIPENGINE_TRY(check_struct(p, "dipengine_masked_mse"));
  DIPENGINE_REQUIRE(p->fits >= 1 && p->outer >= 1 && p->rows >= 1 && p->inner >= 1,
                    "masked_mse was given dims %lld x %lld x %lld x %lld; each must be at least 1.",
                    static_cast<long long>(p->fits), static_cast<long long>(p->outer),
                    static_cast<long long>(p->rows), static_cast<long long>(p->inner));
  return DIPENGINE_OK;
}

size_t workspace_bytes(const Params& p) {
  const MaskedMseTiling tiling = masked_mse_tiling(p.outer, p.rows, p.inner);
  return static_cast<size_t>(p.fits * tiling.tiles) * sizeof(MaskedMsePartial);
}

// A written tensor must not fold onto itself: two elements on one address would race.
dipengine_status check_output(const Params& p, const dipengine_image& image, const char* name) {
  if (image.data == nullptr) return DIPENGINE_OK;
  DIPENGINE_REQUIRE((p.rows == 1 || image.row_stride >= p.inner) && (p.outer == 1 || image.outer_stride != 0) &&
                        (p.fits == 1 || image.fit_stride != 0),
                    "masked_mse cannot write %s through a broadcast or overlapping view; give it its own memory.", name);
  return DIPENGINE_OK;
}

dipengine_status check(const Params* params) {
  DIPENGINE_TRY(check_dims(params));
  const Params& p = *params;
  DIPENGINE_REQUIRE(p.raw.data != nullptr, "masked_mse was given no raw output; point raw.data at it.");
  DIPENGINE_REQUIRE(p.dtype == DIPENGINE_FLOAT32 || p.dtype == DIPENGINE_BFLOAT16 || p.dtype == DIPENGINE_FLOAT64,
                    "masked_mse takes raw in float32, bfloat16 or float64, not dtype %d; convert it.", p.dtype);
  DIPENGINE_REQUIRE(p.activation == DIPENGINE_ACTIVATION_NONE || p.activation == DIPENGINE_ACTIVATION_SIGMOID,
                    "masked_mse has no activation %d; give none (0) or sigmoid (1).", p.activation);
  if (p.target.data != nullptr) {
    DIPENGINE_REQUIRE(p.normaliser != nullptr && p.loss != nullptr,
                      "masked_mse needs normaliser and loss where there is a target; one of them is NULL.");
    for (int64_t fit = 0; fit < p.fits; ++fit) {
      DIPENGINE_REQUIRE(p.normaliser[fit] > 0, "masked_mse was given normaliser %g for fit %lld; it must be positive.",
                        p.normaliser[fit], static_cast<long long>(fit));
    }
  }
  DIPENGINE_REQUIRE(p.d_raw.data == nullptr || p.target.data != nullptr,
                    "masked_mse has no gradient without a target; give one or leave d_raw out.");
  DIPENGINE_REQUIRE(p.mask.data == nullptr || (p.mask_repeat >= 1 && p.inner % p.mask_repeat == 0),
                    "masked_mse was given mask_repeat %lld, which does not divide the inner size %lld.",
                    static_cast<long long>(p.mask_repeat), static_cast<long long>(p.inner));
  DIPENGINE_REQUIRE(p.average.data == nullptr || (p.average_decay >= 0 && p.average_decay < 1),
                    "masked_mse was given average_decay %g; it must be in [0, 1).", p.average_decay);
  DIPENGINE_REQUIRE(p.es_mean.data == nullptr || (p.es_alpha > 0 && p.es_alpha <= 1),
                    "masked_mse was given es_alpha %g; it must be in (0, 1].", p.es_alpha);
  DIPENGINE_REQUIRE(p.es_mean.data == nullptr || p.d2 != nullptr,
                    "masked_mse needs d2 where there is es_mean; it is NULL.");
  DIPENGINE_TRY(check_output(p, p.d_raw, "d_raw"));
  DIPENGINE_TRY(check_output(p, p.out, "out"));
  DIPENGINE_TRY(check_output(p, p.average, "average"));
  DIPENGINE_TRY(check_output(p, p.es_mean, "es_mean"));
  DIPENGINE_REQUIRE(p.workspace != nullptr && reinterpret_cast<uintptr_t>(p.workspace) % alignof(double) == 0,
                    "masked_mse needs a workspace that is 8-byte aligned; allocate dipengine_masked_mse_workspace() bytes.");
  DIPENGINE_REQUIRE(p.workspace_bytes >= workspace_bytes(p), "masked_mse was given %zu bytes of workspace and needs %zu.",
                    p.workspace_bytes, workspace_bytes(p));
  return DIPENGINE_OK;
}

dipengine_status choose_kernel(int32_t dtype, MaskedMseKernels::Tile* kernel) {
  const MaskedMseKernels* kernels;
  DIPENGINE_TRY(kTables.choose(&kernels));
  switch (dtype) {
    case DIPENGINE_FLOAT64: *kernel = kTables.by_isa[0]->float64; break;
    case DIPENGINE_BFLOAT16: *kernel = kernels->bfloat16; break;
    default: *kernel = kernels->float32;
  }
  return DIPENGINE_OK;
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_masked_mse_workspace(const dipengine_masked_mse_params* params, size_t* bytes) {
  DIPENGINE_TRY(dipengine::check_dims(params));
  DIPENGINE_REQUIRE(bytes != nullptr, "dipengine_masked_mse_workspace was given no place for its answer.");
  *bytes = dipengine::workspace_bytes(*params);
  return DIPENGINE_OK;
}

dipengine_status dipengine_masked_mse(const dipengine_masked_mse_params* params) {
  using namespace dipengine;
  DIPENGINE_TRY(check(params));
  const Params& p = *params;
  MaskedMseKernels::Tile kernel;
  DIPENGINE_TRY(choose_kernel(p.dtype, &kernel));
  const MaskedMseTiling tiling = masked_mse_tiling(p.outer, p.rows, p.inner);
  MaskedMsePartial* partials = static_cast<MaskedMsePartial*>(p.workspace);
  const auto is_active = [&](int64_t fit) { return p.active == nullptr || p.active[fit] != 0; };

  run_tasks(p.pool, p.fits * tiling.tiles, [&](int64_t task) {
    const int64_t fit = task / tiling.tiles;
    if (is_active(fit)) kernel(p, tiling, fit, task % tiling.tiles, &partials[task]);
  });

  const double elements = static_cast<double>(p.outer) * static_cast<double>(p.rows) * static_cast<double>(p.inner);
  for (int64_t fit = 0; fit < p.fits; ++fit) {
    if (!is_active(fit)) continue;
    double loss = 0, d2 = 0;
    for (int64_t tile = 0; tile < tiling.tiles; ++tile) {
      loss += partials[fit * tiling.tiles + tile].loss;
      d2 += partials[fit * tiling.tiles + tile].d2;
    }
    if (p.target.data != nullptr) p.loss[fit] = loss / p.normaliser[fit];
    if (p.es_mean.data != nullptr) p.d2[fit] = d2 / elements;
  }
  return DIPENGINE_OK;
}

}  // extern "C"
