/* Masked mean squared error on a CUDA device, with the output average and the stopping statistic: the formulas of
 * ops/masked_mse.h in one pass. Elements have the same bits as on a CPU; sums run over other tiles, in a fixed order that
 * depends on (rows, inner) alone, in float64.
 */
#ifndef DIPENGINE_OPS_MASKED_MSE_CUDA_H_
#define DIPENGINE_OPS_MASKED_MSE_CUDA_H_

#if __has_include("dipengine/ops/masked_mse.h")
#include "dipengine/ops/masked_mse.h"
#else
#include "ops/masked_mse/masked_mse.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Images as in dipengine_masked_mse_params, with outer = 1; all pointers are device memory. */
typedef struct dipengine_masked_mse_cuda_params {
  size_t struct_size;
  void* stream;    /* cudaStream_t */
  void* workspace; /* dipengine_masked_mse_cuda_workspace() bytes, 8-byte aligned */
  size_t workspace_bytes;
  int64_t fits, rows, inner; /* each at least 1; fits up to 65535 */
  const uint8_t* active;     /* [fits], or NULL: all. Inactive fits are left as they are */
  int32_t dtype;             /* of raw and d_raw: float32 or bfloat16; the others are float32 */
  int32_t activation;        /* dipengine_activation */
  dipengine_image raw, target, mask;
  int64_t mask_repeat;
  dipengine_image d_raw, out, average, es_mean;
  const double* normaliser; /* [fits] */
  double grad_scale;
  double average_decay; /* in [0, 1); with warm_up at most (frames + 1) / (frames + 10) */
  int32_t warm_up;
  double es_alpha;     /* in (0, 1] */
  int64_t* frames;     /* [fits], in and out: frames seen; 0 at a fit's first one */
  double* loss;        /* [fits]; needed with target */
  double* es_variance; /* [fits], in and out: V = (1 - a) (V + a d2), 0 at the first frame; needed with es_mean */
  const int64_t* sizes; /* [fits, 2]: each fit's own rows and inner, at most those above, in the same strides; NULL: those above */
  uint32_t* tickets;    /* [fits], zeros before and after: the last of a fit's blocks adds up what they leave; NULL: another kernel does */
} dipengine_masked_mse_cuda_params;

DIPENGINE_API dipengine_status dipengine_masked_mse_cuda_workspace(const dipengine_masked_mse_cuda_params* params, size_t* bytes);

DIPENGINE_API dipengine_status dipengine_masked_mse_cuda(const dipengine_masked_mse_cuda_params* params);

#ifdef __cplusplus
}
#endif

#endif
