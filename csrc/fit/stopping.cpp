#include "fit/stopping.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dipengine {

// nearbyint rounds halves to even, as Python does.
static int64_t rounded(double value) { return static_cast<int64_t>(std::nearbyint(value)); }

dipengine_stop_rule stop_rule(int64_t iterations, double average_decay) {
  constexpr int64_t kMinWarmUp = 60;    // V starts at 0 and rises for some 30 iterations: a minimum there means nothing
  constexpr int64_t kMinPatience = 40;  // V's own memory
  const double n = static_cast<double>(iterations);
  const int64_t patience = std::max<int64_t>(rounded(n * (1.0 / 10)), kMinPatience);
  const int64_t lag = average_decay > 0 ? rounded(1 / (1 - average_decay)) : 0;
  return {iterations, patience, std::min(std::max(rounded(n * (1.0 / 24)), kMinWarmUp), std::max<int64_t>(iterations - 1, 0)),
          std::min(lag, std::max<int64_t>(rounded(n * (1.0 / 5)), 1))};
}

VarianceWatch VarianceWatch::begin() { return {std::numeric_limits<double>::infinity(), 0, 0}; }

Rollback Rollback::begin() {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  return {nan, nan, 0, 0, 0};
}

}  // namespace dipengine
