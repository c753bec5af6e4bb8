/* The perturbed code on a CUDA device: the bits of dipengine_perturb (ops/philox.h). */
#ifndef DIPENGINE_OPS_PHILOX_CUDA_H_
#define DIPENGINE_OPS_PHILOX_CUDA_H_

#if __has_include("dipengine/ops/philox.h")
#include "dipengine/ops/philox.h"
#else
#include "ops/philox/philox.h"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Fields as in dipengine_perturb_params. seeds, steps, active, z, out and code_seeds are device memory. */
typedef struct dipengine_perturb_cuda_params {
  size_t struct_size;
  void* stream; /* cudaStream_t */
  int64_t fits; /* up to 65535 */
  int64_t count;
  const uint64_t* seeds;
  const uint32_t* steps;
  const uint8_t* active;
  uint32_t noise_stream; /* `stream` of the CPU op */
  int32_t z_dtype;
  const void* z;
  int64_t z_fit_stride;
  float z_scale;
  float std;
  int32_t out_dtype;
  void* out;
  int64_t out_fit_stride;
  const uint64_t* code_seeds;
  uint32_t code_stream;
} dipengine_perturb_cuda_params;

DIPENGINE_API dipengine_status dipengine_perturb_cuda(const dipengine_perturb_cuda_params* params);

#ifdef __cplusplus
}
#endif

#endif
