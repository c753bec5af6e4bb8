// Sums in a fixed order, whatever the vectors' width: element i of a row goes to lane i % 16, in float64, and the lanes are
// folded as a tree at the end.
#pragma once

#include "math/host_device.h"

namespace dipengine {

constexpr int kLanes = 16;

// lanes[i % 16] += terms[i]; writes zeros behind the last term, up to a multiple of 16
template <typename Real>
DIPENGINE_HD void add_to_lanes(double* __restrict lanes, Real* __restrict terms, int n) {
  const int padded = (n + kLanes - 1) / kLanes * kLanes;
  for (int i = n; i < padded; ++i) terms[i] = 0;
  for (int i = 0; i < padded; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += static_cast<double>(terms[i + lane]);
  }
}

DIPENGINE_HD double fold_lanes(double* lanes) {
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

}  // namespace dipengine
