// The CPU kernels of Adam, one table per instruction set. Each updates n consecutive parameters of one fit.
#pragma once

#include "ops/adam/adam_math.h"

namespace dipengine {

struct AdamKernels {
  // `shadow` may be null.
  void (*float32)(const AdamScalars<float>& scalars, int64_t n, float* p, const float* g, float* m, float* v,
                  uint16_t* shadow);
  void (*bfloat16)(const AdamScalars<float>& scalars, int64_t n, float* p, const uint16_t* g, float* m, float* v,
                   uint16_t* shadow);
  void (*float64)(const AdamScalars<double>& scalars, int64_t n, double* p, const double* g, double* m, double* v,
                  uint16_t* shadow);  // only in the portable table; ignores shadow
};

}  // namespace dipengine
