/* The output sigmoid's gradient, where an operator or a data term stands behind it:
 *
 *   d_raw = d_x * (1 - x) * x,      x = sigmoid(raw)
 *
 * over a window [height, width, channels] of larger images: what lies outside is not touched. Two reads and a write an
 * element, three operations. Same bits on every instruction set, with any number of threads.
 */
#ifndef DIPENGINE_OPS_ACTIVATION_H_
#define DIPENGINE_OPS_ACTIVATION_H_

#include "dipengine/dipengine.h"
#include "dipengine/pixels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dipengine_sigmoid_backward_params {
  size_t struct_size;
  dipengine_pool* pool;            /* NULL: the calling thread alone */
  int64_t height, width, channels; /* each at least 1 */
  int32_t dtype;                   /* of all images: float32 or float64 */
  dipengine_pixels x;              /* the sigmoid's value */
  dipengine_pixels d_x;            /* the gradient with respect to it */
  dipengine_pixels d_raw;          /* output; may be d_x or x */
} dipengine_sigmoid_backward_params;

DIPENGINE_API dipengine_status dipengine_sigmoid_backward(const dipengine_sigmoid_backward_params* params);

#ifdef __cplusplus
}
#endif

#endif
