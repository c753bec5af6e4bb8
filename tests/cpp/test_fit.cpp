// Fits: first losses, bits, slots, states, cancelling, roll-back.
#include <algorithm>
#include <cstring>
#include <memory>
#include <thread>

#include "allocations.h"
#include "fit/fit.h"
#include "fit_problems.h"

using check::FitProblem;
using check::TestFit;
using check::TestPool;

namespace {

FitProblem named(const std::string& name) {
  for (FitProblem& problem : check::every_task_and_precision()) {
    if (problem.name == name) return problem;
  }
  std::abort();
}

// A (operator) by plain loops, float64.
std::vector<double> measured(const FitProblem& problem, const std::vector<float>& image) {
  const dipengine_fit_params& p = problem.params;
  const int64_t channels = problem.channels();
  const auto pixel = [&](int64_t y, int64_t x, int64_t c) {
    y = std::clamp<int64_t>(y, 0, p.height - 1);
    x = std::clamp<int64_t>(x, 0, p.width - 1);
    return static_cast<double>(image[static_cast<size_t>((y * p.width + x) * channels + c)]);
  };
  std::vector<double> data;
  for (int64_t y = 0; y < problem.data_height(); ++y) {
    for (int64_t x = 0; x < problem.data_width(); ++x) {
      for (int64_t c = 0; c < channels; ++c) {
        double sum = 0;
        if (p.operator_kind == DIPENGINE_OPERATOR_IDENTITY) {
          sum = pixel(y, x, c);
        } else if (p.operator_kind == DIPENGINE_OPERATOR_DOWNSAMPLE) {
          for (int i = 0; i < p.taps_count; ++i) {
            for (int j = 0; j < p.taps_count; ++j) {
              sum += p.taps[i] * p.taps[j] * pixel(p.factor * y - p.before + i, p.factor * x - p.before + j, c);
            }
          }
        } else {
          for (int i = 0; i < p.kernel_height; ++i) {
            for (int j = 0; j < p.kernel_width; ++j) {  // a convolution: the kernel is turned
              sum += p.kernel[i * p.kernel_width + j] * pixel(y + p.kernel_height - 1 - i, x + p.kernel_width - 1 - j, c);
            }
          }
        }
        data.push_back(sum);
      }
    }
  }
  return data;
}

// The loss by its definition: the squared error over all, or 2 integral (t - k) / v(t) dt over what is known, by Simpson's rule.
double expected_loss(const FitProblem& problem, const std::vector<double>& data) {
  const dipengine_fit_params& p = problem.params;
  const size_t channels = static_cast<size_t>(problem.channels());
  double sum = 0, known = 0;
  for (size_t i = 0; i < data.size(); ++i) {
    const double weight = problem.mask.empty() ? 1 : static_cast<double>(problem.mask[i / channels]);
    const double target = static_cast<double>(problem.target[i]);
    known += weight;
    if (p.data_term == DIPENGINE_DATA_SQUARED) {
      sum += weight * (data[i] - target) * (data[i] - target);
      continue;
    }
    const double k = target * p.electrons_scale + p.electrons_shift, e = data[i] * p.electrons_scale + p.electrons_shift;
    const auto slope = [&](double t) { return 2 * (t - k) / (std::max(t, 0.1) + p.read_variance); };
    constexpr int kParts = 2000;
    double integral = slope(k) + slope(e);
    for (int j = 1; j < kParts; ++j) integral += (j % 2 == 1 ? 4 : 2) * slope(k + (e - k) * j / kParts);
    sum += weight * integral * (e - k) / kParts / 3;
  }
  return sum / (p.data_term == DIPENGINE_DATA_SQUARED ? static_cast<double>(data.size()) : known);
}

}  // namespace

TEST(first_loss_is_that_of_the_image_that_the_fit_shows) {
  for (FitProblem& problem : check::every_task_and_precision()) {
    problem.params.perturbation = 0;
    TestFit fit(problem, 5);
    const std::vector<float> image = fit.rendered();
    const double expected = expected_loss(problem, measured(problem, image)), got = fit.run(1)[0];
    CHECK_NEAR(got / expected, 1, 1e-5);
    CHECK(fit.progress().loss == got && fit.progress().iteration == 1);
    const std::vector<float> average = fit.average();  // after one output: that output
    for (size_t i = 0; i < image.size(); ++i) CHECK_NEAR(average[i], image[i], 1e-6);
  }
}

TEST(fits_come_nearer_to_their_target) {
  for (const FitProblem& problem : check::every_task_and_precision()) {
    TestFit fit(problem, 5);
    const std::vector<double> losses = fit.run(30);
    CHECK(losses.back() < 0.9 * losses.front());
  }
}

TEST(threads_do_not_change_a_bit_of_a_fit) {
  std::string isa;
  std::vector<std::string> reference;
  check::on_every_set_and_pool([&](dipengine_pool* pool, const std::string&) {
    if (isa != dipengine_cpu_isa()) reference.clear();
    isa = dipengine_cpu_isa();
    std::vector<std::string> states;
    for (const FitProblem& problem : check::every_task_and_precision()) {
      TestFit fit(problem, 7, pool);
      fit.run(3);
      states.push_back(fit.state());
      CHECK(std::isfinite(fit.progress().loss));
    }
    if (reference.empty()) reference = states;
    CHECK(reference == states);
  });
}

TEST(a_loaded_state_goes_on_with_the_same_bits) {
  for (FitProblem& problem : check::every_task_and_precision()) {
    problem.params.stop = DIPENGINE_STOP_AUTO;
    problem.params.iterations = 60;
    TestFit fit(problem, 7), other(problem.with_data(8), 9), fresh(problem);
    fit.run(25);
    const std::string state = fit.state();
    other.run(2);
    for (TestFit* next : {&other, &fresh}) {
      next->load(state);
      CHECK(next->state() == state && next->progress().iteration == 25);
    }
    const std::vector<double> losses = fit.run(60);
    for (TestFit* next : {&other, &fresh}) {
      const std::vector<double> theirs = next->run(60);
      CHECK(memcmp(theirs.data(), losses.data(), losses.size() * sizeof(double)) == 0);
      CHECK(next->state() == fit.state());
      CHECK(next->delivered() == fit.delivered());
    }
    CHECK(fit.progress().state == DIPENGINE_FIT_DONE);
  }
}

TEST(slots_have_the_bits_of_fits_alone) {
  for (FitProblem& problem : check::every_task_and_precision()) {
    problem.params.iterations = 9;
    const FitProblem second = problem.with_data(21), third = problem.with_data(22);
    TestFit company(problem, nullptr, 3);
    company.start(0, problem, 1);
    company.start(2, third, 3);
    company.run(3);
    company.start(1, second, 2);
    company.run(20);
    TestFit alone(problem, 1), alone_second(second, 2), alone_third(third, 3);
    for (TestFit* fit : {&alone, &alone_second, &alone_third}) fit->run(20);
    CHECK(company.state(0) == alone.state());
    CHECK(company.state(1) == alone_second.state());
    CHECK(company.state(2) == alone_third.state());
    CHECK(company.progress(1).iteration == 9 && company.progress(1).reason == DIPENGINE_REASON_ITERATIONS);
    CHECK(company.delivered(1) == alone_second.delivered() && company.delivered(1) != company.delivered(2));
  }
}

TEST(a_slot_started_anew_equals_a_fresh_one) {
  for (FitProblem& problem : check::every_task_and_precision()) {
    problem.params.stop = DIPENGINE_STOP_AUTO;
    FitProblem other = problem.with_data(21);
    other.mask.clear();
    TestFit again(problem, 4), fresh(other, 5);
    again.run(22);
    again.start(0, other, 5);
    CHECK(again.state() == fresh.state());
    const auto losses = again.run(4);
    CHECK(losses == fresh.run(4));
    CHECK(again.state() == fresh.state());
  }
}

TEST(kept_weights_start_a_new_target_where_the_old_one_ended) {
  for (const FitProblem& problem : check::every_task_and_precision()) {
    const FitProblem next = problem.with_data(21);
    TestFit fit(problem, 4), set(next, 5);
    fit.run(5);
    const std::vector<float> weights = fit.parameters();
    fit.start(0, next, 5, true);
    CHECK(fit.parameters() == weights && fit.progress().iteration == 0 && fit.progress().state == DIPENGINE_FIT_RUNNING);
    set.set_parameters(weights);  // the same weights with all else new
    CHECK(fit.state() == set.state());
    const auto losses = fit.run(3);
    CHECK(losses == set.run(3));
    CHECK(fit.state() == set.state());
  }
}

TEST(parameters_come_back_as_they_were_set) {
  const FitProblem problem = named("mask, fp32");
  TestFit fit(problem, 4);
  const int64_t count = dipengine_generator_parameters(&problem.params.generator);
  const std::vector<float> values = check::Numbers(2).vector<float>(count);
  fit.set_parameters(values);
  CHECK(fit.parameters() == values);
  fit.run(1);
  std::vector<float> gradients(values.size()), after = fit.parameters();
  CHECK(dipengine_fit_get_gradients(fit.get(), gradients.data()) == DIPENGINE_OK);
  bool good = true;
  for (size_t i = 0; i < values.size(); ++i) {
    // Adam's first step is the learning rate times the gradient's sign, and nothing where there is none.
    const double sign = gradients[i] == 0 ? 0 : gradients[i] > 0 ? 1 : -1;
    const bool tiny = std::fabs(gradients[i]) < 1e-5f;  // eps counts
    const double step = static_cast<double>(values[i]) - static_cast<double>(after[i]);
    good = good && (tiny ? std::fabs(step) <= 0.01001 : std::fabs(step - 0.01 * sign) < 2e-5);
    if (gradients[i] == 0) good = good && values[i] == after[i];
  }
  CHECK(good);
}

TEST(looking_at_a_fit_does_not_disturb_it) {
  for (const FitProblem& problem : check::every_task_and_precision()) {
    TestFit watched(problem, 4), other(problem, 4);
    for (int i = 0; i < 4; ++i) {
      watched.run(1);
      watched.rendered();
      watched.delivered();
      watched.average();
      watched.parameters();
    }
    other.run(4);
    CHECK(watched.state() == other.state());
  }
}

TEST(two_fits_run_in_two_threads_at_once) {
  for (const FitProblem& problem : check::every_task_and_precision()) {
    const FitProblem other = problem.with_data(21);
    TestFit alone(problem, 4), alone_other(other, 5);
    alone.run(4);
    alone_other.run(4);
    TestPool shared(3), first(2), second(2);
    for (const bool share : {true, false}) {
      TestFit one(problem, 4, share ? shared.get() : first.get()), two(other, 5, share ? shared.get() : second.get());
      std::thread beside([&] { two.run(4); });
      one.run(4);
      beside.join();
      CHECK(one.state() == alone.state());
      CHECK(two.state() == alone_other.state());
    }
  }
}

// ---- cancelling -----------------------------------------------------------------------------------------------------

namespace {

struct Canceller {
  int calls = 0, at = 0;
  static int poll(void* user) {
    auto& self = *static_cast<Canceller*>(user);
    return ++self.calls == self.at ? 1 : 0;
  }
};

}  // namespace

TEST(a_run_cancelled_at_any_moment_goes_on_with_the_same_bits) {
  for (const FitProblem& problem : check::every_task_and_precision()) {
    const FitProblem second = problem.with_data(21);
    const auto start = [&](TestFit& fit) {
      fit.start(0, problem, 4);
      fit.start(1, second, 5);
    };
    TestFit whole(problem, nullptr, 2);
    start(whole);
    whole.run(2);
    dipengine_fit_run_params run{};
    run.struct_size = sizeof(run);
    run.iterations = 2;
    run.poll = Canceller::poll;
    Canceller never;
    run.user = &never;
    TestFit counted(problem, nullptr, 2);
    start(counted);
    CHECK(dipengine_fit_run(counted.get(), &run) == DIPENGINE_OK && run.stopped == 0 && never.calls > 12);
    for (int at = 1; at <= never.calls; ++at) {
      Canceller canceller{0, at};
      run.user = &canceller;
      TestFit fit(problem, nullptr, 2);
      start(fit);
      CHECK(dipengine_fit_run(fit.get(), &run) == DIPENGINE_OK && run.stopped == 1 && canceller.calls == at);
      for (int32_t slot : {0, 1}) {
        // No iteration is half done, and each slot lacks what its own iterations say.
        const int64_t left = 2 - fit.progress(slot).iteration;
        TestFit alone(slot == 0 ? problem : second, 4 + static_cast<uint64_t>(slot));
        alone.load(fit.state(slot));
        alone.run(left);
        CHECK(left >= 0 && alone.state() == whole.state(slot));
      }
    }
  }
}

TEST(a_report_sees_every_iteration_and_may_end_the_run) {
  struct Seen {
    std::vector<dipengine_fit_progress> reports;
  } seen;
  const FitProblem problem = named("identity, fp32");
  TestFit fit(problem, nullptr, 2), whole(problem, 4);
  fit.start(0, problem, 4);
  fit.start(1, problem, 5);
  std::vector<double> losses(20, -1), variances(20, -1);
  dipengine_fit_run_params run{};
  run.struct_size = sizeof(run);
  run.iterations = 10;
  run.losses = losses.data();
  run.variances = variances.data();
  run.user = &seen;
  run.report = [](void* user, const dipengine_fit_progress* progress) {
    auto& reports = static_cast<Seen*>(user)->reports;
    reports.push_back(*progress);
    return reports.size() == 7 ? 1 : 0;
  };
  CHECK(dipengine_fit_run(fit.get(), &run) == DIPENGINE_OK && run.stopped == 1);
  CHECK(seen.reports.size() == 7);
  for (size_t i = 0; i < 7; ++i) {
    const dipengine_fit_progress& report = seen.reports[i];
    const size_t turn = i / 2;
    CHECK(report.struct_size == sizeof(report) && report.slot == static_cast<int32_t>(i % 2));
    CHECK(report.iteration == static_cast<int64_t>(turn) + 1 && report.state == DIPENGINE_FIT_RUNNING);
    CHECK(losses[i % 2 * 10 + turn] == report.loss && variances[i % 2 * 10 + turn] == report.variance);
  }
  CHECK(losses[4] == -1 && losses[13] == -1);
  const std::vector<double> alone = whole.run(4);
  CHECK(memcmp(alone.data(), losses.data(), 4 * sizeof(double)) == 0);
  run.iterations = 0;
  CHECK(dipengine_fit_run(fit.get(), &run) == DIPENGINE_OK && run.stopped == 0 && seen.reports.size() == 7);
}

TEST(a_fit_that_is_done_runs_no_further) {
  FitProblem problem = named("identity, fp32");
  problem.params.iterations = 3;
  TestFit fit(problem, 4);
  const std::vector<double> losses = fit.run(5);
  CHECK(std::isfinite(losses[2]) && std::isnan(losses[3]));
  const std::string state = fit.state();
  CHECK(fit.progress().state == DIPENGINE_FIT_DONE && fit.progress().reason == DIPENGINE_REASON_ITERATIONS);
  fit.run(5);
  CHECK(fit.state() == state);
}

TEST(steps_have_names_and_times) {
  TestFit fit(named("downsampling, fp32"), 4);
  const int32_t steps = dipengine_fit_steps(fit.get());
  std::vector<double> seconds(static_cast<size_t>(steps), 0);
  dipengine_fit_run_params run{};
  run.struct_size = sizeof(run);
  run.iterations = 2;
  run.step_seconds = seconds.data();
  CHECK(dipengine_fit_run(fit.get(), &run) == DIPENGINE_OK);
  bool good = steps > 20;
  for (int32_t i = 0; i + 1 < steps; ++i) good = good && seconds[static_cast<size_t>(i)] > 0;
  CHECK(good && seconds.back() == 0);  // nothing was inspected
  CHECK(std::string(dipengine_fit_step_name(fit.get(), 0)) == "perturb");
  CHECK(std::string(dipengine_fit_step_name(fit.get(), steps - 2)) == "adam");
  CHECK(std::string(dipengine_fit_step_name(fit.get(), -1)).empty() && std::string(dipengine_fit_step_name(fit.get(), steps)).empty());
}

// ---- roll-back ------------------------------------------------------------------------------------------------------

namespace {

// A fit whose learning rate a test may poison.
struct OpenFit {
  std::unique_ptr<dipengine::Fit> fit;
  std::vector<double> losses;

  OpenFit(const FitProblem& problem, dipengine_pool* pool) {
    dipengine_fit_params params = problem.params;
    params.pool = pool;
    CHECK(dipengine::Fit::make(params, true, &fit) == DIPENGINE_OK);
    CHECK(fit->start(0, problem.start(4)) == DIPENGINE_OK);
  }
  dipengine::SlotState& state() { return fit->slot(0).state(); }
  void run(int64_t iterations) {
    dipengine_fit_run_params r{};
    r.iterations = iterations;
    const int64_t before = check::allocations();
    CHECK(fit->run(r) == DIPENGINE_OK);
    CHECK(check::allocations() == before);
  }
  std::string parameters() {
    const auto* bytes = reinterpret_cast<const char*>(fit->slot(0).array(dipengine::SlotArrays::parameters));
    return {bytes, static_cast<size_t>(fit->layout().trainable()) * sizeof(float)};
  }
};

}  // namespace

TEST(a_poisoned_learning_rate_is_rolled_back_and_halved) {
  TestPool pool(2);
  for (const char* name : {"identity, fp32", "downsampling, bf16", "sensor, fp32"}) {
    OpenFit fit(named(name), pool.get());
    fit.run(139);
    const std::string good = fit.parameters();
    fit.run(1);  // the 140th takes a snapshot of the weights in front of its update
    fit.state().learning_rate = 1;
    fit.run(2);  // the 141st learns at that rate, the 142nd sees what has come of it
    CHECK(fit.state().rolled_back == 1 && fit.parameters() == good);
    CHECK(fit.state().iteration == 142 && fit.fit->progress(0).rollbacks == 1);
    const double bad_loss = fit.state().loss;
    fit.run(60);
    const dipengine_fit_progress progress = fit.fit->progress(0);
    // Mended by halving, not taken for the fit's new level, as 20 failures in a row would be.
    CHECK(progress.state == DIPENGINE_FIT_RUNNING && progress.rollbacks >= 3 && progress.rollbacks < 20);
    CHECK(progress.learning_rate <= 0.25 && progress.loss < bad_loss);
  }
}

TEST(a_fit_beyond_repair_fails_with_its_reason) {
  const FitProblem problem = named("mask, fp32");
  OpenFit fit(problem, nullptr);
  fit.run(30);
  fit.state().learning_rate = INFINITY;
  fit.run(100);
  dipengine_fit_progress progress = fit.fit->progress(0);
  CHECK(progress.state == DIPENGINE_FIT_FAILED && progress.reason == DIPENGINE_REASON_DIVERGED);
  CHECK(progress.rollbacks == 21 && !std::isfinite(progress.loss));
  fit.run(10);
  CHECK(fit.fit->progress(0).iteration == progress.iteration);

  TestFit broken(problem, 4);
  broken.set_parameters(std::vector<float>(broken.parameters().size(), NAN));
  broken.run(5);
  progress = broken.progress();
  CHECK(progress.state == DIPENGINE_FIT_FAILED && progress.reason == DIPENGINE_REASON_FIRST_LOSS && progress.iteration == 1);
  broken.start(0, problem, 4);
  broken.run(2);
  TestFit fresh(problem, 4);
  fresh.run(2);
  CHECK(broken.state() == fresh.state());
}
