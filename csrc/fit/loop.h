// What is decided between the steps of an iteration, on a slot's scalars alone: by the loop on a CPU, by kernels on a device.
#pragma once

#include "fit/slot_state.h"

namespace dipengine {

// Of all slots of a fit.
struct LoopRules {
  dipengine_stop_rule rule;  // but for the patience, which is the slot's own
  double jump;               // see judge_loss
  int64_t iterations;
  int32_t watches;      // STOP_AUTO
  int32_t knows_noise;  // then by the residual, else by the outputs' variance or, in slots that hold some out, by pixels held out
  int32_t holds_out;    // slots do, where they have enough of them
};

LoopRules loop_rules(const dipengine_fit_params& params);

// What the host is told of a slot.
dipengine_fit_progress progress_of(const LoopRules& rules, int32_t index, const SlotState& state);

DIPENGINE_HD dipengine_stop_rule rule_of(const LoopRules& r, const SlotState& s) {
  const int64_t patience = s.held_out > 0 && s.patience > kHeldPatience ? kHeldPatience : s.patience;
  return {r.rule.ceiling, patience, r.rule.warm_up, r.rule.lag};
}

// A later minimum may have overtaken the kept state, and the run ended before that one had settled.
DIPENGINE_HD bool delivers_best(const LoopRules& r, const SlotState& s) {
  return s.best_iteration > 0 && s.best_iteration == s.watch.minimum + settling(rule_of(r, s));
}

DIPENGINE_HD void finish(SlotState& s, int32_t status, int32_t reason) {
  s.status = status;
  s.reason = reason;
}

// What becomes of the arrays once an iteration's loss is known.
enum class Turn { learn, keep_and_learn, roll_back, give_up };

// Counts the iteration and judges its loss; of a snapshot and of a return to it the scalars are done here.
DIPENGINE_HD Turn judge(const LoopRules& r, SlotState& s, double loss) {
  ++s.iteration;
  s.loss = loss;
  s.rolled_back = 0;
  switch (judge_loss(s.rollback, r.jump, s.iteration, loss)) {
    case Rollback::Verdict::go_on:
      return Turn::learn;
    case Rollback::Verdict::snapshot:
      s.snapshot_step = s.step;
      s.snapshot_outputs = s.outputs;
      return Turn::keep_and_learn;
    case Rollback::Verdict::first_loss:
      finish(s, DIPENGINE_FIT_FAILED, DIPENGINE_REASON_FIRST_LOSS);
      return Turn::give_up;
    case Rollback::Verdict::diverged:
      finish(s, DIPENGINE_FIT_FAILED, DIPENGINE_REASON_DIVERGED);
      return Turn::give_up;
    case Rollback::Verdict::roll_back_and_halve:
      s.learning_rate *= 0.5;
      break;
    case Rollback::Verdict::roll_back:
      break;
  }
  // The perturbation of z goes on counting, so the next attempt sees other noise.
  s.step = s.snapshot_step;
  s.outputs = s.snapshot_outputs;
  s.rolled_back = 1;
  return Turn::roll_back;
}

// Behind an update: whether the residual of the average is to be measured.
DIPENGINE_HD bool wants_residual(const LoopRules& r, const SlotState& s) {
  const bool wanted = (s.held_out > 0 && s.shown == 0) || (r.knows_noise != 0 && s.at_noise == 0);
  return r.watches != 0 && wanted && s.iteration % kResidualInterval == 0;
}

// Iterations with all pixels, of a slot that held some out.
DIPENGINE_HD int64_t shown_for(const LoopRules& r) {
  const int64_t share = r.iterations / 10;
  return share < 1 ? 1 : share < kShownFor ? share : kShownFor;
}

// What becomes of weights and average, and of the mask, at the end of an iteration.
struct Ending {
  bool keeps_best, returns_to_best;
  bool shows;  // pixels that were held out go back to the mask
};

// What was held out is shown to the fit, which goes on from its best state; one that has none (at its ceiling, or rolled back when it
// was to be kept) goes on as it is.
DIPENGINE_HD Ending show(const LoopRules& r, SlotState& s, bool is_best) {
  const Ending ending{false, !is_best && delivers_best(r, s), true};
  s.shown = s.iteration;
  s.best_iteration = 0;
  forget_level(s.rollback);
  return ending;
}

// The end of an iteration in which something was learnt: whether the fit stops. `discrepancy`: where it was wanted.
DIPENGINE_HD Ending watch(const LoopRules& r, SlotState& s, bool measured, double discrepancy) {
  const dipengine_stop_rule rule = rule_of(r, s);
  const int64_t iteration = s.iteration;
  int32_t reason = DIPENGINE_REASON_NONE;
  Ending ending{false, false, false};
  if (r.watches != 0 && r.knows_noise != 0) {
    // Known noise needs no variance, whose early minima would stop a fit that has not come down to the noise.
    if (measured && discrepancy <= 1) s.at_noise = iteration;
    if (s.at_noise != 0 && iteration >= s.at_noise + rule.lag) reason = DIPENGINE_REASON_DISCREPANCY;
  } else if (s.shown > 0) {
    if (iteration >= s.shown + shown_for(r) && iteration < r.iterations) reason = DIPENGINE_REASON_HELD_OUT;
  } else if (r.watches != 0) {
    const bool held = s.held_out > 0;
    if (!held || measured) note_variance(s.watch, rule, iteration, held ? discrepancy : s.outputs.es_variance);
    const int64_t minimum = s.watch.minimum;
    ending.keeps_best = minimum > 0 && iteration == minimum + settling(rule);
    if (ending.keeps_best) s.best_iteration = iteration;
    const bool over = minimum > 0 && iteration - s.watch.low >= rule.patience;
    if (held && (over || iteration >= r.iterations - shown_for(r))) {
      ending = show(r, s, ending.keeps_best);
    } else if (over) {
      reason = DIPENGINE_REASON_VARIANCE;
    }
  }
  if (reason != DIPENGINE_REASON_NONE) finish(s, DIPENGINE_FIT_DONE, reason);
  return ending;
}

// Behind every iteration, whatever came of it.
DIPENGINE_HD void end_turn(const LoopRules& r, SlotState& s) {
  if (s.status == DIPENGINE_FIT_RUNNING && s.iteration >= r.iterations) {
    finish(s, DIPENGINE_FIT_DONE, DIPENGINE_REASON_ITERATIONS);
  }
}

}  // namespace dipengine
