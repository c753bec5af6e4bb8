// What the interface of fits refuses, and how: a status, and one sentence that says what to do.
#include <cstring>

#include "fit_problems.h"

using check::FitProblem;
using check::TestFit;

namespace {

// One sentence about the last refusal: a capital letter, a full stop at its end and none within.
bool one_sentence() {
  const std::string text = dipengine_last_error();
  return text.size() > 20 && text.size() < 400 && text.back() == '.' && text.find(". ") == std::string::npos &&
         text.find('\n') == std::string::npos && (text.rfind("dipengine_", 0) == 0 || (text[0] >= 'A' && text[0] <= 'Z'));
}

FitProblem problem_of(int32_t operator_kind) {
  for (FitProblem& problem : check::every_task(DIPENGINE_FLOAT32)) {
    if (problem.params.operator_kind == operator_kind) return problem;
  }
  std::abort();
}

struct Refusal {
  const char* what;
  int32_t operator_kind;
  void (*change)(dipengine_fit_params& p);
  dipengine_status status = DIPENGINE_INVALID_ARGUMENT;
};

constexpr int32_t kAny = DIPENGINE_OPERATOR_IDENTITY, kDown = DIPENGINE_OPERATOR_DOWNSAMPLE, kBlur = DIPENGINE_OPERATOR_BLUR;
double not_finite[] = {0.5, NAN, 0.5, INFINITY, 0.5, 0, 0, 0, 0, 0, 0, 0};

const Refusal kRefusals[] = {
    {"params of another version", kAny, [](auto& p) { p.struct_size -= 8; }, DIPENGINE_STRUCT_SIZE},
    {"no levels", kAny, [](auto& p) { p.generator.levels = 0; }},
    {"13 levels", kAny, [](auto& p) { p.generator.levels = DIPENGINE_MAX_LEVELS + 1; }},
    {"no z", kAny, [](auto& p) { p.generator.input_depth = 0; }},
    {"no output", kAny, [](auto& p) { p.generator.output_channels = 0; }},
    {"no channels down", kAny, [](auto& p) { p.generator.channels_down[1] = 0; }},
    {"no channels up", kAny, [](auto& p) { p.generator.channels_up[0] = 0; }},
    {"skips below 0", kAny, [](auto& p) { p.generator.channels_skip[0] = -1; }},
    {"absurdly many channels", kAny, [](auto& p) { p.generator.channels_up[0] = INT32_MAX; }, DIPENGINE_OUT_OF_RESOURCES},
    {"absurdly deep a z", kAny, [](auto& p) { p.generator.input_depth = INT32_MAX; }, DIPENGINE_OUT_OF_RESOURCES},
    {"an even kernel", kAny, [](auto& p) { p.generator.kernel_down[0] = 4; }},
    {"too large a kernel", kAny, [](auto& p) { p.generator.kernel_down[0] = 9; }},
    {"too large a kernel with averages", kDown, [](auto& p) { p.generator.kernel_down[0] = 7; }},
    {"upsampling that there is not", kAny, [](auto& p) { p.generator.upsample[0] = 0; }},
    {"downsampling that there is not", kAny, [](auto& p) { p.generator.downsample = 2; }},
    {"padding that there is not", kAny, [](auto& p) { p.generator.padding = 2; }},
    {"a slope of 1", kAny, [](auto& p) { p.generator.negative_slope = 1; }},
    {"a slope that is no number", kAny, [](auto& p) { p.generator.negative_slope = NAN; }},
    {"float64", kAny, [](auto& p) { p.dtype = DIPENGINE_FLOAT64; }},
    {"a device that there is not", kAny, [](auto& p) { p.device = 2; }},
    {"a CUDA device before the first", kAny, [](auto& p) { p.device = 1, p.device_index = -1; }},
    {"more slots than a CUDA device takes", kAny, [](auto& p) { p.device = 1, p.slots = 65536; }},
    {"absurdly many pixels side by side", kAny, [](auto& p) { p.device = 1, p.slots = 65535, p.height = p.width = 1 << 14; },
     DIPENGINE_OUT_OF_RESOURCES},
    {"no slots", kAny, [](auto& p) { p.slots = 0; }},
    {"no height", kAny, [](auto& p) { p.height = 0; }},
    {"width below 0", kAny, [](auto& p) { p.width = -5; }},
    {"a side beyond 2^24", kAny, [](auto& p) { p.width = (1 << 24) + 1; }},
    {"an operator that there is not", kAny, [](auto& p) { p.operator_kind = 3; }},
    {"factor 0", kDown, [](auto& p) { p.factor = 0; }},
    {"no taps", kDown, [](auto& p) { p.taps_count = 0; }},
    {"taps at NULL", kDown, [](auto& p) { p.taps = nullptr; }},
    {"taps that are no numbers", kDown, [](auto& p) { p.taps = not_finite; }},
    {"a filter far outside", kDown, [](auto& p) { p.before = INT32_MAX; }},
    {"data of another height", kDown, [](auto& p) { p.data_height += 1; }},
    {"data of another width", kDown, [](auto& p) { p.data_width -= 1; }},
    {"a kernel at NULL", kBlur, [](auto& p) { p.kernel = nullptr; }},
    {"a kernel that is no numbers", kBlur, [](auto& p) { p.kernel = not_finite; }},
    {"a kernel of no height", kBlur, [](auto& p) { p.kernel_height = 0; }},
    {"a kernel wider than the image", kBlur, [](auto& p) { p.kernel_width = 31; }},
    {"data that the kernel does not give", kBlur, [](auto& p) { p.data_height = p.height; }},
    {"a data term that there is not", kAny, [](auto& p) { p.data_term = 2; }},
    {"a sensor without gain", kAny, [](auto& p) { p.data_term = DIPENGINE_DATA_SENSOR; p.electrons_scale = 0; }},
    {"a sensor's shift that is no number", kAny,
     [](auto& p) { p.data_term = DIPENGINE_DATA_SENSOR; p.electrons_scale = 1; p.electrons_shift = NAN; }},
    {"a variance below 0", kAny,
     [](auto& p) { p.data_term = DIPENGINE_DATA_SENSOR; p.electrons_scale = 1; p.read_variance = -1; }},
    {"sigma below 0", kAny, [](auto& p) { p.sigma = -1; }},
    {"infinite sigma", kAny, [](auto& p) { p.sigma = INFINITY; }},
    {"a share below 0", kAny, [](auto& p) { p.hold_out = -0.1; }},
    {"a share above a half", kAny, [](auto& p) { p.hold_out = 0.6; }},
    {"a share that is no number", kAny, [](auto& p) { p.hold_out = NAN; }},
    {"pixels held out beside known noise", kAny, [](auto& p) { p.hold_out = 0.1; p.sigma = 0.1; }},
    {"pixels held out beside a known sensor", kAny,
     [](auto& p) { p.data_term = DIPENGINE_DATA_SENSOR; p.electrons_scale = 1; p.hold_out = 0.1; }},
    {"a code that there is not", kAny, [](auto& p) { p.code = 3; }},
    {"a meshgrid of depth 5", kAny, [](auto& p) { p.code = DIPENGINE_CODE_MESHGRID; }},
    {"a code below 0", kAny, [](auto& p) { p.code_scale = -1; }},
    {"a perturbation that is no number", kAny, [](auto& p) { p.perturbation = NAN; }},
    {"a learning rate below 0", kAny, [](auto& p) { p.learning_rate = -0.01; }},
    {"an average that forgets nothing", kAny, [](auto& p) { p.average_decay = 1; }},
    {"ES-EMV without weight", kAny, [](auto& p) { p.es_alpha = 0; }},
    {"a roll-back threshold that is no number", kAny, [](auto& p) { p.rollback_db = NAN; }},
    {"a stop that there is not", kAny, [](auto& p) { p.stop = 2; }},
    {"no iterations", kAny, [](auto& p) { p.iterations = 0; }},
    {"2^32 iterations", kAny, [](auto& p) { p.iterations = int64_t{1} << 32; }},
    {"more slots than there are addresses", kAny, [](auto& p) { p.slots = INT32_MAX; p.height = p.width = 1 << 20; },
     DIPENGINE_OUT_OF_RESOURCES},
    {"layers beyond all addresses", kAny,
     [](auto& p) { p.height = p.width = 1 << 24; p.generator.channels_up[0] = 1 << 20; }, DIPENGINE_OUT_OF_RESOURCES},
};

}  // namespace

TEST(fits_refuse_params_that_make_no_sense) {
  for (const Refusal& refusal : kRefusals) {
    dipengine_fit_params params = problem_of(refusal.operator_kind).params;
    refusal.change(params);
    size_t bytes = 17;
    dipengine_fit* fit = reinterpret_cast<dipengine_fit*>(&bytes);
    const int before = check::failures();
    CHECK(dipengine_fit_create(&params, &fit) == refusal.status);
    CHECK(one_sentence());
    CHECK(fit == nullptr);
    CHECK(dipengine_fit_memory(&params, &bytes) == refusal.status);
    CHECK(one_sentence() && bytes == 17);
    if (check::failures() != before) std::printf("  ... where the params have %s\n", refusal.what);
  }
}

TEST(a_cuda_device_that_is_not_there_is_refused) {
  int32_t devices = 0;
  if (dipengine_cuda_device_count(&devices) == DIPENGINE_OK) return;
  dipengine_fit_params params = problem_of(kAny).params;
  params.device = DIPENGINE_DEVICE_CUDA;
  size_t bytes = 0;
  dipengine_fit* fit = nullptr;
  CHECK(dipengine_fit_memory(&params, &bytes) == DIPENGINE_UNSUPPORTED && one_sentence());
  CHECK(dipengine_fit_create(&params, &fit) == DIPENGINE_UNSUPPORTED && fit == nullptr && one_sentence());
}

TEST(unusable_generators_have_no_canvas_and_no_parameters) {
  dipengine_generator generator = check::small_params(DIPENGINE_FLOAT32).generator;
  CHECK(dipengine_generator_canvas(&generator, 21) == 24 && dipengine_generator_canvas(&generator, 0) == 0);
  CHECK(dipengine_generator_parameters(&generator) > 1000);
  CHECK(dipengine_generator_canvas(&generator, INT64_MAX) == 0);
  generator.channels_down[0] = generator.channels_down[1] = INT32_MAX;
  CHECK(dipengine_generator_parameters(&generator) == 0);
  generator.levels = 0;
  CHECK(dipengine_generator_canvas(&generator, 21) == 0 && dipengine_generator_parameters(&generator) == 0);
  CHECK(dipengine_generator_canvas(nullptr, 21) == 0 && dipengine_generator_parameters(nullptr) == 0);
}

TEST(fits_refuse_starts_that_make_no_sense) {
  struct Start {
    const char* what;
    const FitProblem problem;
    void (*change)(dipengine_fit_start_params& s, std::vector<float>& data);
    dipengine_status status = DIPENGINE_INVALID_ARGUMENT;
  };
  std::vector<FitProblem> tasks = check::every_task(DIPENGINE_FLOAT32);
  FitProblem plain = tasks[0], masked = tasks[2], imaged = tasks[5];
  const Start starts[] = {
      {"another version", plain, [](auto& s, auto&) { s.struct_size += 8; }, DIPENGINE_STRUCT_SIZE},
      {"no target", plain, [](auto& s, auto&) { s.target = nullptr; }},
      {"NaN in the target", plain, [](auto& s, auto& d) { d.assign(21 * 30 * 3, 0); d[50] = NAN; s.target = d.data(); }},
      {"a grey mask", masked, [](auto& s, auto& d) { d.assign(7 * 10, 0.5f); s.mask = d.data(); }},
      {"NaN in the mask", masked, [](auto& s, auto& d) { d.assign(7 * 10, NAN); s.mask = d.data(); }},
      {"a black mask", masked, [](auto& s, auto& d) { d.assign(7 * 10, 0); s.mask = d.data(); }},
      {"a code that the fit does not take", plain, [](auto& s, auto& d) { d.assign(21 * 30 * 5, 0); s.code = d.data(); }},
      {"no code where it is an image", imaged, [](auto& s, auto&) { s.code = nullptr; }},
      {"weights to be kept that are not there", plain, [](auto& s, auto&) { s.keep_weights = 1; }},
  };
  for (const Start& start : starts) {
    TestFit fit(start.problem);
    dipengine_fit_start_params params = start.problem.start(1);
    std::vector<float> data;
    start.change(params, data);
    const int before = check::failures();
    CHECK(dipengine_fit_start(fit.get(), 0, &params) == start.status);
    CHECK(one_sentence());
    CHECK(fit.progress().state == DIPENGINE_FIT_IDLE);
    if (check::failures() != before) std::printf("  ... where the start has %s\n", start.what);
  }
}

TEST(a_refused_start_leaves_the_slot_as_it_was) {
  const FitProblem problem = check::every_task(DIPENGINE_FLOAT32)[2];
  TestFit fit(problem, 1);
  fit.run(3);
  const std::string state = fit.state();
  std::vector<float> grey(problem.mask.size(), 1.0f), broken = problem.target;
  grey.back() = 0.5f;
  broken.back() = INFINITY;
  dipengine_fit_start_params params = problem.start(2);
  params.mask = grey.data();
  CHECK(dipengine_fit_start(fit.get(), 0, &params) == DIPENGINE_INVALID_ARGUMENT);
  params = problem.start(2);
  params.target = broken.data();
  CHECK(dipengine_fit_start(fit.get(), 0, &params) == DIPENGINE_INVALID_ARGUMENT);
  CHECK(fit.state() == state);
}

TEST(slots_that_are_not_there_are_refused) {
  const FitProblem problem = problem_of(kAny);
  TestFit fit(problem, nullptr, 2);
  fit.start(1, problem, 1);
  std::vector<float> image(static_cast<size_t>(problem.painted())),
      parameters(static_cast<size_t>(dipengine_generator_parameters(&problem.params.generator)));
  std::string state(dipengine_fit_state_bytes(fit.get(), 1), '\0');
  const dipengine_fit_start_params start = problem.start(1);
  dipengine_fit_progress progress{};
  progress.struct_size = sizeof(progress);
  for (int32_t slot : {-1, 2, INT32_MAX}) {
    for (const dipengine_status status : {
             dipengine_fit_start(fit.get(), slot, &start), dipengine_fit_get_progress(fit.get(), slot, &progress),
             dipengine_fit_deliver(fit.get(), slot, image.data(), nullptr, nullptr),
             dipengine_fit_average(fit.get(), slot, image.data()), dipengine_fit_render(fit.get(), slot, image.data()),
             dipengine_fit_get_parameters(fit.get(), slot, parameters.data()),
             dipengine_fit_set_parameters(fit.get(), slot, parameters.data()),
             dipengine_fit_set_code_seed(fit.get(), slot, 1), dipengine_fit_set_patience(fit.get(), slot, 1),
             dipengine_fit_set_sigma(fit.get(), slot, 0.1),
             dipengine_fit_save_state(fit.get(), slot, state.data(), state.size()),
             dipengine_fit_load_state(fit.get(), slot, state.data(), state.size()),
         }) {
      CHECK(status == DIPENGINE_INVALID_ARGUMENT && one_sentence());
    }
  }
}

TEST(a_slot_that_was_never_started_has_nothing_to_show) {
  const FitProblem problem = problem_of(kAny);
  TestFit fit(problem, nullptr, 2);
  fit.start(1, problem, 1);
  std::vector<float> image(static_cast<size_t>(problem.painted())),
      parameters(static_cast<size_t>(dipengine_generator_parameters(&problem.params.generator)));
  std::string state(dipengine_fit_state_bytes(fit.get(), 1), '\0');
  for (const dipengine_status status : {
           dipengine_fit_deliver(fit.get(), 0, image.data(), nullptr, nullptr),
           dipengine_fit_deliver(fit.get(), 1, image.data(), nullptr, nullptr),  // started, but not run
           dipengine_fit_average(fit.get(), 0, image.data()), dipengine_fit_render(fit.get(), 0, image.data()),
           dipengine_fit_get_parameters(fit.get(), 0, parameters.data()),
           dipengine_fit_set_parameters(fit.get(), 0, parameters.data()),
           dipengine_fit_set_code_seed(fit.get(), 0, 1), dipengine_fit_set_patience(fit.get(), 0, 1),
           dipengine_fit_set_sigma(fit.get(), 0, 0.1),
           dipengine_fit_set_patience(fit.get(), 1, 0),  // started, but none at all is no patience
           dipengine_fit_save_state(fit.get(), 0, state.data(), state.size()),
       }) {
    CHECK(status == DIPENGINE_INVALID_ARGUMENT && one_sentence());
  }
  CHECK(fit.progress(0).state == DIPENGINE_FIT_IDLE && fit.progress(1).state == DIPENGINE_FIT_RUNNING);
  CHECK(dipengine_fit_get_gradients(fit.get(), parameters.data()) == DIPENGINE_INVALID_ARGUMENT && one_sentence());
  fit.run(1);
  CHECK(dipengine_fit_get_gradients(fit.get(), parameters.data()) == DIPENGINE_OK);
  fit.start(0, problem, 1);
  CHECK(dipengine_fit_get_gradients(fit.get(), parameters.data()) == DIPENGINE_INVALID_ARGUMENT);
}

TEST(null_pointers_are_refused_and_never_followed) {
  const FitProblem problem = problem_of(kAny);
  TestFit made(problem, 1);
  made.run(1);
  dipengine_fit* const fit = made.get();
  std::vector<float> values(static_cast<size_t>(dipengine_generator_parameters(&problem.params.generator)));
  std::string state = made.state();
  dipengine_fit_start_params start = problem.start(1);
  dipengine_fit_progress progress{};
  progress.struct_size = sizeof(progress);
  dipengine_fit_run_params run{};
  run.struct_size = sizeof(run);
  size_t bytes = 0;
  dipengine_fit* other = nullptr;
  float* const v = values.data();
  const dipengine_status refused[] = {
      dipengine_fit_memory(nullptr, &bytes), dipengine_fit_memory(&problem.params, nullptr),
      dipengine_fit_create(nullptr, &other), dipengine_fit_create(&problem.params, nullptr),
      dipengine_fit_start(nullptr, 0, &start), dipengine_fit_start(fit, 0, nullptr),
      dipengine_fit_get_progress(nullptr, 0, &progress), dipengine_fit_get_progress(fit, 0, nullptr),
      dipengine_fit_run(nullptr, &run), dipengine_fit_run(fit, nullptr),
      dipengine_fit_deliver(nullptr, 0, v, nullptr, nullptr),
      dipengine_fit_average(nullptr, 0, v), dipengine_fit_average(fit, 0, nullptr),
      dipengine_fit_render(nullptr, 0, v), dipengine_fit_render(fit, 0, nullptr),
      dipengine_fit_get_parameters(nullptr, 0, v), dipengine_fit_get_parameters(fit, 0, nullptr),
      dipengine_fit_set_parameters(nullptr, 0, v), dipengine_fit_set_parameters(fit, 0, nullptr),
      dipengine_fit_set_code_seed(nullptr, 0, 1), dipengine_fit_set_patience(nullptr, 0, 1),
      dipengine_fit_set_sigma(nullptr, 0, 0.1),
      dipengine_fit_get_gradients(nullptr, v), dipengine_fit_get_gradients(fit, nullptr),
      dipengine_fit_save_state(nullptr, 0, state.data(), state.size()), dipengine_fit_save_state(fit, 0, nullptr, state.size()),
      dipengine_fit_load_state(nullptr, 0, state.data(), state.size()), dipengine_fit_load_state(fit, 0, nullptr, state.size()),
  };
  for (const dipengine_status status : refused) CHECK(status == DIPENGINE_INVALID_ARGUMENT);
  CHECK(dipengine_fit_render(fit, 0, nullptr) == DIPENGINE_INVALID_ARGUMENT && one_sentence());
  CHECK(std::strstr(dipengine_last_error(), "dipengine_fit_render was given NULL for image") != nullptr);
  CHECK(other == nullptr && made.state() == state);
  dipengine_fit_destroy(nullptr);
  dipengine_fit_default_params(nullptr);
  dipengine_fit_stop_rule(10, 0.9, nullptr);
  CHECK(dipengine_fit_steps(nullptr) == 0 && std::string(dipengine_fit_step_name(nullptr, 0)).empty());
  CHECK(dipengine_fit_arena_bytes(nullptr) == 0 && dipengine_fit_state_bytes(nullptr, 0) == 0);
  CHECK(dipengine_fit_deliver(fit, 0, nullptr, nullptr, nullptr) == DIPENGINE_OK);  // all of it is optional
}

TEST(runs_that_make_no_sense_are_refused) {
  const FitProblem problem = problem_of(kAny);
  TestFit fit(problem, 1);
  dipengine_fit_run_params run{};
  run.iterations = 1;
  CHECK(dipengine_fit_run(fit.get(), &run) == DIPENGINE_STRUCT_SIZE && one_sentence());
  run.struct_size = sizeof(run);
  run.iterations = -1;
  CHECK(dipengine_fit_run(fit.get(), &run) == DIPENGINE_INVALID_ARGUMENT && one_sentence());
  CHECK(fit.progress().iteration == 0);
  dipengine_fit_progress progress{};
  CHECK(dipengine_fit_get_progress(fit.get(), 0, &progress) == DIPENGINE_STRUCT_SIZE && one_sentence());
}

TEST(states_that_are_not_whole_or_not_of_this_library_are_refused) {
  const FitProblem problem = problem_of(kDown);
  TestFit fit(problem, 1), other(problem, 2);
  fit.run(3);
  const std::string state = fit.state(), before = other.state();
  const auto refused = [&](const std::string& bytes, const char* word) {
    return dipengine_fit_load_state(other.get(), 0, bytes.data(), bytes.size()) == DIPENGINE_INVALID_ARGUMENT && one_sentence() &&
           std::strstr(dipengine_last_error(), word) != nullptr && other.state() == before;
  };
  const auto changed = [&](size_t at) {
    std::string bytes = state;
    bytes[at] = static_cast<char>(bytes[at] ^ 0x40);
    return bytes;
  };
  for (size_t bytes : {size_t{0}, size_t{1}, size_t{39}}) CHECK(refused(state.substr(0, bytes), "no state"));
  CHECK(refused(std::string(state.size(), '\0'), "no state"));
  CHECK(refused("Some text that is no state at all, long enough to hold a header of one.", "no state"));
  for (size_t bytes : {size_t{40}, state.size() / 2, state.size() - 1}) CHECK(refused(state.substr(0, bytes), "whole"));
  CHECK(refused(state + '\0', "whole"));
  CHECK(refused(changed(0), "no state"));
  CHECK(refused(changed(8), "format"));
  CHECK(refused(changed(16), "other params"));
  CHECK(refused(changed(24), "whole"));
  check::Numbers numbers(1);
  for (size_t at : {size_t{32}, size_t{40}, state.size() - 1}) CHECK(refused(changed(at), "damaged"));
  for (int i = 0; i < 50; ++i) {
    const double place = (numbers.next() + 1) / 2 * static_cast<double>(state.size() - 40);
    CHECK(refused(changed(40 + static_cast<size_t>(place)), "damaged"));
  }
  std::string small(state.size() - 1, '\0');
  CHECK(dipengine_fit_save_state(fit.get(), 0, small.data(), small.size()) == DIPENGINE_INVALID_ARGUMENT && one_sentence());
  other.load(state);
  CHECK(other.state() == state);
}

TEST(states_of_other_params_are_refused_and_of_the_same_exchanged) {
  struct Change {
    int32_t operator_kind;
    void (*change)(dipengine_fit_params& p);
  };
  static const double taps[] = {0.1, 0.2, 0.4, 0.2, 0.1000001};
  static const double kernel[] = {0.06, 0.1, 0.15, 0.05, 0.05, 0.2, 0.1, 0.05, 0.1, 0.05, 0.05, 0.05};
  const Change meaning[] = {
      {kAny, [](auto& p) { p.generator.negative_slope = 0.1; }}, {kAny, [](auto& p) { p.generator.padding = 1; }},
      {kAny, [](auto& p) { p.generator.channels_up[0] = 9; }},   {kAny, [](auto& p) { p.generator.upsample[0] = 2; }},
      {kAny, [](auto& p) { p.dtype = DIPENGINE_BFLOAT16; }},      {kAny, [](auto& p) { p.width += 3; }},
      {kAny, [](auto& p) { std::swap(p.height, p.width); }},      {kAny, [](auto& p) { p.sigma = 0.1; }},
      {kAny, [](auto& p) { p.code_scale = 0.2; }},                {kAny, [](auto& p) { p.perturbation = 0; }},
      {kAny, [](auto& p) { p.learning_rate = 0.02; }},            {kAny, [](auto& p) { p.average_decay = 0.9; }},
      {kAny, [](auto& p) { p.average_warm_up = 0; }},             {kAny, [](auto& p) { p.deliver_average = 0; }},
      {kAny, [](auto& p) { p.es_alpha = 0.2; }},                  {kAny, [](auto& p) { p.rollback_db = 6; }},
      {kAny, [](auto& p) { p.stop = DIPENGINE_STOP_AUTO; p.hold_out = 0.1; }},
      {kAny, [](auto& p) { p.stop = DIPENGINE_STOP_AUTO; }},      {kAny, [](auto& p) { p.iterations += 1; }},
      {kDown, [](auto& p) { p.before = 2; }},                     {kDown, [](auto& p) { p.taps = taps; }},
      {kBlur, [](auto& p) { p.kernel = kernel; }},
      {kAny, [](auto& p) { p.data_term = DIPENGINE_DATA_SENSOR; p.electrons_scale = 2; }},
  };
  for (const Change& change : meaning) {
    const FitProblem problem = problem_of(change.operator_kind);
    FitProblem changed = problem;
    change.change(changed.params);
    TestFit fit(problem, 1), other(changed);
    const std::string state = fit.state();
    CHECK(dipengine_fit_load_state(other.get(), 0, state.data(), state.size()) == DIPENGINE_INVALID_ARGUMENT && one_sentence());
    CHECK(other.progress().state == DIPENGINE_FIT_IDLE);
  }
  const Change form[] = {
      {kAny, [](auto& p) { p.generator.channels_up[7] = 1; }},  // a level that is not there
      {kAny, [](auto& p) { p.factor = 5; }},
      {kDown, [](auto& p) { static const double copy[] = {0.1, 0.2, 0.4, 0.2, 0.1}; p.taps = copy; }},
      {kBlur, [](auto& p) { p.electrons_scale = 5; }},
  };
  check::TestPool pool(2);
  for (const Change& change : form) {
    const FitProblem problem = problem_of(change.operator_kind);
    FitProblem same = problem;
    change.change(same.params);
    TestFit fit(problem, 1), other(same, pool.get(), 3);
    fit.run(2);
    other.load(fit.state(), 2);
    fit.run(2);
    other.run(2);
    CHECK(other.state(2) == fit.state());
  }
}
