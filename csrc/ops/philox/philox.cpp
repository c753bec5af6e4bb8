// Validation, tiling and dispatch of the Philox ops.
#include "ops/philox/philox.h"

#include <cmath>

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

dipengine_status check_perturb(const dipengine_perturb_params* p) {
  DIPENGINE_TRY(check_struct(p, "dipengine_perturb"));
  DIPENGINE_REQUIRE(p->fits >= 1 && p->count >= 0, "perturb was given %lld fits of %lld elements; give at least one fit.",
                    static_cast<long long>(p->fits), static_cast<long long>(p->count));
  DIPENGINE_REQUIRE(p->count == 0 || ((p->z != nullptr || p->code_seeds != nullptr) && p->out != nullptr && p->seeds != nullptr &&
                                      p->steps != nullptr),
                    "perturb needs z (or code_seeds), out, seeds and steps; one of them is NULL.");
  DIPENGINE_REQUIRE(p->z != nullptr || p->z_dtype == DIPENGINE_UINT8, "perturb makes z from bytes; set z_dtype to uint8.");
  DIPENGINE_REQUIRE(p->z_dtype == DIPENGINE_FLOAT32 || p->z_dtype == DIPENGINE_UINT8,
                    "perturb takes z in float32 or uint8, not dtype %d; convert it.", p->z_dtype);
  DIPENGINE_REQUIRE(p->out_dtype == DIPENGINE_FLOAT32 || p->out_dtype == DIPENGINE_BFLOAT16,
                    "perturb writes float32 or bfloat16, not dtype %d; give an output of one of them.", p->out_dtype);
  DIPENGINE_REQUIRE(std::isfinite(p->std) && p->std >= 0.0f, "perturb was given std %g; give 0 or a positive number.",
                    static_cast<double>(p->std));
  DIPENGINE_REQUIRE(p->z_fit_stride == 0 || p->z_fit_stride >= p->count,
                    "perturb was given codes that overlap; space them at least count elements apart, or 0 to share one.");
  DIPENGINE_REQUIRE(p->fits == 1 || p->out_fit_stride >= p->count,
                    "perturb was given outputs that overlap; space them at least count elements apart.");
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
  DIPENGINE_TRY(check_perturb(p));
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
