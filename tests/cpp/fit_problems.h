// What the tests of fits share: small problems of every task, and fits that clean up after themselves.
#pragma once

#include <atomic>
#include <cstdlib>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "dipengine/fit.h"
#include "fit/graph.h"
#include "platform/thread_pool.h"

namespace check {

// Graphs are those of images of that size for as long as it lives: from 256x256 on what many blocks would make again is made once, above
// 512x512 memory is spared, too.
enum class Size { small, middle, large };
class AsOfSize {
 public:
  explicit AsOfSize(Size size)
      : most_(dipengine::most_stored_pixels), formed_(dipengine::least_formed_pixels), joint_(dipengine::least_joint_pixels) {
    if (size != Size::small) dipengine::least_formed_pixels = dipengine::least_joint_pixels = 0;
    if (size == Size::large) dipengine::most_stored_pixels = 0;
  }
  ~AsOfSize() {
    dipengine::most_stored_pixels = most_;
    dipengine::least_formed_pixels = formed_;
    dipengine::least_joint_pixels = joint_;
  }
  AsOfSize(const AsOfSize&) = delete;
  AsOfSize& operator=(const AsOfSize&) = delete;

 private:
  int64_t most_, formed_, joint_;
};
class AsLarge : public AsOfSize {
 public:
  explicit AsLarge(bool large = true) : AsOfSize(large ? Size::large : Size::small) {}
};

// A problem small enough for sanitizers, whose image (21 x 30) does not fill its canvas (24 x 32).
struct FitProblem {
  std::string name;
  dipengine_fit_params params;
  std::vector<float> target, mask, code;  // mask, code: empty where there is none

  int64_t channels() const { return params.generator.output_channels; }
  int64_t painted() const { return params.height * params.width * channels(); }
  int64_t data_height() const { return params.operator_kind == DIPENGINE_OPERATOR_IDENTITY ? params.height : params.data_height; }
  int64_t data_width() const { return params.operator_kind == DIPENGINE_OPERATOR_IDENTITY ? params.width : params.data_width; }

  dipengine_fit_start_params start(uint64_t seed) const {
    dipengine_fit_start_params s{};
    s.struct_size = sizeof(s);
    s.seed = seed;
    s.target = target.data();
    s.mask = mask.empty() ? nullptr : mask.data();
    s.code = code.empty() ? nullptr : code.data();
    s.height = params.height;
    s.width = params.width;
    s.data_height = params.data_height;
    s.data_width = params.data_width;
    return s;
  }

  // Another image (and other unknown pixels) for the same fit.
  FitProblem with_data(uint64_t seed) const {
    FitProblem other = *this;
    Numbers numbers(seed);
    for (float& x : other.target) x = static_cast<float>(0.5 + 0.5 * numbers.next());
    for (float& m : other.mask) m = numbers.next() > -0.5 ? 1.0f : 0.0f;
    return other;
  }
};

inline dipengine_fit_params small_params(int32_t dtype) {
  dipengine_fit_params p;
  dipengine_fit_default_params(&p);
  p.dtype = dtype;
  p.generator.levels = 2;
  p.generator.input_depth = 5;
  for (int i = 0; i < 2; ++i) p.generator.channels_down[i] = p.generator.channels_up[i] = 8;
  p.height = 21;
  p.width = 30;
  p.stop = DIPENGINE_STOP_FIXED;
  p.iterations = 1000;
  return p;
}

inline FitProblem problem_with(const std::string& name, const dipengine_fit_params& params, bool masked) {
  FitProblem problem{name, params, {}, {}, {}};
  const int64_t data = problem.data_height() * problem.data_width();
  problem.target.resize(static_cast<size_t>(data * problem.channels()));
  problem.mask.resize(masked ? static_cast<size_t>(data) : 0);
  problem = problem.with_data(3);
  if (params.code == DIPENGINE_CODE_IMAGE) {
    problem.code.resize(static_cast<size_t>(params.height * params.width * params.generator.input_depth));
    Numbers numbers(4);
    for (float& z : problem.code) z = static_cast<float>(0.5 + 0.5 * numbers.next());
  }
  return problem;
}

// The same task with an image of another size.
inline FitProblem resized(const FitProblem& problem, int64_t height, int64_t width, uint64_t seed) {
  dipengine_fit_params p = problem.params;
  p.height = height;
  p.width = width;
  if (p.operator_kind == DIPENGINE_OPERATOR_DOWNSAMPLE) {
    p.data_height = (height + p.factor - 1) / p.factor;
    p.data_width = (width + p.factor - 1) / p.factor;
  } else if (p.operator_kind == DIPENGINE_OPERATOR_BLUR) {
    p.data_height = height - p.kernel_height + 1;
    p.data_width = width - p.kernel_width + 1;
  }
  return problem_with(problem.name, p, !problem.mask.empty()).with_data(seed);
}

// Every operator and data term, and generators with every kind of layer among them.
inline std::vector<FitProblem> every_task(int32_t dtype) {
  static const double taps[] = {0.1, 0.2, 0.4, 0.2, 0.1};
  static const double kernel[] = {0.05, 0.1, 0.15, 0.05, 0.05, 0.2, 0.1, 0.05, 0.1, 0.05, 0.05, 0.05};
  std::vector<FitProblem> all;
  dipengine_fit_params p = small_params(dtype);
  all.push_back(problem_with("identity", p, false));

  p.code = DIPENGINE_CODE_MESHGRID;
  p.generator.input_depth = 2;
  p.generator.channels_skip[0] = 0;
  p.generator.upsample[1] = 2;  // bilinear
  all.push_back(problem_with("mask", p, true));

  p = small_params(dtype);
  p.operator_kind = DIPENGINE_OPERATOR_DOWNSAMPLE;
  p.factor = 3;
  p.before = 1;
  p.taps = taps;
  p.taps_count = 5;
  p.data_height = 7;
  p.data_width = 10;
  p.generator.downsample = DIPENGINE_DOWNSAMPLE_AVERAGE;
  all.push_back(problem_with("downsampling", p, true));

  p = small_params(dtype);
  p.operator_kind = DIPENGINE_OPERATOR_BLUR;
  p.kernel = kernel;
  p.kernel_height = 3;
  p.kernel_width = 4;
  p.data_height = 19;
  p.data_width = 27;
  p.generator.one_by_one_up = 0;
  p.generator.padding = 1;  // zero
  all.push_back(problem_with("blur", p, false));

  p.data_term = DIPENGINE_DATA_SENSOR;
  p.electrons_scale = 40;
  p.electrons_shift = -4;
  p.read_variance = 2;
  all.push_back(problem_with("blur and sensor", p, true));

  p.operator_kind = DIPENGINE_OPERATOR_IDENTITY;
  p.code = DIPENGINE_CODE_IMAGE;
  p.generator.output_channels = 1;
  p.deliver_average = 0;
  all.push_back(problem_with("sensor", p, false));
  for (FitProblem& problem : all) problem.name += dtype == DIPENGINE_BFLOAT16 ? ", bf16" : ", fp32";
  return all;
}

inline std::vector<FitProblem> every_task_and_precision() {
  std::vector<FitProblem> all = every_task(DIPENGINE_FLOAT32);
  for (FitProblem& problem : every_task(DIPENGINE_BFLOAT16)) all.push_back(std::move(problem));
  return all;
}

inline FitProblem problem_named(const std::string& name) {
  for (FitProblem& problem : every_task_and_precision()) {
    if (problem.name == name) return problem;
  }
  std::abort();
}

// A fit through its C interface; whatever does not succeed fails the test.
class TestFit {
 public:
  explicit TestFit(const FitProblem& problem, dipengine_pool* pool = nullptr, int32_t slots = 1)
      : slots_(slots), channels_(problem.channels()), parameters_(dipengine_generator_parameters(&problem.params.generator)) {
    dipengine_fit_params params = problem.params;
    params.pool = pool;
    params.slots = slots;
    CHECK(dipengine_fit_create(&params, &fit_) == DIPENGINE_OK);
  }
  // Started in slot 0.
  TestFit(const FitProblem& problem, uint64_t seed, dipengine_pool* pool = nullptr) : TestFit(problem, pool) {
    start(0, problem, seed);
  }
  ~TestFit() { dipengine_fit_destroy(fit_); }
  TestFit(const TestFit&) = delete;
  TestFit& operator=(const TestFit&) = delete;

  dipengine_fit* get() const { return fit_; }

  void start(int32_t slot, const FitProblem& problem, uint64_t seed, bool keep_weights = false) {
    dipengine_fit_start_params s = problem.start(seed);
    s.keep_weights = keep_weights;
    CHECK(dipengine_fit_start(fit_, slot, &s) == DIPENGINE_OK);
  }
  // Up to `iterations` more of every slot: their losses, [slots, iterations], NaN where none was run.
  std::vector<double> run(int64_t iterations) {
    std::vector<double> losses(static_cast<size_t>(slots_ * iterations), NAN);
    dipengine_fit_run_params r{};
    r.struct_size = sizeof(r);
    r.iterations = iterations;
    r.losses = losses.data();
    CHECK(dipengine_fit_run(fit_, &r) == DIPENGINE_OK && r.stopped == 0);
    return losses;
  }
  dipengine_fit_progress progress(int32_t slot = 0) const {
    dipengine_fit_progress p{};
    p.struct_size = sizeof(p);
    CHECK(dipengine_fit_get_progress(fit_, slot, &p) == DIPENGINE_OK);
    return p;
  }
  std::string state(int32_t slot = 0) const {
    std::string bytes(dipengine_fit_state_bytes(fit_, slot), '\0');
    CHECK(dipengine_fit_save_state(fit_, slot, bytes.data(), bytes.size()) == DIPENGINE_OK);
    return bytes;
  }
  void load(const std::string& state, int32_t slot = 0) {
    CHECK(dipengine_fit_load_state(fit_, slot, state.data(), state.size()) == DIPENGINE_OK);
  }
  std::vector<float> delivered(int32_t slot = 0) {
    std::vector<float> image = image_of(slot);
    CHECK(dipengine_fit_deliver(fit_, slot, image.data(), nullptr, nullptr) == DIPENGINE_OK);
    return image;
  }
  std::vector<float> average(int32_t slot = 0) const {
    std::vector<float> image = image_of(slot);
    CHECK(dipengine_fit_average(fit_, slot, image.data()) == DIPENGINE_OK);
    return image;
  }
  std::vector<float> rendered(int32_t slot = 0) {
    std::vector<float> image = image_of(slot);
    CHECK(dipengine_fit_render(fit_, slot, image.data()) == DIPENGINE_OK);
    return image;
  }
  std::vector<float> parameters(int32_t slot = 0) const {
    std::vector<float> values(static_cast<size_t>(parameters_));
    CHECK(dipengine_fit_get_parameters(fit_, slot, values.data()) == DIPENGINE_OK);
    return values;
  }
  void set_parameters(const std::vector<float>& values, int32_t slot = 0) {
    CHECK(dipengine_fit_set_parameters(fit_, slot, values.data()) == DIPENGINE_OK);
  }

 private:
  std::vector<float> image_of(int32_t slot) const {
    const dipengine_fit_progress now = progress(slot);
    return std::vector<float>(static_cast<size_t>(now.height * now.width * channels_));
  }

  int32_t slots_;
  int64_t channels_, parameters_;
  dipengine_fit* fit_ = nullptr;
};

class TestPool {
 public:
  explicit TestPool(int32_t threads) {
    CHECK(dipengine_pool_create(threads, &pool_) == DIPENGINE_OK);
    // Threads that begin allocate under sanitizers: wait until all of them have, which these tasks do by waiting for each other.
    std::atomic<int32_t> arrived{0};
    dipengine::run_tasks(pool_, threads, [&](int64_t) {
      arrived.fetch_add(1);
      while (arrived.load() < threads) std::this_thread::yield();
    });
  }
  ~TestPool() { dipengine_pool_destroy(pool_); }
  TestPool(const TestPool&) = delete;
  TestPool& operator=(const TestPool&) = delete;
  dipengine_pool* get() const { return pool_; }

 private:
  dipengine_pool* pool_ = nullptr;
};

}  // namespace check
