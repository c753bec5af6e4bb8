#include "fit/slot.h"

#include <algorithm>

#include "fit/loop.h"
#include "ops/philox/philox.h"
#include "platform/error.h"

namespace dipengine {
namespace {

constexpr uint32_t kWeightsStream = 2;

// Calls visit(flat index, index in [out, in, k, k]) for every element of a tensor.
template <typename Visit>
void for_each_element(const ParameterSpec& spec, const Visit& visit) {
  const int64_t taps = spec.kernel * spec.kernel;
  int64_t flat = 0;
  for (int64_t t = 0; t < taps; ++t) {
    for (int64_t i = 0; i < spec.in; ++i) {
      for (int64_t o = 0; o < spec.out; ++o, ++flat) visit(flat, (o * spec.in + i) * taps + t);
    }
  }
}

}  // namespace

Extent extent_of(const dipengine_fit_params& params, int64_t height, int64_t width, int64_t data_height, int64_t data_width) {
  const bool identity = params.operator_kind == DIPENGINE_OPERATOR_IDENTITY;
  return {height, width, identity ? height : data_height, identity ? width : data_width};
}

SlotLayout::SlotLayout(const dipengine_fit_params& params, const Graph& graph)
    : channels_(params.generator.output_channels),
      stops_(params.stop == DIPENGINE_STOP_AUTO),
      holds_out_(loop_rules(params).holds_out != 0),
      largest_(extent_of(params, params.height, params.width, params.data_height, params.data_width)) {
  offsets_.resize(graph.specs.size());
  for (const bool dead : {false, true}) {
    for (size_t i = 0; i < graph.specs.size(); ++i) {
      if (graph.specs[i].dead != dead) continue;
      offsets_[i] = parameter_count_;
      parameter_count_ += graph.specs[i].size();
    }
    if (!dead) trainable_ = parameter_count_;
  }
  if (params.code != DIPENGINE_CODE_NOISE) code_ = graph.height * graph.width * params.generator.input_depth;
  bytes_ = places(largest_).bytes;
}

SlotLayout::Places SlotLayout::places(const Extent& extent) const {
  const int64_t image = extent.height * extent.width * channels_, data = extent.data_height * extent.data_width;
  Places p;
  std::fill(std::begin(p.sizes), std::end(p.sizes), trainable_);
  p.sizes[SlotArrays::parameters] = parameter_count_;
  for (const SlotArrays::Name name : {SlotArrays::average, SlotArrays::es_mean, SlotArrays::snapshot_average,
                                      SlotArrays::snapshot_es_mean}) {
    p.sizes[name] = image;
  }
  p.sizes[SlotArrays::best_parameters] = stops_ ? trainable_ : 0;
  p.sizes[SlotArrays::best_average] = stops_ ? image : 0;
  p.sizes[SlotArrays::target] = data * channels_;
  p.sizes[SlotArrays::mask] = data;
  p.sizes[SlotArrays::code] = code_;
  p.sizes[SlotArrays::held] = holds_out_ ? data : 0;
  p.bytes = Arena::aligned(sizeof(SlotState));
  for (int name = 0; name < SlotArrays::count; ++name) {
    p.offsets[name] = p.bytes;
    p.bytes += Arena::aligned(static_cast<size_t>(p.sizes[name]) * sizeof(float));
  }
  return p;
}

// The weights come first, at the same place whatever the extent.
Slot Slot::cleared(const Extent& extent, bool keep_weights) const {
  state() = SlotState{};
  state().extent = extent;
  const Slot at(*layout_, block_);
  const size_t weights = at.places_.offsets[SlotArrays::parameters], behind = at.places_.offsets[SlotArrays::m];
  memset(block_ + sizeof(SlotState), 0, weights - sizeof(SlotState));
  if (!keep_weights) memset(block_ + weights, 0, behind - weights);
  memset(block_ + behind, 0, at.bytes() - behind);
  return at;
}

void Slot::snapshot() const {
  copy(SlotArrays::snapshot_parameters, SlotArrays::parameters);
  copy(SlotArrays::snapshot_m, SlotArrays::m);
  copy(SlotArrays::snapshot_v, SlotArrays::v);
  copy(SlotArrays::snapshot_average, SlotArrays::average);
  copy(SlotArrays::snapshot_es_mean, SlotArrays::es_mean);
}

void Slot::restore() const {
  memcpy(array(SlotArrays::parameters), array(SlotArrays::snapshot_parameters),
         static_cast<size_t>(layout_->trainable()) * sizeof(float));
  copy(SlotArrays::m, SlotArrays::snapshot_m);
  copy(SlotArrays::v, SlotArrays::snapshot_v);
  copy(SlotArrays::average, SlotArrays::snapshot_average);
  copy(SlotArrays::es_mean, SlotArrays::snapshot_es_mean);
}

void Slot::keep_best() const {
  copy(SlotArrays::best_parameters, SlotArrays::parameters);
  copy(SlotArrays::best_average, SlotArrays::average);
}

void Slot::return_to_best() const {
  memcpy(array(SlotArrays::parameters), array(SlotArrays::best_parameters),
         static_cast<size_t>(layout_->trainable()) * sizeof(float));
  copy(SlotArrays::average, SlotArrays::best_average);
}

void Slot::show_held() const {
  float* const mask = array(SlotArrays::mask);
  const float* held = array(SlotArrays::held);
  for (int64_t i = 0; i < size(SlotArrays::held); ++i) mask[i] += held[i];
}

void parameters_to_slot(const std::vector<ParameterSpec>& specs, const SlotLayout& layout, const float* from, float* flat) {
  for (size_t i = 0; i < specs.size(); ++i) {
    float* to = flat + layout.parameter_offset(static_cast<int>(i));
    for_each_element(specs[i], [&](int64_t stored, int64_t shaped) { to[stored] = from[shaped]; });
    from += specs[i].size();
  }
}

void parameters_from_slot(const std::vector<ParameterSpec>& specs, const SlotLayout& layout, const float* trainable,
                          const float* dead, float* to) {
  for (size_t i = 0; i < specs.size(); ++i) {
    const float* from = specs[i].dead ? dead : trainable;
    const int64_t offset = layout.parameter_offset(static_cast<int>(i));
    for_each_element(specs[i], [&](int64_t stored, int64_t shaped) { to[shaped] = from == nullptr ? 0.0f : from[offset + stored]; });
    to += specs[i].size();
  }
}

dipengine_status initial_parameters(const std::vector<ParameterSpec>& specs, const SlotLayout& layout, uint64_t seed,
                                    dipengine_pool* pool, float* flat, float* scratch) {
  for (size_t i = 0; i < specs.size(); ++i) {
    const ParameterSpec& spec = specs[i];
    float* to = flat + layout.parameter_offset(static_cast<int>(i));
    if (spec.initial != ParameterSpec::Initial::uniform) {
      std::fill(to, to + spec.size(), spec.initial == ParameterSpec::Initial::ones ? 1.0f : 0.0f);
      continue;
    }
    dipengine_philox_params draw{sizeof(draw), pool, seed, kWeightsStream, static_cast<uint32_t>(i), spec.size(), scratch};
    DIPENGINE_TRY(dipengine_philox_uniform(&draw));
    // 2u - 1 is exact, so that one rounding remains, the product's.
    const float bound = static_cast<float>(spec.bound);
    for_each_element(spec, [&](int64_t stored, int64_t shaped) { to[stored] = (2.0f * scratch[shaped] - 1.0f) * bound; });
  }
  return DIPENGINE_OK;
}

void meshgrid_code(int64_t height, int64_t width, float* z) {
  auto ramp = [](int64_t i, int64_t n) {
    return static_cast<float>(static_cast<double>(i) / static_cast<double>(std::max<int64_t>(1, n - 1)));
  };
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x, z += 2) {
      z[0] = ramp(x, width);
      z[1] = ramp(y, height);
    }
  }
}

// The border sample is not repeated; where the canvas is longer than twice the axis, it bounces back and forth.
static int64_t reflected(int64_t i, int64_t n) {
  if (n == 1) return 0;
  const int64_t period = 2 * (n - 1), folded = i % period;
  return std::min(folded, period - folded);
}

void image_code(const float* image, int64_t image_height, int64_t image_width, int64_t channels, int64_t height, int64_t width,
                float* z) {
  for (int64_t y = 0; y < height; ++y) {
    const float* row = image + reflected(y, image_height) * image_width * channels;
    for (int64_t x = 0; x < width; ++x, z += channels) {
      std::copy_n(row + reflected(x, image_width) * channels, channels, z);
    }
  }
}

}  // namespace dipengine
