// The map from the network's [0, 1] to the restored image's own units: the twin of engine/dipengine/images/values.py and
// engine/dipengine/noise/inverse_table.py, to the bit.
#pragma once

#include <cstdint>
#include <vector>

#include "dipengine/render.h"

namespace dipengine {

class Json;

struct ValueMap {
  double low = 0, high = 1;  // data units that 0 and 1 stand for
  dipengine_curve curve = DIPENGINE_CURVE_NONE;
  double start = 0, span = 1;                // what 0 stands for, and from there to 1, behind the curve
  double gain = 1, offset = 0, limit = 0;    // of the curve's sensor; of the table's rests
  std::vector<double> means, rests, slopes;  // the table

  // Throws std::invalid_argument for what no file of `dipengine export` says.
  static ValueMap from(const Json& values);

  // Only where the way back is known.
  double data(float unit) const {
    const double value = static_cast<double>(unit) * span + start;
    return curve == DIPENGINE_CURVE_NONE ? value : uncurved(value);
  }

 private:
  void read_curve(const Json& from);
  void read_table(const Json& from);
  double uncurved(double stabilised) const;
};

}  // namespace dipengine
