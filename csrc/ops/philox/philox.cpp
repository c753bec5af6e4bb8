// Validation, tiling and dispatch of the Philox ops.
#include "ops/philox/philox.h"

#include "ops/philox/philox_check.h"
#include "ops/philox/philox_kernels.h"
#include "platform/cpu_dispatch.h"
#include "platform/thread_pool.h"

namespace dipengine {

DIPENGINE_TABLES(PhiloxKernels, philox_kernels, kTables)

namespace {

int64_t end_of_tile(int64_t begin, int64_t count) {
  return count - begin < kPhiloxTile ? count : begin + kPhiloxTile;
}

int64_t tiles_of(int64_t count) { return (count + kPhiloxTile - 1) / kPhiloxTile; }

template <typename Element, typename Kernel>
dipengine_status fill(const dipengine_philox_params* params, const char* op, Kernel PhiloxKernels::*member) {
  DIPENGINE_TRY(check_struct(params, op));
  DIPENGINE_REQUIRE(params->count >= 0, "%s was asked for %lld elements; ask for 0 or more.", op,
                    static_cast<long long>(params->count));
  if (params->count == 0) return DIPENGINE_OK;
  DIPENGINE_REQUIRE(params->out != nullptr, "%s was given no output; point `out` at its elements.", op);
  const PhiloxKernels* kernels;
  DIPENGINE_TRY(kTables.choose(&kernels));
  const PhiloxSequence sequence = {params->seed, params->stream, params->step};
  run_tasks(params->pool, tiles_of(params->count), [&](int64_t tile) {
    const int64_t begin = tile * kPhiloxTile;
    (kernels->*member)(sequence, begin, end_of_tile(begin, params->count), static_cast<Element*>(params->out));
  });
  return DIPENGINE_OK;
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_philox_uniform(const dipengine_philox_params* params) {
  return dipengine::fill<float>(params, "dipengine_philox_uniform", &dipengine::PhiloxKernels::uniform);
}

dipengine_status dipengine_philox_normal(const dipengine_philox_params* params) {
  return dipengine::fill<float>(params, "dipengine_philox_normal", &dipengine::PhiloxKernels::normal);
}

dipengine_status dipengine_philox_bytes(const dipengine_philox_params* params) {
  return dipengine::fill<uint8_t>(params, "dipengine_philox_bytes", &dipengine::PhiloxKernels::bytes);
}

dipengine_status dipengine_perturb(const dipengine_perturb_params* p) {
  using namespace dipengine;
  DIPENGINE_TRY(check_perturb(p, "dipengine_perturb"));
  const PhiloxKernels* kernels;
  DIPENGINE_TRY(kTables.choose(&kernels));
  const int64_t tiles = tiles_of(p->count);
  run_tasks(p->pool, p->fits * tiles, [&](int64_t task) {
    const int64_t fit = task / tiles, begin = task % tiles * kPhiloxTile;
    if (p->active != nullptr && p->active[fit] == 0) return;
    const bool z_is_float = p->z_dtype == DIPENGINE_FLOAT32, out_is_float = p->out_dtype == DIPENGINE_FLOAT32;
    const int64_t z_start = fit * p->z_fit_stride, out_start = fit * p->out_fit_stride;
    kernels->perturb({p->seeds[fit], p->stream, p->steps[fit]}, begin, end_of_tile(begin, p->count), p->std,
                     z_is_float ? static_cast<const float*>(p->z) + z_start : nullptr,
                     z_is_float || p->z == nullptr ? nullptr : static_cast<const uint8_t*>(p->z) + z_start,
                     {p->z == nullptr ? p->code_seeds[fit] : 0, p->code_stream, 0}, p->z_scale,
                     out_is_float ? static_cast<float*>(p->out) + out_start : nullptr,
                     out_is_float ? nullptr : static_cast<uint16_t*>(p->out) + out_start);
  });
  return DIPENGINE_OK;
}

}  // extern "C"
