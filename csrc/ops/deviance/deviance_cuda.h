/* The sensor's data term on a CUDA device: the formulas of ops/deviance.h for float32 images. Elements have the same bits as
 * on a CPU; sums run over other tiles, in a fixed order that depends on the size alone, in float64. A fit has the same bits
 * alone and among others.
 */
#ifndef DIPENGINE_OPS_DEVIANCE_CUDA_H_
#define DIPENGINE_OPS_DEVIANCE_CUDA_H_

#if __has_include("dipengine/ops/deviance.h")
#include "dipengine/ops/deviance.h"
#else
#include "ops/deviance/deviance.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Fields as in dipengine_deviance_params; all pointers are device memory, all images float32. */
typedef struct dipengine_deviance_cuda_params {
  size_t struct_size;
  void* stream;    /* cudaStream_t */
  void* workspace; /* dipengine_deviance_cuda_workspace() bytes, 16-byte aligned */
  size_t workspace_bytes;
  int64_t fits;          /* up to 65535 */
  const uint8_t* active; /* [fits], or NULL: all. Inactive fits are left as they are */
  int64_t height, width, channels;
  dipengine_pixels image, target, mask, d_image; /* mask and d_image are optional */
  int64_t image_fit_stride, target_fit_stride, mask_fit_stride, d_image_fit_stride; /* elements; 0: one for all, if read */
  const double *scale, *shift, *read_variance; /* [fits] */
  const double* normaliser;                    /* [fits], positive */
  double floor;
  double grad_scale;
  double* loss;        /* [fits] */
  double* discrepancy; /* [fits]; optional */
  const int64_t* sizes; /* [fits, 2]: each fit's own rows and elements of a row of image, at most those above; NULL: those above */
} dipengine_deviance_cuda_params;

/* Bytes of workspace; reads struct_size, fits and the size alone. */
DIPENGINE_API dipengine_status dipengine_deviance_cuda_workspace(const dipengine_deviance_cuda_params* params, size_t* bytes);

DIPENGINE_API dipengine_status dipengine_deviance_cuda(const dipengine_deviance_cuda_params* params);

#ifdef __cplusplus
}
#endif

#endif
