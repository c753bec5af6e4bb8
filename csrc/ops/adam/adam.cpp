// Validation, tiling and dispatch of Adam.
#include "ops/adam/adam.h"

#include "ops/adam/adam_kernels.h"
#include "platform/cpu_dispatch.h"
#include "platform/thread_pool.h"

namespace dipengine {

DIPENGINE_TABLES(AdamKernels, adam_kernels, kTables)

namespace {

using Params = dipengine_adam_params;

constexpr int64_t kTile = 16384;  // parameters of one task

int64_t tiles_of(const dipengine_adam_segment& segment) { return (segment.count + kTile - 1) / kTile; }

dipengine_status check_segment(const Params& p, int64_t index) {
  const dipengine_adam_segment& s = p.segments[index];
  DIPENGINE_REQUIRE(s.count >= 0, "Adam was given %lld parameters in segment %lld; give 0 or more.",
                    static_cast<long long>(s.count), static_cast<long long>(index));
  DIPENGINE_REQUIRE(s.count == 0 || (s.param != nullptr && s.grad != nullptr && s.m != nullptr && s.v != nullptr),
                    "Adam needs param, grad, m and v in segment %lld; one of them is NULL.",
                    static_cast<long long>(index));
  DIPENGINE_REQUIRE(p.fits == 1 || s.fit_stride >= s.count,
                    "Adam was given fits that overlap in segment %lld; space them at least count elements apart.",
                    static_cast<long long>(index));
  DIPENGINE_REQUIRE(s.shadow == nullptr || p.dtype == DIPENGINE_FLOAT32,
                    "Adam makes a bfloat16 shadow of float32 parameters only; leave it out in segment %lld.",
                    static_cast<long long>(index));
  return DIPENGINE_OK;
}

dipengine_status check(const Params* params) {
  DIPENGINE_TRY(check_struct(params, "dipengine_adam"));
  const Params& p = *params;
  if (p.segment_size != sizeof(dipengine_adam_segment)) {
    return fail(DIPENGINE_STRUCT_SIZE,
                "dipengine_adam was given segment_size %zu where this library has %zu; build the host against its headers.",
                p.segment_size, sizeof(dipengine_adam_segment));
  }
  const bool single = p.dtype == DIPENGINE_FLOAT32 &&
                      (p.grad_dtype == DIPENGINE_FLOAT32 || p.grad_dtype == DIPENGINE_BFLOAT16);
  DIPENGINE_REQUIRE(single || (p.dtype == DIPENGINE_FLOAT64 && p.grad_dtype == DIPENGINE_FLOAT64),
                    "Adam takes float32 parameters with float32 or bfloat16 gradients, or both in float64; it was given "
                    "dtypes %d and %d.",
                    p.dtype, p.grad_dtype);
  DIPENGINE_REQUIRE(p.fits >= 1 && p.segments_count >= 0 && (p.segments_count == 0 || p.segments != nullptr),
                    "Adam needs at least one fit and a list of segments.");
  DIPENGINE_REQUIRE(p.steps != nullptr && p.learning_rate != nullptr,
                    "Adam needs steps and learning_rate, one of each a fit; one of them is NULL.");
  DIPENGINE_REQUIRE(p.beta1 >= 0 && p.beta1 < 1 && p.beta2 >= 0 && p.beta2 < 1 && p.eps >= 0,
                    "Adam was given betas %g, %g and eps %g; betas lie in [0, 1), eps is not negative.", p.beta1, p.beta2,
                    p.eps);
  for (int64_t fit = 0; fit < p.fits; ++fit) {
    DIPENGINE_REQUIRE(p.steps[fit] >= 0 && p.learning_rate[fit] >= 0,
                      "Adam was given step %lld and learning rate %g for fit %lld; neither may be negative.",
                      static_cast<long long>(p.steps[fit]), p.learning_rate[fit], static_cast<long long>(fit));
  }
  for (int64_t i = 0; i < p.segments_count; ++i) DIPENGINE_TRY(check_segment(p, i));
  return DIPENGINE_OK;
}

// Elements [begin, begin + n) of one fit's part of a segment.
void update_piece(const AdamKernels& kernels, const Params& p, const dipengine_adam_segment& s, int64_t fit,
                  int64_t begin, int64_t n) {
  const int64_t i = (p.fits == 1 ? 0 : fit * s.fit_stride) + begin;
  const int64_t t = p.steps[fit] + 1;
  if (p.dtype == DIPENGINE_FLOAT64) {
    const auto scalars = adam_scalars<double>(t, p.learning_rate[fit], p.beta1, p.beta2, p.eps);
    kTables.by_isa[0]->float64(scalars, n, static_cast<double*>(s.param) + i, static_cast<const double*>(s.grad) + i,
                               static_cast<double*>(s.m) + i, static_cast<double*>(s.v) + i, nullptr);
    return;
  }
  const auto scalars = adam_scalars<float>(t, p.learning_rate[fit], p.beta1, p.beta2, p.eps);
  float *const param = static_cast<float*>(s.param) + i, *const m = static_cast<float*>(s.m) + i,
               *const v = static_cast<float*>(s.v) + i;
  uint16_t* const shadow = s.shadow == nullptr ? nullptr : static_cast<uint16_t*>(s.shadow) + i;
  if (p.grad_dtype == DIPENGINE_BFLOAT16) {
    kernels.bfloat16(scalars, n, param, static_cast<const uint16_t*>(s.grad) + i, m, v, shadow);
  } else {
    kernels.float32(scalars, n, param, static_cast<const float*>(s.grad) + i, m, v, shadow);
  }
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_adam(const dipengine_adam_params* params) {
  using namespace dipengine;
  DIPENGINE_TRY(check(params));
  const Params& p = *params;
  const AdamKernels* kernels;
  DIPENGINE_TRY(kTables.choose(&kernels));
  int64_t tiles = 0;
  for (int64_t i = 0; i < p.segments_count; ++i) tiles += tiles_of(p.segments[i]);

  run_tasks(p.pool, p.fits * tiles, [&](int64_t task) {
    const int64_t fit = task / tiles;
    if (p.active != nullptr && p.active[fit] == 0) return;
    // Few segments in practice (one, where parameters live in a flat buffer), so a walk finds the tile's own.
    int64_t tile = task % tiles;
    const dipengine_adam_segment* segment = p.segments;
    for (; tile >= tiles_of(*segment); ++segment) tile -= tiles_of(*segment);
    const int64_t begin = tile * kTile, left = segment->count - begin;
    update_piece(*kernels, p, *segment, fit, begin, left < kTile ? left : kTile);
  });

  for (int64_t fit = 0; fit < p.fits; ++fit) {
    if (p.active == nullptr || p.active[fit] != 0) ++p.steps[fit];
  }
  return DIPENGINE_OK;
}

}  // extern "C"
