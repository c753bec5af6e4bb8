// Validation, dispatch and the per-channel formulas of the norm passes.
#include "ops/norm/norm.h"

#include <cmath>

#include "ops/norm/norm_kernels.h"
#include "platform/cpu_dispatch.h"

namespace dipengine {

DIPENGINE_TABLES(NormTable, norm_kernels, kTables)

namespace {

using Params = dipengine_norm_params;

dipengine_status check_pixels(const dipengine_pixels& pixels, const dipengine_conv_source& s, const char* name) {
  DIPENGINE_REQUIRE(pixels.data != nullptr && pixels.pixel_stride >= s.channels &&
                        pixels.row_stride >= s.width * pixels.pixel_stride,
                    "The norm's %s has no pixels or overlapping ones; give channels contiguous, pixels and rows apart.", name);
  return DIPENGINE_OK;
}

dipengine_status check(const Params* params) {
  DIPENGINE_TRY(check_struct(params, "dipengine_norm"));
  const Params& p = *params;
  if (p.source_size != sizeof(dipengine_conv_source)) {
    return fail(DIPENGINE_STRUCT_SIZE,
                "dipengine_norm was given source_size %zu where this library has %zu; build the host against its headers.",
                p.source_size, sizeof(dipengine_conv_source));
  }
  DIPENGINE_REQUIRE(p.source != nullptr, "The norm was given no source; point it at one.");
  const dipengine_conv_source& s = *p.source;
  DIPENGINE_REQUIRE(s.height >= 1 && s.width >= 1 && s.channels >= 1,
                    "The norm's source is %lld x %lld x %lld; each side and the channels must be at least 1.",
                    static_cast<long long>(s.height), static_cast<long long>(s.width), static_cast<long long>(s.channels));
  DIPENGINE_REQUIRE(p.dtype == DIPENGINE_FLOAT32 || p.dtype == DIPENGINE_BFLOAT16 || p.dtype == DIPENGINE_FLOAT64,
                    "The norm takes images in float32, bfloat16 or float64, not dtype %d; convert them.", p.dtype);
  DIPENGINE_REQUIRE(s.upsample >= DIPENGINE_UPSAMPLE_NONE && s.upsample <= DIPENGINE_UPSAMPLE_BILINEAR,
                    "The norm's source has upsampling %d; it takes none (0), nearest (1) or bilinear (2).", s.upsample);
  DIPENGINE_REQUIRE((s.inner.scale == nullptr) == (s.inner.shift == nullptr),
                    "The norm's source has an inner scale or shift alone; give both or none.");
  return check_pixels(s.x, s, "source");
}

dipengine_status prepare(const Params* params, const NormKernels** kernels) {
  DIPENGINE_TRY(check(params));
  const NormTable* table;
  DIPENGINE_TRY(kTables.choose(&table));
  switch (params->dtype) {
    case DIPENGINE_FLOAT32: *kernels = &table->float32; break;
    case DIPENGINE_BFLOAT16: *kernels = &table->bfloat16; break;
    default: *kernels = &kTables.by_isa[0]->float64; break;
  }
  return DIPENGINE_OK;
}

dipengine_status check_workspace(const NormKernels& kernels, const Params& p) {
  const size_t needed = kernels.workspace(p);
  DIPENGINE_REQUIRE(p.workspace != nullptr && reinterpret_cast<uintptr_t>(p.workspace) % 64 == 0 && p.workspace_bytes >= needed,
                    "The norm needs a workspace of %zu bytes, 64-byte aligned; it was given %zu.", needed, p.workspace_bytes);
  return DIPENGINE_OK;
}

}  // namespace
}  // namespace dipengine

extern "C" {

void dipengine_norm_fold(int64_t channels, const double* mean, const double* variance, const double* gamma, const double* beta,
                         double eps, double* scale, double* shift) {
  for (int64_t c = 0; c < channels; ++c) {
    const double s = (gamma == nullptr ? 1 : gamma[c]) / std::sqrt(variance[c] + eps);
    scale[c] = s;
    shift[c] = (beta == nullptr ? 0 : beta[c]) - s * mean[c];
  }
}

dipengine_status dipengine_norm_fold_gradient(const dipengine_norm_gradient* gradient) {
  using namespace dipengine;
  DIPENGINE_TRY(check_struct(gradient, "dipengine_norm_fold_gradient"));
  const dipengine_norm_gradient& g = *gradient;
  DIPENGINE_REQUIRE(g.mean != nullptr && g.variance != nullptr && g.sum != nullptr && g.product != nullptr && g.a != nullptr &&
                        g.b != nullptr && g.c != nullptr && g.channels >= 1 && g.count >= 1,
                    "The norm's gradient lacks one of mean, variance, sum, product, a, b, c, or a count of at least 1.");
  for (int64_t c = 0; c < g.channels; ++c) {
    const double inverse = 1 / std::sqrt(g.variance[c] + g.eps);
    const double product = g.centred ? g.product[c] : g.product[c] - g.mean[c] * g.sum[c];
    const double sum = g.sum[c];  // before the outputs, which may lie in the inputs' place
    const double a = (g.gamma == nullptr ? 1 : g.gamma[c]) * inverse, b = -a * product * inverse * inverse / g.count;
    const double shift = -a * sum / g.count - b * g.mean[c];
    if (g.d_gamma != nullptr) g.d_gamma[c] = product * inverse;
    if (g.d_beta != nullptr) g.d_beta[c] = sum;
    g.a[c] = a;
    g.b[c] = b;
    g.c[c] = shift;
  }
  return DIPENGINE_OK;
}

dipengine_status dipengine_norm_workspace(const dipengine_norm_params* params, size_t* bytes) {
  using namespace dipengine;
  const NormKernels* kernels;
  DIPENGINE_TRY(prepare(params, &kernels));
  DIPENGINE_REQUIRE(bytes != nullptr, "The norm's workspace was asked for with nowhere to put it; pass a pointer.");
  *bytes = kernels->workspace(*params);
  return DIPENGINE_OK;
}

dipengine_status dipengine_norm_statistics(const dipengine_norm_params* params) {
  using namespace dipengine;
  const NormKernels* kernels;
  DIPENGINE_TRY(prepare(params, &kernels));
  DIPENGINE_REQUIRE(params->mean != nullptr && params->variance != nullptr,
                    "The norm's statistics were asked for with nowhere to put them; give mean and variance.");
  DIPENGINE_TRY(check_workspace(*kernels, *params));
  kernels->statistics(*params);
  return DIPENGINE_OK;
}

dipengine_status dipengine_norm_apply(const dipengine_norm_params* params) {
  using namespace dipengine;
  const NormKernels* kernels;
  DIPENGINE_TRY(prepare(params, &kernels));
  DIPENGINE_TRY(check_pixels(params->y, *params->source, "output"));
  DIPENGINE_TRY(check_workspace(*kernels, *params));
  kernels->apply(*params);
  return DIPENGINE_OK;
}

dipengine_status dipengine_norm_backward(const dipengine_norm_params* params) {
  using namespace dipengine;
  const NormKernels* kernels;
  DIPENGINE_TRY(prepare(params, &kernels));
  DIPENGINE_TRY(check_pixels(params->g, *params->source, "gradient"));
  DIPENGINE_TRY(check_pixels(params->source->d_x, *params->source, "data gradient"));
  DIPENGINE_REQUIRE((params->a == nullptr) == (params->b == nullptr) && (params->a == nullptr) == (params->c == nullptr),
                    "The norm's gradient has some of A, B and C; give all three or none.");
  DIPENGINE_REQUIRE((params->source->sum == nullptr) == (params->source->product == nullptr),
                    "The norm has a place for one of sum and product; give both or none.");
  DIPENGINE_TRY(check_workspace(*kernels, *params));
  kernels->backward(*params);
  return DIPENGINE_OK;
}

}  // extern "C"
