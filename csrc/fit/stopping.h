// When a fit stops, and which state it delivers: the twin of engine/dipengine/fitting/stopping.py and rollback.py.
//
// ES-EMV (H. Wang et al., "Early Stopping for Deep Image Prior", TMLR 2023): the exponentially weighted variance of the
// outputs has its minimum near the best output. Known noise: the discrepancy principle (Morozov 1966).
// Plain data, so that a slot's state can be saved as bytes.
#pragma once

#include "dipengine/fit.h"

namespace dipengine {

constexpr int64_t kResidualInterval = 5;  // iterations between looks at the residual, when the noise is known

dipengine_stop_rule stop_rule(int64_t iterations, double average_decay);

// Iterations from a minimum at iteration `minimum` to the average centred on it.
int64_t lag_after(const dipengine_stop_rule& rule, bool average_warm_up, int64_t minimum);

// Follows the outputs' variance of one fit.
struct VarianceWatch {
  double lowest;
  int64_t minimum;  // iteration of the lowest variance so far; 0: none yet

  static VarianceWatch begin();
  void note(const dipengine_stop_rule& rule, int64_t iteration, double variance);
};

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
  // Judge the loss of `iteration` (1 is the first) before its update: `snapshot` asks for one of the present weights, the
  // next two for a return to it, the last two end the fit.
  Verdict check(double threshold_db, int64_t iteration, double loss);

 private:
  Verdict take(double loss);
};

}  // namespace dipengine
