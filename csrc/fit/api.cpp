// The C interface of fits. Pointers are checked here and nowhere else; exceptions end here.
#include <memory>
#include <new>

#include "fit/fit.h"
#include "fit/params.h"
#include "platform/arguments.h"

using dipengine::Fit;
using dipengine::given;

struct dipengine_fit {
  std::unique_ptr<Fit> fit;
};

namespace {

// What `make` returns, or the status of what it throws: memory is all that can be wanting.
template <typename Make>
dipengine_status guarded(const Make& make) {
  try {
    return make();
  } catch (const std::bad_alloc&) {
    return dipengine::fail(DIPENGINE_OUT_OF_RESOURCES,
                           "The fit needs more memory than there is; use a smaller image or fewer channels.");
  }
}

}  // namespace

extern "C" {

// ---- generators, defaults -------------------------------------------------------------------------------------------

int64_t dipengine_generator_canvas(const dipengine_generator* generator, int64_t side) {
  if (generator == nullptr || side < 1 || side > INT64_MAX / 2 || dipengine::check_generator(*generator) != DIPENGINE_OK) return 0;
  return dipengine::canvas_side(*generator, side);
}

int64_t dipengine_generator_parameters(const dipengine_generator* generator) {
  if (generator == nullptr || dipengine::check_generator(*generator) != DIPENGINE_OK) return 0;
  if (dipengine::most_channels(*generator) > dipengine::kMostChannels) return 0;
  int64_t count = 0;
  guarded([&]() -> dipengine_status {
    for (const dipengine::ParameterSpec& spec : dipengine::parameter_specs(*generator)) count += spec.size();
    return DIPENGINE_OK;
  });
  return count;
}

void dipengine_fit_default_params(dipengine_fit_params* params) {
  if (params != nullptr) *params = dipengine::default_params();
}

void dipengine_fit_stop_rule(int64_t iterations, double average_decay, dipengine_stop_rule* rule) {
  if (rule != nullptr) *rule = dipengine::stop_rule(iterations, average_decay);
}

// ---- a fit's life ---------------------------------------------------------------------------------------------------

dipengine_status dipengine_fit_memory(const dipengine_fit_params* params, size_t* bytes) {
  DIPENGINE_TRY(dipengine::check_params(params));
  DIPENGINE_TRY(given(__func__, {{"bytes", bytes}}));
  return guarded([&]() -> dipengine_status {
    std::unique_ptr<Fit> fit;
    DIPENGINE_TRY(Fit::make(*params, false, &fit));
    *bytes = fit->arena_bytes();
    return DIPENGINE_OK;
  });
}

dipengine_status dipengine_fit_create(const dipengine_fit_params* params, dipengine_fit** fit) {
  DIPENGINE_TRY(given(__func__, {{"fit", fit}}));
  *fit = nullptr;
  DIPENGINE_TRY(dipengine::check_params(params));
  return guarded([&]() -> dipengine_status {
    auto made = std::make_unique<dipengine_fit>();
    DIPENGINE_TRY(Fit::make(*params, true, &made->fit));
    *fit = made.release();
    return DIPENGINE_OK;
  });
}

void dipengine_fit_destroy(dipengine_fit* fit) { delete fit; }

dipengine_status dipengine_fit_start(dipengine_fit* fit, int32_t slot, const dipengine_fit_start_params* start) {
  DIPENGINE_TRY(given(__func__, {{"fit", fit}}));
  DIPENGINE_TRY(dipengine::check_struct(start, __func__));
  DIPENGINE_TRY(fit->fit->check_slot(slot));
  DIPENGINE_TRY(given(__func__, {{"target", start->target}}));
  return fit->fit->start(slot, *start);
}

dipengine_status dipengine_fit_run(dipengine_fit* fit, dipengine_fit_run_params* run) {
  DIPENGINE_TRY(given(__func__, {{"fit", fit}}));
  DIPENGINE_TRY(dipengine::check_struct(run, __func__));
  return fit->fit->run(*run);
}

dipengine_status dipengine_fit_get_progress(const dipengine_fit* fit, int32_t slot, dipengine_fit_progress* progress) {
  DIPENGINE_TRY(given(__func__, {{"fit", fit}}));
  DIPENGINE_TRY(dipengine::check_struct(progress, __func__));
  DIPENGINE_TRY(fit->fit->check_slot(slot));
  *progress = fit->fit->progress(slot);
  return DIPENGINE_OK;
}

// ---- what comes of it -----------------------------------------------------------------------------------------------

dipengine_status dipengine_fit_deliver(dipengine_fit* fit, int32_t slot, float* image, float* parameters, int64_t* iteration) {
  DIPENGINE_TRY(given(__func__, {{"fit", fit}}));
  DIPENGINE_TRY(fit->fit->check_started(slot));
  return fit->fit->deliver(slot, image, parameters, iteration);
}

dipengine_status dipengine_fit_average(const dipengine_fit* fit, int32_t slot, float* image) {
  DIPENGINE_TRY(given(__func__, {{"fit", fit}, {"image", image}}));
  DIPENGINE_TRY(fit->fit->check_started(slot));
  return fit->fit->average(slot, image);
}

dipengine_status dipengine_fit_render(dipengine_fit* fit, int32_t slot, float* image) {
  DIPENGINE_TRY(given(__func__, {{"fit", fit}, {"image", image}}));
  DIPENGINE_TRY(fit->fit->check_started(slot));
  return fit->fit->render(slot, image);
}

dipengine_status dipengine_fit_get_parameters(const dipengine_fit* fit, int32_t slot, float* parameters) {
  DIPENGINE_TRY(given(__func__, {{"fit", fit}, {"parameters", parameters}}));
  DIPENGINE_TRY(fit->fit->check_started(slot));
  return fit->fit->parameters(slot, parameters);
}

dipengine_status dipengine_fit_set_parameters(dipengine_fit* fit, int32_t slot, const float* parameters) {
  DIPENGINE_TRY(given(__func__, {{"fit", fit}, {"parameters", parameters}}));
  DIPENGINE_TRY(fit->fit->check_started(slot));
  return fit->fit->set_parameters(slot, parameters);
}

dipengine_status dipengine_fit_set_code_seed(dipengine_fit* fit, int32_t slot, uint64_t seed) {
  DIPENGINE_TRY(given(__func__, {{"fit", fit}}));
  DIPENGINE_TRY(fit->fit->check_started(slot));
  return fit->fit->set_code_seed(slot, seed);
}

dipengine_status dipengine_fit_set_patience(dipengine_fit* fit, int32_t slot, int64_t patience) {
  DIPENGINE_TRY(given(__func__, {{"fit", fit}}));
  DIPENGINE_TRY(fit->fit->check_started(slot));
  return fit->fit->set_patience(slot, patience);
}

dipengine_status dipengine_fit_set_sigma(dipengine_fit* fit, int32_t slot, double sigma) {
  DIPENGINE_TRY(given(__func__, {{"fit", fit}}));
  DIPENGINE_TRY(fit->fit->check_started(slot));
  return fit->fit->set_sigma(slot, sigma);
}

dipengine_status dipengine_fit_statistics(dipengine_fit* fit, int32_t slot, float* statistics) {
  DIPENGINE_TRY(given(__func__, {{"fit", fit}, {"statistics", statistics}}));
  DIPENGINE_TRY(fit->fit->check_started(slot));
  return fit->fit->statistics(slot, statistics);
}

dipengine_status dipengine_fit_get_gradients(const dipengine_fit* fit, float* gradients) {
  DIPENGINE_TRY(given(__func__, {{"fit", fit}, {"gradients", gradients}}));
  return fit->fit->gradients(gradients);
}

// ---- states, steps --------------------------------------------------------------------------------------------------

size_t dipengine_fit_state_bytes(const dipengine_fit* fit, int32_t slot) {
  if (fit == nullptr || fit->fit->check_started(slot) != DIPENGINE_OK) return 0;
  return fit->fit->state_bytes(slot);
}

dipengine_status dipengine_fit_state_image(const void* state, size_t bytes, int64_t* height, int64_t* width) {
  DIPENGINE_TRY(given(__func__, {{"state", state}, {"height", height}, {"width", width}}));
  dipengine::Extent extent;
  DIPENGINE_TRY(dipengine::state_extent(state, bytes, &extent));
  *height = extent.height;
  *width = extent.width;
  return DIPENGINE_OK;
}

dipengine_status dipengine_fit_save_state(const dipengine_fit* fit, int32_t slot, void* state, size_t bytes) {
  DIPENGINE_TRY(given(__func__, {{"fit", fit}, {"state", state}}));
  DIPENGINE_TRY(fit->fit->check_started(slot));
  return fit->fit->save_state(slot, state, bytes);
}

dipengine_status dipengine_fit_load_state(dipengine_fit* fit, int32_t slot, const void* state, size_t bytes) {
  DIPENGINE_TRY(given(__func__, {{"fit", fit}, {"state", state}}));
  DIPENGINE_TRY(fit->fit->check_slot(slot));
  return fit->fit->load_state(slot, state, bytes);
}

int32_t dipengine_fit_steps(const dipengine_fit* fit) {
  return fit == nullptr ? 0 : static_cast<int32_t>(fit->fit->graph().steps.size());
}

const char* dipengine_fit_step_name(const dipengine_fit* fit, int32_t step) {
  if (step < 0 || step >= dipengine_fit_steps(fit)) return "";
  return fit->fit->graph().steps[static_cast<size_t>(step)].name.c_str();
}

size_t dipengine_fit_arena_bytes(const dipengine_fit* fit) { return fit == nullptr ? 0 : fit->fit->arena_bytes(); }

}  // extern "C"
