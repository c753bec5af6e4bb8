// The steps of an iteration on a CUDA device, for all fits of a plan at once: each a few launches of the ops behind the seam, over
// buffers of one arena. The fit is a dimension of every launch; which fits take part is in device memory.
//
// A fit's block in the arena, the same distance from the next one's in all its parts, which is what one fit stride serves:
//
//   its slot's arrays (slot.h) | gradients of the trainable parameters | per-channel numbers | coefficients of norms' gradients
//
// The slot's arrays lie where those of the largest image would, and so do the rows of its images.
#pragma once

#include <array>

#include "fit/iteration_cuda.h"
#include "fit/slot.h"
#include "ops/blur/blur_cuda.h"
#include "ops/conv/conv_cuda.h"
#include "ops/conv/conv_mean_cuda.h"
#include "ops/conv/conv_pack_cuda.h"
#include "ops/deviance/deviance_cuda.h"
#include "ops/masked_mse/masked_mse_cuda.h"
#include "ops/norm/norm_cuda.h"
#include "ops/resample/resample_cuda.h"

namespace dipengine {

// Canvas pixels up to which an iteration of one or two slots has branches: larger images, and more slots, fill a device by themselves,
// and there memory counts. Bits are the same either way. Only tests change it.
extern int64_t most_branched_pixels;

class CudaPlan {
 public:
  // Sizes everything, for the calling thread's current device; allocates nothing.
  CudaPlan(const dipengine_fit_params& params, Graph& graph, const SlotLayout& layout, const LoopRules& rules);
  dipengine_status size();

  // `arena`: graph.arena.bytes() of device memory; `stream`: that everything is launched on. Uploads what no run changes.
  dipengine_status bind(void* arena, void* stream);

  // Small images leave most of a device idle: there gradients of weights, and skips, run beside everything else, on streams of their
  // own while a turn is recorded. At first, and else, all is on the one stream of bind().
  static constexpr int kBeside = 3;
  bool branches() const { return branches_; }
  void branch_to(const std::array<void*, kBeside>& streams);
  void stay_on(void* stream);

  // Step `step` of a turn of all fits; with what stands before the first, before learning and behind the last.
  dipengine_status launch(int step);
  // f at the unperturbed z of those fits that `active` holds, up to the logits; and their sigmoid into image().
  dipengine_status launch_forward();
  dipengine_status launch_image();

  const FitNumbers& numbers() const { return fits_; }
  float* block(int32_t fit) const { return blocks() + fit * stride_; }
  const float* gradients(int32_t fit) const { return block(fit) + gradients_; }
  const float* channel_numbers(int32_t fit) const { return block(fit) + numbers_at_; }
  int64_t channel_numbers_count() const { return graph_.numbers; }
  // [height, width, channels] of a fit, behind launch_image.
  const float* image(int32_t fit) const;

 private:
  template <typename T>
  T* at(int buffer) const {
    return reinterpret_cast<T*>(base_ + graph_.arena.offset(buffer));
  }
  float* blocks() const { return at<float>(block_buffer_); }
  // From a fit to the next, in elements of an image in the fit's dtype, or of float32.
  int64_t stride_of(int buffer) const { return static_cast<int64_t>(graph_.arena.stride(buffer)) / element_; }
  int64_t float_stride(int buffer) const { return static_cast<int64_t>(graph_.arena.stride(buffer) / sizeof(float)); }
  int64_t array_at(SlotArrays::Name name) const { return static_cast<int64_t>(places_.offsets[name] / sizeof(float)); }
  float* array(SlotArrays::Name name) const { return blocks() + array_at(name); }
  float* parameter(int index) const { return array(SlotArrays::parameters) + layout_.parameter_offset(index); }
  float* gradient(int index) const { return blocks() + gradients_ + layout_.parameter_offset(index); }
  enum Number { kMean, kVariance, kScale, kShift, kSum, kProduct };  // of a node's or part's norm, by channel
  enum Coefficient { kA, kB, kC };                                   // of its gradient
  float* node_number(const Node& node, int which) const { return blocks() + numbers_at_ + node.numbers + which * node.channels; }
  float* part_number(const Part& part, int which) const;
  // Of the norm behind what has its numbers at `numbers`.
  float* coefficient(int64_t numbers, int which, int64_t channels) const {
    return blocks() + coefficients_ + numbers / 2 + which * channels;
  }
  dipengine_pixels pixels(const Node& node, int buffer) const;
  void* workspace(int step) const;
  size_t workspace_bytes(int step) const;
  void need(int step, size_t bytes);

  dipengine_status each(int step, bool sizing);
  dipengine_conv_cuda_source source(const Part& part, bool backward) const;
  dipengine_conv_cuda_params conv_params(const Unit& unit, const dipengine_conv_cuda_source* sources, bool backward) const;
  enum Branch { kMain, kSkips, kWeights, kOtherWeights };
  bool has_branches() const;
  dipengine_status put_behind(Branch branch, Branch before) const;
  bool is_skip(const Part& part) const;
  Branch home_of(const Unit& unit) const;
  void live(int buffer, int from, int to);
  void live_on_branches();
  // A step's launches on a branch beside the main one have tickets of their own.
  void take_tickets(int step, int64_t count);
  uint32_t* tickets(int step, Branch branch) const;

  // Of a unit: its sources, packed weights, and what the kernels fold.
  struct Conv {
    dipengine_conv_cuda_source sources[DIPENGINE_CONV_MAX_SOURCES];
    dipengine_norm_cuda_gradient folds[DIPENGINE_CONV_MAX_SOURCES];
    dipengine_conv_cuda_params params;
  };
  void begin_conv(const Unit& unit, bool backward, Conv* conv) const;
  // What a unit is given ready made (Unit::operand): what its upsampled part is to products, made and read, and the gradient behind it.
  dipengine_status form_input(const Unit& unit, int operand, const uint8_t* active) const;
  void take_formed_input(const Unit& unit, int operand, dipengine_conv_cuda_source* sources) const;
  dipengine_status form_gradient(const Unit& unit, dipengine_conv_cuda_params* c) const;
  dipengine_status size_weights();
  dipengine_status pack_jobs(bool backward, std::vector<PackJob>* jobs) const;
  dipengine_status upload_jobs();
  dipengine_status pack(bool backward) const;
  dipengine_status forward(int step, bool sizing);
  dipengine_status backward(int step, bool sizing);
  // Workspace of the launch that has both gradients of a unit; 0: there is none for it.
  dipengine_status size_joint(const Unit& unit, const dipengine_conv_cuda_params& c, size_t* bytes) const;
  dipengine_status joint_gradients(int step, dipengine_conv_cuda_params c);
  dipengine_status weight_gradient(int step, const Unit& unit, dipengine_conv_cuda_params c);
  dipengine_status data_gradient(int step, const Unit& unit, Conv& conv);
  dipengine_norm_cuda_params norm_params(const dipengine_conv_cuda_source* source, const uint8_t* active) const;
  dipengine_status size_parts(int step, const Unit& unit);
  dipengine_status place_part(int step, const Part& part, size_t* used, dipengine_norm_cuda_params* n) const;
  dipengine_norm_cuda_gradient fold_of(const Node& node) const;
  dipengine_norm_cuda_gradient fold_of(const Unit& unit, const Part& part) const;
  dipengine_norm_cuda_gradient fold_at(int64_t numbers, int64_t channels, double count) const;
  dipengine_status merge(int step, bool sizing);
  dipengine_status merge_backward(int step, bool sizing);
  dipengine_status perturb(double std, bool again, const uint8_t* active);
  dipengine_status adam();
  dipengine_conv_mean_cuda_params mean_params(const Unit& unit, int wide, float* narrow, const uint8_t* active) const;
  TurnLaunch turn() const { return {rules_, fits_, p_.slots, channels_}; }
  dipengine_status copies(void* stream, std::initializer_list<ArrayPair> pairs, bool shows = false) const;

  // cuda_data.cpp: what knows the task
  bool sensor() const { return p_.data_term == DIPENGINE_DATA_SENSOR; }
  int64_t operator_weights() const;
  dipengine_status upload_constants() const;
  int64_t image_stride() const { return float_stride(graph_.image); }
  dipengine_masked_mse_cuda_params image_params(int step) const;
  dipengine_masked_mse_cuda_params data_params(int step) const;
  dipengine_deviance_cuda_params deviance_params(int step) const;
  dipengine_downsample_cuda_params downsample_params(int step, const uint8_t* active) const;
  dipengine_blur_cuda_params blur_params(const uint8_t* active) const;
  dipengine_status output(int step, bool sizing, bool with_loss);
  dipengine_status clear_margin();
  dipengine_status measure(int step, bool sizing, const uint8_t* active, const float* image, int64_t fit_stride, int to);
  dipengine_status measure_backward(int step, bool sizing);
  dipengine_status compare(int step, bool sizing, const float* data, int64_t data_fit_stride, int gradient, bool inspecting);
  dipengine_status data_term(int step, bool sizing);
  dipengine_status image_backward();
  dipengine_status residual(int step, bool sizing);

  const dipengine_fit_params& p_;
  Graph& graph_;
  const SlotLayout& layout_;
  const LoopRules& rules_;
  const SlotLayout::Places places_;
  const int64_t channels_, element_;
  std::vector<size_t> needed_;  // workspace of each step
  // Of each pass: the packed weights of every unit (-1: none), and the table by which one launch packs them.
  struct Packing {
    std::vector<int> buffers;
    int table_buffer = -1;
    PackTable table{};
  };
  Packing packing_[2];
  int64_t stride_ = 0, gradients_ = 0, numbers_at_ = 0, coefficients_ = 0;  // floats; in a block
  int block_buffer_ = -1, fits_buffer_ = -1, operator_buffer_ = -1;
  FitNumbers fits_{};
  char* base_;
  bool branches_ = false;
  std::vector<const Part*> last_share_;                 // by node: of its gradient
  std::vector<std::array<int64_t, 2>> first_ticket_;    // by step: of the main branch, of another
  int64_t tickets_count_ = 0;
  size_t most_products_ = 0;
  std::array<int, 2> on_weights_{};  // sources whose weights' gradients went to each branch
  int weights_buffers_[2] = {-1, -1}, tickets_buffer_ = -1;
  void* stream_ = nullptr;
  void* streams_[1 + kBeside] = {};  // by branch
};

}  // namespace dipengine
