// When a fit stops, and which state it delivers: the twin of engine/dipengine/fitting/stopping.py and rollback.py.
//
// ES-EMV (H. Wang et al., "Early Stopping for Deep Image Prior", TMLR 2023): the exponentially weighted variance of the
// outputs has its minimum near the best output. Known noise: the discrepancy principle (Morozov 1966). Pixels held out: their error
// in the delivered average takes the variance's place; behind it the best state goes on for a while with all pixels.
// Plain data, so that a slot's state can be saved as bytes; its functions run on a host and on a device.
#pragma once

#include <cmath>

#include "dipengine/fit.h"
#include "math/host_device.h"

namespace dipengine {

constexpr int64_t kResidualInterval = 5;  // iterations between looks at the residual, when the noise is known or pixels are held out
constexpr int64_t kHeldPatience = 200;    // at most, with pixels held out
constexpr int64_t kShownFor = 150;        // iterations with all pixels behind that

dipengine_stop_rule stop_rule(int64_t iterations, double average_decay);

// Iterations that a minimum has to stand before its state is kept: the delivered average hardly moves in so few, and while the
// variance falls not every state is copied.
DIPENGINE_HD int64_t settling(const dipengine_stop_rule& rule) {
  constexpr int64_t kSettling = 5;
  const int64_t least = rule.lag < rule.patience ? rule.lag : rule.patience;
  return least < kSettling ? least : kSettling;
}

// Follows the outputs' variance of one fit, or the error of pixels held out.
struct VarianceWatch {
  double lowest;
  int64_t minimum;  // iteration of the lowest variance so far; 0: none yet
  int64_t low;      // the last one whose variance was as low but for kPlateau

  static VarianceWatch begin();
};

DIPENGINE_HD void note_variance(VarianceWatch& watch, const dipengine_stop_rule& rule, int64_t iteration, double variance) {
  constexpr double kPlateau = 1.05;  // where there is little noise, the variance stays low for hundreds of iterations and wavers
  if (iteration <= rule.warm_up && iteration < rule.ceiling) return;
  if (variance < watch.lowest) {
    watch.lowest = variance;
    watch.minimum = iteration;
  }
  if (variance <= kPlateau * watch.lowest) watch.low = iteration;
}

// Guards one fit: a loss that turns non-finite or jumps returns to the last good weights.
struct Rollback {
  static constexpr int64_t kInterval = 20;    // iterations between snapshots
  static constexpr int64_t kWarmUp = 100;     // the first iterations jump by nature
  static constexpr double kSmoothing = 0.1;   // of the loss's running mean
  static constexpr int64_t kHalveAfter = 3;   // failures of one snapshot before the step size is halved
  static constexpr int64_t kGiveUpAfter = 20;

  double mean, snapshot_mean;
  int64_t failures, count;
  int64_t taken;  // 1: there is a snapshot

  enum class Verdict { go_on, snapshot, roll_back, roll_back_and_halve, first_loss, diverged };

  static Rollback begin();
};

// The loss is about to be another one: the next finite one is its level, and its weights those to return to.
DIPENGINE_HD void forget_level(Rollback& r) { r.mean = r.snapshot_mean = static_cast<double>(NAN); }

DIPENGINE_HD Rollback::Verdict take_snapshot(Rollback& r, double loss) {
  r.taken = 1;
  r.snapshot_mean = r.mean = loss;
  r.failures = 0;
  return Rollback::Verdict::snapshot;
}

// Judge the loss of `iteration` (1 is the first) before its update: `snapshot` asks for one of the present weights, the
// next two for a return to it, the last two end the fit. `jump`: times the running mean that a loss is taken for bad above.
DIPENGINE_HD Rollback::Verdict judge_loss(Rollback& r, double jump, int64_t iteration, double loss) {
  using Verdict = Rollback::Verdict;
  const bool finite = loss - loss == 0;
  bool snapshot = false;
  if (r.taken == 0 && !finite) return Verdict::first_loss;
  if (finite && (r.taken == 0 || r.mean != r.mean)) {
    take_snapshot(r, loss);
    snapshot = true;
  }
  bool jumped = finite && iteration > Rollback::kWarmUp && loss > jump * r.mean;
  if (jumped && r.failures >= Rollback::kGiveUpAfter) {
    take_snapshot(r, loss);  // this is no accident but the fit's new level
    snapshot = true;
    jumped = false;
  }
  if (finite && !jumped) {
    r.mean = (1 - Rollback::kSmoothing) * r.mean + Rollback::kSmoothing * loss;
    if (iteration % Rollback::kInterval == 0) return take_snapshot(r, r.mean);
    return snapshot ? Verdict::snapshot : Verdict::go_on;
  }
  ++r.count;
  ++r.failures;
  if (r.failures > Rollback::kGiveUpAfter) return Verdict::diverged;
  r.mean = r.snapshot_mean;
  return r.failures % Rollback::kHalveAfter == 0 ? Verdict::roll_back_and_halve : Verdict::roll_back;
}

}  // namespace dipengine
