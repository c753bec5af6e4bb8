// The steps of an iteration on a CPU: each a call of the ops behind the seam, over buffers of one arena.
#pragma once

#include "fit/slot.h"
#include "ops/blur/blur.h"
#include "ops/conv/conv.h"
#include "ops/deviance/deviance.h"
#include "ops/masked_mse/masked_mse.h"
#include "ops/resample/resample.h"

namespace dipengine {

class CpuPlan {
 public:
  // Sizes everything, allocates nothing: the arena's layout is final afterwards. Steps take a slot's own extent, and no step
  // needs more workspace for a smaller one.
  CpuPlan(const dipengine_fit_params& params, Graph& graph, const SlotLayout& layout);
  dipengine_status size();

  // `arena` holds graph.arena.bytes() bytes at least, aligned to Arena::kAlign.
  void bind(void* arena);

  // One step for one slot. `loss` and `d2` of its output are left in loss() and the slot's output counts.
  dipengine_status run(int step, const Slot& slot);
  double loss() const { return loss_; }

  // Mean squared residual of the average in units of the noise's variance: 1 at the clean image. A sensor's is also that of the
  // bright elements (ops/deviance/deviance.h). Where pixels are held out it is theirs alone.
  dipengine_status discrepancy(const Slot& slot, double* value);
  // f(z) at the unperturbed z, [height, width, channels] in [0, 1].
  dipengine_status render(const Slot& slot, float* image);

  // Mean and variance of every norm at the unperturbed z, where a flat array of all parameters has gamma and beta; else 0.
  dipengine_status statistics(const Slot& slot, float* flat);

  float* gradients() const { return at<float>(gradients_); }  // flat, trainable parameters only
  float* scratch() const { return at<float>(gradients_); }    // as many floats as the largest tensor has, between iterations

 private:
  template <typename T>
  T* at(int buffer) const {
    return reinterpret_cast<T*>(base_ + graph_.arena.offset(buffer));
  }
  // The generator at the unperturbed z; *step is then the first behind it, the one that takes the logits.
  dipengine_status forward(const Slot& slot, int* step);
  double* numbers(int64_t first) const { return at<double>(numbers_) + first; }
  // Of a node: mean, variance, scale, shift, sum, product; of a part: mean, variance, outer scale, outer shift, sum, product.
  double* node_number(const Node& node, int which) const { return numbers(node.numbers) + which * node.channels; }
  double* part_number(const Part& part, int which) const;
  double* spare(int which) const { return at<double>(spare_) + which * graph_.most_channels; }

  dipengine_status each_op(int step, const Slot* slot, bool sizing);
  dipengine_status conv(int step, const Slot* slot, bool backward, bool sizing);
  dipengine_status merge(int step, const Slot* slot, bool sizing);
  dipengine_status merge_backward(int step, const Slot* slot, bool sizing);
  dipengine_status perturb(const Slot& slot, double std);
  dipengine_status output(int step, const Slot* slot, bool sizing, bool with_loss);
  dipengine_status adam(const Slot& slot);

  // cpu_data.cpp: what knows the task
  dipengine_downsample_params downsample(int step, const Extent& extent) const;
  dipengine_blur_params blur(int step, const Extent& extent) const;
  dipengine_masked_mse_params squared(int step, int64_t rows, int64_t width) const;
  dipengine_deviance_params deviance(int step, const Extent& extent) const;
  dipengine_status size_operator(int step);
  dipengine_status size_data_term(int step);
  dipengine_status measure(int step, const Extent& extent, const float* image, float* measured);
  dipengine_status measure_backward(int step, const Extent& extent);
  dipengine_status compare(int step, const Slot& slot, const float* mask, const float* data, float* d_data, double normaliser,
                           double* loss, double* discrepancy);
  dipengine_status data_term(int step, const Slot& slot);
  dipengine_status image_backward(const Extent& extent);

  dipengine_conv_source source(const Part& part, bool backward) const;
  dipengine_pixels pixels(const Node& node, int buffer) const;
  // gamma or beta of a norm, channels [first, first + count), as float64 in a spare row.
  const double* widened(const Slot& slot, int parameter, int64_t first, int64_t count, int spare_row) const;
  void store_gradient(int parameter, int64_t first, int64_t count, const double* values) const;
  void clear_margin(const Extent& extent) const;
  void widen_weight(const Unit& unit, const float* weight) const;
  void narrow_gradient(const Unit& unit, float* d_weight) const;
  void* workspace(int step) const;
  size_t workspace_bytes(int step) const;
  void need(int step, size_t bytes);

  const dipengine_fit_params& p_;
  Graph& graph_;
  const SlotLayout& layout_;
  const int64_t channels_;
  std::vector<size_t> needed_;  // workspace of each step
  int gradients_ = -1, numbers_ = -1, spare_ = -1;
  char* base_;
  double loss_ = 0, d2_ = 0;
};

}  // namespace dipengine
