// The state of one fit: a block of memory with a header of scalars and the arrays behind it, saved and loaded as bytes.
#pragma once

#include <cstring>

#include "fit/graph.h"
#include "fit/slot_state.h"

namespace dipengine {

Extent extent_of(const dipengine_fit_params& params, int64_t height, int64_t width, int64_t data_height, int64_t data_width);

// Float32 arrays of a slot, by place in its block. Parameters: the trainable ones in front, in the order of the
// architecture, then the dead ones; weights [kernel, kernel, in, out].
struct SlotArrays {
  enum Name {
    parameters, m, v, average, es_mean,                                              // the fit itself
    snapshot_parameters, snapshot_m, snapshot_v, snapshot_average, snapshot_es_mean,  // for roll-back
    best_parameters, best_average, target, mask, code,
    held,  // mask of the known pixels that are held out of the fit, and of `mask`; nothing where the fit holds none out
    count
  };
};

class SlotLayout {
 public:
  // Where a block's arrays lie: by the slot's own extent, so that its bytes are those of a fit for that image alone.
  struct Places {
    size_t offsets[SlotArrays::count];
    int64_t sizes[SlotArrays::count];
    size_t bytes;
  };

  SlotLayout(const dipengine_fit_params& params, const Graph& graph);

  Places places(const Extent& extent) const;
  const Extent& largest() const { return largest_; }  // the fit's own
  size_t bytes() const { return bytes_; }             // of a block: room for the largest
  int64_t trainable() const { return trainable_; }
  int64_t parameter_count() const { return parameter_count_; }
  int64_t parameter_offset(int parameter) const { return offsets_[static_cast<size_t>(parameter)]; }

 private:
  std::vector<int64_t> offsets_;
  int64_t trainable_ = 0, parameter_count_ = 0;
  int64_t channels_, code_ = 0;  // of the image; elements of the code
  bool stops_, holds_out_;
  Extent largest_;
  size_t bytes_;
};

// A slot's block, seen through its layout at the extent that its state says.
class Slot {
 public:
  Slot(const SlotLayout& layout, void* block)
      : layout_(&layout), block_(static_cast<char*>(block)), places_(layout.places(state().extent)) {}

  SlotState& state() const { return *reinterpret_cast<SlotState*>(block_); }
  float* array(SlotArrays::Name name) const { return reinterpret_cast<float*>(block_ + places_.offsets[name]); }
  int64_t size(SlotArrays::Name name) const { return places_.sizes[name]; }
  float* parameter(int index) const { return array(SlotArrays::parameters) + layout_->parameter_offset(index); }
  void* block() const { return block_; }
  size_t bytes() const { return places_.bytes; }  // of the block, that hold something

  // The slot for an image of this extent: zeros everywhere else, in the weights unless they are kept.
  Slot cleared(const Extent& extent, bool keep_weights) const;
  // Arrays alone; the scalars beside them are loop.h's.
  void snapshot() const;
  void restore() const;
  void keep_best() const;
  void return_to_best() const;
  void show_held() const;

 private:
  void copy(SlotArrays::Name to, SlotArrays::Name from) const {
    memcpy(array(to), array(from), static_cast<size_t>(size(to)) * sizeof(float));
  }

  const SlotLayout* layout_;
  char* block_;
  SlotLayout::Places places_;
};

// Between the arrays of `specs` in their order and documented shapes ([out, in, k, k]) and a slot's flat parameters.
void parameters_to_slot(const std::vector<ParameterSpec>& specs, const SlotLayout& layout, const float* from, float* flat);
// The trainable ones from one flat array, the dead ones from another; without that they are zero.
void parameters_from_slot(const std::vector<ParameterSpec>& specs, const SlotLayout& layout, const float* trainable,
                          const float* dead, float* to);

// PyTorch's default distributions by Philox counters: tensor p of the order from stream WEIGHTS, step p.
dipengine_status initial_parameters(const std::vector<ParameterSpec>& specs, const SlotLayout& layout, uint64_t seed,
                                    dipengine_pool* pool, float* flat, float* scratch);

// z over the canvas for the codes that are stored, float32 [height, width, depth].
void meshgrid_code(int64_t height, int64_t width, float* z);
void image_code(const float* image, int64_t image_height, int64_t image_width, int64_t channels, int64_t height, int64_t width,
                float* z);

}  // namespace dipengine
