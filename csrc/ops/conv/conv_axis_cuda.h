// Along one axis: which d_raw samples reach an input sample, and through which taps. The transpose of padding, upsampling
// and stride as a short list, the same for all samples but a few at the borders.
//
//   d_x[i] = sum over entries e that apply to i:  sum_t coefficient[e][t] W_t^T  d_raw[position(e, i)]
//
// at position step * r + offset with i = phases * r + phase (samples of one parity under stride 2 see the same taps; d_raw
// outside of the image is zero). An entry without gate applies everywhere, a gated one to one r alone: what reflection, or the
// clamped end of the upsampling, adds there to what the middle of the axis would have. Entries are found by comparing with the
// forward index maps (conv_math.h), so borders are exact at any size.
#pragma once

#include "ops/conv/conv_math.h"

namespace dipengine {

constexpr int kMostEntries = 64;
constexpr int kMostVectors = 16;

struct AxisEntry {
  int32_t gate;  // r of the only sample that it applies to, or -1
  int16_t offset;
  int16_t vector;  // its coefficients
};

struct AxisEntries {
  int32_t count, vectors, step;
  int32_t plain;  // of them without gate, which come first
  int32_t low, high;  // least and greatest position from step * r
  AxisEntry entry[kMostEntries];
};

struct AxisVectors {
  float of[kMostVectors][DIPENGINE_CONV_MAX_KERNEL];  // by raw tap
};

struct AxisGeometry {
  int64_t n;  // samples of the source
  int upsample, kernel, stride, pad, padding;
  int64_t outputs(int64_t samples) const { return ((upsample == 0 ? 1 : 2) * samples + 2 * pad - kernel) / stride + 1; }
};

// How much of sample i of n output p sees through tap t.
static inline float share_of(const AxisGeometry& g, int64_t n, int64_t i, int64_t p, int t) {
  if (p < 0 || p >= g.outputs(n)) return 0;
  if (g.upsample != DIPENGINE_UPSAMPLE_NONE) {
    const AxisTerms terms = up_tap(p, t, n, g.upsample, g.padding);
    for (int e = 0; e < terms.count; ++e) {
      if (terms.index[e] == i) return terms.weight[e];
    }
    return 0;
  }
  return padded_index(p * g.stride + t - g.pad, n, g.padding) == i ? 1.0f : 0.0f;
}

// False where there are more entries than fit.
static inline bool make_axis(const AxisGeometry& g, int phase, AxisEntries* entries, AxisVectors* vectors) {
  const int phases = g.stride, factor = g.upsample == DIPENGINE_UPSAMPLE_NONE ? 1 : 2;
  constexpr int64_t kMiddle = 32, kLong = 64, kReach = 12;
  *entries = AxisEntries{};
  entries->step = factor;
  const auto add = [&](int64_t gate, int64_t offset, const float* coefficients) {
    bool any = false;
    for (int t = 0; t < g.kernel; ++t) any = any || coefficients[t] != 0;
    if (!any) return true;
    int v = 0;
    const auto same = [&](int index) {
      for (int t = 0; t < g.kernel; ++t) {
        if (vectors->of[index][t] != coefficients[t]) return false;
      }
      return true;
    };
    while (v < entries->vectors && !same(v)) ++v;
    if (v == kMostVectors || entries->count == kMostEntries) return false;
    if (v == entries->vectors) {
      for (int t = 0; t < g.kernel; ++t) vectors->of[v][t] = coefficients[t];
      ++entries->vectors;
    }
    if (entries->count == 0 || offset < entries->low) entries->low = static_cast<int32_t>(offset);
    if (entries->count == 0 || offset > entries->high) entries->high = static_cast<int32_t>(offset);
    entries->entry[entries->count++] = {static_cast<int32_t>(gate), static_cast<int16_t>(offset), static_cast<int16_t>(v)};
    return true;
  };
  const auto middle = [&](int64_t offset, float* coefficients) {
    for (int t = 0; t < g.kernel; ++t) {
      coefficients[t] = share_of(g, kLong, phases * kMiddle / phases + phase, factor * (kMiddle / phases) + offset, t);
    }
  };
  float coefficients[DIPENGINE_CONV_MAX_KERNEL], actual[DIPENGINE_CONV_MAX_KERNEL];
  for (int64_t offset = -kReach; offset <= kReach; ++offset) {
    middle(offset, coefficients);
    if (!add(-1, offset, coefficients)) return false;
  }
  entries->plain = entries->count;
  for (int64_t i = phase; i < g.n; i += phases) {
    if (i >= kReach && i < g.n - kReach) continue;
    const int64_t r = i / phases;
    for (int64_t offset = -kReach; offset <= kReach; ++offset) {
      const int64_t p = factor * r + offset;
      if (p < 0 || p >= g.outputs(g.n)) continue;
      middle(offset, coefficients);
      for (int t = 0; t < g.kernel; ++t) actual[t] = share_of(g, g.n, i, p, t) - coefficients[t];
      if (!add(r, offset, actual)) return false;
    }
  }
  return true;
}

}  // namespace dipengine
