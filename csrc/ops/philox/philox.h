/* Philox random numbers: words by counter, so any element can be made alone, in any order, on any device.
 *
 * Philox4x32-10 with key = (low, high half of the seed) and counter = (low, high half of the block index, step, stream).
 * Element i of
 *   uniform  is word i % 4 of block i / 4, as float32 (word >> 8) * 2^-24 in [0, 1);
 *   bytes    is byte i % 16 of block i / 16 (little-endian within words 0 to 3);
 *   normal   is Box-Muller of words (0, 1) or (2, 3) of block i / 4 (csrc/math/normal.h), float32.
 * Same bits on every instruction set and with any number of threads.
 */
#ifndef DIPENGINE_OPS_PHILOX_H_
#define DIPENGINE_OPS_PHILOX_H_

#include "dipengine/dipengine.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct dipengine_philox_params {
  size_t struct_size;
  dipengine_pool* pool; /* NULL: the calling thread alone */
  uint64_t seed;
  uint32_t stream;
  uint32_t step;
  int64_t count; /* elements */
  void* out;     /* [count]: float32, or uint8 for bytes */
} dipengine_philox_params;

DIPENGINE_API dipengine_status dipengine_philox_uniform(const dipengine_philox_params* params);
DIPENGINE_API dipengine_status dipengine_philox_bytes(const dipengine_philox_params* params);
DIPENGINE_API dipengine_status dipengine_philox_normal(const dipengine_philox_params* params);

/* out[f][i] = z[f][i] + std * normal(seeds[f], stream, steps[f])[i], for fits f whose active flag is set.
 * Rounded: the product, the sum, then to bfloat16 if out is that. z in uint8 stands for z * z_scale. Without z it is made
 * on the spot: bytes(code_seeds[f], code_stream, step 0) * z_scale. */
typedef struct dipengine_perturb_params {
  size_t struct_size;
  dipengine_pool* pool;
  int64_t fits;
  int64_t count;         /* elements per fit */
  const uint64_t* seeds; /* [fits] */
  const uint32_t* steps; /* [fits] */
  const uint8_t* active; /* [fits], or NULL: all. Inactive fits are left as they are */
  uint32_t stream;
  int32_t z_dtype;       /* float32 or uint8 */
  const void* z;         /* [fits, count], the fits z_fit_stride elements apart (0: one z for all); NULL: made */
  int64_t z_fit_stride;
  float z_scale;         /* used with uint8 */
  float std;             /* at least 0 */
  int32_t out_dtype;     /* float32 or bfloat16 */
  void* out;             /* [fits, count], the fits out_fit_stride elements apart; may be z itself when both are float32 */
  int64_t out_fit_stride;
  const uint64_t* code_seeds; /* [fits]; without z, with z_dtype uint8 */
  uint32_t code_stream;
} dipengine_perturb_params;

DIPENGINE_API dipengine_status dipengine_perturb(const dipengine_perturb_params* params);

#ifdef __cplusplus
}
#endif

#endif
