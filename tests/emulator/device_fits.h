// What the tests of fits on the emulated device share.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "emulator.h"
#include "fit/fit.h"
#include "fit_problems.h"

namespace check {

inline FitProblem on_device(FitProblem problem) {
  problem.params.device = DIPENGINE_DEVICE_CUDA;
  return problem;
}

inline FitProblem on_cpu(FitProblem problem) {
  problem.params.device = DIPENGINE_DEVICE_CPU;
  return problem;
}

// An image of 14 x 15 on a canvas of 16 x 16: every kind of layer that the device has, padding around the image, a mask.
inline FitProblem small_problem(int32_t dtype) {
  dipengine_fit_params p = small_params(dtype);
  p.height = 14;
  p.width = 15;
  p.generator.channels_down[1] = p.generator.channels_up[1] = 12;
  return problem_with("small", p, true);
}

inline void no_faults() {
  for (const std::string& fault : dipengine::emulator::faults()) report(__FILE__, __LINE__, fault.c_str());
  dipengine::emulator::clear_faults();
}

// |a - b| / |b|, over all values.
inline double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double apart = 0, size = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    apart += (static_cast<double>(a[i]) - static_cast<double>(b[i])) * (static_cast<double>(a[i]) - static_cast<double>(b[i]));
    size += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return std::sqrt(apart / size);
}

// A fit in that state, to be looked into.
inline std::unique_ptr<dipengine::Fit> loaded(const FitProblem& problem, const std::string& state) {
  std::unique_ptr<dipengine::Fit> fit;
  CHECK(dipengine::Fit::make(problem.params, true, &fit) == DIPENGINE_OK);
  CHECK(fit->load_state(0, state.data(), state.size()) == DIPENGINE_OK);
  return fit;
}

// The same fit with some of its scalars changed, as a state.
inline std::string changed(const FitProblem& problem, const std::string& state, void (*change)(dipengine::SlotState&)) {
  const std::unique_ptr<dipengine::Fit> fit = loaded(problem, state);
  change(fit->slot(0).state());
  std::string bytes(fit->state_bytes(0), '\0');
  CHECK(fit->save_state(0, bytes.data(), bytes.size()) == DIPENGINE_OK);
  return bytes;
}

}  // namespace check
