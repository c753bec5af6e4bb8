/* Adam: one update of every parameter of every fit.
 *
 *   m = m + (1 - beta1) (g - m)            v = beta2 v + (1 - beta2) g^2
 *   p = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)
 *
 * D. Kingma, J. Ba, "Adam: a method for stochastic optimization", ICLR 2015, in PyTorch's form and order of operations.
 * t counts from 1 and is kept per fit; bias corrections are computed in float64, elements in float32.
 * 28 bytes move per float32 parameter: bound by memory.
 */
#ifndef DIPENGINE_OPS_ADAM_H_
#define DIPENGINE_OPS_ADAM_H_

#include "dipengine/dipengine.h"

#ifdef __cplusplus
extern "C" {
#endif

/* `count` parameters of each fit, contiguous; fits are fit_stride elements apart in all five arrays. */
typedef struct dipengine_adam_segment {
  void* param;      /* float32 (float64 where dtype is that) */
  const void* grad; /* grad_dtype */
  void* m;          /* like param; zero before the first update */
  void* v;          /* like param; zero before the first update */
  void* shadow;     /* optional: receives the new param rounded to bfloat16 (float32 params only) */
  int64_t count;
  int64_t fit_stride; /* at least count; unused with one fit */
} dipengine_adam_segment;

typedef struct dipengine_adam_params {
  size_t struct_size;
  size_t segment_size; /* sizeof(dipengine_adam_segment) */
  dipengine_pool* pool;
  int32_t dtype;      /* of param, m, v: float32, or float64 (portable kernels) */
  int32_t grad_dtype; /* float32 or bfloat16; float64 with float64 */
  int64_t fits;
  int64_t segments_count;
  const dipengine_adam_segment* segments;
  int64_t* steps;              /* [fits], in and out: updates done; active ones grow by one */
  const double* learning_rate; /* [fits] */
  const uint8_t* active;       /* [fits], or NULL: all. Inactive fits are left as they are */
  double beta1, beta2, eps;
} dipengine_adam_params;

DIPENGINE_API dipengine_status dipengine_adam(const dipengine_adam_params* params);

#ifdef __cplusplus
}
#endif

#endif
