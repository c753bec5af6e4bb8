/* BatchNorm between the convolutions on a CUDA device: the formulas of ops/norm.h for bfloat16 and float32 images.
 *
 * All pointers but `source` are device memory. Per-channel numbers are float32 [fits, channels], the fits numbers_fit_stride
 * elements apart; gamma, beta, d_gamma and d_beta are parameters_fit_stride apart. A fit has the same bits alone and among
 * others.
 */
#ifndef DIPENGINE_OPS_NORM_CUDA_H_
#define DIPENGINE_OPS_NORM_CUDA_H_

#include "dipengine/dipengine.h"
#if __has_include("dipengine/ops/conv_cuda.h")
#include "dipengine/ops/conv_cuda.h"
#else
#include "ops/conv/conv_cuda.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* One pass over a source: x, inner, slope, upsample, sides as in ops/conv_cuda.h; v = upsample(t), t = leaky_relu(inner(x)). */
typedef struct dipengine_norm_cuda_params {
  size_t struct_size;
  size_t source_size;
  void* stream;    /* cudaStream_t */
  void* workspace; /* dipengine_norm_cuda_workspace() bytes, 16-byte aligned */
  size_t workspace_bytes;
  int64_t fits;          /* up to 65535 */
  const uint8_t* active; /* [fits], or NULL: all. Inactive fits are left as they are */
  int64_t numbers_fit_stride, parameters_fit_stride;
  const dipengine_conv_cuda_source* source;
  int32_t dtype; /* of x, g and d_x: bfloat16 or float32 */
  /* statistics: outputs, of v; and unless NULL the fold of the norm, gamma / sqrt(variance + eps) */
  float *mean, *variance;
  const float *gamma, *beta;
  double eps;
  float *scale, *shift;
  /* backward: U^T g, at x's resolution; may be d_x. A, B, C; all NULL: d_t = g */
  dipengine_pixels g;
  int64_t g_fit_stride;
  const float *a, *b, *c;
  uint32_t* tickets; /* as in ops/conv_cuda.h; dipengine_norm_cuda_tickets() of them */
} dipengine_norm_cuda_params;

DIPENGINE_API dipengine_status dipengine_norm_cuda_workspace(const dipengine_norm_cuda_params* params, size_t* bytes);
DIPENGINE_API dipengine_status dipengine_norm_cuda_tickets(const dipengine_norm_cuda_params* params, int64_t* count);

/* mean and variance of v. */
DIPENGINE_API dipengine_status dipengine_norm_cuda_statistics(const dipengine_norm_cuda_params* params);

/* source->d_x = leaky_relu'(inner(x)) d_t, d_t = A (U^T g) + B (U^T U t) + C (U^T 1), with sum and product. */
DIPENGINE_API dipengine_status dipengine_norm_cuda_backward(const dipengine_norm_cuda_params* params);

/* A, B, C and the gradients of gamma and beta from the sums behind a norm; fields as in dipengine_norm_gradient. */
typedef struct dipengine_norm_cuda_gradient {
  size_t struct_size;
  void* stream;
  int64_t fits;
  const uint8_t* active;
  int64_t numbers_fit_stride, parameters_fit_stride;
  int64_t channels;
  double count;
  const float *mean, *variance, *gamma;
  double eps;
  const float *sum, *product;
  int32_t centred;
  float *a, *b, *c;
  float *d_gamma, *d_beta; /* optional, each */
} dipengine_norm_cuda_gradient;

DIPENGINE_API dipengine_status dipengine_norm_cuda_fold_gradient(const dipengine_norm_cuda_gradient* gradient);

#ifdef __cplusplus
}
#endif

#endif
