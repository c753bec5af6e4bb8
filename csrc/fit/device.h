// Where a fit's arena lies and how its iterations run: the part of a fit that knows its device. Everything else (graph, arena,
// lives of buffers, slots and their state, what is decided between steps) is the same on every device.
#pragma once

#include <memory>

#include "fit/census_cuda.h"
#include "fit/loop.h"
#include "fit/slot.h"
#include "platform/error.h"

namespace dipengine {

class FitDevice {
 public:
  virtual ~FitDevice() = default;

  // Sizes everything, allocates nothing: the arena's layout is final afterwards.
  virtual dipengine_status size() = 0;
  // The arena, with slots that were never started.
  virtual dipengine_status allocate() = 0;

  // A slot's scalars, as the last run left them; what is changed counts.
  virtual SlotState& state(int32_t index) = 0;
  // A slot in the host's memory, where the device keeps its slots elsewhere that of the last fetch: what is changed in it counts
  // from store() on.
  virtual Slot slot(int32_t index) = 0;
  virtual dipengine_status fetch(int32_t index) = 0;
  virtual dipengine_status store(int32_t index) = 0;
  // As many floats of the host's memory as the largest tensor has, between iterations.
  virtual float* scratch() = 0;

  virtual dipengine_status run(dipengine_fit_run_params& run) = 0;

  // Whether an array of the caller's lies in memory of the device's own, which the host cannot read; a failure where in another one's.
  virtual dipengine_status holds(const void*, bool* there) const {
    *there = false;
    return DIPENGINE_OK;
  }
  // Of arrays that it holds: what is in one, and copies into the slot's (behind a store()) and out of it.
  virtual dipengine_status look(const float*, int64_t, Census*) { return holds_none(); }
  virtual dipengine_status bring(int32_t, SlotArrays::Name, const float*) { return holds_none(); }
  virtual dipengine_status give(int32_t, SlotArrays::Name, float*) { return holds_none(); }

  // f(z) at the unperturbed z, [height, width, channels] in [0, 1], in either memory.
  virtual dipengine_status render(int32_t index, float* image) = 0;
  // Mean and variance of every norm at the unperturbed z, where a flat array of all parameters has gamma and beta; else 0.
  virtual dipengine_status statistics(int32_t index, float* flat) = 0;
  // Of the iteration that learnt last, the trainable parameters' in the host's memory; NULL where none has since a start.
  virtual dipengine_status gradients(const float** flat) = 0;

 private:
  static dipengine_status holds_none() { return fail(DIPENGINE_INVALID_ARGUMENT, "The host's memory is no device's."); }
};

// A failure where this library has no CUDA kernels, or they do not do what the fit asks for.
dipengine_status make_cuda_device(const dipengine_fit_params& params, Graph& graph, const SlotLayout& layout, const LoopRules& rules,
                                  std::unique_ptr<FitDevice>* device);

}  // namespace dipengine
