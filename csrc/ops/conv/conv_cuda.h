/* The generator's convolutions on a CUDA device: those of ops/conv.h for bfloat16 and float32 images, on the tensor cores.
 *
 *   raw[r] = bias + sum over sources s, taps t of  W[t, s]^T u_s[stride * r + t - pad]
 *   u_s    = upsample(outer(leaky_relu(inner(x_s))))
 *
 * with the same sources, padding and upsampling. u is made in float32 while loading and rounded once, to bfloat16 or, for
 * float32 images, to tf32 (10 mantissa bits, ties away from zero); weights are rounded from float32 masters (for nearest
 * upsampling: from sums of two or four of them); sums are float32. In the backward pass the same of d_raw.
 *
 * All pointers but `sources` are device memory. Per-channel numbers are float32 [fits, channels], the fits
 * numbers_fit_stride elements apart; weight, bias, gamma, beta and d_weight are parameters_fit_stride apart, as parts of one
 * buffer of a fit's parameters. A fit has the same bits alone and among others.
 */
#ifndef DIPENGINE_OPS_CONV_CUDA_H_
#define DIPENGINE_OPS_CONV_CUDA_H_

#if __has_include("dipengine/ops/conv.h")
#include "dipengine/ops/conv.h"
#else
#include "ops/conv/conv.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

struct dipengine_norm_cuda_gradient;

typedef struct dipengine_affine_cuda {
  const float* scale; /* NULL: none */
  const float* shift;
} dipengine_affine_cuda;

typedef struct dipengine_conv_cuda_source {
  int32_t height, width, channels; /* of x */
  int32_t upsample;                /* dipengine_upsample; kernel 3, stride 1, pad 1 where not none */
  dipengine_pixels x;              /* of the params' dtype */
  int64_t x_fit_stride;
  dipengine_affine_cuda inner, outer;
  float slope; /* of the leaky ReLU behind inner, 1 at most; 1: none */
  /* data gradient only. sum and product as in ops/conv.h, of the values as stored; d_x NULL: these alone, or nothing */
  dipengine_pixels d_x; /* as x */
  int64_t d_x_fit_stride;
  int32_t accumulate;
  int32_t over_raw;     /* d_x is the params' raw and takes its place: with a head, up to DIPENGINE_CONV_CUDA_OVER_RAW channels */
  const float* centre;  /* [fits, channels], or NULL: zero */
  float *sum, *product; /* [fits, channels], both or none */
  /* what dipengine_norm_cuda_fold_gradient makes of sum and product, in the same launch (ops/norm_cuda.h); NULL: nothing */
  const struct dipengine_norm_cuda_gradient* fold;
} dipengine_conv_cuda_source;

enum {
  DIPENGINE_CONV_CUDA_OVER_RAW = 128, /* most channels of a d_x that takes raw's place: those of one block */
  DIPENGINE_CONV_CUDA_HEAD = 4        /* most channels of a head */
};

/* The only reader of a raw of kernel 1, stride 1 and pad 0: another 1x1 convolution, of few channels, behind a norm and a leaky
 * ReLU. Its share g of the backward pass is formed from its own gradient h rather than stored,
 *
 *   g = leaky_relu'(inner(raw)) * W h,
 *
 * W and h rounded as operands of a product and g as an image: what its data gradient would have stored. */
typedef struct dipengine_conv_cuda_head {
  const float* weight; /* [channels of raw, channels of h] of a fit; NULL: no head */
  int32_t channels;    /* of h: 1 to DIPENGINE_CONV_CUDA_HEAD */
  float slope;
  dipengine_affine_cuda inner; /* [fits, channels of raw] */
} dipengine_conv_cuda_head;

typedef struct dipengine_conv_cuda_params {
  size_t struct_size;
  size_t source_size; /* sizeof(dipengine_conv_cuda_source) */
  void* stream;       /* cudaStream_t */
  void* workspace;    /* for the moments: dipengine_conv_cuda_workspace() bytes, 16-byte aligned */
  size_t workspace_bytes;
  int64_t fits;          /* up to 65535 */
  const uint8_t* active; /* [fits], or NULL: all. Inactive fits are left as they are */
  int64_t numbers_fit_stride;
  const dipengine_conv_cuda_source* sources; /* host memory; in the order of the weight's input channels */
  int32_t sources_count;                     /* 1 or 2; at most one upsampled */
  int32_t dtype;                             /* of x and d_x: bfloat16 or float32 */
  int32_t raw_dtype;                         /* bfloat16 or float32; float32 where dtype is */
  int32_t kernel, stride, pad;               /* kernel 1 to 7, stride 1 or 2 */
  int32_t padding;                           /* dipengine_padding */
  int32_t height, width, channels;           /* of raw */
  const float* weight;                       /* [kernel, kernel, channels in, channels out] of a fit */
  int64_t parameters_fit_stride;             /* of bias, gamma, beta and d_weight too */
  void* packed; /* the weights as the kernel wants them: dipengine_conv_cuda_packed_bytes(), 16-byte aligned */
  size_t packed_bytes;
  const float* bias; /* [channels] of a fit; optional */
  dipengine_pixels raw;
  int64_t raw_fit_stride;
  float *mean, *variance;    /* [fits, channels], of raw as stored; both or none */
  const float *gamma, *beta; /* [channels] of a fit; NULL is 1 and 0 */
  double eps;
  float *scale, *shift; /* [fits, channels]: the fold of the norm behind raw, gamma / sqrt(variance + eps); both or none */
  /* backward only: d_raw = A * gradient + B * raw + C per channel, formed while loading; raw as x */
  dipengine_pixels gradient;
  int64_t gradient_fit_stride;
  int32_t gradient_dtype;                                   /* as raw_dtype */
  const float *gradient_scale, *raw_scale, *gradient_shift; /* A, B, C [fits, channels], or all NULL: d_raw = gradient */
  float* d_weight;                                          /* as weight */
  float* d_bias;                                            /* as bias; optional, none with a head */
  dipengine_conv_cuda_head head;                            /* with A, B, C; gradient is then its h, float32 */
  /* NULL, or zeros, dipengine_conv_cuda_tickets() of them for each of forward pass, data gradient and weight gradient that runs at a
   * time; left as zeros. With them the last block of a launch merges what the blocks leave; else a second launch does. */
  uint32_t* tickets;
} dipengine_conv_cuda_params;

/* Sizes depend on the layer, the number of fits and the device's shared memory. */
DIPENGINE_API dipengine_status dipengine_conv_cuda_packed_bytes(const dipengine_conv_cuda_params* params, size_t* bytes);
DIPENGINE_API dipengine_status dipengine_conv_cuda_workspace(const dipengine_conv_cuda_params* params, size_t* bytes);

DIPENGINE_API dipengine_status dipengine_conv_cuda_tickets(const dipengine_conv_cuda_params* params, int64_t* count);

/* u of a source, of x's sides, rounded as an operand: what forward pass and weight gradient make of it while loading. Given as the x of a
 * source of inner and outer NULL and slope 1, which they copy, it gives the same bits, and is made once. bfloat16, not upsampled bilinearly. */
DIPENGINE_API dipengine_status dipengine_conv_cuda_input_operand(const dipengine_conv_cuda_params* params, int32_t source,
                                                                 dipengine_pixels u, int64_t u_fit_stride);

/* d_raw, rounded as an operand, and so the gradient of a backward pass without A, B and C; may take the gradient's place. bfloat16. */
DIPENGINE_API dipengine_status dipengine_conv_cuda_gradient_operand(const dipengine_conv_cuda_params* params, dipengine_pixels d_raw,
                                                                    int64_t d_raw_fit_stride);

/* packed from weight; to be run whenever the weights have changed. */
DIPENGINE_API dipengine_status dipengine_conv_cuda_pack(const dipengine_conv_cuda_params* params);

/* raw, and where asked for its moments and the fold of its norm. */
DIPENGINE_API dipengine_status dipengine_conv_cuda_forward(const dipengine_conv_cuda_params* params);

/* d_weight and d_bias, summed over pixels in a fixed order. Its workspace is its own, not that of the forward pass. */
DIPENGINE_API dipengine_status dipengine_conv_cuda_weight_gradient_workspace(const dipengine_conv_cuda_params* params,
                                                                             size_t* bytes);
DIPENGINE_API dipengine_status dipengine_conv_cuda_weight_gradient(const dipengine_conv_cuda_params* params);

/* d_x of every source that wants it, with sum and product. packed and workspace are those of this call, packed made by data_pack. Sources of
 * few channels (8, and 48 in all taps together, of kernel 2 or 3, stride 1, not upsampled) need nothing packed and read weight itself: where
 * there are no others packed_bytes is 0, and packed may be NULL. */
DIPENGINE_API dipengine_status dipengine_conv_cuda_data_gradient_sizes(const dipengine_conv_cuda_params* params,
                                                                       size_t* packed_bytes, size_t* workspace_bytes);
DIPENGINE_API dipengine_status dipengine_conv_cuda_data_pack(const dipengine_conv_cuda_params* params);
DIPENGINE_API dipengine_status dipengine_conv_cuda_data_gradient(const dipengine_conv_cuda_params* params);

/* Both gradients of a layer with a head in one launch, for which d_raw is formed once: d_x with its sums, and parts of d_weight, which
 * joint_weight_sum adds up, of the same params and workspace; on another stream, if that waits for this one. Nothing is packed. For bfloat16
 * images of up to 128 channels on either side, multiples of 8, whose pixels begin at multiples of 16 bytes, and a d_x that adds to nothing;
 * for other layers the workspace is 0 bytes. h and g are not rounded there, and so neither d_x nor d_weight has the bits of the two ops above. */
DIPENGINE_API dipengine_status dipengine_conv_cuda_joint_gradients_workspace(const dipengine_conv_cuda_params* params, size_t* bytes);
DIPENGINE_API dipengine_status dipengine_conv_cuda_joint_gradients(const dipengine_conv_cuda_params* params);
DIPENGINE_API dipengine_status dipengine_conv_cuda_joint_weight_sum(const dipengine_conv_cuda_params* params);

#ifdef __cplusplus
}
#endif

#endif
