/* Blur by a known kernel and its transpose on a CUDA device: the formulas of ops/blur.h in float32. Sums run in another order
 * than on a CPU, one that depends on the shapes alone. A fit has the same bits alone and among others.
 */
#ifndef DIPENGINE_OPS_BLUR_CUDA_H_
#define DIPENGINE_OPS_BLUR_CUDA_H_

#if __has_include("dipengine/ops/blur.h")
#include "dipengine/ops/blur.h"
#else
#include "ops/blur/blur.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Fields as in dipengine_blur_params; all pointers are device memory, all images float32. Needs no workspace. */
typedef struct dipengine_blur_cuda_params {
  size_t struct_size;
  void* stream;          /* cudaStream_t */
  int64_t fits;          /* up to 65535 */
  const uint8_t* active; /* [fits], or NULL: all. Inactive fits are left as they are */
  int64_t height, width, channels;
  int64_t kernel_height, kernel_width;
  const float* kernel;             /* [kernel_height, kernel_width] of a fit */
  int64_t kernel_fit_stride;       /* 0: one kernel for all */
  dipengine_pixels image, out;     /* blur: input, output */
  dipengine_pixels d_out, d_image; /* blur_backward: input, output */
  int64_t image_fit_stride, out_fit_stride, d_out_fit_stride, d_image_fit_stride; /* elements */
  const int64_t* sizes; /* [fits, 2]: each fit's own rows and elements of a row of out, at most those above; NULL: those above */
} dipengine_blur_cuda_params;

DIPENGINE_API dipengine_status dipengine_blur_cuda(const dipengine_blur_cuda_params* params);

DIPENGINE_API dipengine_status dipengine_blur_cuda_backward(const dipengine_blur_cuda_params* params);

#ifdef __cplusplus
}
#endif

#endif
