// Fits that keep some known pixels out, whose error says when to stop.
#include <algorithm>

#include "fit_problems.h"
#include "ops/philox/philox.h"

using check::FitProblem;
using check::TestFit;

namespace {

constexpr double kShare = 0.3;
constexpr int64_t kPatience = 40;  // of 400 iterations and fewer

// By itself after 400 iterations at most; its average looks back over five outputs, so that the error wavers.
FitProblem holding_out(const char* name, double share = kShare) {
  FitProblem problem = check::problem_named(name);
  problem.params.stop = DIPENGINE_STOP_AUTO;
  problem.params.iterations = 400;
  problem.params.average_decay = 0.8;
  problem.params.hold_out = share;
  return problem;
}

// What the header says: those of the known pixels whose uniform lies below the share, in rows.
std::vector<float> held_of(const FitProblem& problem, uint64_t seed) {
  std::vector<float> held(static_cast<size_t>(problem.data_height() * problem.data_width()));
  dipengine_philox_params draw{sizeof(draw), nullptr, seed, 5, 0, static_cast<int64_t>(held.size()), held.data()};
  CHECK(dipengine_philox_uniform(&draw) == DIPENGINE_OK);
  for (size_t i = 0; i < held.size(); ++i) {
    const bool known = problem.mask.empty() || problem.mask[i] == 1.0f;
    held[i] = known && static_cast<double>(held[i]) < problem.params.hold_out ? 1.0f : 0.0f;
  }
  return held;
}

int64_t count(const std::vector<float>& mask) { return std::count(mask.begin(), mask.end(), 1.0f); }

// The same fit that was never told of those pixels, and never stops.
FitProblem without(const FitProblem& problem, const std::vector<float>& held) {
  FitProblem blind = problem;
  blind.params.stop = DIPENGINE_STOP_FIXED;
  blind.params.hold_out = 0;
  if (blind.mask.empty()) blind.mask.assign(held.size(), 1.0f);
  for (size_t i = 0; i < held.size(); ++i) blind.mask[i] -= held[i];
  return blind;
}

double error(const FitProblem& problem, const std::vector<float>& held, const std::vector<float>& image) {
  const size_t channels = static_cast<size_t>(problem.channels());
  double sum = 0;
  for (size_t i = 0; i < image.size(); ++i) {
    const double d = static_cast<double>(image[i]) - static_cast<double>(problem.target[i]);
    sum += held[i / channels] * d * d;
  }
  return sum / static_cast<double>(count(held) * problem.channels());
}

}  // namespace

TEST(a_fit_is_not_shown_the_pixels_that_it_holds_out) {
  for (const char* name : {"identity, fp32", "identity, bf16", "mask, fp32", "mask, bf16"}) {
    const FitProblem problem = holding_out(name);
    const std::vector<float> held = held_of(problem, 5);
    TestFit fit(problem, 5), blind(without(problem, held), 5), seeing(without(problem, std::vector<float>(held.size())), 5);
    CHECK(fit.progress().held_out == count(held) && blind.progress().held_out == 0);
    // Nor does it matter what stands there.
    FitProblem other = problem;
    const size_t channels = static_cast<size_t>(problem.channels());
    for (size_t i = 0; i < other.target.size(); ++i) other.target[i] = held[i / channels] == 1.0f ? 0.5f : other.target[i];
    TestFit otherwise(other, 5);
    const std::vector<double> losses = fit.run(12);
    CHECK(losses == blind.run(12) && losses == otherwise.run(12) && losses != seeing.run(12));
    CHECK(fit.average() == blind.average() && fit.parameters() == otherwise.parameters());
  }
}

// The rule once more, of averages looked at from outside; behind it a fit of all pixels that begins with that state.
TEST(a_fit_goes_on_from_where_it_is_nearest_to_the_pixels_that_it_holds_out) {
  for (const char* name : {"identity, fp32", "mask, fp32", "mask, bf16"}) {
    const FitProblem problem = holding_out(name);
    const std::vector<float> held = held_of(problem, 5);
    TestFit fit(problem, 5), watched(without(problem, held), 5);
    fit.run(400);
    double lowest = INFINITY;
    int64_t minimum = 0, low = 0, iteration = 0;
    std::vector<float> best, weights;
    dipengine_stop_rule rule;
    dipengine_fit_stop_rule(400, problem.params.average_decay, &rule);
    CHECK(rule.patience == kPatience && rule.lag == 5);
    while (iteration < 400 && !(minimum > 0 && iteration - low >= kPatience)) {
      watched.run(1);
      ++iteration;
      if (iteration % 5 == 0 && iteration > rule.warm_up) {
        const double now = error(problem, held, watched.average());
        if (now < lowest) {
          lowest = now;
          minimum = iteration;
        }
        if (now <= 1.05 * lowest) low = iteration;
      }
      if (minimum > 0 && iteration == minimum + 5) {
        best = watched.average();
        weights = watched.parameters();
      }
    }
    const dipengine_fit_progress end = fit.progress();
    CHECK(iteration < 360 && end.iteration == iteration + 40);
    CHECK(end.reason == DIPENGINE_REASON_HELD_OUT && end.delivered_iteration == end.iteration && end.rollbacks == 0);
    CHECK(fit.delivered() == fit.average());
    TestFit shown(problem, 5);
    shown.run(iteration);
    CHECK(shown.average() == best && shown.parameters() == weights && shown.progress().delivered_iteration == iteration);
    // Its next loss is one over all pixels, that of a fit which saw them from the beginning.
    TestFit seeing(without(problem, std::vector<float>(held.size())), 5);
    seeing.run(iteration);
    seeing.set_parameters(weights);
    CHECK(shown.run(1) == seeing.run(1));
    // What stood there counts now.
    CHECK(error(problem, held, fit.delivered()) < error(problem, held, best));
  }
}

// The level of its loss is a new one, and so is the snapshot that it goes back to.
TEST(a_fit_that_was_shown_all_pixels_goes_back_to_no_earlier_state) {
  FitProblem problem = holding_out("mask, fp32");
  problem.params.iterations = 99;
  TestFit fit(problem, 5);
  fit.run(90);  // shown behind it, nine before the end
  const std::vector<float> best = fit.parameters();
  fit.run(1);
  CHECK(fit.progress().rollbacks == 0 && fit.parameters() != best);
  std::vector<float> poisoned = best;
  poisoned[0] = NAN;
  fit.set_parameters(poisoned);
  fit.run(1);
  CHECK(fit.progress().rollbacks == 1 && fit.parameters() == best);
}

TEST(a_fit_at_its_ceiling_sees_all_pixels_before_it_ends) {
  for (const int64_t ceiling : {1, 7, 30, 60, 99}) {
    FitProblem problem = holding_out("mask, fp32");
    problem.params.iterations = ceiling;
    const std::vector<float> held = held_of(problem, 5);
    TestFit fit(problem, 5), seeing(without(problem, std::vector<float>(held.size())), 5);
    const int64_t shown = std::max<int64_t>(ceiling - std::max<int64_t>(ceiling / 10, 1), 1);
    fit.run(shown);
    seeing.run(shown);
    seeing.set_parameters(fit.parameters());
    if (ceiling > 1) CHECK(fit.run(1) == seeing.run(1));
    fit.run(ceiling);
    CHECK(fit.progress().reason == DIPENGINE_REASON_ITERATIONS && fit.progress().iteration == ceiling);
    CHECK(fit.progress().delivered_iteration == ceiling && fit.delivered() == fit.average());
  }
}

TEST(a_fit_with_too_few_pixels_to_hold_out_goes_by_the_variance) {
  for (const char* name : {"identity, fp32", "mask, fp32"}) {
    FitProblem problem = holding_out(name, 0.1), plain = problem;
    plain.params.hold_out = 0;
    if (count(held_of(problem, 5)) >= 64) problem.params.hold_out = 0.05;
    const int64_t held = count(held_of(problem, 5));
    CHECK(held > 0 && held < 64);
    TestFit fit(problem, 5), other(plain, 5);
    CHECK(fit.progress().held_out == 0);
    CHECK(fit.run(30) == other.run(30) && fit.average() == other.average());
    fit.run(400);
    other.run(400);
    CHECK(fit.progress().reason == other.progress().reason && fit.progress().iteration == other.progress().iteration);
    CHECK(fit.progress().reason != DIPENGINE_REASON_HELD_OUT && fit.delivered() == other.delivered());
  }
  // Of so few none must be left for the fit.
  FitProblem problem = holding_out("mask, fp32", 0.5);
  std::fill(problem.mask.begin() + 70, problem.mask.end(), 0.0f);
  CHECK(TestFit(problem, 5).progress().held_out == 0);
}

TEST(slots_hold_out_pixels_of_their_own) {
  const FitProblem problem = holding_out("mask, fp32");
  const FitProblem largest = check::resized(problem, 24, 32, 1), small = check::resized(problem, 22, 29, 2);
  TestFit company(largest, nullptr, 2), alone_large(largest, 7), alone_small(small, 8);
  company.start(0, largest, 7);
  company.start(1, small, 8);
  for (TestFit* fit : {&company, &alone_large, &alone_small}) fit->run(20);
  CHECK(company.progress(1).held_out == count(held_of(small, 8)));
  CHECK(company.state(0) == alone_large.state() && company.state(1) == alone_small.state());
  // Saved with the state: another slot goes on, whatever it held out.
  TestFit later(small, 9);
  later.load(company.state(1));
  later.run(400);
  alone_small.run(400);
  CHECK(later.state() == alone_small.state() && later.progress().held_out == alone_small.progress().held_out);
  // Without a draw nothing is held out, and nothing of an earlier one stays.
  company.start(1, largest, 7);
  company.run(20);
  CHECK(company.state(1) == alone_large.state());
}

TEST(pixels_of_measured_data_can_be_held_out) {
  FitProblem problem = check::resized(holding_out("blur, fp32"), 21, 30, 3);
  const std::vector<float> held = held_of(problem, 5);
  TestFit fit(problem, 5), blind(without(problem, held), 5);
  CHECK(fit.progress().held_out == count(held));
  const std::vector<double> losses = fit.run(30);
  CHECK(losses == blind.run(30));
  fit.run(400);
  CHECK(fit.progress().state == DIPENGINE_FIT_DONE);
}
