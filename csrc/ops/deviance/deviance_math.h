// How deviance is cut into tiles, and its formulas for one element, in electrons.
#pragma once

#include "math/logarithm.h"

namespace dipengine {

constexpr int64_t kDevianceTileElements = 8160;  // at most, in a tile; a multiple of the CPU kernel's chunk
constexpr double kDevianceAllowance = 2;         // standard deviations, for the mean over the bright elements

// Whole rows where several fit into a tile, pieces of one row where one does not.
struct DevianceTiling {
  int64_t rows_per_tile, row_blocks;  // blocks of rows
  int64_t piece, pieces;              // elements per piece of a row, pieces per row
};

DIPENGINE_HD DevianceTiling deviance_tiling(int64_t rows, int64_t row_elements) {
  DevianceTiling t;
  t.piece = row_elements < kDevianceTileElements ? row_elements : kDevianceTileElements;
  t.pieces = (row_elements + t.piece - 1) / t.piece;
  t.rows_per_tile = t.pieces > 1 ? 1 : kDevianceTileElements / row_elements;
  t.row_blocks = (rows + t.rows_per_tile - 1) / t.rows_per_tile;
  return t;
}

struct Sensor {
  double read_variance, floor;
};

// v(e); NaN stays NaN
DIPENGINE_HD double sensor_variance(const Sensor& sensor, double e) {
  return (e < sensor.floor ? sensor.floor : e) + sensor.read_variance;
}

// w(e): what an element counts for in the mean over the bright ones
DIPENGINE_HD double sensor_share(const Sensor& sensor, double e) {
  const double light = e < sensor.floor ? sensor.floor : e;
  return light * light * light;
}

// D(k, e), residual = e - k, which the caller may know with more digits.
//
// Above the floor F, with b = max(k, F) + r2, u the step from there to max(e, F) in units of b and h(u) = u - ln(1 + u),
//
//   D/2 = b h(u) + (max(k, F) - k) ln(1 + u)
//
// is the integral from max(k, F) to max(e, F); what lies below the floor is a parabola. No term cancels another.
DIPENGINE_HD double sensor_deviance(const Sensor& sensor, double e, double k, double residual) {
  const double floor = sensor.floor;
  const double e_high = e < floor ? floor : e, k_high = k < floor ? floor : k;
  const double e_low = e > floor ? floor : e, k_low = k > floor ? floor : k;
  const double step = e_high == e && k_high == k ? residual : e_high - k_high;
  const double base = k_high + sensor.read_variance, per_base = 1 / base;
  const LogarithmExcess l = logarithm_excess(step * per_base, (e_high + sensor.read_variance) * per_base);
  const double below = (e_low - k_low) * ((e_low - k) + (k_low - k));
  return 2 * (base * l.excess + (k_high - k) * l.logarithm) + below / (floor + sensor.read_variance);
}

// Sums over elements.
struct DeviancePartial {
  double loss;
  double squares, bright;  // squared residuals in variances, and those times their shares
  double shares, shares2;  // and squared
};

DIPENGINE_HD void add_sums(DeviancePartial& sums, const DeviancePartial& more) {
  sums.loss += more.loss;
  sums.squares += more.squares;
  sums.bright += more.bright;
  sums.shares += more.shares;
  sums.shares2 += more.shares2;
}

// A weighted mean of squares of standard normal values has the variance 2 sum w^2 / (sum w)^2.
DIPENGINE_HD double discrepancy_of(const DeviancePartial& sums, double normaliser) {
  const double mean = sums.squares / normaliser;
  const double bright = (sums.bright - kDevianceAllowance * square_root(2 * sums.shares2)) / sums.shares;
  return bright > mean ? bright : mean;  // the mean where nothing has a share
}

}  // namespace dipengine
