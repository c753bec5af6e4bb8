// Cohorts: images of several sizes, one canvas, in the slots of one fit; each with the bits of a fit for it alone.
#include <algorithm>
#include <cstring>

#include "allocations.h"
#include "fit/fit.h"
#include "fit_problems.h"

using check::FitProblem;
using check::TestFit;
using check::TestPool;

namespace {

// As large as the canvas (24 x 32), as every image on it fits in.
FitProblem largest_of(const FitProblem& problem) { return check::resized(problem, 24, 32, 1); }

// Of every task, stopped by itself, so that the best state is kept and the residual looked at.
std::vector<FitProblem> stopping_tasks() {
  std::vector<FitProblem> tasks = check::every_task_and_precision();
  for (FitProblem& problem : tasks) {
    problem.params.stop = DIPENGINE_STOP_AUTO;
    problem.params.iterations = 34;
    if (problem.params.data_term == DIPENGINE_DATA_SQUARED && problem.params.operator_kind != DIPENGINE_OPERATOR_IDENTITY) {
      problem.params.sigma = 0.3;
    }
  }
  return tasks;
}

// All that can be had from a slot.
struct Shown {
  std::string state;
  std::vector<float> delivered, average, rendered, statistics;

  Shown(TestFit& fit, int32_t slot)
      : state(fit.state(slot)), delivered(fit.delivered(slot)), average(fit.average(slot)), rendered(fit.rendered(slot)),
        statistics(fit.parameters(slot).size()) {
    CHECK(dipengine_fit_statistics(fit.get(), slot, statistics.data()) == DIPENGINE_OK);
  }
  bool operator==(const Shown& other) const {
    return state == other.state && delivered == other.delivered && average == other.average && rendered == other.rendered &&
           statistics == other.statistics;
  }
};

// The losses of one slot in those of a run of so many iterations each, NaN left out.
std::vector<double> losses_of(const std::vector<double>& all, int32_t slot, int64_t iterations) {
  std::vector<double> losses(all.begin() + slot * iterations, all.begin() + (slot + 1) * iterations);
  losses.erase(std::remove_if(losses.begin(), losses.end(), [](double loss) { return std::isnan(loss); }), losses.end());
  return losses;
}

dipengine_status start_with(TestFit& fit, const FitProblem& problem, void (*change)(dipengine_fit_start_params& s)) {
  dipengine_fit_start_params start = problem.start(1);
  change(start);
  return dipengine_fit_start(fit.get(), 0, &start);
}

void have_the_bits_of_fits_alone(int32_t dtype) {
  for (const FitProblem& problem : stopping_tasks()) {
    if (problem.params.dtype != dtype) continue;
    const FitProblem first = check::resized(problem, 21, 30, 5), second = check::resized(problem, 24, 29, 6),
                     third = check::resized(problem, 22, 32, 7), last = check::resized(problem, 23, 31, 8);
    // Alone, each in a fit of its own size.
    TestFit alone(first, 1), alone_second(second, 2), alone_third(third, 3), alone_last(last, 4);
    std::vector<std::vector<double>> expected;
    std::vector<Shown> shown;
    for (TestFit* fit : {&alone, &alone_second, &alone_third, &alone_last}) {
      expected.push_back(losses_of(fit->run(34), 0, 34));
      shown.emplace_back(*fit, 0);
    }
    for (int threads : {1, 2, 3}) {
      TestPool pool(threads);
      TestFit company(largest_of(problem), pool.get(), 3);
      std::vector<double> losses[4];
      const auto run = [&](int64_t iterations, const std::vector<std::pair<int32_t, int>>& who) {
        const std::vector<double> all = company.run(iterations);
        for (const auto& [slot, index] : who) {
          const std::vector<double> more = losses_of(all, slot, iterations);
          losses[index].insert(losses[index].end(), more.begin(), more.end());
        }
      };
      company.start(2, first, 1);
      run(5, {{2, 0}});
      company.start(0, second, 2);
      run(9, {{2, 0}, {0, 1}});
      company.start(1, last, 99);  // given up half way
      run(3, {{2, 0}, {0, 1}});
      company.start(1, third, 3);
      run(34, {{2, 0}, {0, 1}, {1, 2}});
      CHECK(company.progress(2).state == DIPENGINE_FIT_DONE);
      CHECK(Shown(company, 2) == shown[0]);
      company.start(2, last, 4);
      run(34, {{2, 3}});
      CHECK(Shown(company, 0) == shown[1] && Shown(company, 1) == shown[2] && Shown(company, 2) == shown[3]);
      for (size_t i = 0; i < 4; ++i) CHECK(losses[i] == expected[i]);
      CHECK(company.progress(2).height == 23 && company.progress(2).width == 31);
    }
  }
}

}  // namespace

TEST(slots_with_sizes_of_their_own_have_the_bits_of_fits_alone_in_float32) { have_the_bits_of_fits_alone(DIPENGINE_FLOAT32); }
TEST(slots_with_sizes_of_their_own_have_the_bits_of_fits_alone_in_bfloat16) { have_the_bits_of_fits_alone(DIPENGINE_BFLOAT16); }

// Large images without unknown pixels, then small ones, and the other way round: nothing shines through.
TEST(what_ran_in_a_slot_before_leaves_no_trace) {
  for (const FitProblem& problem : stopping_tasks()) {
    FitProblem large = largest_of(problem), small = check::resized(problem, 21, 29, 5);
    TestFit fit(large, nullptr, 2);
    for (int round = 0; round < 2; ++round) {
      for (const FitProblem* next : {&large, &small}) {
        TestFit fresh(*next, 7);
        fit.start(0, *next, 7);
        CHECK(fit.state() == fresh.state());
        fit.run(22);
        fresh.run(22);
        CHECK(Shown(fit, 0) == Shown(fresh, 0));
      }
      small.mask.clear();
    }
  }
}

TEST(states_move_between_fits_of_one_canvas) {
  for (const FitProblem& problem : stopping_tasks()) {
    const FitProblem small = check::resized(problem, 22, 29, 5), large = largest_of(problem);
    TestFit alone(small, 7), company(large, nullptr, 2), back(small), other(large, 8);
    alone.run(13);
    company.start(0, large, 1);
    company.start(1, large, 2);
    company.run(3);
    company.load(alone.state(), 1);
    CHECK(company.state(1) == alone.state() && company.progress(1).height == 22 && company.progress(1).width == 29);
    company.run(8);
    alone.run(8);
    CHECK(Shown(company, 1) == Shown(alone, 0));
    back.load(company.state(1));
    CHECK(back.state() == alone.state());
    company.run(34);
    back.run(34);
    alone.run(34);
    CHECK(Shown(company, 1) == Shown(alone, 0) && Shown(back, 0) == Shown(alone, 0));
    // Its own weights kept, on another size.
    const std::vector<float> weights = alone.parameters();
    company.start(1, large, 8, true);
    other.set_parameters(weights);
    CHECK(company.state(1) == other.state());

    int64_t height = 0, width = 0;
    const std::string state = alone.state(), too_large = other.state(), before = back.state();
    CHECK(dipengine_fit_state_image(state.data(), state.size(), &height, &width) == DIPENGINE_OK && height == 22 && width == 29);
    CHECK(dipengine_fit_state_image(state.data(), state.size() - 1, &height, &width) == DIPENGINE_INVALID_ARGUMENT);
    CHECK(dipengine_fit_state_image(nullptr, 0, &height, &width) == DIPENGINE_INVALID_ARGUMENT);
    CHECK(dipengine_fit_load_state(back.get(), 0, too_large.data(), too_large.size()) == DIPENGINE_INVALID_ARGUMENT);
    CHECK(std::strstr(dipengine_last_error(), "24 x 32") != nullptr && back.state() == before);
  }
}

TEST(sizes_that_do_not_fit_in_are_refused) {
  for (const FitProblem& problem : check::every_task(DIPENGINE_FLOAT32)) {
    TestFit fit(check::resized(problem, 23, 31, 3), 5);
    const std::string before = fit.state();
    const FitProblem small = check::resized(problem, 22, 30, 4);
    struct Refused {
      void (*change)(dipengine_fit_start_params& s);
      const char* word;
    };
    const Refused all[] = {
        {[](auto& s) { s.height = 24; }, "room"},    {[](auto& s) { s.width = 32; }, "room"},
        {[](auto& s) { s.height = -1; }, "room"},    {[](auto& s) { s.width = INT64_MIN; }, "room"},
        {[](auto& s) { s.height = 20; }, "canvas"}, {[](auto& s) { s.width = 1; }, "canvas"},
        {[](auto& s) { s.height = INT64_MAX; }, "room"},
    };
    for (const Refused& refused : all) {
      CHECK(start_with(fit, small, refused.change) == DIPENGINE_INVALID_ARGUMENT);
      CHECK(std::strstr(dipengine_last_error(), refused.word) != nullptr);
    }
    if (problem.params.operator_kind != DIPENGINE_OPERATOR_IDENTITY) {
      CHECK(start_with(fit, small, [](auto& s) { s.data_height += 1; }) == DIPENGINE_INVALID_ARGUMENT);
      CHECK(start_with(fit, small, [](auto& s) { s.data_width = -1; }) == DIPENGINE_INVALID_ARGUMENT);
      CHECK(std::strstr(dipengine_last_error(), "operator gives") != nullptr);
    }
    CHECK(fit.state() == before);
  }
}

TEST(a_start_without_a_size_is_of_the_fits_own) {
  for (const FitProblem& problem : check::every_task(DIPENGINE_FLOAT32)) {
    TestFit fit(problem), told(problem, 1);
    CHECK(start_with(fit, problem, [](auto& s) { s.height = s.width = s.data_height = s.data_width = 0; }) == DIPENGINE_OK);
    CHECK(fit.state() == told.state() && fit.progress().height == 21 && fit.progress().width == 30);
  }
}

TEST(refilling_a_slot_allocates_nothing) {
  for (const FitProblem& problem : stopping_tasks()) {
    const FitProblem small = check::resized(problem, 22, 29, 5);
    for (int threads : {1, 3}) {
      TestPool pool(threads);
      TestFit fit(largest_of(problem), pool.get(), 2);
      fit.start(1, small, 3);
      const dipengine_fit_start_params start = small.start(4);
      dipengine_fit_run_params run{};
      run.struct_size = sizeof(run);
      run.iterations = 3;
      const int64_t before = check::allocations();
      CHECK(dipengine_fit_start(fit.get(), 0, &start) == DIPENGINE_OK && dipengine_fit_run(fit.get(), &run) == DIPENGINE_OK);
      CHECK(check::allocations() == before);
    }
  }
}

TEST(a_slot_beyond_repair_ends_alone) {
  for (const char* name : {"identity, fp32", "downsampling, bf16", "sensor, fp32"}) {
    const FitProblem problem = check::problem_named(name), small = check::resized(problem, 22, 29, 5);
    TestFit alone(small, 7), fresh(small, 8);
    alone.run(130);
    fresh.run(9);
    dipengine_fit_params params = largest_of(problem).params;
    params.slots = 2;
    std::unique_ptr<dipengine::Fit> fit;
    CHECK(dipengine::Fit::make(params, true, &fit) == DIPENGINE_OK);
    CHECK(fit->start(0, small.start(7)) == DIPENGINE_OK && fit->start(1, small.start(8)) == DIPENGINE_OK);
    dipengine_fit_run_params run{};
    run.iterations = 30;
    CHECK(fit->run(run) == DIPENGINE_OK);
    fit->slot(1).state().learning_rate = INFINITY;
    run.iterations = 100;
    CHECK(fit->run(run) == DIPENGINE_OK);
    CHECK(fit->progress(1).state == DIPENGINE_FIT_FAILED && fit->progress(1).reason == DIPENGINE_REASON_DIVERGED);
    const auto state = [&](int32_t slot) {
      std::string bytes(dipengine::state_bytes(fit->slot(slot)), '\0');
      CHECK(fit->save_state(slot, bytes.data(), bytes.size()) == DIPENGINE_OK);
      return bytes;
    };
    CHECK(fit->progress(0).iteration == 130 && state(0) == alone.state());
    CHECK(fit->start(1, small.start(8)) == DIPENGINE_OK);
    run.iterations = 9;
    CHECK(fit->run(run) == DIPENGINE_OK && state(1) == fresh.state());
  }
}

TEST(a_slot_can_sit_out) {
  const FitProblem problem = check::problem_named("identity, fp32");
  TestFit company(problem, nullptr, 3), alone(problem, 2);
  for (int32_t slot : {0, 1, 2}) company.start(slot, problem, static_cast<uint64_t>(slot) + 1);
  const std::string before = company.state(0);
  const uint8_t active[] = {0, 1, 0}, none[] = {0, 0, 0};
  std::vector<double> losses(12, NAN);
  dipengine_fit_run_params run{};
  run.struct_size = sizeof(run);
  run.iterations = 4;
  run.losses = losses.data();
  run.active = active;
  CHECK(dipengine_fit_run(company.get(), &run) == DIPENGINE_OK);
  CHECK(losses_of(losses, 1, 4) == alone.run(4) && losses_of(losses, 0, 4).empty());
  CHECK(company.state(1) == alone.state() && company.state(0) == before && company.progress(2).iteration == 0);
  run.active = none;
  CHECK(dipengine_fit_run(company.get(), &run) == DIPENGINE_OK && company.progress(1).iteration == 4);
}
