// Rows of sigmoid_backward on a CPU: one loop along a row where pixels are dense, else one pixel after another.
#include "ops/activation/activation_kernels.h"
#include "ops/activation/activation_math.h"
#include "platform/pixels.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {
namespace {

// d_raw may be d_x or x, element for element, so nothing here is __restrict.
template <typename Real>
void run_elements(const Real* x, const Real* d_x, Real* d_raw, int64_t count) {
  for (int64_t i = 0; i < count; ++i) d_raw[i] = sigmoid_gradient(d_x[i], x[i]);
}

template <typename Real>
void run_rows(const dipengine_sigmoid_backward_params& p, int64_t first_row, int64_t last_row) {
  const int64_t channels = p.channels;
  const bool dense = p.x.pixel_stride == channels && p.d_x.pixel_stride == channels && p.d_raw.pixel_stride == channels;
  for (int64_t row = first_row; row < last_row; ++row) {
    const Real *x = row_of<const Real>(p.x, row), *d_x = row_of<const Real>(p.d_x, row);
    Real* d_raw = row_of<Real>(p.d_raw, row);
    if (dense) {
      run_elements(x, d_x, d_raw, p.width * channels);
      continue;
    }
    for (int64_t i = 0; i < p.width; ++i) {
      run_elements(x + i * p.x.pixel_stride, d_x + i * p.d_x.pixel_stride, d_raw + i * p.d_raw.pixel_stride, channels);
    }
  }
}

}  // namespace

extern const ActivationKernels activation_kernels;
#if defined(DIPENGINE_WITH_FLOAT64)
const ActivationKernels activation_kernels = {run_rows<float>, run_rows<double>};
#else
const ActivationKernels activation_kernels = {run_rows<float>, nullptr};
#endif

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
