// Fits on a CUDA device: the arena in its memory, an iteration of all slots recorded once, and replayed.
//
// Everything that an iteration needs, decisions included, is in device memory (iteration_cuda.h); a run tells the device who takes
// part and how often, and fetches losses, variances and the slots' scalars when it is asked for them. Slots run side by side; a
// slot that is idle, done or left out is skipped by every kernel.
#pragma once

#include <cstdlib>
#include <memory>

#include "fit/cuda_plan.h"
#include "fit/device.h"

namespace dipengine {

class CudaDevice final : public FitDevice {
 public:
  CudaDevice(const dipengine_fit_params& params, Graph& graph, const SlotLayout& layout, const LoopRules& rules);
  ~CudaDevice() override;

  dipengine_status size() override;
  dipengine_status allocate() override;
  SlotState& state(int32_t index) override { return states_[static_cast<size_t>(index)]; }
  Slot slot(int32_t) override { return Slot(layout_, block_.get()); }
  dipengine_status fetch(int32_t index) override;
  dipengine_status store(int32_t index) override;
  float* scratch() override;
  dipengine_status run(dipengine_fit_run_params& run) override;
  dipengine_status holds(const void* array, bool* there) const override;
  dipengine_status look(const float* values, int64_t count, Census* found) override;
  dipengine_status bring(int32_t index, SlotArrays::Name name, const float* values) override;
  dipengine_status give(int32_t index, SlotArrays::Name name, float* values) override;
  dipengine_status render(int32_t index, float* image) override;
  dipengine_status statistics(int32_t index, float* flat) override;
  dipengine_status gradients(const float** flat) override;

 private:
  struct Free {
    void operator()(char* memory) const { std::free(memory); }
  };
  // What the turns of a run leave for the host.
  struct Chunk {
    int64_t done, turns;  // before it; in it
  };

  // A slot's array as rows of floats, which on the device are `stride` apart.
  struct Rows {
    int64_t count, length, stride;
  };
  Rows rows_of(SlotArrays::Name name, const Extent& extent) const;
  float* array(int32_t index, SlotArrays::Name name) const;  // on the device
  template <typename Copy>
  void each_row(const Slot& own, const Copy& copy) const;
  dipengine_status record();
  dipengine_status turns(int64_t count, double* step_seconds);
  dipengine_status advance(const Chunk& chunk, dipengine_fit_run_params& run);
  dipengine_status upload(void* to, const void* from, size_t bytes) const;
  dipengine_status download(void* to, const void* from, size_t bytes) const;
  // The generator at the unperturbed z of one slot.
  dipengine_status forward(int32_t index);

  const dipengine_fit_params& p_;
  Graph& graph_;
  const SlotLayout& layout_;
  const LoopRules& rules_;
  CudaPlan plan_;
  std::vector<SlotState> states_;
  std::vector<int64_t> before_;  // iterations
  std::vector<double> losses_, variances_;
  std::vector<uint8_t> wanted_;
  std::vector<float> scratch_, channel_numbers_;
  std::unique_ptr<char, Free> block_, spread_;  // a slot's, as its state has it and as the device has it
  void *arena_ = nullptr, *stream_ = nullptr, *iteration_ = nullptr;
  std::array<void*, CudaPlan::kBeside> beside_{};  // streams of a recorded iteration's branches
  int64_t total_ = 0, total_at_start_ = 0;         // turns since the fit was made; of them before a slot was started last
};

}  // namespace dipengine
