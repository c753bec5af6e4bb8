// Fits: memory, slots, and the loop around the steps of an iteration.
#include "fit/fit.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <new>

#include "platform/error.h"

namespace dipengine {
namespace {

using Params = dipengine_fit_params;

bool whole(double value, double low, double high) { return value >= low && value <= high; }  // false for NaN

dipengine_status check_operator(const Params& p) {
  DIPENGINE_REQUIRE(p.operator_kind >= DIPENGINE_OPERATOR_IDENTITY && p.operator_kind <= DIPENGINE_OPERATOR_BLUR,
                    "The fit has operator %d; it takes identity (0), downsampling (1) or blur (2).", p.operator_kind);
  if (p.operator_kind == DIPENGINE_OPERATOR_IDENTITY) return DIPENGINE_OK;
  int64_t height, width;
  if (p.operator_kind == DIPENGINE_OPERATOR_DOWNSAMPLE) {
    DIPENGINE_REQUIRE(p.factor >= 1 && p.taps_count >= 1 && p.taps != nullptr,
                      "The fit's downsampling has factor %d and %d taps; give at least 1 of both.", p.factor, p.taps_count);
    height = (p.height + p.factor - 1) / p.factor;
    width = (p.width + p.factor - 1) / p.factor;
  } else {
    DIPENGINE_REQUIRE(p.kernel != nullptr && p.kernel_height >= 1 && p.kernel_width >= 1 && p.kernel_height <= p.height &&
                          p.kernel_width <= p.width,
                      "The fit's blur has a kernel of %d x %d for an image of %lld x %lld; give one that lies in it.",
                      p.kernel_height, p.kernel_width, static_cast<long long>(p.height), static_cast<long long>(p.width));
    height = p.height - p.kernel_height + 1;
    width = p.width - p.kernel_width + 1;
  }
  DIPENGINE_REQUIRE(p.data_height == height && p.data_width == width,
                    "The fit's data is %lld x %lld where its operator gives %lld x %lld.", static_cast<long long>(p.data_height),
                    static_cast<long long>(p.data_width), static_cast<long long>(height), static_cast<long long>(width));
  return DIPENGINE_OK;
}

dipengine_status check(const Params* params) {
  DIPENGINE_TRY(check_struct(params, "dipengine_fit"));
  const Params& p = *params;
  DIPENGINE_TRY(check_generator(p.generator));
  DIPENGINE_REQUIRE(p.dtype == DIPENGINE_FLOAT32 || p.dtype == DIPENGINE_BFLOAT16,
                    "A fit keeps its activations in float32 or bfloat16, not dtype %d.", p.dtype);
  DIPENGINE_REQUIRE(p.slots >= 1, "The fit has %d slots; give at least 1.", p.slots);
  DIPENGINE_REQUIRE(p.height >= 1 && p.width >= 1 && p.height <= (1 << 24) && p.width <= (1 << 24),
                    "The fit's image is %lld x %lld; a side is 1 to 2^24.", static_cast<long long>(p.height),
                    static_cast<long long>(p.width));
  DIPENGINE_TRY(check_operator(p));
  DIPENGINE_REQUIRE(p.data_term == DIPENGINE_DATA_SQUARED || p.data_term == DIPENGINE_DATA_SENSOR,
                    "The fit has data term %d; it takes squared (0) or sensor (1).", p.data_term);
  DIPENGINE_REQUIRE(p.data_term == DIPENGINE_DATA_SQUARED || (p.electrons_scale > 0 && std::isfinite(p.electrons_scale) &&
                                                              std::isfinite(p.electrons_shift) && p.read_variance >= 0 &&
                                                              std::isfinite(p.read_variance)),
                    "The fit's sensor has scale %g, shift %g and read variance %g; the scale is positive, the variance not "
                    "negative.",
                    p.electrons_scale, p.electrons_shift, p.read_variance);
  DIPENGINE_REQUIRE(p.sigma >= 0 && std::isfinite(p.sigma), "The fit's sigma is %g; give 0 (unknown) or a positive number.", p.sigma);
  DIPENGINE_REQUIRE(p.code >= DIPENGINE_CODE_NOISE && p.code <= DIPENGINE_CODE_IMAGE,
                    "The fit has code %d; it takes noise (0), meshgrid (1) or image (2).", p.code);
  DIPENGINE_REQUIRE(p.code != DIPENGINE_CODE_MESHGRID || p.generator.input_depth == 2, "A meshgrid has depth 2, not %d.",
                    p.generator.input_depth);
  DIPENGINE_REQUIRE(whole(p.code_scale, 0, 1e6) && whole(p.perturbation, 0, 1e6) && whole(p.learning_rate, 0, 1e6),
                    "The fit has code scale %g, perturbation %g and learning rate %g; none may be negative or huge.", p.code_scale,
                    p.perturbation, p.learning_rate);
  DIPENGINE_REQUIRE(p.average_decay >= 0 && p.average_decay < 1 && p.es_alpha > 0 && p.es_alpha <= 1,
                    "The fit has average decay %g and ES-EMV weight %g; they lie in [0, 1) and (0, 1].", p.average_decay, p.es_alpha);
  DIPENGINE_REQUIRE(whole(p.rollback_db, 0, 1e3), "The fit's roll-back threshold is %g dB; give a positive number.", p.rollback_db);
  DIPENGINE_REQUIRE(p.stop == DIPENGINE_STOP_FIXED || p.stop == DIPENGINE_STOP_AUTO, "The fit's stop is %d; it takes fixed (0) or auto (1).",
                    p.stop);
  DIPENGINE_REQUIRE(p.iterations >= 1 && p.iterations < (int64_t{1} << 32), "The fit has %lld iterations; give 1 to 2^32 - 1.",
                    static_cast<long long>(p.iterations));
  return DIPENGINE_OK;
}

// Memory, or std::bad_alloc's status, for whatever else a fit keeps.
template <typename Make>
dipengine_status guarded(const Make& make) {
  try {
    return make();
  } catch (const std::bad_alloc&) {
    return fail(DIPENGINE_OUT_OF_RESOURCES, "The fit needs more memory than there is; use a smaller image or fewer channels.");
  }
}

}  // namespace

dipengine_status Fit::make(const Params& params, bool allocate, std::unique_ptr<Fit>* fit) {
  fit->reset(new Fit(params));
  return (*fit)->prepare(allocate);
}

Fit::Fit(const Params& params)
    : p_(params),
      taps_(params.taps, params.operator_kind == DIPENGINE_OPERATOR_DOWNSAMPLE ? params.taps + params.taps_count : params.taps),
      kernel_(params.kernel, params.operator_kind == DIPENGINE_OPERATOR_BLUR
                                 ? params.kernel + static_cast<int64_t>(params.kernel_height) * params.kernel_width
                                 : params.kernel),
      rule_(stop_rule(params.iterations, params.average_decay)),
      graph_(make_graph(params)),
      layout_(params, graph_),
      plan_(p_, graph_, layout_) {
  p_.taps = taps_.data();
  p_.kernel = kernel_.data();
}

Fit::~Fit() { std::free(arena_); }

dipengine_status Fit::prepare(bool allocate) {
  const int slots = graph_.arena.add_permanent(layout_.bytes() * static_cast<size_t>(p_.slots));
  DIPENGINE_TRY(plan_.size());
  if (!allocate) return DIPENGINE_OK;
  arena_ = static_cast<char*>(std::aligned_alloc(Arena::kAlign, graph_.arena.bytes()));
  if (arena_ == nullptr) {
    return fail(DIPENGINE_OUT_OF_RESOURCES, "The fit needs %zu bytes, which could not be had; use a smaller image or fewer channels.",
                graph_.arena.bytes());
  }
  plan_.bind(arena_);
  slots_ = arena_ + graph_.arena.offset(slots);
  for (int32_t i = 0; i < p_.slots; ++i) slot(i).state() = SlotState{};
  return DIPENGINE_OK;
}

Slot Fit::slot(int32_t index) const { return Slot(layout_, slots_ + layout_.bytes() * static_cast<size_t>(index)); }

dipengine_status Fit::start(int32_t index, const dipengine_fit_start_params& s) {
  DIPENGINE_REQUIRE(s.target != nullptr, "The fit was started without a target; point it at one.");
  DIPENGINE_REQUIRE((p_.code == DIPENGINE_CODE_IMAGE) == (s.code != nullptr),
                    "A fit whose code is an image, and no other, is started with one.");
  const Slot at = slot(index);
  SlotState& state = at.state();
  DIPENGINE_REQUIRE(!s.keep_weights || state.status != DIPENGINE_FIT_IDLE, "Slot %d holds no weights to be kept; start it without.",
                    index);
  const int64_t data = layout_.array_size(SlotArrays::mask), channels = p_.generator.output_channels;
  double known = static_cast<double>(data);
  if (s.mask != nullptr) {
    known = 0;
    for (int64_t i = 0; i < data; ++i) {
      DIPENGINE_REQUIRE(s.mask[i] == 0.0f || s.mask[i] == 1.0f, "The fit's mask holds %g; it is of zeros and ones.",
                        static_cast<double>(s.mask[i]));
      known += static_cast<double>(s.mask[i]);
    }
    DIPENGINE_REQUIRE(known > 0, "The fit's mask leaves no pixel known.");
    std::copy_n(s.mask, data, at.array(SlotArrays::mask));
  }
  for (int64_t i = 0; i < data * channels; ++i) {
    DIPENGINE_REQUIRE(std::isfinite(s.target[i]), "The fit's target holds a value that is not finite; mask such pixels and set them to 0.");
  }
  std::copy_n(s.target, data * channels, at.array(SlotArrays::target));
  if (!s.keep_weights) {
    DIPENGINE_TRY(initial_parameters(graph_.specs, layout_, s.seed, p_.pool, at.array(SlotArrays::parameters), plan_.scratch()));
  }
  for (const SlotArrays::Name name : {SlotArrays::m, SlotArrays::v, SlotArrays::average, SlotArrays::es_mean}) {
    std::fill_n(at.array(name), layout_.array_size(name), 0.0f);
  }
  if (p_.code == DIPENGINE_CODE_MESHGRID) meshgrid_code(graph_.height, graph_.width, at.array(SlotArrays::code));
  if (p_.code == DIPENGINE_CODE_IMAGE) {
    image_code(s.code, p_.height, p_.width, p_.generator.input_depth, graph_.height, graph_.width, at.array(SlotArrays::code));
  }
  state = SlotState{};
  state.seed = s.seed;
  state.learning_rate = p_.learning_rate;
  state.watch = VarianceWatch::begin();
  state.rollback = Rollback::begin();
  state.known = known * static_cast<double>(channels);
  state.has_mask = s.mask != nullptr;
  state.status = DIPENGINE_FIT_RUNNING;
  return DIPENGINE_OK;
}

// ---- the loop -------------------------------------------------------------------------------------------------------

bool Fit::asked_to_stop(const dipengine_fit_run_params& run) const { return run.poll != nullptr && run.poll(run.user) != 0; }

dipengine_status Fit::steps(int first, int last, const Slot& slot, const dipengine_fit_run_params& run, bool may_stop, bool* stopped) {
  using Clock = std::chrono::steady_clock;
  for (int step = first; step < last; ++step) {
    if (may_stop && asked_to_stop(run)) {
      *stopped = true;
      return DIPENGINE_OK;
    }
    const Clock::time_point begin = run.step_seconds != nullptr ? Clock::now() : Clock::time_point();
    DIPENGINE_TRY(plan_.run(step, slot));
    if (run.step_seconds != nullptr) {
      run.step_seconds[step] += std::chrono::duration<double>(Clock::now() - begin).count();
    }
  }
  return DIPENGINE_OK;
}

dipengine_status Fit::iterate(const Slot& slot, const dipengine_fit_run_params& run, bool* stopped) {
  SlotState& state = slot.state();
  // Nothing of the slot has changed until the output's averages do, so up to there an iteration can be given up.
  DIPENGINE_TRY(steps(0, graph_.judged, slot, run, true, stopped));
  if (*stopped) return DIPENGINE_OK;
  ++state.iteration;
  state.loss = plan_.loss();
  state.rolled_back = 0;
  switch (state.rollback.check(p_.rollback_db, state.iteration, state.loss)) {
    case Rollback::Verdict::go_on: break;
    case Rollback::Verdict::snapshot: slot.snapshot(); break;
    case Rollback::Verdict::roll_back_and_halve: state.learning_rate *= 0.5; [[fallthrough]];
    case Rollback::Verdict::roll_back:
      // The perturbation of z goes on counting, so the next attempt sees other noise.
      slot.restore();
      state.rolled_back = 1;
      break;
    case Rollback::Verdict::first_loss:
      state.status = DIPENGINE_FIT_FAILED;
      state.reason = DIPENGINE_REASON_FIRST_LOSS;
      return DIPENGINE_OK;
    case Rollback::Verdict::diverged:
      state.status = DIPENGINE_FIT_FAILED;
      state.reason = DIPENGINE_REASON_DIVERGED;
      return DIPENGINE_OK;
  }
  if (!state.rolled_back) {
    const int end = static_cast<int>(graph_.steps.size()) - 1;  // the last is the inspection
    DIPENGINE_TRY(steps(graph_.judged, end, slot, run, false, stopped));
  }
  if (p_.stop == DIPENGINE_STOP_AUTO && !state.rolled_back) DIPENGINE_TRY(watch(slot));
  if (state.status == DIPENGINE_FIT_RUNNING && state.iteration >= p_.iterations) {
    state.status = DIPENGINE_FIT_DONE;
    state.reason = DIPENGINE_REASON_ITERATIONS;
  }
  return DIPENGINE_OK;
}

dipengine_status Fit::watch(const Slot& slot) {
  SlotState& state = slot.state();
  const int64_t iteration = state.iteration;
  int32_t reason = DIPENGINE_REASON_NONE;
  if (p_.data_term == DIPENGINE_DATA_SENSOR || p_.sigma > 0) {
    // Known noise needs no variance, whose early minima would stop a fit that has not come down to the noise.
    if (state.at_noise == 0 && iteration % kResidualInterval == 0) {
      double discrepancy;
      DIPENGINE_TRY(plan_.discrepancy(slot, &discrepancy));
      if (discrepancy <= 1) state.at_noise = iteration;
    }
    if (state.at_noise != 0 && iteration >= state.at_noise + rule_.lag) reason = DIPENGINE_REASON_DISCREPANCY;
  } else {
    state.watch.note(rule_, iteration, state.outputs.es_variance);
    const int64_t minimum = state.watch.minimum;
    if (minimum > 0 && iteration == minimum + lag_after(rule_, p_.average_warm_up != 0, minimum)) slot.keep_best();
    if (minimum > 0 && iteration - minimum >= rule_.patience) reason = DIPENGINE_REASON_VARIANCE;
  }
  if (reason != DIPENGINE_REASON_NONE) {
    state.status = DIPENGINE_FIT_DONE;
    state.reason = reason;
  }
  return DIPENGINE_OK;
}

dipengine_status Fit::run(dipengine_fit_run_params& r) {
  DIPENGINE_REQUIRE(r.iterations >= 0, "The run has %lld iterations; give 0 or more.", static_cast<long long>(r.iterations));
  r.stopped = 0;
  for (int64_t turn = 0; turn < r.iterations; ++turn) {
    bool running = false;
    for (int32_t index = 0; index < p_.slots; ++index) {
      const Slot at = slot(index);
      SlotState& state = at.state();
      if (state.status != DIPENGINE_FIT_RUNNING) continue;
      running = true;
      bool stopped = false;
      DIPENGINE_TRY(iterate(at, r, &stopped));
      if (!stopped) {
        const int64_t place = index * r.iterations + turn;
        if (r.losses != nullptr) r.losses[place] = state.loss;
        if (r.variances != nullptr) r.variances[place] = state.outputs.es_variance;
        if (r.report != nullptr) {
          dipengine_fit_progress report = progress(index);
          stopped = r.report(r.user, &report) != 0;
        }
      }
      if (stopped) {
        r.stopped = 1;
        return DIPENGINE_OK;
      }
    }
    if (!running) break;
  }
  return DIPENGINE_OK;
}

// ---- what comes of it -----------------------------------------------------------------------------------------------

// A later minimum may have overtaken the kept state, and the run ended before that one's average was complete.
bool Fit::delivers_best(const SlotState& state) const {
  return state.best_iteration > 0 &&
         state.best_iteration == state.watch.minimum + lag_after(rule_, p_.average_warm_up != 0, state.watch.minimum);
}

dipengine_fit_progress Fit::progress(int32_t index) const {
  const SlotState& state = slot(index).state();
  return {sizeof(dipengine_fit_progress), index, state.status, state.reason, state.rolled_back, state.iteration,
          delivers_best(state) ? state.best_iteration : state.iteration, state.rollback.count, state.loss,
          state.outputs.es_variance, state.learning_rate};
}

dipengine_status Fit::deliver(int32_t index, float* image, float* parameters, int64_t* iteration) {
  const Slot at = slot(index);
  const SlotState& state = at.state();
  DIPENGINE_REQUIRE(state.iteration > 0, "Slot %d has not run; there is nothing to deliver.", index);
  const bool best = delivers_best(state);
  if (image != nullptr) {
    if (best || p_.deliver_average) {
      const SlotArrays::Name name = best ? SlotArrays::best_average : SlotArrays::average;
      std::copy_n(at.array(name), layout_.array_size(name), image);
    } else {
      DIPENGINE_TRY(plan_.render(at, image));
    }
  }
  if (parameters != nullptr) {
    // The dead ones, behind the trainable, never change.
    const float* live = at.array(best ? SlotArrays::best_parameters : SlotArrays::parameters);
    parameters_from_slot(graph_.specs, layout_, live, at.array(SlotArrays::parameters), parameters);
  }
  if (iteration != nullptr) *iteration = best ? state.best_iteration : state.iteration;
  return DIPENGINE_OK;
}

dipengine_status Fit::check_slot(int32_t index) const {
  DIPENGINE_REQUIRE(index >= 0 && index < p_.slots, "There is no slot %d; this fit has %d.", index, p_.slots);
  return DIPENGINE_OK;
}

}  // namespace dipengine

using dipengine::Fit;
using dipengine::SlotArrays;

struct dipengine_fit {
  std::unique_ptr<Fit> fit;
};

extern "C" {

void dipengine_fit_default_params(dipengine_fit_params* params) {
  *params = dipengine_fit_params{};
  params->struct_size = sizeof(*params);
  dipengine_generator& g = params->generator;
  g.levels = 5;
  g.input_depth = 32;
  g.output_channels = 3;
  for (int i = 0; i < DIPENGINE_MAX_LEVELS; ++i) {
    g.channels_down[i] = g.channels_up[i] = 128;
    g.channels_skip[i] = 4;
    g.kernel_down[i] = 3;
    g.upsample[i] = DIPENGINE_UPSAMPLE_NEAREST;
  }
  g.one_by_one_up = 1;
  g.negative_slope = 0.2;
  const char* isa = dipengine_cpu_isa();
  // Only worth it where the CPU multiplies bfloat16 itself.
  params->dtype = isa != nullptr && std::string(isa) == "avx512bf16" ? DIPENGINE_BFLOAT16 : DIPENGINE_FLOAT32;
  params->slots = 1;
  params->code_scale = 0.1;
  params->perturbation = 1.0 / 30;
  params->learning_rate = 0.01;
  params->average_decay = 0.99;
  params->average_warm_up = 1;
  params->deliver_average = 1;
  params->es_alpha = 0.1;
  params->rollback_db = 5;
  params->stop = DIPENGINE_STOP_AUTO;
  params->iterations = 1800;
}

dipengine_status dipengine_fit_memory(const dipengine_fit_params* params, size_t* bytes) {
  DIPENGINE_TRY(dipengine::check(params));
  DIPENGINE_REQUIRE(bytes != nullptr, "The fit's memory was asked for with nowhere to put it; pass a pointer.");
  return dipengine::guarded([&]() -> dipengine_status {
    std::unique_ptr<Fit> fit;
    DIPENGINE_TRY(Fit::make(*params, false, &fit));
    *bytes = fit->arena_bytes();
    return DIPENGINE_OK;
  });
}

dipengine_status dipengine_fit_create(const dipengine_fit_params* params, dipengine_fit** fit) {
  DIPENGINE_REQUIRE(fit != nullptr, "dipengine_fit_create was given no place for the fit; pass a pointer to one.");
  *fit = nullptr;
  DIPENGINE_TRY(dipengine::check(params));
  return dipengine::guarded([&]() -> dipengine_status {
    std::unique_ptr<Fit> made;
    DIPENGINE_TRY(Fit::make(*params, true, &made));
    *fit = new dipengine_fit{std::move(made)};
    return DIPENGINE_OK;
  });
}

void dipengine_fit_destroy(dipengine_fit* fit) { delete fit; }

dipengine_status dipengine_fit_start(dipengine_fit* fit, int32_t slot, const dipengine_fit_start_params* start) {
  DIPENGINE_TRY(dipengine::check_struct(start, "dipengine_fit_start"));
  DIPENGINE_TRY(fit->fit->check_slot(slot));
  return fit->fit->start(slot, *start);
}

dipengine_status dipengine_fit_get_progress(const dipengine_fit* fit, int32_t slot, dipengine_fit_progress* progress) {
  DIPENGINE_TRY(dipengine::check_struct(progress, "dipengine_fit_get_progress"));
  DIPENGINE_TRY(fit->fit->check_slot(slot));
  *progress = fit->fit->progress(slot);
  return DIPENGINE_OK;
}

dipengine_status dipengine_fit_run(dipengine_fit* fit, dipengine_fit_run_params* run) {
  DIPENGINE_TRY(dipengine::check_struct(run, "dipengine_fit_run"));
  return fit->fit->run(*run);
}

dipengine_status dipengine_fit_deliver(dipengine_fit* fit, int32_t slot, float* image, float* parameters, int64_t* iteration) {
  DIPENGINE_TRY(fit->fit->check_slot(slot));
  return fit->fit->deliver(slot, image, parameters, iteration);
}

dipengine_status dipengine_fit_average(const dipengine_fit* fit, int32_t slot, float* image) {
  DIPENGINE_TRY(fit->fit->check_slot(slot));
  const auto& layout = fit->fit->layout();
  std::copy_n(fit->fit->slot(slot).array(SlotArrays::average), layout.array_size(SlotArrays::average), image);
  return DIPENGINE_OK;
}

dipengine_status dipengine_fit_render(dipengine_fit* fit, int32_t slot, float* image) {
  DIPENGINE_TRY(fit->fit->check_slot(slot));
  return fit->fit->plan().render(fit->fit->slot(slot), image);
}

dipengine_status dipengine_fit_get_parameters(const dipengine_fit* fit, int32_t slot, float* parameters) {
  DIPENGINE_TRY(fit->fit->check_slot(slot));
  const float* flat = fit->fit->slot(slot).array(SlotArrays::parameters);
  dipengine::parameters_from_slot(fit->fit->graph().specs, fit->fit->layout(), flat, flat, parameters);
  return DIPENGINE_OK;
}

dipengine_status dipengine_fit_set_parameters(dipengine_fit* fit, int32_t slot, const float* parameters) {
  DIPENGINE_TRY(fit->fit->check_slot(slot));
  dipengine::parameters_to_slot(fit->fit->graph().specs, fit->fit->layout(), parameters,
                                fit->fit->slot(slot).array(SlotArrays::parameters));
  return DIPENGINE_OK;
}

dipengine_status dipengine_fit_get_gradients(const dipengine_fit* fit, float* gradients) {
  dipengine::parameters_from_slot(fit->fit->graph().specs, fit->fit->layout(), fit->fit->plan().gradients(), nullptr, gradients);
  return DIPENGINE_OK;
}

size_t dipengine_fit_state_bytes(const dipengine_fit* fit) { return fit->fit->layout().bytes(); }

dipengine_status dipengine_fit_save_state(const dipengine_fit* fit, int32_t slot, void* state) {
  DIPENGINE_TRY(fit->fit->check_slot(slot));
  memcpy(state, fit->fit->slot(slot).block(), fit->fit->layout().bytes());
  return DIPENGINE_OK;
}

dipengine_status dipengine_fit_load_state(dipengine_fit* fit, int32_t slot, const void* state) {
  DIPENGINE_TRY(fit->fit->check_slot(slot));
  memcpy(fit->fit->slot(slot).block(), state, fit->fit->layout().bytes());
  return DIPENGINE_OK;
}

int32_t dipengine_fit_steps(const dipengine_fit* fit) { return static_cast<int32_t>(fit->fit->graph().steps.size()); }

const char* dipengine_fit_step_name(const dipengine_fit* fit, int32_t step) {
  const auto& steps = fit->fit->graph().steps;
  return step < 0 || static_cast<size_t>(step) >= steps.size() ? "" : steps[static_cast<size_t>(step)].name.c_str();
}

size_t dipengine_fit_arena_bytes(const dipengine_fit* fit) { return fit->fit->arena_bytes(); }

}  // extern "C"
