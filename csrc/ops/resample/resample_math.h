// Which samples of an axis meet which taps in downsampling and its transpose.
//
// The axis with its replicated borders is a sequence of positions q: q = factor * i + t is what output i reads under tap t,
// and shows the input sample clamp(q - before).
#pragma once

#include "math/host_device.h"

namespace dipengine {

struct ResampleAxis {
  int64_t size, factor, before, taps;
};

struct Span {
  int64_t first, last;  // both within; empty where last < first
};

DIPENGINE_HD int64_t outputs_of(const ResampleAxis& a) { return (a.size + a.factor - 1) / a.factor; }
DIPENGINE_HD int64_t positions_of(const ResampleAxis& a) { return (outputs_of(a) - 1) * a.factor + a.taps; }
// How far back an output may lie from a position's quotient by the factor.
DIPENGINE_HD int64_t margin_of(const ResampleAxis& a) { return (a.taps - 1) / a.factor; }

DIPENGINE_HD int64_t sample_at(const ResampleAxis& a, int64_t position) {
  const int64_t x = position - a.before;
  return x < 0 ? 0 : x < a.size ? x : a.size - 1;
}

// The positions that show sample x: one, or all those of a border.
DIPENGINE_HD Span positions_showing(const ResampleAxis& a, int64_t x) {
  const int64_t q = x + a.before, end = positions_of(a) - 1;
  return {x == 0 || q < 0 ? 0 : q, x == a.size - 1 || q > end ? end : q};
}

// The outputs that read one of the positions of a span.
DIPENGINE_HD Span outputs_reading(const ResampleAxis& a, Span q) {
  const int64_t first = q.first < a.taps ? 0 : (q.first - a.taps) / a.factor + 1;
  const int64_t last = q.last < 0 ? -1 : q.last / a.factor, end = outputs_of(a) - 1;
  return {first, q.last < q.first ? first - 1 : last < end ? last : end};
}

// The weight of output i in the gradient of a sample shown at a span of positions: the sum of its taps there.
template <typename Real, typename Tap>
DIPENGINE_HD Real resample_weight(const ResampleAxis& a, const Tap* taps, int64_t i, Span q) {
  const int64_t low = q.first - a.factor * i, high = q.last - a.factor * i;
  const int64_t first = low < 0 ? 0 : low, last = high < a.taps ? high : a.taps - 1;
  double weight = 0;
  for (int64_t t = first; t <= last; ++t) weight += static_cast<double>(static_cast<Real>(taps[t]));
  return static_cast<Real>(weight);
}

}  // namespace dipengine
