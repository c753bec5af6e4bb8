/* Adam on a CUDA device: the formulas and, for the same inputs, the bits of ops/adam.h.
 *
 * All arrays are device memory; nothing is read back. One launch for all tensors of all fits, 28 bytes a float32 parameter.
 */
#ifndef DIPENGINE_OPS_ADAM_CUDA_H_
#define DIPENGINE_OPS_ADAM_CUDA_H_

#if __has_include("dipengine/ops/adam.h")
#include "dipengine/ops/adam.h"
#else
#include "ops/adam/adam.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { DIPENGINE_ADAM_CUDA_MAX_SEGMENTS = 48 };

typedef struct dipengine_adam_cuda_params {
  size_t struct_size;
  size_t segment_size;                    /* sizeof(dipengine_adam_segment) */
  void* stream;                           /* cudaStream_t */
  int32_t grad_dtype;                     /* float32 or bfloat16; param, m and v are float32 */
  int64_t fits;                           /* up to 65535 */
  int64_t segments_count;                 /* up to DIPENGINE_ADAM_CUDA_MAX_SEGMENTS; call again for more */
  const dipengine_adam_segment* segments; /* host memory */
  const int64_t* steps;                   /* [fits]: the number of this update, from 1; not advanced here */
  const double* learning_rate;            /* [fits] */
  const uint8_t* active;                  /* [fits], or NULL: all. Inactive fits are left as they are */
  double beta1, beta2, eps;
} dipengine_adam_cuda_params;

DIPENGINE_API dipengine_status dipengine_adam_cuda(const dipengine_adam_cuda_params* params);

#ifdef __cplusplus
}
#endif

#endif
