// When fits on the emulated device end, go back and stop, and which state they deliver: as fits on a CPU do.
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>

#include "device_fits.h"

using check::FitProblem;
using check::TestFit;
using check::changed;
using check::distance;
using check::loaded;
using check::no_faults;
using check::on_device;
using check::small_problem;

TEST(fit_on_a_device_can_be_ended_between_iterations) {
  const FitProblem problem = on_device(small_problem(DIPENGINE_FLOAT32));
  TestFit fit(problem, 3);
  struct Asked {
    int reports = 0, polls = 0;
    int64_t iteration = 0;
  } asked;
  dipengine_fit_run_params run{};
  run.struct_size = sizeof(run);
  run.iterations = 9;
  run.user = &asked;
  run.report = [](void* user, const dipengine_fit_progress* progress) {
    auto& self = *static_cast<Asked*>(user);
    self.iteration = progress->iteration;
    return ++self.reports == 2 ? 1 : 0;
  };
  CHECK(dipengine_fit_run(fit.get(), &run) == DIPENGINE_OK && run.stopped == 1 && asked.iteration == 2);
  CHECK(fit.progress().iteration == 2 && asked.reports == 2);
  run.report = nullptr;
  run.poll = [](void* user) { return ++static_cast<Asked*>(user)->polls == 3 ? 1 : 0; };
  CHECK(dipengine_fit_run(fit.get(), &run) == DIPENGINE_OK && run.stopped == 1);
  const int64_t done = fit.progress().iteration;
  CHECK(done >= 4 && done < 11);
  TestFit whole(problem, 3);
  whole.run(done);
  CHECK(whole.state() == fit.state());
}

TEST(fit_loop_on_a_device_decides_as_that_on_a_cpu) {
  FitProblem problem = small_problem(DIPENGINE_FLOAT32);
  TestFit cpu(problem, 2), device(on_device(problem), 2);
  cpu.run(22);  // so that bad iterations are even ones, and no snapshot is taken at the 40th
  // Beyond repair: all that is learnt is lost again, until the fit gives up.
  const std::string poisoned = changed(problem, cpu.state(), [](dipengine::SlotState& s) { s.learning_rate = INFINITY; });
  for (TestFit* fit : {&cpu, &device}) fit->load(poisoned);
  for (const int64_t iterations : {2, 45}) {
    const std::vector<double> a = cpu.run(iterations), b = device.run(iterations);
    const dipengine_fit_progress x = cpu.progress(), y = device.progress();
    CHECK(x.state == y.state && x.reason == y.reason && x.rolled_back == y.rolled_back && x.iteration == y.iteration);
    CHECK(x.rollbacks == y.rollbacks && x.learning_rate == y.learning_rate && std::isfinite(x.loss) == std::isfinite(y.loss));
    for (size_t i = 0; i < a.size(); ++i) CHECK(std::isfinite(a[i]) == std::isfinite(b[i]));
    // What they return to is the snapshot of iteration 20, of which both were given the same.
    if (x.rolled_back) CHECK(device.parameters() == cpu.parameters() && device.average() == cpu.average());
    CHECK(x.rolled_back == (iterations == 2));
  }
  CHECK(device.progress().reason == DIPENGINE_REASON_DIVERGED && device.progress().rollbacks == 21);

  device.start(0, problem, 2);
  device.set_parameters(std::vector<float>(device.parameters().size(), NAN));
  device.run(3);
  CHECK(device.progress().reason == DIPENGINE_REASON_FIRST_LOSS && device.progress().iteration == 1);
  std::vector<float> none(device.parameters().size());
  CHECK(dipengine_fit_get_gradients(device.get(), none.data()) == DIPENGINE_INVALID_ARGUMENT);
  CHECK(std::strstr(dipengine_last_error(), "No iteration has run since") != nullptr);
  no_faults();
}

TEST(fit_stops_on_a_device_by_variance_by_known_noise_and_by_pixels_held_out) {
  for (const auto& [sigma, hold_out] : {std::array{0.0, 0.0}, {0.2, 0.0}, {0.0, 0.5}}) {
    FitProblem problem = small_problem(DIPENGINE_FLOAT32);
    problem.params.hold_out = hold_out;
    problem.params.stop = DIPENGINE_STOP_AUTO;
    problem.params.iterations = 400;
    problem.params.es_alpha = 0.5;  // the variance wavers, and the patience is short
    problem.params.sigma = sigma;
    FitProblem other = on_device(problem);
    other.params.sigma = 5 * sigma;  // of another slot, say: each has its own, and takes it along
    TestFit cpu(problem, 2), device(other, 2);
    if (sigma > 0) {
      CHECK(dipengine_fit_set_sigma(device.get(), 0, sigma) == DIPENGINE_OK);
      CHECK(device.state() == cpu.state());
      cpu.load(device.state());
    }
    const auto hurry = [&] { CHECK(dipengine_fit_set_patience(cpu.get(), 0, 6) == DIPENGINE_OK); };
    hurry();
    // From the same state a while before the end: the paths have no time to part.
    while (cpu.progress().state == DIPENGINE_FIT_RUNNING) cpu.run(1);
    const int64_t end = cpu.progress().iteration;
    const int32_t reason = cpu.progress().reason;
    CHECK(reason == (hold_out > 0 ? DIPENGINE_REASON_HELD_OUT : sigma > 0 ? DIPENGINE_REASON_DISCREPANCY : DIPENGINE_REASON_VARIANCE));
    CHECK((device.progress().held_out >= 64) == (hold_out > 0));
    cpu.start(0, problem, 2);
    hurry();
    cpu.run(end - 6);
    device.load(cpu.state());
    device.run(100);
    cpu.run(100);
    const dipengine_fit_progress a = cpu.progress(), b = device.progress();
    CHECK(b.state == DIPENGINE_FIT_DONE && b.reason == reason && b.iteration == end && a.iteration == end);
    CHECK(a.delivered_iteration == b.delivered_iteration);
    CHECK(distance(device.delivered(), cpu.delivered()) < 1e-2);
    no_faults();
    if (hold_out == 0) continue;
    // Both go back to the best state, and see all pixels from there on.
    cpu.start(0, problem, 2);
    hurry();
    cpu.run(end - problem.params.iterations / 10 - 2);
    device.load(cpu.state());
    const std::vector<float> before = cpu.parameters();
    cpu.run(2);
    device.run(2);
    const std::unique_ptr<dipengine::Fit> on_host = loaded(problem, cpu.state()), on_device = loaded(problem, device.state());
    const dipengine::Slot x = on_host->slot(0), y = on_device->slot(0);
    CHECK(x.state().shown == x.state().iteration && y.state().shown == x.state().shown && y.state().best_iteration == 0);
    const auto of = [](const dipengine::Slot& slot, dipengine::SlotArrays::Name name) {
      return std::vector<float>(slot.array(name), slot.array(name) + slot.size(name));
    };
    using Arrays = dipengine::SlotArrays;
    CHECK(of(x, Arrays::mask) == problem.mask && of(y, Arrays::mask) == problem.mask);
    const std::vector<float> best = of(y, Arrays::best_parameters);
    CHECK(!best.empty() && std::equal(best.begin(), best.end(), y.array(Arrays::parameters)));
    CHECK(of(y, Arrays::average) == of(y, Arrays::best_average) && of(x, Arrays::average) == of(x, Arrays::best_average));
    CHECK(cpu.parameters() != before);
    no_faults();
  }
}
