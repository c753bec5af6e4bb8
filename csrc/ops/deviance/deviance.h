/* The negative log-likelihood of a counting sensor as a data term. With e, k = scale * unit + shift the electrons of image
 * and target, r2 the read noise's variance and v(e) = max(e, floor) + r2,
 *
 *   loss        = sum mask * D(k, e) / normaliser,     D(k, e) = 2 integral_k^e (t - k) / v(t) dt >= 0
 *   d_image     = grad_scale * d loss / d image = grad_scale * 2 scale / normaliser * mask * (e - k) / v(e)
 *   discrepancy = max(sum mask * x / normaliser, (sum w x - 2 sqrt(2 sum w^2)) / sum w)
 *                 where x = (e - k)^2 / v(e), w = mask * max(e, floor)^3
 *
 * in one pass. The discrepancy is the mean squared residual in variances over all elements, or that over the bright ones less
 * two of its standard deviations, whichever is larger (engine/dipengine/noise/likelihood.py says why). Poisson noise with read
 * noise as one more count: D. Snyder et al., JOSA A 1993; quasi-likelihood:
 * R. Wedderburn, Biometrika 1974. Elements are computed in float64 (some 60 operations, 3 divisions) and without
 * cancellation, whatever the images' dtype; sums run over tiles of a fixed size in a fixed order: the same bits on every
 * instruction set, with any number of threads.
 */
#ifndef DIPENGINE_OPS_DEVIANCE_H_
#define DIPENGINE_OPS_DEVIANCE_H_

#include "dipengine/dipengine.h"
#include "dipengine/pixels.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dipengine_deviance_params {
  size_t struct_size;
  dipengine_pool* pool; /* NULL: the calling thread alone */
  void* workspace;      /* dipengine_deviance_workspace() bytes, 64-byte aligned */
  size_t workspace_bytes;
  int64_t height, width, channels; /* each at least 1 */
  int32_t dtype;                   /* of all images: float32 or float64 */
  dipengine_pixels image, target;
  dipengine_pixels mask;           /* optional weights [height, width, 1] */
  dipengine_pixels d_image;        /* optional output; may be image */
  double scale, shift;             /* electrons = scale * unit + shift */
  double read_variance;            /* r2, electrons squared, at least 0 */
  double floor;                    /* electrons, above 0 */
  double normaliser;               /* positive; for means the number of known elements: sum of mask times channels */
  double grad_scale;
  double* loss;
  double* discrepancy;             /* optional */
} dipengine_deviance_params;

/* Bytes of workspace that `params` needs, in *bytes; reads struct_size and the size alone. */
DIPENGINE_API dipengine_status dipengine_deviance_workspace(const dipengine_deviance_params* params, size_t* bytes);

DIPENGINE_API dipengine_status dipengine_deviance(const dipengine_deviance_params* params);

#ifdef __cplusplus
}
#endif

#endif
