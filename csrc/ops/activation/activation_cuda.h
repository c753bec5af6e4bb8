/* The output sigmoid's gradient on a CUDA device: the formula and the bits of ops/activation.h for float32 images. */
#ifndef DIPENGINE_OPS_ACTIVATION_CUDA_H_
#define DIPENGINE_OPS_ACTIVATION_CUDA_H_

#if __has_include("dipengine/ops/activation.h")
#include "dipengine/ops/activation.h"
#else
#include "ops/activation/activation.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Fields as in dipengine_sigmoid_backward_params; all pointers are device memory, all images float32. */
typedef struct dipengine_sigmoid_backward_cuda_params {
  size_t struct_size;
  void* stream;          /* cudaStream_t */
  int64_t fits;          /* up to 65535 */
  const uint8_t* active; /* [fits], or NULL: all. Inactive fits are left as they are */
  int64_t height, width, channels; /* height up to 65535 */
  const int64_t* sizes; /* [fits, 2]: each fit's own rows and elements of a row, at most those above; NULL: those above */
  dipengine_pixels x, d_x, d_raw;
  int64_t x_fit_stride, d_x_fit_stride, d_raw_fit_stride; /* elements */
} dipengine_sigmoid_backward_cuda_params;

DIPENGINE_API dipengine_status dipengine_sigmoid_backward_cuda(const dipengine_sigmoid_backward_cuda_params* params);

#ifdef __cplusplus
}
#endif

#endif
