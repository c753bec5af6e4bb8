#include "fit/loop.h"

#include <cmath>

namespace dipengine {

LoopRules loop_rules(const dipengine_fit_params& p) {
  const bool stops = p.stop == DIPENGINE_STOP_AUTO, knows_noise = p.data_term == DIPENGINE_DATA_SENSOR || p.sigma > 0;
  return {stop_rule(p.iterations, p.average_decay),
          std::pow(10.0, p.rollback_db / 10),
          p.iterations,
          stops,
          knows_noise,
          stops && !knows_noise && p.hold_out > 0};
}

dipengine_fit_progress progress_of(const LoopRules& rules, int32_t index, const SlotState& s) {
  return {sizeof(dipengine_fit_progress), index, s.status, s.reason, s.rolled_back, s.iteration,
          delivers_best(rules, s) ? s.best_iteration : s.iteration, s.rollback.count, s.loss, s.outputs.es_variance,
          s.learning_rate, s.extent.height, s.extent.width, s.held_out};
}

}  // namespace dipengine
