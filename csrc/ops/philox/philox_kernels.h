// The CPU kernels of the Philox ops, one table per instruction set. Each kernel makes elements [begin, end) of a
// sequence; begin is a multiple of kPhiloxChunk.
#pragma once

#include "ops/philox/philox_math.h"

namespace dipengine {

constexpr int64_t kPhiloxChunk = 256;                // elements made at a time, on the stack
constexpr int64_t kPhiloxTile = 64 * kPhiloxChunk;  // elements of one task

struct PhiloxKernels {
  void (*uniform)(PhiloxSequence sequence, int64_t begin, int64_t end, float* out);
  void (*normal)(PhiloxSequence sequence, int64_t begin, int64_t end, float* out);
  void (*bytes)(PhiloxSequence sequence, int64_t begin, int64_t end, uint8_t* out);
  // z and out are those of element 0. At most one of z_float and z_byte is not null; without either z is the bytes of
  // `code`. Exactly one of out_float and out_half is not null.
  void (*perturb)(PhiloxSequence sequence, int64_t begin, int64_t end, float std, const float* z_float,
                  const uint8_t* z_byte, PhiloxSequence code, float z_scale, float* out_float, uint16_t* out_half);
};

}  // namespace dipengine
