/* The generator's convolutions, forward and backward, with everything between two raw outputs folded in:
 *
 *   raw[r] = bias + sum over sources s, taps t of  W[t, s]^T u_s[stride * r + t - pad]
 *   u_s    = upsample(outer(leaky_relu(inner(x_s))))       inner, outer: per-channel affine maps, each optional
 *
 * A source is the raw output of an earlier convolution: `inner` is that one's BatchNorm, `outer` the BatchNorm of the
 * concatenation that it stands in. Nothing normalised, upsampled or concatenated is ever stored. With it come the mean
 * and the biased variance of raw per channel (of the values as stored), for the BatchNorm that follows.
 *
 * Backward takes the gradient of that BatchNorm's folded form, d_raw = A * g + B * raw + C per channel, formed while
 * loading (design 3.7; S. Ioffe, C. Szegedy 2015), and yields d_weight, d_bias and for each source
 *
 *   without outer:  g_s = leaky_relu'(inner(x_s)) * du,   sum = sum g_s,  product = sum g_s * (x_s - centre)
 *   with outer:     g_s = du,                             sum = sum g_s,  product = sum g_s * leaky_relu(inner(x_s))
 *
 * at the source's own resolution; du is the gradient behind outer, before the upsampling.
 *
 * Upsampled sources (x2, nearest or bilinear with half-pixel centres; kernel 3, stride 1). Mixing channels commutes with
 * any linear map of pixels, so with S_t the shift by tap t, P the padding and U the upsampling
 *
 *   raw = sum_t S_t P U (x W_t)                            d_x = sum_t E_t W_t^T,   d_W_t = x^T E_t,   E_t = (S_t P U)^T d_raw
 *
 * Nine products a *low-resolution* pixel in all three, against 36: 4x fewer, with the raw taps and no cancellation in
 * rounded operands, for nearest and bilinear alike. A CPU takes two by two samples of nearest sources in 25 products instead of
 * 36, in all three directions (upsampled_cpu.h, paired_gradient_cpu.h), and layers of kernel 3 and many channels likewise: of
 * stride 1 in 16 products for four outputs or 36 for sixteen (winograd_cpu.h, winograd_wide_cpu.h), of stride 2 in 25 for four
 * (strided_cpu.h).
 *
 * Images are [height, width, channels], channels contiguous. Where they are bfloat16, the products run in what the CPU is fastest
 * in: in bfloat16 with float32 sums, in float16 (product_cpu.h), or in float32 as those of float32 images do (float64). Same bits
 * at any number of threads.
 */
#ifndef DIPENGINE_OPS_CONV_H_
#define DIPENGINE_OPS_CONV_H_

#include "dipengine/dipengine.h"
#include "dipengine/pixels.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { DIPENGINE_CONV_MAX_SOURCES = 2, DIPENGINE_CONV_MAX_KERNEL = 7 };

typedef enum dipengine_upsample {
  DIPENGINE_UPSAMPLE_NONE = 0,
  DIPENGINE_UPSAMPLE_NEAREST = 1,
  DIPENGINE_UPSAMPLE_BILINEAR = 2
} dipengine_upsample;

typedef enum dipengine_padding { DIPENGINE_PADDING_REFLECTION = 0, DIPENGINE_PADDING_ZERO = 1 } dipengine_padding;

/* Per-channel affine map of float64 coefficients: scale * x + shift; absent where scale is NULL. */
typedef struct dipengine_affine {
  const double* scale;
  const double* shift;
} dipengine_affine;

typedef struct dipengine_conv_source {
  int64_t height, width, channels; /* of x */
  int32_t upsample;                /* dipengine_upsample */
  int32_t accumulate;              /* backward: add to what d_x holds, before sum and product are taken */
  dipengine_pixels x;              /* params.dtype */
  dipengine_affine inner, outer;
  double slope; /* of the leaky ReLU behind inner; 1: none */
  /* backward only */
  dipengine_pixels d_x;             /* g_s, params.dtype; optional */
  const double* centre;             /* [channels], or NULL: zero */
  double *sum, *product;            /* [channels], both (and d_x) or none */
} dipengine_conv_source;

typedef struct dipengine_conv_params {
  size_t struct_size;
  size_t source_size; /* sizeof(dipengine_conv_source) */
  dipengine_pool* pool;
  void* workspace; /* 64-byte aligned */
  size_t workspace_bytes;
  dipengine_conv_source* sources; /* in the order of the weight's input channels; at most one upsampled */
  int32_t sources_count;          /* 1 or 2 */
  int32_t dtype;                  /* of the images: float32, bfloat16 or float64 */
  int32_t raw_dtype;              /* of raw: dtype, or float32 beside bfloat16 */
  int32_t gradient_dtype;         /* of g: likewise */
  int32_t kernel, stride, pad;    /* kernel 1 to 7; pad below the (upsampled) source's sides */
  int32_t padding;                /* dipengine_padding: of the normalised source */
  int64_t height, width, channels; /* of raw: floor((side + 2 pad - kernel) / stride) + 1 */
  const void* weight;             /* [kernel, kernel, channels in, channels out], float32 (float64 beside float64) */
  const void* bias;               /* [channels], likewise; optional */
  dipengine_pixels raw;           /* forward: output. Backward: read where raw_scale is given */
  double *mean, *variance;        /* forward, [channels]; both or none */
  /* backward only */
  dipengine_pixels gradient;      /* g */
  const double *gradient_scale, *raw_scale, *gradient_shift; /* A, B, C [channels]; NULL: d_raw = g */
  void* d_weight;                 /* as weight; optional */
  void* d_bias;                   /* as bias; optional */
} dipengine_conv_params;

/* Bytes of workspace for params as they will be run, with the instruction set and the pool in use. */
DIPENGINE_API dipengine_status dipengine_conv_forward_workspace(const dipengine_conv_params* params, size_t* bytes);
DIPENGINE_API dipengine_status dipengine_conv_backward_workspace(const dipengine_conv_params* params, size_t* bytes);

DIPENGINE_API dipengine_status dipengine_conv_forward(const dipengine_conv_params* params);
DIPENGINE_API dipengine_status dipengine_conv_backward(const dipengine_conv_params* params);

#ifdef __cplusplus
}
#endif

#endif
