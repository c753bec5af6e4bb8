// Fits: their slots, begun, looked at, saved; and the choice of the device that runs them.
#include "fit/fit.h"

#include <algorithm>
#include <cmath>

#include "fit/cpu_device.h"
#include "fit/params.h"
#include "ops/philox/philox.h"
#include "platform/error.h"

namespace dipengine {
namespace {

constexpr uint32_t kHeldStream = 5;
constexpr int64_t kLeastHeld = 64;  // as in engine/dipengine/fitting/held_out.py

}  // namespace

dipengine_status Fit::make(const dipengine_fit_params& params, bool allocate, std::unique_ptr<Fit>* fit) {
  fit->reset(new Fit(params));
  return (*fit)->prepare(allocate);
}

Fit::Fit(const dipengine_fit_params& params)
    : p_(params),
      taps_(params.taps, params.operator_kind == DIPENGINE_OPERATOR_DOWNSAMPLE ? params.taps + params.taps_count : params.taps),
      kernel_(params.kernel, params.operator_kind == DIPENGINE_OPERATOR_BLUR
                                 ? params.kernel + static_cast<int64_t>(params.kernel_height) * params.kernel_width
                                 : params.kernel),
      rules_(loop_rules(params)),
      fingerprint_(params_fingerprint(params)),
      graph_(make_graph(params, params.device == DIPENGINE_DEVICE_CUDA ? params.slots : 1, params.device == DIPENGINE_DEVICE_CUDA)),
      layout_(params, graph_) {
  p_.taps = taps_.data();
  p_.kernel = kernel_.data();
}

dipengine_status Fit::prepare(bool allocate) {
  constexpr size_t kMostBytes = size_t{1} << 60;
  if (layout_.bytes() > kMostBytes / static_cast<size_t>(p_.slots)) {
    return fail(DIPENGINE_OUT_OF_RESOURCES, "The fit's %d slots need more memory than any machine has; give it fewer.", p_.slots);
  }
  if (p_.device == DIPENGINE_DEVICE_CUDA) {
    DIPENGINE_TRY(make_cuda_device(p_, graph_, layout_, rules_, &device_));
  } else {
    device_.reset(new CpuDevice(p_, graph_, layout_, rules_));
  }
  DIPENGINE_TRY(device_->size());
  return allocate ? device_->allocate() : DIPENGINE_OK;
}

dipengine_status Fit::look(const float* values, int64_t count, bool there, Census* found) const {
  if (there) return device_->look(values, count, found);
  *found = {};
  for (int64_t i = 0; i < count; ++i) {
    found->finite += std::isfinite(values[i]) ? 1 : 0;
    found->zeros += values[i] == 0.0f ? 1 : 0;
    found->ones += values[i] == 1.0f ? 1 : 0;
  }
  return DIPENGINE_OK;
}

dipengine_status Fit::check_start(int32_t index, const dipengine_fit_start_params& s, Start* found) const {
  Extent* const extent = &found->extent;
  const auto given = [](int64_t own, int64_t fits) { return own != 0 ? own : fits; };
  *extent = extent_of(p_, given(s.height, p_.height), given(s.width, p_.width), given(s.data_height, p_.data_height),
                      given(s.data_width, p_.data_width));
  DIPENGINE_TRY(check_extent(p_, *extent, "slot"));
  DIPENGINE_REQUIRE((p_.code == DIPENGINE_CODE_IMAGE) == (s.code != nullptr),
                    "A fit whose code is an image, and no other, is started with one.");
  DIPENGINE_REQUIRE(!s.keep_weights || state(index).status != DIPENGINE_FIT_IDLE,
                    "Slot %d holds no weights to be kept; start it without.", index);
  bool code_there = false;
  DIPENGINE_TRY(device_->holds(s.target, &found->target_there));
  DIPENGINE_TRY(device_->holds(s.mask, &found->mask_there));
  DIPENGINE_TRY(device_->holds(s.code, &code_there));
  DIPENGINE_REQUIRE(!code_there, "The fit's code is read in the host's memory; bring it there.");
  const int64_t data = extent->data_height * extent->data_width, values = data * p_.generator.output_channels;
  Census census{};
  found->known = static_cast<double>(data);
  if (s.mask != nullptr) {
    DIPENGINE_TRY(look(s.mask, data, found->mask_there, &census));
    const auto others = static_cast<long long>(found->known - census.zeros - census.ones);
    DIPENGINE_REQUIRE(others == 0, "The fit's mask holds %lld values that are neither; it is of zeros and ones.", others);
    found->known = census.ones;
  }
  DIPENGINE_REQUIRE(found->known > 0, "The fit's mask leaves no pixel known; ones mark the known ones.");
  DIPENGINE_TRY(look(s.target, values, found->target_there, &census));
  DIPENGINE_REQUIRE(census.finite == static_cast<double>(values),
                    "The fit's target holds a value that is not finite; mask such pixels and set them to 0.");
  return DIPENGINE_OK;
}

dipengine_status Fit::start(int32_t index, const dipengine_fit_start_params& s) {
  Start given{};
  DIPENGINE_TRY(check_start(index, s, &given));
  const Extent& extent = given.extent;
  float* const scratch = device_->scratch();
  if (s.keep_weights) DIPENGINE_TRY(device_->fetch(index));
  // Nothing of an earlier fit stays, so that equal fits have equal states, byte by byte.
  const Slot at = slot(index).cleared(extent, s.keep_weights != 0);
  if (!given.target_there) std::copy_n(s.target, at.size(SlotArrays::target), at.array(SlotArrays::target));
  if (s.mask != nullptr && !given.mask_there) std::copy_n(s.mask, at.size(SlotArrays::mask), at.array(SlotArrays::mask));
  if (!s.keep_weights) {
    DIPENGINE_TRY(initial_parameters(graph_.specs, layout_, s.seed, p_.pool, at.array(SlotArrays::parameters), scratch));
  }
  if (p_.code == DIPENGINE_CODE_MESHGRID) meshgrid_code(graph_.height, graph_.width, at.array(SlotArrays::code));
  if (p_.code == DIPENGINE_CODE_IMAGE) {
    image_code(s.code, extent.height, extent.width, p_.generator.input_depth, graph_.height, graph_.width,
               at.array(SlotArrays::code));
  }
  SlotState& state = at.state();
  state.seed = state.code_seed = s.seed;
  state.patience = rules_.rule.patience;
  state.noise_variance = p_.data_term == DIPENGINE_DATA_SENSOR ? 1 : p_.sigma * p_.sigma;
  state.learning_rate = p_.learning_rate;
  state.watch = VarianceWatch::begin();
  state.rollback = Rollback::begin();
  state.known = given.known * static_cast<double>(p_.generator.output_channels);
  state.has_mask = s.mask != nullptr;
  state.status = DIPENGINE_FIT_RUNNING;
  const bool holds_out = rules_.holds_out != 0;
  if (holds_out && !given.mask_there) DIPENGINE_TRY(hold_out(at));
  DIPENGINE_TRY(device_->store(index));
  if (given.target_there) DIPENGINE_TRY(device_->bring(index, SlotArrays::target, s.target));
  if (given.mask_there) DIPENGINE_TRY(device_->bring(index, SlotArrays::mask, s.mask));
  if (!holds_out || !given.mask_there) return DIPENGINE_OK;
  DIPENGINE_TRY(device_->fetch(index));
  DIPENGINE_TRY(hold_out(slot(index)));
  return device_->store(index);
}

// Some of the known pixels go from the slot's mask to those held out, where that leaves enough on either side.
dipengine_status Fit::hold_out(const Slot& at) const {
  SlotState& state = at.state();
  const bool masked = state.has_mask != 0;
  const int64_t pixels = at.size(SlotArrays::held);
  float* const mask = at.array(SlotArrays::mask);
  float* const held = at.array(SlotArrays::held);
  dipengine_philox_params draw{sizeof(draw), p_.pool, state.seed, kHeldStream, 0, pixels, held};
  DIPENGINE_TRY(dipengine_philox_uniform(&draw));
  int64_t count = 0, left = 0;
  for (int64_t i = 0; i < pixels; ++i) {
    const bool known = !masked || mask[i] == 1.0f, out = known && static_cast<double>(held[i]) < p_.hold_out;
    mask[i] = known && !out ? 1.0f : 0.0f;
    held[i] = out ? 1.0f : 0.0f;
    count += out ? 1 : 0;
    left += known && !out ? 1 : 0;
  }
  if (count >= kLeastHeld && left > 0) {
    state.held_out = count;
    state.has_mask = 1;
    state.known = static_cast<double>(count * p_.generator.output_channels);
    state.noise_variance = 1;
    return DIPENGINE_OK;
  }
  for (int64_t i = 0; i < pixels; ++i) {
    mask[i] = masked ? mask[i] + held[i] : 0.0f;
    held[i] = 0.0f;
  }
  return DIPENGINE_OK;
}

dipengine_status Fit::set_code_seed(int32_t index, uint64_t seed) {
  DIPENGINE_REQUIRE(p_.code == DIPENGINE_CODE_NOISE, "The fit's code is no noise; it has no seed to be set.");
  device_->state(index).code_seed = seed;
  return DIPENGINE_OK;
}

dipengine_status Fit::set_patience(int32_t index, int64_t patience) {
  DIPENGINE_REQUIRE(patience >= 1, "The slot's patience is %lld; give 1 iteration or more.", static_cast<long long>(patience));
  device_->state(index).patience = patience;
  return DIPENGINE_OK;
}

dipengine_status Fit::set_sigma(int32_t index, double sigma) {
  DIPENGINE_REQUIRE(p_.data_term != DIPENGINE_DATA_SENSOR && p_.sigma > 0,
                    "The fit knows no Gaussian noise; create it with the sigma of any slot, then give each slot its own.");
  DIPENGINE_REQUIRE(sigma > 0 && std::isfinite(sigma), "The slot's sigma is %g; give a positive number.", sigma);
  device_->state(index).noise_variance = sigma * sigma;
  return DIPENGINE_OK;
}

dipengine_status Fit::run(dipengine_fit_run_params& r) {
  DIPENGINE_REQUIRE(r.iterations >= 0, "The run has %lld iterations; give 0 or more.", static_cast<long long>(r.iterations));
  r.stopped = 0;
  return device_->run(r);
}

// ---- what comes of it -----------------------------------------------------------------------------------------------

dipengine_fit_progress Fit::progress(int32_t index) const { return progress_of(rules_, index, state(index)); }

// The slot has been fetched where the image is the host's.
dipengine_status Fit::give(int32_t index, SlotArrays::Name name, bool there, float* image) const {
  if (there) return device_->give(index, name, image);
  const Slot at = slot(index);
  std::copy_n(at.array(name), at.size(name), image);
  return DIPENGINE_OK;
}

dipengine_status Fit::deliver(int32_t index, float* image, float* parameters, int64_t* iteration) {
  DIPENGINE_REQUIRE(state(index).iteration > 0, "Slot %d has not run; there is nothing to deliver.", index);
  bool there = false;
  DIPENGINE_TRY(device_->holds(image, &there));
  if (parameters != nullptr || !there) DIPENGINE_TRY(device_->fetch(index));
  const bool best = delivers_best(rules_, state(index));
  if (image != nullptr) {
    if (best || p_.deliver_average) {
      DIPENGINE_TRY(give(index, best ? SlotArrays::best_average : SlotArrays::average, there, image));
    } else {
      DIPENGINE_TRY(device_->render(index, image));
    }
  }
  if (parameters != nullptr) {
    const Slot at = slot(index);
    // The dead ones, behind the trainable, never change.
    const float* live = at.array(best ? SlotArrays::best_parameters : SlotArrays::parameters);
    parameters_from_slot(graph_.specs, layout_, live, at.array(SlotArrays::parameters), parameters);
  }
  if (iteration != nullptr) *iteration = best ? state(index).best_iteration : state(index).iteration;
  return DIPENGINE_OK;
}

dipengine_status Fit::average(int32_t index, float* image) const {
  bool there = false;
  DIPENGINE_TRY(device_->holds(image, &there));
  if (!there) DIPENGINE_TRY(device_->fetch(index));
  return give(index, SlotArrays::average, there, image);
}

dipengine_status Fit::render(int32_t index, float* image) const { return device_->render(index, image); }

dipengine_status Fit::statistics(int32_t index, float* flat) const { return device_->statistics(index, flat); }

dipengine_status Fit::parameters(int32_t index, float* values) const {
  DIPENGINE_TRY(device_->fetch(index));
  const float* flat = slot(index).array(SlotArrays::parameters);
  parameters_from_slot(graph_.specs, layout_, flat, flat, values);
  return DIPENGINE_OK;
}

dipengine_status Fit::set_parameters(int32_t index, const float* values) {
  DIPENGINE_TRY(device_->fetch(index));
  parameters_to_slot(graph_.specs, layout_, values, slot(index).array(SlotArrays::parameters));
  return device_->store(index);
}

dipengine_status Fit::gradients(float* values) const {
  const float* flat = nullptr;
  DIPENGINE_TRY(device_->gradients(&flat));
  DIPENGINE_REQUIRE(flat != nullptr,
                    "No iteration has run since a slot was started last; run one, then ask for its gradients.");
  parameters_from_slot(graph_.specs, layout_, flat, nullptr, values);
  return DIPENGINE_OK;
}

size_t Fit::state_bytes(int32_t index) const { return dipengine::state_bytes(layout_, state(index).extent); }

dipengine_status Fit::save_state(int32_t index, void* state, size_t bytes) const {
  const size_t needed = state_bytes(index);
  DIPENGINE_REQUIRE(bytes >= needed, "A state takes %zu bytes and was given room for %zu; ask dipengine_fit_state_bytes first.",
                    needed, bytes);
  DIPENGINE_TRY(device_->fetch(index));
  dipengine::save_state(fingerprint_, slot(index), state);
  return DIPENGINE_OK;
}

dipengine_status Fit::load_state(int32_t index, const void* state, size_t bytes) {
  DIPENGINE_TRY(dipengine::load_state(p_, layout_, fingerprint_, slot(index), state, bytes));
  return device_->store(index);
}

dipengine_status Fit::check_slot(int32_t index) const {
  DIPENGINE_REQUIRE(index >= 0 && index < p_.slots, "There is no slot %d; this fit has %d.", index, p_.slots);
  return DIPENGINE_OK;
}

dipengine_status Fit::check_started(int32_t index) const {
  DIPENGINE_TRY(check_slot(index));
  DIPENGINE_REQUIRE(state(index).status != DIPENGINE_FIT_IDLE, "Slot %d was never started; it has nothing to show.", index);
  return DIPENGINE_OK;
}

}  // namespace dipengine
