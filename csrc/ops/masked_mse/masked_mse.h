/* Masked mean squared error behind the output activation, with everything else that wants a look at the output:
 *
 *   x      = act(raw)                                        act: none, or the sigmoid
 *   loss   = sum mask * (x - target)^2 / normaliser
 *   d_raw  = grad_scale * d loss / d raw
 *   out    = x
 *   avg    = decay * avg + (1 - decay) * x                   (x itself at a fit's first frame)
 *   d2     = mean |x - A|^2, then A = (1 - a) A + a x        (first frame: A = x, d2 = 0)
 *
 * in one pass over memory. A is the running mean of the ES-EMV stopping rule (H. Wang et al., "Early stopping for deep
 * image prior", TMLR 2023); from d2 the caller updates its variance, V = (1 - a) V + a (1 - a) d2.
 *
 * Every tensor is [fits, outer, rows, inner] with `inner` contiguous and the other strides its own, so that one op
 * serves NCHW (outer = C, rows = H, inner = W), NHWC (outer = 1, rows = H, inner = W * C) and any crop of a canvas.
 * What lies outside the given dims is not touched: a caller with a larger canvas zeroes d_raw around the window.
 *
 * Sums run over tiles whose size depends on (rows, inner) alone, in a fixed order: the same bits on every instruction
 * set, with any number of threads, for a fit alone or among others. Elements are computed in float32, summed in float64.
 */
#ifndef DIPENGINE_OPS_MASKED_MSE_H_
#define DIPENGINE_OPS_MASKED_MSE_H_

#include "dipengine/dipengine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One tensor; strides in elements. Absent where data is NULL. */
typedef struct dipengine_image {
  void* data;
  int64_t fit_stride;
  int64_t outer_stride;
  int64_t row_stride;
} dipengine_image;

typedef enum dipengine_activation { DIPENGINE_ACTIVATION_NONE = 0, DIPENGINE_ACTIVATION_SIGMOID = 1 } dipengine_activation;

typedef struct dipengine_masked_mse_params {
  size_t struct_size;
  dipengine_pool* pool; /* NULL: the calling thread alone */
  void* workspace;      /* dipengine_masked_mse_workspace() bytes, 8-byte aligned */
  size_t workspace_bytes;
  int64_t fits, outer, rows, inner; /* each at least 1 */
  const uint8_t* active;            /* [fits], or NULL: all. Inactive fits are left as they are, losses included */
  int32_t dtype;                    /* of raw and d_raw: float32 or bfloat16 (the others are float32), or all float64 */
  int32_t activation;               /* dipengine_activation */
  dipengine_image raw;              /* before the activation */
  dipengine_image target;           /* optional; without it there is no loss and no gradient */
  dipengine_image mask;             /* optional weights; strides may be 0. Its rows hold inner / mask_repeat weights */
  int64_t mask_repeat;              /* neighbours in a row that share a weight: 1, or C for NHWC under a per-pixel mask */
  dipengine_image d_raw;            /* optional output; needs target */
  dipengine_image out;              /* optional output */
  dipengine_image average;          /* optional, in and out */
  dipengine_image es_mean;          /* optional, in and out */
  const double* normaliser;         /* [fits], positive; needed with target */
  double grad_scale;
  double average_decay;             /* in [0, 1) */
  double es_alpha;                  /* in (0, 1] */
  const uint8_t* first_frame;       /* [fits], or NULL: none is at its first frame */
  double* loss;                     /* [fits]; needed with target */
  double* d2;                       /* [fits]; needed with es_mean */
} dipengine_masked_mse_params;

/* Bytes of workspace that `params` needs, in *bytes; reads struct_size and the dims alone. */
DIPENGINE_API dipengine_status dipengine_masked_mse_workspace(const dipengine_masked_mse_params* params, size_t* bytes);

DIPENGINE_API dipengine_status dipengine_masked_mse(const dipengine_masked_mse_params* params);

#ifdef __cplusplus
}
#endif

#endif
