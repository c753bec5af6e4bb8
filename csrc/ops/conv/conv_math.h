// Index maps of the convolutions along one axis: padding, x2 upsampling and their transposes.
#pragma once

#include "math/host_device.h"
#include "ops/conv/conv.h"

namespace dipengine {

// The sample that padded position `i` (may lie outside [0, n)) reads: reflected about the border samples, which are not
// repeated; -1 for zero padding. Positions reach at most n - 1 beyond a border.
DIPENGINE_HD int64_t padded_index(int64_t i, int64_t n, int padding) {
  if (i >= 0 && i < n) return i;
  if (padding == DIPENGINE_PADDING_ZERO) return -1;
  return i < 0 ? -i : 2 * (n - 1) - i;
}

// Layers of so little arithmetic a pixel that their memory is worth fetching beside the products.
DIPENGINE_HD bool fetches(const dipengine_conv_params& p) { return p.kernel == 1; }

// A few weighted samples of an axis.
struct AxisTerms {
  static constexpr int kMost = 8;
  int count;
  int64_t index[kMost];
  float weight[kMost];
};

DIPENGINE_HD void add_term(AxisTerms& terms, int64_t index, float weight) {
  for (int i = 0; i < terms.count; ++i) {
    if (terms.index[i] == index) {
      terms.weight[i] += weight;
      return;
    }
  }
  terms.index[terms.count] = index;
  terms.weight[terms.count++] = weight;
}

// The low-resolution samples that tap `tap` (0, 1, 2) of output `p` in [0, 2n) sees of n samples, upsampled x2 and
// padded by one.
DIPENGINE_HD AxisTerms up_tap(int64_t p, int tap, int64_t n, int upsample, int padding) {
  AxisTerms terms{};
  const int64_t q = padded_index(p + tap - 1, 2 * n, padding);
  if (q < 0) return terms;
  const int64_t i = q / 2;
  if (upsample == DIPENGINE_UPSAMPLE_NEAREST) {
    add_term(terms, i, 1.0f);
    return terms;
  }
  const int64_t beside = (q & 1) ? i + 1 : i - 1;  // half-pixel centres: 3/4 of one's own, 1/4 of the nearer neighbour
  add_term(terms, i, 0.75f);
  add_term(terms, beside < 0 ? 0 : (beside >= n ? n - 1 : beside), 0.25f);
  return terms;
}

// The transpose: the outputs p that see sample i through tap `tap`.
DIPENGINE_HD AxisTerms up_tap_transposed(int64_t i, int tap, int64_t n, int upsample, int padding) {
  AxisTerms terms{};
  for (int64_t p = 2 * i - 4; p <= 2 * i + 5; ++p) {
    if (p < 0 || p >= 2 * n) continue;
    const AxisTerms seen = up_tap(p, tap, n, upsample, padding);
    for (int e = 0; e < seen.count; ++e) {
      if (seen.index[e] == i) add_term(terms, p, seen.weight[e]);
    }
  }
  return terms;
}

}  // namespace dipengine
