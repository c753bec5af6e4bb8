/* Downsampling by a separable filter with replicated borders, and its transpose. Along each axis
 *
 *   out[i] = sum_t taps[t] * image[clamp(factor * i - before + t)],     i = 0 .. ceil(size / factor) - 1
 *
 * Kernels: K. Turkowski, "Filters for Common Resampling Tasks" (1990). Rows are filtered first: one output row is n
 * weighted input rows, then the same sum over the phases of that row, so that both vectorise along a row for any number of
 * channels. Some n / factor operations an input element and axis; the transpose costs the same and is a gather.
 * Same bits on every instruction set, with any number of threads.
 */
#ifndef DIPENGINE_OPS_RESAMPLE_H_
#define DIPENGINE_OPS_RESAMPLE_H_

#include "dipengine/dipengine.h"
#include "dipengine/pixels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dipengine_downsample_params {
  size_t struct_size;
  dipengine_pool* pool; /* NULL: the calling thread alone */
  void* workspace;      /* dipengine_downsample_workspace() bytes, 64-byte aligned */
  size_t workspace_bytes;
  int64_t height, width, channels; /* of image and d_image; each at least 1. out has ceil(size / factor) pixels a side */
  int64_t factor;                  /* at least 1 */
  int64_t before;                  /* samples read before the first input sample; negative: samples left out */
  int64_t taps_count;
  const double* taps;              /* [taps_count]; rounded to the images' dtype */
  int32_t dtype;                   /* of all images: float32 or float64 */
  dipengine_pixels image, out;     /* downsample: input, output */
  dipengine_pixels d_out, d_image; /* downsample_backward: input, output */
} dipengine_downsample_params;

/* Bytes of workspace that `params` needs for both, in *bytes; reads struct_size, the pool, the size, the factor and
 * taps_count alone. */
DIPENGINE_API dipengine_status dipengine_downsample_workspace(const dipengine_downsample_params* params, size_t* bytes);

DIPENGINE_API dipengine_status dipengine_downsample(const dipengine_downsample_params* params);

/* d_image = the transpose of downsample, applied to d_out. */
DIPENGINE_API dipengine_status dipengine_downsample_backward(const dipengine_downsample_params* params);

#ifdef __cplusplus
}
#endif

#endif
