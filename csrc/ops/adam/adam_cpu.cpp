// Adam's update on a CPU; compiled once per instruction set, and in float64 for the portable one.
//
// One loop over five streams, vectorised by the compiler; a root and a division per parameter hide behind 28 bytes of
// memory traffic. Elements are independent, so tiles and threads cannot change a bit.
#include "ops/adam/adam_kernels.h"

#include "math/bf16.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {
namespace {

float widen(float g) { return g; }
float widen(uint16_t g) { return float_from_bf16(g); }

template <typename Gradient>
void update(const AdamScalars<float>& scalars, int64_t n, float* __restrict p, const Gradient* __restrict g,
            float* __restrict m, float* __restrict v, uint16_t* __restrict shadow) {
  const AdamScalars<float> s = scalars;
  if (shadow == nullptr) {
    for (int64_t i = 0; i < n; ++i) p[i] = adam_update(s, p[i], widen(g[i]), m[i], v[i]);
    return;
  }
  for (int64_t i = 0; i < n; ++i) {
    p[i] = adam_update(s, p[i], widen(g[i]), m[i], v[i]);
    shadow[i] = bf16_from_float(p[i]);
  }
}

#if defined(DIPENGINE_WITH_FLOAT64)
void update_double(const AdamScalars<double>& s, int64_t n, double* p, const double* g, double* m, double* v,
                   uint16_t*) {
  for (int64_t i = 0; i < n; ++i) p[i] = adam_update(s, p[i], g[i], m[i], v[i]);
}
#endif

}  // namespace

extern const AdamKernels adam_kernels;
#if defined(DIPENGINE_WITH_FLOAT64)
const AdamKernels adam_kernels = {update<float>, update<uint16_t>, update_double};
#else
const AdamKernels adam_kernels = {update<float>, update<uint16_t>, nullptr};
#endif

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
