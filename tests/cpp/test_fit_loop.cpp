// The loop of a fit: cancelling, reports, times, roll-back.
#include <cstring>
#include <memory>

#include "allocations.h"
#include "fit/fit.h"
#include "fit_problems.h"

using check::FitProblem;
using check::TestFit;
using check::TestPool;

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
  for (const FitProblem& problem : check::every_task(DIPENGINE_FLOAT32)) {
    const FitProblem second = problem.with_data(21);
    TestFit whole(problem, nullptr, 2), fit(problem, nullptr, 2);
    whole.start(0, problem, 4);
    whole.start(1, second, 5);
    whole.run(1);
    const std::string begin[] = {whole.state(0), whole.state(1)};
    Canceller never;
    dipengine_fit_run_params run{};
    run.struct_size = sizeof(run);
    run.iterations = 1;
    run.poll = Canceller::poll;
    run.user = &never;
    CHECK(dipengine_fit_run(whole.get(), &run) == DIPENGINE_OK && run.stopped == 0 && never.calls > 12);
    const std::string end[] = {whole.state(0), whole.state(1)};
    for (int at = 1; at <= never.calls; ++at) {
      Canceller canceller{0, at};
      run.user = &canceller;
      for (int32_t slot : {0, 1}) fit.load(begin[slot], slot);
      CHECK(dipengine_fit_run(fit.get(), &run) == DIPENGINE_OK && run.stopped == 1 && canceller.calls == at);
      for (int32_t slot : {0, 1}) {
        // No iteration is half done: the slot is as it was, or through.
        const bool through = fit.progress(slot).iteration == 2;
        CHECK(fit.state(slot) == (through ? end : begin)[slot]);
      }
      const bool first_through = fit.progress(0).iteration == 2;
      CHECK(first_through == (at > never.calls / 2) && fit.progress(1).iteration == 1);
    }
  }
}

TEST(a_report_sees_every_iteration_and_may_end_the_run) {
  struct Seen {
    std::vector<dipengine_fit_progress> reports;
  } seen;
  const FitProblem problem = check::problem_named("identity, fp32");
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
  FitProblem problem = check::problem_named("identity, fp32");
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
  TestFit fit(check::problem_named("downsampling, fp32"), 4);
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
  for (int32_t step : {-1, steps}) CHECK(std::string(dipengine_fit_step_name(fit.get(), step)).empty());
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
    OpenFit fit(check::problem_named(name), pool.get());
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
  const FitProblem problem = check::problem_named("mask, fp32");
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
