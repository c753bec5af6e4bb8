// A fit: one arena, its slots, and the loop of iterations over them.
#pragma once

#include <memory>
#include <vector>

#include "fit/cpu_plan.h"
#include "fit/state.h"

namespace dipengine {

class Fit {
 public:
  // From params that were checked. Without `allocate` only the memory is known afterwards. May throw std::bad_alloc.
  static dipengine_status make(const dipengine_fit_params& params, bool allocate, std::unique_ptr<Fit>* fit);
  ~Fit();
  Fit(const Fit&) = delete;
  Fit& operator=(const Fit&) = delete;

  dipengine_status check_slot(int32_t index) const;
  dipengine_status check_started(int32_t index) const;
  dipengine_status start(int32_t index, const dipengine_fit_start_params& start);
  dipengine_status set_code_seed(int32_t index, uint64_t seed);
  dipengine_status set_patience(int32_t index, int64_t patience);
  dipengine_status run(dipengine_fit_run_params& run);
  dipengine_status deliver(int32_t index, float* image, float* parameters, int64_t* iteration);
  dipengine_fit_progress progress(int32_t index) const;
  dipengine_status gradients(float* values) const;
  dipengine_status save_state(int32_t index, void* state, size_t bytes) const;
  dipengine_status load_state(int32_t index, const void* state, size_t bytes);

  Slot slot(int32_t index) const;
  const Graph& graph() const { return graph_; }
  const SlotLayout& layout() const { return layout_; }
  CpuPlan& plan() { return plan_; }
  size_t arena_bytes() const { return graph_.arena.bytes(); }

 private:
  explicit Fit(const dipengine_fit_params& params);
  dipengine_status prepare(bool allocate);
  dipengine_status check_start(int32_t index, const dipengine_fit_start_params& start, Extent* extent, double* known) const;
  dipengine_status iterate(const Slot& slot, const dipengine_fit_run_params& run, bool* stopped);
  dipengine_status steps(int first, int last, const Slot& slot, const dipengine_fit_run_params& run, bool may_stop, bool* stopped);
  dipengine_status watch(const Slot& slot);
  bool asked_to_stop(const dipengine_fit_run_params& run) const;
  dipengine_stop_rule rule_of(const SlotState& state) const;
  bool delivers_best(const SlotState& state) const;

  dipengine_fit_params p_;
  std::vector<double> taps_, kernel_;
  dipengine_stop_rule rule_;
  uint64_t fingerprint_;
  Graph graph_;
  SlotLayout layout_;
  CpuPlan plan_;
  char *arena_ = nullptr, *slots_ = nullptr;
  bool has_gradients_ = false;
};

}  // namespace dipengine
