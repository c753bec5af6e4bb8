/* A convolution of stride 1 and the 2x2 mean behind it as one of stride 2, with a kernel wider by one, on a CUDA device:
 *
 *   wide[y, x] = sum over the four corners (top, left) in {0, 1}^2 of weight[y - top, x - left] / 4
 *
 * and the gradient's way back. Bits as a plain loop over corners in that order gives them.
 */
#ifndef DIPENGINE_OPS_CONV_MEAN_CUDA_H_
#define DIPENGINE_OPS_CONV_MEAN_CUDA_H_

#include "dipengine/dipengine.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dipengine_conv_mean_cuda_params {
  size_t struct_size;
  void* stream;          /* cudaStream_t */
  int64_t fits;          /* up to 65535 */
  const uint8_t* active; /* [fits], or NULL: all. Inactive fits are left as they are */
  int64_t kernel;        /* of weight, 1 to 6 */
  int64_t pairs;         /* channels in times channels out */
  float* weight;         /* [kernel, kernel, pairs] of a fit; a gradient on the way back */
  float* wide;           /* [kernel + 1, kernel + 1, pairs] */
  int64_t weight_fit_stride, wide_fit_stride; /* elements */
} dipengine_conv_mean_cuda_params;

/* wide from weight. */
DIPENGINE_API dipengine_status dipengine_conv_mean_cuda_widen(const dipengine_conv_mean_cuda_params* params);

/* weight's gradient from that of wide. */
DIPENGINE_API dipengine_status dipengine_conv_mean_cuda_narrow(const dipengine_conv_mean_cuda_params* params);

#ifdef __cplusplus
}
#endif

#endif
