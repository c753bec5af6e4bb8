// Slots of one plan on the emulated device that come to different ends: a fit that fails, one that goes back to a snapshot, one that
// keeps its best state, each beside others that must not notice.
#include <cmath>

#include "device_fits.h"

using check::FitProblem;
using check::TestFit;
using check::changed;
using check::no_faults;
using check::on_device;
using check::small_problem;

TEST(fit_that_fails_in_company_fails_alone_and_leaves_nothing_in_its_slot) {
  for (const auto& [dtype, large] : {std::pair{DIPENGINE_FLOAT32, false}, {DIPENGINE_BFLOAT16, true}}) {
    const check::AsLarge as_large(large);
    const FitProblem problem = small_problem(dtype), device = on_device(problem), other = device.with_data(9);
    // Its every other iteration is lost, as it learns without bounds.
    TestFit cpu(problem, 2);
    cpu.run(22);
    const std::string poisoned = changed(problem, cpu.state(), [](dipengine::SlotState& s) { s.learning_rate = INFINITY; });

    TestFit company(device, nullptr, 3), sound(device, 5), lost(device, 2);
    company.start(0, device, 5);
    company.start(1, other, 6);
    company.set_parameters(std::vector<float>(company.parameters(1).size(), NAN), 1);
    company.start(2, device, 2);
    company.load(poisoned, 2);
    lost.load(poisoned);
    const std::vector<double> losses = company.run(4);
    sound.run(4);
    lost.run(4);
    CHECK(company.state(0) == sound.state() && company.state(2) == lost.state());
    CHECK(company.progress(2).rollbacks == 2 && company.progress(2).state == DIPENGINE_FIT_RUNNING);
    const dipengine_fit_progress failed = company.progress(1);
    CHECK(failed.state == DIPENGINE_FIT_FAILED && failed.reason == DIPENGINE_REASON_FIRST_LOSS && failed.iteration == 1);
    CHECK(std::isnan(losses[4]) && std::isfinite(losses[3]));

    // What the failed ones have left behind is no number; others have their slots.
    company.start(1, device, 11);
    company.start(2, other, 12);
    TestFit first(device, 11), second(other, 12);
    for (TestFit* fit : {&company, &first, &second}) fit->run(3);
    sound.run(3);
    CHECK(company.state(0) == sound.state() && company.state(1) == first.state() && company.state(2) == second.state());
    no_faults();
  }
}

TEST(fit_that_stops_keeps_its_own_best_state_in_company) {
  FitProblem problem = small_problem(DIPENGINE_FLOAT32);
  problem.params.stop = DIPENGINE_STOP_AUTO;
  problem.params.iterations = 400;
  problem.params.es_alpha = 0.1;
  const FitProblem device = on_device(problem);
  TestFit cpu(problem, 2);
  while (cpu.progress().state == DIPENGINE_FIT_RUNNING) cpu.run(1);
  const int64_t best = cpu.progress().delivered_iteration;
  CHECK(best > 2 && best < cpu.progress().iteration);
  cpu.start(0, problem, 2);
  cpu.run(best - 2);

  TestFit company(device, nullptr, 3), alone(device, 2), fresh(device, 8);
  for (const int32_t slot : {0, 2}) company.start(slot, device, 8);
  company.start(1, device, 2);
  for (TestFit* fit : {&company, &alone}) fit->load(cpu.state(), fit == &company ? 1 : 0);
  for (TestFit* fit : {&company, &alone, &fresh}) fit->run(4);
  CHECK(company.progress(1).iteration == best + 2 && company.progress(1).delivered_iteration == best);
  CHECK(company.state(1) == alone.state() && company.delivered(1) == alone.delivered());
  CHECK(company.delivered(1) != company.average(1));
  for (const int32_t slot : {0, 2}) CHECK(company.state(slot) == fresh.state());
  no_faults();
}
