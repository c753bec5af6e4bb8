#include "fit/stopping.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace dipengine {

// nearbyint rounds halves to even, as Python does.
static int64_t rounded(double value) { return static_cast<int64_t>(std::nearbyint(value)); }

dipengine_stop_rule stop_rule(int64_t iterations, double average_decay) {
  constexpr int64_t kMinWarmUp = 20;  // V starts at 0 and the first outputs are flat: a minimum there means nothing
  const double n = static_cast<double>(iterations);
  const int64_t patience = std::max<int64_t>(rounded(n * (1.0 / 5)), 1);
  const int64_t lag = average_decay > 0 ? rounded(1 / (1 - average_decay)) : 0;
  return {iterations, patience, std::min(std::max(rounded(n * (1.0 / 12)), kMinWarmUp), std::max<int64_t>(iterations - 1, 0)),
          std::min(lag, patience)};
}

int64_t lag_after(const dipengine_stop_rule& rule, bool average_warm_up, int64_t minimum) {
  // Warming up, the average at iteration T looks back T / 10: centred on m where T = m + T / 10.
  return average_warm_up ? std::min(rule.lag, rounded(static_cast<double>(minimum) / 9)) : rule.lag;
}

VarianceWatch VarianceWatch::begin() { return {std::numeric_limits<double>::infinity(), 0}; }

void VarianceWatch::note(const dipengine_stop_rule& rule, int64_t iteration, double variance) {
  const bool past_warm_up = iteration > rule.warm_up || iteration >= rule.ceiling;
  if (past_warm_up && variance < lowest) {
    lowest = variance;
    minimum = iteration;
  }
}

Rollback Rollback::begin() {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  return {nan, nan, 0, 0, 0};
}

Rollback::Verdict Rollback::take(double loss) {
  taken = 1;
  snapshot_mean = mean = loss;
  failures = 0;
  return Verdict::snapshot;
}

Rollback::Verdict Rollback::check(double threshold_db, int64_t iteration, double loss) {
  const bool finite = std::isfinite(loss);
  bool snapshot = false;
  if (taken == 0) {
    if (!finite) return Verdict::first_loss;
    take(loss);
    snapshot = true;
  }
  bool jumped = finite && iteration > kWarmUp && loss > std::pow(10.0, threshold_db / 10) * mean;
  if (jumped && failures >= kGiveUpAfter) {
    take(loss);  // this is no accident but the fit's new level
    snapshot = true;
    jumped = false;
  }
  if (finite && !jumped) {
    mean = std::isnan(mean) ? loss : (1 - kSmoothing) * mean + kSmoothing * loss;
    if (iteration % kInterval == 0) return take(mean);
    return snapshot ? Verdict::snapshot : Verdict::go_on;
  }
  ++count;
  ++failures;
  if (failures > kGiveUpAfter) return Verdict::diverged;
  mean = snapshot_mean;
  return failures % kHalveAfter == 0 ? Verdict::roll_back_and_halve : Verdict::roll_back;
}

}  // namespace dipengine
