/* Blur by a known kernel, "valid" part only, per channel, and its transpose:
 *
 *   out[i, j]     = sum_{a, b} kernel[a, b] * image[i + kh - 1 - a, j + kw - 1 - b]       image is kh - 1, kw - 1 larger
 *   d_image[y, x] = sum_{a, b} kernel[a, b] * d_out[y - (kh - 1) + a, x - (kw - 1) + b]   d_out is 0 beyond its borders
 *
 * Direct sums in registers, kh * kw multiply-adds an element, at most of the CPU's rate for large kernels. Sums are broken
 * into runs of about 32 taps and those again into 32 runs, which keeps rounding errors near those of a Fourier transform.
 * Same bits at any number of threads; like the convolutions, each instruction set has its own.
 */
#ifndef DIPENGINE_OPS_BLUR_H_
#define DIPENGINE_OPS_BLUR_H_

#include "dipengine/dipengine.h"
#include "dipengine/pixels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dipengine_blur_params {
  size_t struct_size;
  dipengine_pool* pool; /* NULL: the calling thread alone */
  void* workspace;      /* dipengine_blur_workspace() bytes, 64-byte aligned */
  size_t workspace_bytes;
  int64_t height, width, channels;       /* of out and d_out; each at least 1 */
  int64_t kernel_height, kernel_width;   /* each at least 1 */
  const double* kernel;                  /* [kernel_height, kernel_width]; rounded to the images' dtype */
  int32_t dtype;                         /* of all images: float32 or float64 */
  dipengine_pixels image, out;           /* blur: input [height + kernel_height - 1, width + kernel_width - 1], output */
  dipengine_pixels d_out, d_image;       /* blur_backward: input, output */
} dipengine_blur_params;

/* Bytes of workspace that `params` needs for both, in *bytes; reads struct_size, the sizes and dtype alone. */
DIPENGINE_API dipengine_status dipengine_blur_workspace(const dipengine_blur_params* params, size_t* bytes);

DIPENGINE_API dipengine_status dipengine_blur(const dipengine_blur_params* params);

/* d_image = the transpose of blur, applied to d_out. */
DIPENGINE_API dipengine_status dipengine_blur_backward(const dipengine_blur_params* params);

#ifdef __cplusplus
}
#endif

#endif
