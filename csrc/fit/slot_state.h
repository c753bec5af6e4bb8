// The scalars of one fit's state: plain data, saved as bytes, and changed by the same functions (loop.h) on a CPU and by kernels on
// a device.
#pragma once

#include "fit/stopping.h"

namespace dipengine {

// What the average and the statistic know besides their images.
struct OutputCounts {
  double es_variance;
  int64_t frames;
};

// Of the image that a slot's generator paints, and of its x0; for the identity they are one.
struct Extent {
  int64_t height, width, data_height, data_width;
};

struct SlotState {
  Extent extent;  // decides where the slot's arrays lie
  uint64_t seed, code_seed;
  int64_t iteration;  // run
  int64_t step;       // Adam's
  double learning_rate;
  OutputCounts outputs;
  int64_t snapshot_step;
  OutputCounts snapshot_outputs;
  VarianceWatch watch;
  Rollback rollback;
  int64_t patience;        // of the watch
  int64_t best_iteration;  // of the kept state; 0: none
  int64_t at_noise;        // iteration at which the residual came down to the noise's; 0: not yet
  double noise_variance;   // what a residual is measured in: the noise's where it is known, 1 where pixels are held out; else 0
  double known;            // elements of x0 that a residual is taken over: those that are known or, where some are held out, these
  double loss;
  int32_t status, reason;  // dipengine_fit_state, dipengine_fit_reason
  int32_t has_mask, rolled_back;
  int64_t held_out;  // pixels of x0: the watch follows their error in place of the outputs' variance; 0: none
  int64_t shown;     // iteration behind which the fit sees them, too; 0: not yet
};
static_assert(sizeof(SlotState) == 32 * 8, "Padding would make states of equal fits differ.");

}  // namespace dipengine
