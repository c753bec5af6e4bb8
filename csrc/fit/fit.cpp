// Fits: memory, slots, and the loop around the steps of an iteration.
#include "fit/fit.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <new>

#include "fit/params.h"
#include "platform/error.h"

namespace dipengine {
namespace {

// Memory for an arena, in huge pages where the system gives them when asked: an iteration walks through all of it, through more small
// pages than a core keeps the addresses of.
char* allocate_block(size_t bytes) {
  constexpr size_t kHugePage = size_t{1} << 21;
  if (bytes < kHugePage) return static_cast<char*>(std::aligned_alloc(Arena::kAlign, bytes));
  const size_t whole = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* block = std::aligned_alloc(kHugePage, whole);
#if defined(MADV_HUGEPAGE)
  if (block != nullptr) madvise(block, whole, MADV_HUGEPAGE);
#endif
  return static_cast<char*>(block);
}

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
      rule_(stop_rule(params.iterations, params.average_decay)),
      fingerprint_(params_fingerprint(params)),
      graph_(make_graph(params)),
      layout_(params, graph_),
      plan_(p_, graph_, layout_) {
  p_.taps = taps_.data();
  p_.kernel = kernel_.data();
}

Fit::~Fit() { std::free(arena_); }

dipengine_status Fit::prepare(bool allocate) {
  constexpr size_t kMostBytes = size_t{1} << 60;
  if (layout_.bytes() > kMostBytes / static_cast<size_t>(p_.slots)) {
    return fail(DIPENGINE_OUT_OF_RESOURCES, "The fit's %d slots need more memory than any machine has; give it fewer.", p_.slots);
  }
  const int slots = graph_.arena.add_permanent(layout_.bytes() * static_cast<size_t>(p_.slots));
  DIPENGINE_TRY(plan_.size());
  if (!allocate) return DIPENGINE_OK;
  arena_ = allocate_block(graph_.arena.bytes());
  if (arena_ == nullptr) {
    return fail(DIPENGINE_OUT_OF_RESOURCES,
                "The fit needs %zu bytes, which could not be had; use a smaller image or fewer channels.", graph_.arena.bytes());
  }
  plan_.bind(arena_);
  slots_ = arena_ + graph_.arena.offset(slots);
  // A slot is seen through its state, which therefore has to be there first.
  for (int32_t i = 0; i < p_.slots; ++i) new (slots_ + layout_.bytes() * static_cast<size_t>(i)) SlotState{};
  return DIPENGINE_OK;
}

Slot Fit::slot(int32_t index) const { return Slot(layout_, slots_ + layout_.bytes() * static_cast<size_t>(index)); }

dipengine_status Fit::check_start(int32_t index, const dipengine_fit_start_params& s, Extent* extent, double* known) const {
  const auto given = [](int64_t own, int64_t fits) { return own != 0 ? own : fits; };
  *extent = extent_of(p_, given(s.height, p_.height), given(s.width, p_.width), given(s.data_height, p_.data_height),
                      given(s.data_width, p_.data_width));
  DIPENGINE_TRY(check_extent(p_, *extent, "slot"));
  DIPENGINE_REQUIRE((p_.code == DIPENGINE_CODE_IMAGE) == (s.code != nullptr),
                    "A fit whose code is an image, and no other, is started with one.");
  DIPENGINE_REQUIRE(!s.keep_weights || slot(index).state().status != DIPENGINE_FIT_IDLE,
                    "Slot %d holds no weights to be kept; start it without.", index);
  const int64_t data = extent->data_height * extent->data_width, channels = p_.generator.output_channels;
  *known = s.mask == nullptr ? static_cast<double>(data) : 0;
  for (int64_t i = 0; i < data && s.mask != nullptr; ++i) {
    DIPENGINE_REQUIRE(s.mask[i] == 0.0f || s.mask[i] == 1.0f, "The fit's mask holds %g; it is of zeros and ones.",
                      static_cast<double>(s.mask[i]));
    *known += static_cast<double>(s.mask[i]);
  }
  DIPENGINE_REQUIRE(*known > 0, "The fit's mask leaves no pixel known; ones mark the known ones.");
  for (int64_t i = 0; i < data * channels; ++i) {
    DIPENGINE_REQUIRE(std::isfinite(s.target[i]),
                      "The fit's target holds a value that is not finite; mask such pixels and set them to 0.");
  }
  return DIPENGINE_OK;
}

dipengine_status Fit::start(int32_t index, const dipengine_fit_start_params& s) {
  Extent extent;
  double known;
  DIPENGINE_TRY(check_start(index, s, &extent, &known));
  has_gradients_ = false;  // their memory serves the initial weights
  // Nothing of an earlier fit stays, so that equal fits have equal states, byte by byte.
  const Slot at = slot(index).cleared(extent, s.keep_weights != 0);
  std::copy_n(s.target, at.size(SlotArrays::target), at.array(SlotArrays::target));
  if (s.mask != nullptr) std::copy_n(s.mask, at.size(SlotArrays::mask), at.array(SlotArrays::mask));
  if (!s.keep_weights) {
    DIPENGINE_TRY(initial_parameters(graph_.specs, layout_, s.seed, p_.pool, at.array(SlotArrays::parameters), plan_.scratch()));
  }
  if (p_.code == DIPENGINE_CODE_MESHGRID) meshgrid_code(graph_.height, graph_.width, at.array(SlotArrays::code));
  if (p_.code == DIPENGINE_CODE_IMAGE) {
    image_code(s.code, extent.height, extent.width, p_.generator.input_depth, graph_.height, graph_.width,
               at.array(SlotArrays::code));
  }
  SlotState& state = at.state();
  state.seed = state.code_seed = s.seed;
  state.patience = rule_.patience;
  state.learning_rate = p_.learning_rate;
  state.watch = VarianceWatch::begin();
  state.rollback = Rollback::begin();
  state.known = known * static_cast<double>(p_.generator.output_channels);
  state.has_mask = s.mask != nullptr;
  state.status = DIPENGINE_FIT_RUNNING;
  return DIPENGINE_OK;
}

dipengine_status Fit::set_code_seed(int32_t index, uint64_t seed) {
  DIPENGINE_REQUIRE(p_.code == DIPENGINE_CODE_NOISE, "The fit's code is no noise; it has no seed to be set.");
  slot(index).state().code_seed = seed;
  return DIPENGINE_OK;
}

dipengine_status Fit::set_patience(int32_t index, int64_t patience) {
  DIPENGINE_REQUIRE(patience >= 1, "The slot's patience is %lld; give 1 iteration or more.", static_cast<long long>(patience));
  slot(index).state().patience = patience;
  return DIPENGINE_OK;
}

// ---- the loop -------------------------------------------------------------------------------------------------------

bool Fit::asked_to_stop(const dipengine_fit_run_params& run) const { return run.poll != nullptr && run.poll(run.user) != 0; }

dipengine_status Fit::steps(int first, int last, const Slot& slot, const dipengine_fit_run_params& run, bool may_stop,
                            bool* stopped) {
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
  DIPENGINE_TRY(steps(0, graph_.painted, slot, run, true, stopped));
  if (*stopped) return DIPENGINE_OK;
  DIPENGINE_TRY(steps(graph_.painted, graph_.judged, slot, run, false, stopped));
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
    has_gradients_ = true;
  }
  if (p_.stop == DIPENGINE_STOP_AUTO && !state.rolled_back) DIPENGINE_TRY(watch(slot));
  if (state.status == DIPENGINE_FIT_RUNNING && state.iteration >= p_.iterations) {
    state.status = DIPENGINE_FIT_DONE;
    state.reason = DIPENGINE_REASON_ITERATIONS;
  }
  return DIPENGINE_OK;
}

// The slot's own patience; an average that is centred on a minimum is taken before it runs out.
dipengine_stop_rule Fit::rule_of(const SlotState& state) const {
  return {rule_.ceiling, state.patience, rule_.warm_up, std::min(rule_.lag, state.patience)};
}

dipengine_status Fit::watch(const Slot& slot) {
  SlotState& state = slot.state();
  const dipengine_stop_rule rule = rule_of(state);
  const int64_t iteration = state.iteration;
  int32_t reason = DIPENGINE_REASON_NONE;
  if (p_.data_term == DIPENGINE_DATA_SENSOR || p_.sigma > 0) {
    // Known noise needs no variance, whose early minima would stop a fit that has not come down to the noise.
    if (state.at_noise == 0 && iteration % kResidualInterval == 0) {
      double discrepancy;
      DIPENGINE_TRY(plan_.discrepancy(slot, &discrepancy));
      if (discrepancy <= 1) state.at_noise = iteration;
    }
    if (state.at_noise != 0 && iteration >= state.at_noise + rule.lag) reason = DIPENGINE_REASON_DISCREPANCY;
  } else {
    state.watch.note(rule, iteration, state.outputs.es_variance);
    const int64_t minimum = state.watch.minimum;
    if (minimum > 0 && iteration == minimum + lag_after(rule, p_.average_warm_up != 0, minimum)) slot.keep_best();
    if (minimum > 0 && iteration - minimum >= rule.patience) reason = DIPENGINE_REASON_VARIANCE;
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
      if (state.status != DIPENGINE_FIT_RUNNING || (r.active != nullptr && r.active[index] == 0)) continue;
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
         state.best_iteration == state.watch.minimum + lag_after(rule_of(state), p_.average_warm_up != 0, state.watch.minimum);
}

dipengine_fit_progress Fit::progress(int32_t index) const {
  const SlotState& state = slot(index).state();
  return {sizeof(dipengine_fit_progress), index, state.status, state.reason, state.rolled_back, state.iteration,
          delivers_best(state) ? state.best_iteration : state.iteration, state.rollback.count, state.loss,
          state.outputs.es_variance, state.learning_rate, state.extent.height, state.extent.width};
}

dipengine_status Fit::deliver(int32_t index, float* image, float* parameters, int64_t* iteration) {
  const Slot at = slot(index);
  const SlotState& state = at.state();
  DIPENGINE_REQUIRE(state.iteration > 0, "Slot %d has not run; there is nothing to deliver.", index);
  const bool best = delivers_best(state);
  if (image != nullptr) {
    if (best || p_.deliver_average) {
      const SlotArrays::Name name = best ? SlotArrays::best_average : SlotArrays::average;
      std::copy_n(at.array(name), at.size(name), image);
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

dipengine_status Fit::gradients(float* values) const {
  DIPENGINE_REQUIRE(has_gradients_,
                    "No iteration has run since a slot was started last; run one, then ask for its gradients.");
  parameters_from_slot(graph_.specs, layout_, plan_.gradients(), nullptr, values);
  return DIPENGINE_OK;
}

dipengine_status Fit::save_state(int32_t index, void* state, size_t bytes) const {
  const Slot at = slot(index);
  const size_t needed = state_bytes(at);
  DIPENGINE_REQUIRE(bytes >= needed, "A state takes %zu bytes and was given room for %zu; ask dipengine_fit_state_bytes first.",
                    needed, bytes);
  dipengine::save_state(fingerprint_, at, state);
  return DIPENGINE_OK;
}

dipengine_status Fit::load_state(int32_t index, const void* state, size_t bytes) {
  return dipengine::load_state(p_, layout_, fingerprint_, slot(index), state, bytes);
}

dipengine_status Fit::check_slot(int32_t index) const {
  DIPENGINE_REQUIRE(index >= 0 && index < p_.slots, "There is no slot %d; this fit has %d.", index, p_.slots);
  return DIPENGINE_OK;
}

dipengine_status Fit::check_started(int32_t index) const {
  DIPENGINE_TRY(check_slot(index));
  DIPENGINE_REQUIRE(slot(index).state().status != DIPENGINE_FIT_IDLE, "Slot %d was never started; it has nothing to show.", index);
  return DIPENGINE_OK;
}

}  // namespace dipengine
