// What perturb asks of its params, on the CPU and on a CUDA device alike.
#pragma once

#include <cmath>

#include "platform/error.h"

namespace dipengine {

template <typename Params>
dipengine_status check_perturb(const Params* p, const char* op) {
  DIPENGINE_TRY(check_struct(p, op));
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

}  // namespace dipengine
