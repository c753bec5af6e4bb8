// Fits: first losses, bits, slots, states.
#include <algorithm>
#include <cstring>
#include <thread>

#include "fit_problems.h"

using check::FitProblem;
using check::TestFit;
using check::TestPool;

namespace {

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
    problem.params.iterations = 40;
    TestFit fit(problem, 7), other(problem.with_data(8), 9), fresh(problem);
    fit.run(25);
    const std::string state = fit.state();
    other.run(2);
    for (TestFit* next : {&other, &fresh}) {
      next->load(state);
      CHECK(next->state() == state && next->progress().iteration == 25);
    }
    const std::vector<double> losses = fit.run(40);
    for (TestFit* next : {&other, &fresh}) {
      const std::vector<double> theirs = next->run(40);
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
  const FitProblem problem = check::problem_named("mask, fp32");
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

TEST(weights_and_the_seed_of_z_begin_a_fit_with_the_generator_of_another) {
  for (const char* name : {"identity, fp32", "downsampling, bf16"}) {
    const FitProblem problem = check::problem_named(name);
    TestFit first(problem, 5), second(problem.with_data(8), 6), third(problem, 6);
    first.run(7);
    const std::vector<float> shown = first.rendered(), weights = first.parameters();
    second.set_parameters(weights);
    CHECK(second.rendered() != shown);  // another z
    CHECK(dipengine_fit_set_code_seed(second.get(), 0, 5) == DIPENGINE_OK);
    CHECK(second.rendered() == shown && second.progress().iteration == 0);
    // The state knows of it; a new start forgets it.
    const std::string state = second.state();
    second.run(4);
    third.load(state);
    CHECK(third.rendered() == shown);
    third.run(4);
    CHECK(third.state() == second.state());
    third.start(0, problem, 6);
    CHECK(third.state() == TestFit(problem, 6).state());
  }
  for (const char* name : {"mask, fp32", "sensor, fp32"}) {  // a meshgrid and an image
    TestFit fit(check::problem_named(name), 5);
    const std::string before = fit.state();
    CHECK(dipengine_fit_set_code_seed(fit.get(), 0, 5) == DIPENGINE_INVALID_ARGUMENT && fit.state() == before);
  }
}

TEST(a_slot_stops_after_its_own_patience) {
  FitProblem problem = check::problem_named("identity, fp32");
  problem.params.stop = DIPENGINE_STOP_AUTO;
  problem.params.iterations = 400;
  dipengine_stop_rule rule;
  dipengine_fit_stop_rule(400, problem.params.average_decay, &rule);
  TestFit patient(problem, 5), hasty(problem, 5), again(problem, 5);
  CHECK(dipengine_fit_set_patience(hasty.get(), 0, 30) == DIPENGINE_OK);
  again.load(hasty.state());
  for (TestFit* fit : {&patient, &hasty, &again}) fit->run(400);
  CHECK(patient.progress().reason == DIPENGINE_REASON_VARIANCE && hasty.progress().reason == DIPENGINE_REASON_VARIANCE);
  CHECK(hasty.progress().iteration < patient.progress().iteration && again.state() == hasty.state());
  CHECK(hasty.progress().delivered_iteration < hasty.progress().iteration);
  // Until then they are the same fit: the patient one has its minimum where the hasty one had it, or later.
  CHECK(hasty.progress().iteration <= patient.progress().iteration - rule.patience + 30);
  hasty.start(0, problem, 5);
  hasty.run(400);
  CHECK(hasty.state() == patient.state());
}

TEST(slots_stop_by_the_noise_of_their_own_images) {
  for (const char* name : {"identity, fp32", "blur, fp32"}) {
    FitProblem problem = check::problem_named(name);
    problem.params.stop = DIPENGINE_STOP_AUTO;
    problem.params.iterations = 200;
    problem.params.data_term = DIPENGINE_DATA_SQUARED;
    FitProblem weak = problem, strong = problem;
    weak.params.sigma = 0.25;
    strong.params.sigma = 0.35;
    TestFit alone_weak(weak, 5), alone_strong(strong, 5);
    TestFit company(weak, nullptr, 2);
    for (int32_t slot : {0, 1}) company.start(slot, problem, 5);
    CHECK(dipengine_fit_set_sigma(company.get(), 1, 0.35) == DIPENGINE_OK);
    for (TestFit* fit : {&alone_weak, &alone_strong, &company}) fit->run(200);
    CHECK(company.state(0) == alone_weak.state() && company.state(1) == alone_strong.state());
    CHECK(company.progress(1).reason == DIPENGINE_REASON_DISCREPANCY);
    CHECK(company.progress(1).iteration < company.progress(0).iteration);
    company.start(1, problem, 5);  // the fit's own again
    company.run(200);
    CHECK(company.state(1) == alone_weak.state());
    for (const double bad : {0.0, -1.0, static_cast<double>(NAN), static_cast<double>(INFINITY)}) {
      CHECK(dipengine_fit_set_sigma(company.get(), 1, bad) == DIPENGINE_INVALID_ARGUMENT);
    }
    TestFit blind(problem, 5), counting(check::problem_named("sensor, fp32"), 5);
    for (TestFit* fit : {&blind, &counting}) {
      CHECK(dipengine_fit_set_sigma(fit->get(), 0, 0.1) == DIPENGINE_INVALID_ARGUMENT);
      CHECK(std::strstr(dipengine_last_error(), "knows no Gaussian noise") != nullptr);
    }
  }
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
