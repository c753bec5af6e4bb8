// Whole iterations on the emulated device: beside those of the CPU's plan from the same states, alone and in company, refilled,
// saved, rolled back, stopped.
#include <array>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <utility>

#include "device_fits.h"
#include "fit/cuda_plan.h"

using check::FitProblem;
using check::Size;
using check::TestFit;
using check::changed;
using check::distance;
using check::no_faults;
using check::on_cpu;
using check::on_device;
using check::small_problem;

namespace {

// No skip on one level, bilinear upsampling on the other, zero padding, a code that is stored, no 1x1 convolution behind.
FitProblem other_problem(int32_t dtype) {
  dipengine_fit_params p = check::small_params(dtype);
  p.height = 11;
  p.width = 16;
  p.code = DIPENGINE_CODE_MESHGRID;
  p.generator.input_depth = 2;
  p.generator.channels_skip[0] = 0;
  p.generator.upsample[1] = 2;
  p.generator.padding = 1;
  p.generator.one_by_one_up = 0;
  p.generator.output_channels = 1;
  p.deliver_average = 0;
  return check::problem_with("other", p, false);
}

std::vector<float> gradients(const TestFit& fit, const FitProblem& problem) {
  std::vector<float> values(static_cast<size_t>(dipengine_generator_parameters(&problem.params.generator)));
  CHECK(dipengine_fit_get_gradients(fit.get(), values.data()) == DIPENGINE_OK);
  return values;
}

// Whether the plan made last has one launch for both gradients of a layer, or none, where that is `expected`.
bool joint_launches(bool expected) {
#ifdef DIPENGINE_SILICON
  return true;
#else
  int64_t joint = 0;
  for (const dipengine::emulator::Recorded& launch : dipengine::emulator::last_recorded())
    joint += launch.name == std::string("conv_joint_gradients");
  return joint == (expected ? 1 : 0);
#endif
}

}  // namespace

TEST(fit_one_step_from_recorded_states_agrees_with_the_plan_on_a_cpu) {
  for (const auto& [other, size] : {std::pair{false, Size::small}, {true, Size::small}, {false, Size::middle}, {false, Size::large}}) {
    const check::AsOfSize as_of_size(size);
    for (const int32_t dtype : {DIPENGINE_FLOAT32, DIPENGINE_BFLOAT16}) {
      const FitProblem problem = other ? other_problem(dtype) : small_problem(dtype);
      const bool bfloat16 = dtype == DIPENGINE_BFLOAT16;
      TestFit cpu(problem, 7), device(on_device(problem), 7);
      CHECK(joint_launches(bfloat16 && size != Size::small));
      // Later the loss of an image this small is next to nothing, a percent of which is bf16's rounding of the output.
      for (const int64_t iterations : {0, 1, 6, 12, 14}) {
        cpu.run(iterations);
        device.load(cpu.state());
        const double expected = cpu.run(1)[0], got = device.run(1)[0];
        const double apart = distance(gradients(device, problem), gradients(cpu, problem));
        const double average = distance(device.average(), cpu.average());
        CHECK(std::fabs(got / expected - 1) <= (bfloat16 ? 1e-2 : 1e-3));
        // Near the kinks of a network this small, of all gradients; the test in Python holds each against float64.
        CHECK(apart <= (bfloat16 ? 0.3 : 0.06));
        CHECK(average <= (bfloat16 ? 1e-2 : 1e-3));
        const dipengine_fit_progress a = cpu.progress(), b = device.progress();
        CHECK(a.iteration == b.iteration && a.state == b.state && a.learning_rate == b.learning_rate);
        CHECK(std::fabs(a.variance - b.variance) <= 0.05 * a.variance);
      }
      no_faults();
    }
  }
}

TEST(fit_in_company_has_the_bits_that_it_has_alone) {
  for (const auto& [dtype, size] : {std::pair{DIPENGINE_FLOAT32, Size::small}, {DIPENGINE_BFLOAT16, Size::small},
                                    {DIPENGINE_BFLOAT16, Size::middle}, {DIPENGINE_BFLOAT16, Size::large}}) {
    const check::AsOfSize as_of_size(size);
    FitProblem problem = small_problem(dtype);
    problem.params.iterations = 4;
    const FitProblem device = on_device(problem);
    FitProblem unmasked = device.with_data(9);
    unmasked.mask.clear();
    const FitProblem tasks[] = {device, unmasked, device.with_data(5)};
    TestFit company(device, nullptr, 3);
    CHECK(joint_launches(size != Size::small));
    std::vector<std::string> alone;
    for (int32_t slot = 0; slot < 3; ++slot) {
      TestFit one(tasks[slot], static_cast<uint64_t>(slot) + 1);
      one.run(slot == 2 ? 2 : 4);
      alone.push_back(one.state());
      company.start(slot, tasks[slot], static_cast<uint64_t>(slot) + 1);
    }
    // The first two begin; the last joins them, while the second sits out; then they end one after the other.
    const uint8_t turns[][3] = {{1, 1, 0}, {1, 0, 1}, {0, 1, 0}, {1, 1, 0}, {1, 1, 0}, {1, 0, 1}};
    for (const auto& active : turns) {
      dipengine_fit_run_params run{};
      run.struct_size = sizeof(run);
      run.iterations = 1;
      run.active = active;
      CHECK(dipengine_fit_run(company.get(), &run) == DIPENGINE_OK);
    }
    for (int32_t slot = 0; slot < 3; ++slot) CHECK(company.state(slot) == alone[static_cast<size_t>(slot)]);
    CHECK(company.progress(0).state == DIPENGINE_FIT_DONE && company.progress(2).state == DIPENGINE_FIT_RUNNING);

    // A slot that is done is filled again, and the plan runs on as it was recorded.
    const FitProblem next = device.with_data(77);
    TestFit fresh(next, 21);
    const std::vector<double> expected = fresh.run(3);
    company.start(0, next, 21);
    const std::vector<double> losses = company.run(3);
    CHECK(company.state(0) == fresh.state() && company.state(1) == alone[1]);
    CHECK(std::vector<double>(losses.begin(), losses.begin() + 3) == expected);
    CHECK(std::isnan(losses[3]) && losses[7] == losses[7] && std::isnan(losses[8]));
    for (void* stream : dipengine::emulator::launched_on()) CHECK(stream != nullptr);
    no_faults();
  }
}

TEST(fit_slots_have_images_of_their_own_sizes) {
  const check::AsLarge as_large;
  FitProblem problem = small_problem(DIPENGINE_FLOAT32);
  problem.params.stop = DIPENGINE_STOP_AUTO;  // so that best states have places, too
  problem.params.hold_out = 0.5;              // and pixels held out, in those with a mask that leaves enough
  const FitProblem largest = on_device(check::resized(problem, 16, 16, 1));
  const FitProblem images[] = {on_device(check::resized(problem, 13, 16, 2)), largest, on_device(check::resized(problem, 14, 13, 3))};
  TestFit company(largest, nullptr, 3);
  for (const bool again : {false, true}) {  // and a slot for an image of another size
    for (int32_t slot = 0; slot < 3; ++slot) company.start(again ? 2 - slot : slot, images[slot], 4);
    company.run(2);
    for (int32_t slot = 0; slot < 3; ++slot) {
      const int32_t at = again ? 2 - slot : slot;
      TestFit alone(images[slot], 4), cpu(on_cpu(images[slot]), 4);
      alone.run(2);
      CHECK(company.state(at) == alone.state() && company.average(at) == alone.average());
      CHECK(company.rendered(at) == alone.rendered());
      cpu.load(company.state(at));
      CHECK(distance(cpu.rendered(), company.rendered(at)) < 0.02);
      company.load(cpu.state(), at);
      CHECK(company.state(at) == alone.state());
    }
  }
  no_faults();
}

// The same call with the image, the mask or both in the device's memory, and images written there.
TEST(fit_takes_and_gives_images_in_the_memory_of_its_device) {
  using dipengine::emulator::Array;
  FitProblem problem = small_problem(DIPENGINE_BFLOAT16);
  problem.params.stop = DIPENGINE_STOP_AUTO;
  problem.params.iterations = 3;
  problem.params.hold_out = 0.5;
  const FitProblem own = on_device(check::resized(problem, 13, 16, 2));  // rows of its own length in a block for a larger image
  const FitProblem largest = on_device(check::resized(problem, 16, 16, 1)), other = on_device(other_problem(DIPENGINE_FLOAT32));
  for (const auto& [shape, image] : {std::array<const FitProblem*, 2>{&largest, &own}, {&other, &other}}) {
    TestFit host(*shape), fit(*shape);
    host.start(0, *image, 7);
    Array<float> target(image->target), mask(image->mask);
    for (int which = 1; which < (image->mask.empty() ? 2 : 4); ++which) {
      dipengine_fit_start_params s = image->start(7);
      if (which & 1) s.target = target.data();
      if (which & 2) s.mask = mask.data();
      CHECK(dipengine_fit_start(fit.get(), 0, &s) == DIPENGINE_OK);
      CHECK(fit.state() == host.state());
    }
    host.run(3);
    fit.run(3);
    CHECK(fit.state() == host.state());
    Array<float> painted(image->painted());
    CHECK(dipengine_fit_deliver(fit.get(), 0, painted.data(), nullptr, nullptr) == DIPENGINE_OK);
    CHECK(painted.copy() == host.delivered() && painted.intact());
    CHECK(dipengine_fit_average(fit.get(), 0, painted.data()) == DIPENGINE_OK && painted.copy() == host.average());
    CHECK(dipengine_fit_render(fit.get(), 0, painted.data()) == DIPENGINE_OK && painted.copy() == host.rendered());
    std::vector<float> parameters(host.parameters().size());
    int64_t iteration = 0;
    CHECK(dipengine_fit_deliver(fit.get(), 0, painted.data(), parameters.data(), &iteration) == DIPENGINE_OK);
    CHECK(painted.copy() == host.delivered() && iteration == host.progress().delivered_iteration);
    no_faults();
  }
}

TEST(fit_looks_at_what_it_is_given_in_the_memory_of_its_device) {
  using dipengine::emulator::Array;
  const FitProblem problem = on_device(small_problem(DIPENGINE_FLOAT32));
  TestFit fit(problem, 3);
  fit.run(1);
  const std::string before = fit.state();
  Array<float> target(problem.target), mask(problem.mask);
  dipengine_fit_start_params s = problem.start(3);
  s.target = target.data();
  s.mask = mask.data();
  const auto refuses = [&](const char* words) {
    CHECK(dipengine_fit_start(fit.get(), 0, &s) == DIPENGINE_INVALID_ARGUMENT);
    CHECK(std::strstr(dipengine_last_error(), words) != nullptr && fit.state() == before);
  };
  const float kept = target[5];
  for (const float wrong : {NAN, INFINITY, -INFINITY}) {
    target[5] = wrong;
    refuses("not finite");
  }
  target[5] = kept;
  mask[7] = 0.5f;
  refuses("neither; it is of zeros and ones");
  for (int64_t i = 0; i < mask.size(); ++i) mask[i] = 0;
  refuses("leaves no pixel known");
  s.mask = nullptr;
  s.code = target.data();
  refuses("started with one");
  s.code = nullptr;
  CHECK(dipengine_fit_start(fit.get(), 0, &s) == DIPENGINE_OK);
  no_faults();
}

TEST(fit_states_go_from_a_device_to_a_cpu_and_back) {
  for (const FitProblem& problem : {small_problem(DIPENGINE_BFLOAT16), other_problem(DIPENGINE_FLOAT32)}) {
    TestFit cpu(problem, 3), device(on_device(problem), 3), again(on_device(problem), 4);
    CHECK(device.state() == cpu.state());  // equal from the first byte to the last: the initial weights too
    CHECK(device.parameters() == cpu.parameters());
    cpu.run(5);
    const std::string recorded = cpu.state();
    device.load(recorded);
    CHECK(device.state() == recorded);
    device.run(2);
    const std::string later = device.state();
    cpu.load(later);
    CHECK(cpu.state() == later && cpu.average() == device.average() && cpu.parameters() == device.parameters());
    again.load(later);
    device.run(2);
    again.run(1);
    again.run(1);
    CHECK(again.state() == device.state());

    std::vector<float> weights = device.parameters();
    for (float& w : weights) w *= 0.5f;
    device.set_parameters(weights);
    cpu.load(device.state());
    CHECK(device.parameters() == weights && distance(device.rendered(), cpu.rendered()) < 0.02);
    CHECK(distance(device.delivered(), cpu.delivered()) < 0.02);
    std::vector<float> ours(weights.size()), theirs(weights.size());
    CHECK(dipengine_fit_statistics(device.get(), 0, ours.data()) == DIPENGINE_OK);
    CHECK(dipengine_fit_statistics(cpu.get(), 0, theirs.data()) == DIPENGINE_OK);
    CHECK(distance(ours, theirs) < 0.02);
    const std::string before = device.state();
    for (TestFit* fit : {&cpu, &device}) fit->start(0, problem, 9, true);  // a new target on the old weights
    CHECK(device.state() == cpu.state() && device.parameters() == weights);
    device.load(before);
    std::string damaged = later;
    damaged[damaged.size() / 2] ^= 1;
    CHECK(dipengine_fit_load_state(device.get(), 0, damaged.data(), damaged.size()) == DIPENGINE_INVALID_ARGUMENT);
    CHECK(device.parameters() == weights);
    no_faults();
  }
}

TEST(fit_step_by_step_and_replayed_gives_the_same_bits) {
  const FitProblem problem = on_device(small_problem(DIPENGINE_BFLOAT16));
  TestFit replayed(problem, 3), stepped(problem, 3);
  std::vector<double> seconds(static_cast<size_t>(dipengine_fit_steps(stepped.get())), 0.0);
  dipengine_fit_run_params run{};
  run.struct_size = sizeof(run);
  run.iterations = 3;
  run.step_seconds = seconds.data();
  CHECK(dipengine_fit_run(stepped.get(), &run) == DIPENGINE_OK);
  replayed.run(3);
  CHECK(stepped.state() == replayed.state());
  for (double second : seconds) CHECK(second > 0);
}

// What large images do, whose iterations have no branches.
TEST(fit_with_and_without_branches_gives_the_same_bits) {
  std::vector<FitProblem> problems = check::every_task(DIPENGINE_BFLOAT16);
  for (FitProblem problem : check::every_task(DIPENGINE_BFLOAT16)) {  // a branch of skips without any
    for (int32_t level = 0; level < problem.params.generator.levels; ++level) problem.params.generator.channels_skip[level] = 0;
    problems.push_back(std::move(problem));
  }
  for (size_t which = 0; which < 2 * problems.size(); ++which) {
    const check::AsOfSize as_of_size(which % 2 == 0 ? Size::small : Size::middle);
    const FitProblem problem = on_device(check::resized(problems[which / 2], 22, 29, 5));
    TestFit branched(problem, 3);
    CHECK(joint_launches(which % 2 == 1 && problem.params.generator.one_by_one_up != 0));
    const int64_t most = std::exchange(dipengine::most_branched_pixels, 0);
    TestFit straight(problem, 3);
    dipengine::most_branched_pixels = most;
    branched.run(3);
    straight.run(3);
    CHECK(branched.state() == straight.state() && gradients(branched, problem) == gradients(straight, problem));
    CHECK(dipengine_fit_arena_bytes(straight.get()) < dipengine_fit_arena_bytes(branched.get()));
    no_faults();
  }
}

// What is formed where no launch has both gradients, as on a device of little shared memory: with branches and without.
TEST(fit_forms_a_gradient_for_two_launches_where_none_has_both) {
  const check::AsOfSize as_of_size(Size::middle);
  dipengine_fit_params p = check::small_params(DIPENGINE_BFLOAT16);
  p.generator.channels_up[0] = 72;  // more than 64 take more of it
  const FitProblem problem = on_device(check::problem_with("wide", p, false));
  TestFit joint(problem, 3);
  CHECK(joint_launches(true));
  joint.run(1);
#ifndef DIPENGINE_SILICON
  dipengine::emulator::settings().shared_limit = 72 * 1024;
#endif
  std::vector<std::string> states;
  for (const int64_t most_branched : {int64_t{0}, dipengine::most_branched_pixels}) {
    const int64_t branched = std::exchange(dipengine::most_branched_pixels, most_branched);
    TestFit apart(problem, 3);
    dipengine::most_branched_pixels = branched;
#ifndef DIPENGINE_SILICON
    CHECK(joint_launches(false));
#endif
    apart.run(1);
    CHECK(distance(gradients(apart, problem), gradients(joint, problem)) <= 0.02);
    apart.run(2);
    states.push_back(apart.state());
  }
  CHECK(states[0] == states[1]);
  no_faults();
#ifndef DIPENGINE_SILICON
  dipengine::emulator::settings() = dipengine::emulator::Settings{};
#endif
}

// What large images do: operands that many blocks read are made once.
TEST(fit_with_operands_made_beforehand_has_the_same_bits) {
  for (FitProblem problem : check::every_task(DIPENGINE_BFLOAT16)) {
    problem = on_device(check::resized(problem, 22, 29, 5));
    for (const int64_t most_branched : {int64_t{0}, dipengine::most_branched_pixels}) {
      const int64_t branched = std::exchange(dipengine::most_branched_pixels, most_branched);
      TestFit while_loading(problem, 3);
      const int64_t least = std::exchange(dipengine::least_formed_pixels, 0);
      TestFit beforehand(problem, 3);
      dipengine::least_formed_pixels = least;
      dipengine::most_branched_pixels = branched;
#ifndef DIPENGINE_SILICON
      std::map<std::string, int64_t> kinds;
      for (const dipengine::emulator::Recorded& launch : dipengine::emulator::last_recorded()) ++kinds[launch.name];
      int64_t formed = 0;  // units
      for (int32_t level = 0; level < problem.params.generator.levels; ++level)
        formed += problem.params.generator.upsample[level] == DIPENGINE_UPSAMPLE_NEAREST;
      CHECK(kinds["conv_input_operand"] == formed && kinds["conv_gradient_operand"] == formed);
#endif
      while_loading.run(3);
      beforehand.run(3);
      CHECK(while_loading.state() == beforehand.state() && gradients(while_loading, problem) == gradients(beforehand, problem));
      no_faults();
    }
  }
}

// An operand of more bytes than the raw whose place it takes on a large canvas.
TEST(fit_whose_operand_is_larger_than_its_raw_has_a_place_for_it) {
  for (const int32_t below : {32, 256}) {  // a quarter of the pixels of 8 channels
    dipengine_fit_params p = check::small_params(DIPENGINE_BFLOAT16);
    p.generator.channels_up[1] = below;
    const FitProblem problem = on_device(check::problem_with("wide below", p, false));
    const check::AsLarge as_large;
    TestFit beforehand(problem, 3);
    dipengine::least_formed_pixels = INT64_MAX;
    TestFit while_loading(problem, 3);
    while_loading.run(3);
    beforehand.run(3);
    CHECK(while_loading.state() == beforehand.state() && gradients(while_loading, problem) == gradients(beforehand, problem));
    no_faults();
  }
}

TEST(fit_memory_on_a_device_is_known_before_it_is_taken) {
  FitProblem problem = on_device(small_problem(DIPENGINE_BFLOAT16));
  size_t bytes[4] = {};
  for (int32_t slots : {1, 2, 3}) {
    problem.params.slots = slots;
    CHECK(dipengine_fit_memory(&problem.params, &bytes[slots]) == DIPENGINE_OK);
    TestFit fit(problem, nullptr, slots);
    CHECK(dipengine_fit_arena_bytes(fit.get()) == bytes[slots]);
#if !defined(DIPENGINE_SILICON)  // a GPU gives no account of its memory to the byte
    CHECK(dipengine::emulator::allocated() == bytes[slots]);
#endif
  }
#if !defined(DIPENGINE_SILICON)
  CHECK(dipengine::emulator::allocated() == 0);
  // Where there is too little, that is said, nothing stays, and what there is room for runs.
  dipengine::emulator::settings().memory = bytes[2];
  dipengine_fit* none = nullptr;
  CHECK(dipengine_fit_create(&problem.params, &none) == DIPENGINE_OUT_OF_RESOURCES && none == nullptr);
  CHECK(std::strstr(dipengine_last_error(), "bytes free") != nullptr && dipengine::emulator::allocated() == 0);
  {
    TestFit fit(problem, nullptr, 2);
    fit.start(1, problem, 3);
    CHECK(std::isfinite(fit.run(1)[1]));
  }
  dipengine::emulator::settings() = dipengine::emulator::Settings{};
#endif
  CHECK(bytes[1] < bytes[2] && bytes[2] < bytes[3] && bytes[3] < 3 * bytes[1] + 4096);
}

// Two iterations: the second is of weights that the first's gradients have made.
TEST(fit_of_every_task_agrees_with_the_plan_on_a_cpu_and_has_its_bits_among_others) {
  std::vector<std::pair<FitProblem, bool>> cases;
  for (const FitProblem& problem : check::every_task(DIPENGINE_FLOAT32)) {
    for (const bool large : {false, true}) cases.emplace_back(problem, large);
  }
  for (const auto& [problem, large] : cases) {
    const check::AsLarge as_large(large);
    const FitProblem small = check::resized(problem, 22, 29, 5), largest = check::resized(problem, 24, 32, 6);
    TestFit cpu(small, 3), alone(on_device(small), 3), company(on_device(largest), nullptr, 2);
    company.start(0, on_device(largest), 8);
    company.start(1, on_device(small), 3);
    for (int i = 0; i < 2; ++i) {
      const double expected = cpu.run(1)[0], got = alone.run(1)[0];
      company.run(1);
      CHECK(std::fabs(got / expected - 1) <= 2e-3);
      CHECK(distance(gradients(alone, small), gradients(cpu, small)) <= 0.2);  // see above
      CHECK(distance(alone.average(), cpu.average()) <= 2e-3);
      cpu.load(alone.state());
    }
    CHECK(company.state(1) == alone.state());
    no_faults();
  }
}

// The paper's network on the canvas of 15.4 megapixels; EMULATOR_PLANS in the environment lists what its memory is.
TEST(fit_memory_of_fifteen_megapixels_is_what_a_gpu_is_to_hold) {
  dipengine_fit_params p;
  dipengine_fit_default_params(&p);
  p.device = DIPENGINE_DEVICE_CUDA;
  p.dtype = DIPENGINE_BFLOAT16;
  p.height = 3904;
  p.width = 3968;
  std::unique_ptr<dipengine::Fit> fit;
  CHECK(dipengine::Fit::make(p, false, &fit) == DIPENGINE_OK);
  const dipengine::Graph& graph = fit->graph();
  const double pixels = static_cast<double>(p.height * p.width);
  CHECK(static_cast<double>(fit->arena_bytes()) <= 1.05e3 * pixels);  // 1.2 GB a megapixel are asked for
  if (std::getenv("EMULATOR_PLANS") == nullptr) return;
  std::vector<std::pair<std::string, int>> buffers{{"logits", graph.logits}, {"d_logits", graph.d_logits}};
  for (const dipengine::Node& node : graph.nodes) {
    buffers.insert(buffers.end(), {{node.name, node.raw}, {node.name + " again", node.raw_again}, {node.name + " gradient", node.gradient}});
  }
  for (const dipengine::Step& step : graph.steps) buffers.emplace_back("workspace", step.workspace);
  for (const dipengine::Unit& unit : graph.units) {
    buffers.insert(buffers.end(), {{unit.name + " operand", unit.operand}, {unit.name + " operand again", unit.operand_again}});
  }
  const auto alive = [&](int buffer, size_t step) { return buffer >= 0 && graph.arena.alive(buffer, static_cast<int>(step)); };
  for (size_t step = 0; step < graph.steps.size(); ++step) {
    double sum = 0;
    std::string list;
    std::set<int> counted;
    for (const auto& [name, buffer] : buffers) {
      if (!alive(buffer, step) || !counted.insert(buffer).second) continue;
      const double bytes = static_cast<double>(graph.arena.size(buffer)) / pixels;
      sum += bytes;
      list += ", " + name + " " + std::to_string(bytes);
    }
    std::printf("%s: %.1f bytes a pixel beside the slot%s\n", graph.steps[step].name.c_str(), sum, list.c_str());
  }
  std::printf("in all %.1f bytes a pixel, at least %.1f\n", static_cast<double>(fit->arena_bytes()) / pixels,
              static_cast<double>(graph.arena.largest_sum()) / pixels);
}

TEST(fit_on_a_device_refuses_what_no_device_takes) {
  FitProblem problem = on_device(small_problem(DIPENGINE_FLOAT32));
  for (const auto& [device, index, slots] : {std::array<int32_t, 3>{2, 0, 1}, {1, -1, 1}, {1, 0, 65536}}) {
    problem.params.device = device;
    problem.params.device_index = index;
    problem.params.slots = slots;
    size_t bytes = 0;
    CHECK(dipengine_fit_memory(&problem.params, &bytes) == DIPENGINE_INVALID_ARGUMENT);
  }
}
