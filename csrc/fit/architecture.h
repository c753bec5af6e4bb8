// The hourglass as data: its parameters in order, its canvas. The twin of engine/dipengine/generators/architecture.py.
#pragma once

#include <string>
#include <vector>

#include "dipengine/fit.h"

namespace dipengine {

constexpr double kNormEpsilon = 1e-5;

// One parameter tensor: [out, in, kernel, kernel] for a weight, [out] (in = kernel = 1) for the others.
struct ParameterSpec {
  std::string name;
  int64_t out, in, kernel;
  enum class Initial { uniform, ones, zeros } initial;
  double bound;  // of the uniform ones, [-bound, bound)
  bool dead;     // the function computed does not depend on it
  bool weight() const { return name.size() > 6 && name.compare(name.size() - 6, 6, "weight") == 0; }
  int64_t size() const { return out * in * kernel * kernel; }
};

dipengine_status check_generator(const dipengine_generator& generator);

// In the order that files and Philox streams know them by.
std::vector<ParameterSpec> parameter_specs(const dipengine_generator& generator);

int64_t canvas_side(const dipengine_generator& generator, int64_t side);

// Channels that a level upsamples: of the next level's output, or of its own at the deepest.
int64_t inner_channels(const dipengine_generator& generator, int level);
int64_t level_input(const dipengine_generator& generator, int level);

// Of the widest tensor, concatenations included.
int64_t most_channels(const dipengine_generator& generator);

}  // namespace dipengine
