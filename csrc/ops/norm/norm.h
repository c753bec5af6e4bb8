/* BatchNorm between the convolutions of ops/conv.h, on the statistics of one image (S. Ioffe, C. Szegedy 2015):
 *
 *   y = gamma (v - mean) / sqrt(variance + eps) + beta,     v = upsample(t),  t = leaky_relu(inner(x))
 *
 * Statistics of a raw output come with the convolution that wrote it; those of an activation t in front of a
 * concatenation are taken here, at t's own resolution: nearest upsampling changes neither mean nor variance, bilinear
 * upsampling U keeps the mean, and its variance is that of the quadratic form (t - mean)^T U^T U (t - mean).
 *
 * Backward, with sum = sum g and product = sum g (v - mean) over the N values behind the norm (g its incoming gradient):
 *
 *   d_v = A g + B v + C;   A = gamma / s,  B = -A product / (s^2 N),  C = -A sum / N - B mean,   s = sqrt(variance + eps)
 *
 * and in front of the upsampling d_t = A (U^T g) + B (U^T U t) + C (U^T 1), where U^T 1 = 4.
 */
#ifndef DIPENGINE_OPS_NORM_H_
#define DIPENGINE_OPS_NORM_H_

#include "dipengine/dipengine.h"
#if __has_include("dipengine/ops/conv.h")
#include "dipengine/ops/conv.h"
#else
#include "ops/conv/conv.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Per-channel numbers: y = scale v + shift. gamma and beta: float64 [channels]; NULL is 1 and 0. */
DIPENGINE_API void dipengine_norm_fold(int64_t channels, const double* mean, const double* variance, const double* gamma,
                                       const double* beta, double eps, double* scale, double* shift);

typedef struct dipengine_norm_gradient {
  size_t struct_size;
  int64_t channels;
  double count;                  /* N */
  const double *mean, *variance; /* [channels] */
  const double* gamma;           /* [channels], or NULL: 1 */
  double eps;
  const double *sum, *product;   /* [channels] */
  int32_t centred;               /* product is of v - mean (1) or of v (0) */
  double *a, *b, *c;             /* [channels], outputs: A, B, C */
  double *d_gamma, *d_beta;      /* [channels], outputs; optional */
} dipengine_norm_gradient;

DIPENGINE_API dipengine_status dipengine_norm_fold_gradient(const dipengine_norm_gradient* gradient);

/* One pass over a source: x, inner, slope, upsample, sides as in ops/conv.h. */
typedef struct dipengine_norm_params {
  size_t struct_size;
  size_t source_size;
  dipengine_pool* pool;
  void* workspace; /* 64-byte aligned */
  size_t workspace_bytes;
  dipengine_conv_source* source;
  int32_t dtype;           /* of x, y, g and d_x */
  double *mean, *variance; /* statistics: outputs, [channels], of v */
  dipengine_pixels y;      /* apply: output, t at x's resolution */
  dipengine_pixels g;      /* backward: U^T g (g itself where nothing is upsampled); may be d_x */
  const double *a, *b, *c; /* backward: A, B, C [channels]; NULL: d_t = g */
} dipengine_norm_params;

DIPENGINE_API dipengine_status dipengine_norm_workspace(const dipengine_norm_params* params, size_t* bytes);

/* mean and variance of v. */
DIPENGINE_API dipengine_status dipengine_norm_statistics(const dipengine_norm_params* params);

/* y = t. */
DIPENGINE_API dipengine_status dipengine_norm_apply(const dipengine_norm_params* params);

/* source->d_x = leaky_relu'(inner(x)) d_t, with source->sum = sum d_x and source->product = sum d_x (x - centre). */
DIPENGINE_API dipengine_status dipengine_norm_backward(const dipengine_norm_params* params);

#ifdef __cplusplus
}
#endif

#endif
