#include "rendering/hourglass.h"

#include <algorithm>

#include "fit/architecture.h"
#include "ops/conv/conv.h"

namespace dipengine {
namespace {

// C++'s division rounds towards zero.
int64_t half_down(int64_t value) { return value >= 0 ? value / 2 : -((1 - value) / 2); }

int64_t multiple_down(int64_t value, int64_t step) { return value / step * step; }  // of what is not negative

// Of a level's input, given positions of its output.
Span level(const Hourglass& h, int i, Span at) {
  const dipengine_generator& g = h.generator;
  int64_t around = h.kernel_up[i] / 2;
  at = {at.first - around, at.last + around};
  const int64_t beside = g.upsample[i] == DIPENGINE_UPSAMPLE_BILINEAR ? 1 : 0;
  Span deep = {half_down(at.first - beside), half_down(at.last + beside)};
  if (i + 1 < g.levels) deep = level(h, i + 1, deep);
  around = g.kernel_down[i] / 2;
  deep = {deep.first - around, deep.last + around};
  const int64_t more = g.downsample == DIPENGINE_DOWNSAMPLE_AVERAGE ? 1 : 0;
  deep = {2 * deep.first - around, 2 * deep.last + more + around};
  if (g.channels_skip[i] == 0) return deep;
  return {std::min(at.first, deep.first), std::max(at.last, deep.last)};
}

}  // namespace

Span needed(const Hourglass& hourglass, Span output) { return level(hourglass, 0, output); }

Span window(const Hourglass& hourglass, Span output, int64_t length) {
  const int64_t step = int64_t{1} << hourglass.generator.levels, least = canvas_side(hourglass.generator, 1);
  const Span reach = needed(hourglass, output);
  int64_t start = multiple_down(std::max<int64_t>(0, reach.first), step);
  int64_t end = std::min(length, multiple_down(reach.last + step, step));
  if (end - start < least) {
    end = std::min(length, start + least);
    start = std::max<int64_t>(0, end - least);
  }
  return {start, end};
}

double parameter_count(const Hourglass& hourglass) {
  const dipengine_generator& g = hourglass.generator;
  double count = 0;
  for (const ParameterSpec& spec : parameter_specs(g)) count += static_cast<double>(spec.size());
  for (int i = 0; i < g.levels; ++i) {
    const double merged = static_cast<double>(g.channels_skip[i] + inner_channels(g, i));
    count += g.channels_up[i] * merged * (hourglass.kernel_up[i] * hourglass.kernel_up[i] - 9);
  }
  return count;
}

}  // namespace dipengine
