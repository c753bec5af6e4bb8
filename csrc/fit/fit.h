// A fit: its graph, its slots and their state, over the device that runs it.
#pragma once

#include <memory>
#include <vector>

#include "fit/device.h"
#include "fit/state.h"

namespace dipengine {

class Fit {
 public:
  // From params that were checked. Without `allocate` only the memory is known afterwards. May throw std::bad_alloc.
  static dipengine_status make(const dipengine_fit_params& params, bool allocate, std::unique_ptr<Fit>* fit);
  Fit(const Fit&) = delete;
  Fit& operator=(const Fit&) = delete;

  dipengine_status check_slot(int32_t index) const;
  dipengine_status check_started(int32_t index) const;
  dipengine_status start(int32_t index, const dipengine_fit_start_params& start);
  dipengine_status set_code_seed(int32_t index, uint64_t seed);
  dipengine_status set_patience(int32_t index, int64_t patience);
  dipengine_status set_sigma(int32_t index, double sigma);
  dipengine_status run(dipengine_fit_run_params& run);
  dipengine_status deliver(int32_t index, float* image, float* parameters, int64_t* iteration);
  dipengine_fit_progress progress(int32_t index) const;
  dipengine_status average(int32_t index, float* image) const;
  dipengine_status render(int32_t index, float* image) const;
  dipengine_status statistics(int32_t index, float* flat) const;
  dipengine_status parameters(int32_t index, float* values) const;
  dipengine_status set_parameters(int32_t index, const float* values);
  dipengine_status gradients(float* values) const;
  size_t state_bytes(int32_t index) const;
  dipengine_status save_state(int32_t index, void* state, size_t bytes) const;
  dipengine_status load_state(int32_t index, const void* state, size_t bytes);

  Slot slot(int32_t index) const { return device_->slot(index); }
  const Graph& graph() const { return graph_; }
  const SlotLayout& layout() const { return layout_; }
  size_t arena_bytes() const { return graph_.arena.bytes(); }

 private:
  explicit Fit(const dipengine_fit_params& params);
  dipengine_status prepare(bool allocate);
  // What start() is given, once it has been looked at.
  struct Start {
    Extent extent;
    double known;                   // pixels
    bool target_there, mask_there;  // in the device's own memory
  };
  dipengine_status check_start(int32_t index, const dipengine_fit_start_params& start, Start* found) const;
  dipengine_status hold_out(const Slot& at) const;
  dipengine_status look(const float* values, int64_t count, bool there, Census* found) const;
  dipengine_status give(int32_t index, SlotArrays::Name name, bool there, float* image) const;
  const SlotState& state(int32_t index) const { return device_->state(index); }

  dipengine_fit_params p_;
  std::vector<double> taps_, kernel_;
  LoopRules rules_;
  uint64_t fingerprint_;
  Graph graph_;
  SlotLayout layout_;
  std::unique_ptr<FitDevice> device_;
};

}  // namespace dipengine
