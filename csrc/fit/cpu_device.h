// A fit on the host: its arena, and the loop of an iteration's steps over its slots.
#pragma once

#include "fit/cpu_plan.h"
#include "fit/device.h"

namespace dipengine {

class CpuDevice final : public FitDevice {
 public:
  CpuDevice(const dipengine_fit_params& params, Graph& graph, const SlotLayout& layout, const LoopRules& rules);
  ~CpuDevice() override;

  dipengine_status size() override;
  dipengine_status allocate() override;
  SlotState& state(int32_t index) override { return slot(index).state(); }
  Slot slot(int32_t index) override { return Slot(layout_, slots_ + layout_.bytes() * static_cast<size_t>(index)); }
  dipengine_status fetch(int32_t) override { return DIPENGINE_OK; }
  dipengine_status store(int32_t) override { return DIPENGINE_OK; }
  float* scratch() override;
  dipengine_status run(dipengine_fit_run_params& run) override;
  dipengine_status render(int32_t index, float* image) override { return plan_.render(slot(index), image); }
  dipengine_status statistics(int32_t index, float* flat) override { return plan_.statistics(slot(index), flat); }
  dipengine_status gradients(const float** flat) override;

 private:
  dipengine_status iterate(const Slot& slot, const dipengine_fit_run_params& run, bool* stopped);
  dipengine_status steps(int first, int last, const Slot& slot, const dipengine_fit_run_params& run, bool may_stop, bool* stopped);
  dipengine_status watch_slot(const Slot& slot);

  const dipengine_fit_params& p_;
  Graph& graph_;
  const SlotLayout& layout_;
  const LoopRules& rules_;
  CpuPlan plan_;
  int slots_buffer_ = -1;
  char *arena_ = nullptr, *slots_ = nullptr;
  bool has_gradients_ = false;
};

}  // namespace dipengine
