// The CPU kernels of downsampling, one table per instruction set.
#pragma once

#include "ops/resample/resample.h"
#include "ops/resample/resample_math.h"

namespace dipengine {

static inline ResampleAxis vertical_axis(const dipengine_downsample_params& p) {
  return {p.height, p.factor, p.before, p.taps_count};
}
static inline ResampleAxis horizontal_axis(const dipengine_downsample_params& p) {
  return {p.width, p.factor, p.before, p.taps_count};
}

// Elements of a thread's scratch: a row between the two axes, and the phases of one.
struct ResampleScratch {
  int64_t row, phase, phases;  // elements of the row, of a phase, of all phases
};

static inline ResampleScratch resample_scratch(const dipengine_downsample_params& p) {
  const ResampleAxis axis = horizontal_axis(p);
  const int64_t padded = outputs_of(axis) + 2 * margin_of(axis);  // backward's row, with zeros on both sides
  const int64_t row = (padded > p.width ? padded : p.width) * p.channels;
  const int64_t phase = (outputs_of(axis) + margin_of(axis)) * p.channels;
  return {(row + 15) / 16 * 16, phase, (phase * p.factor + 15) / 16 * 16};
}

struct ResampleKernels {
  // Rows [first, last) of out, or of d_image; `scratch` as resample_scratch() says.
  using Rows = void (*)(const dipengine_downsample_params& params, int64_t first, int64_t last, void* scratch);
  struct Pair {
    Rows forward, backward;
  };
  Pair float32;
  Pair float64;  // only in the portable table
};

}  // namespace dipengine
