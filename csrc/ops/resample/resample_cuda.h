/* Downsampling and its transpose on a CUDA device: the formulas and, for the same inputs, the bits of ops/resample.h in
 * float32, of fits that share one filter. A fit has the same bits alone and among others.
 */
#ifndef DIPENGINE_OPS_RESAMPLE_CUDA_H_
#define DIPENGINE_OPS_RESAMPLE_CUDA_H_

#if __has_include("dipengine/ops/resample.h")
#include "dipengine/ops/resample.h"
#else
#include "ops/resample/resample.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Fields as in dipengine_downsample_params; all pointers are device memory, all images float32. */
typedef struct dipengine_downsample_cuda_params {
  size_t struct_size;
  void* stream;    /* cudaStream_t */
  void* workspace; /* dipengine_downsample_cuda_workspace() bytes, 16-byte aligned */
  size_t workspace_bytes;
  int64_t fits;          /* up to 65535 */
  const uint8_t* active; /* [fits], or NULL: all. Inactive fits are left as they are */
  int64_t height, width, channels;
  int64_t factor, before, taps_count;
  const float* taps; /* [taps_count] */
  dipengine_pixels image, out;     /* downsample: input, output */
  dipengine_pixels d_out, d_image; /* downsample_backward: input, output */
  int64_t image_fit_stride, out_fit_stride, d_out_fit_stride, d_image_fit_stride; /* elements */
  const int64_t* sizes; /* [fits, 2]: each fit's own rows and elements of a row of image, at most those above; NULL: those above */
} dipengine_downsample_cuda_params;

/* Bytes of workspace for both; reads struct_size, fits, the size, the factor and taps_count alone. */
DIPENGINE_API dipengine_status dipengine_downsample_cuda_workspace(const dipengine_downsample_cuda_params* params, size_t* bytes);

DIPENGINE_API dipengine_status dipengine_downsample_cuda(const dipengine_downsample_cuda_params* params);

DIPENGINE_API dipengine_status dipengine_downsample_cuda_backward(const dipengine_downsample_cuda_params* params);

#ifdef __cplusplus
}
#endif

#endif
