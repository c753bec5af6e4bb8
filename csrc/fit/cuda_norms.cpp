// The norms of an iteration on a CUDA device: their numbers, the coefficients of their gradients, and those of concatenations, whose
// parts are each at a resolution of its own.
#include <algorithm>

#include "fit/cuda_plan.h"
#include "platform/error.h"

namespace dipengine {

float* CudaPlan::part_number(const Part& part, int which) const {
  return blocks() + numbers_at_ + part.numbers + which * graph_.nodes[static_cast<size_t>(part.node)].channels;
}

// From the sums behind a node's norm, complete with its last share, to A, B and C of the gradient in front of it.
dipengine_norm_cuda_gradient CudaPlan::fold_of(const Node& node) const {
  dipengine_norm_cuda_gradient g = fold_at(node.numbers, node.channels, static_cast<double>(node.height * node.width));
  g.gamma = parameter(node.gamma);
  g.centred = 1;
  g.d_gamma = gradient(node.gamma);
  g.d_beta = gradient(node.beta);
  return g;
}

// The same of a part's share of the norm of a concatenation.
dipengine_norm_cuda_gradient CudaPlan::fold_of(const Unit& unit, const Part& part) const {
  const Node& out = graph_.nodes[static_cast<size_t>(unit.node)];
  dipengine_norm_cuda_gradient g = fold_at(part.numbers, graph_.nodes[static_cast<size_t>(part.node)].channels,
                                           static_cast<double>(out.height * out.width));
  g.gamma = parameter(unit.merge_gamma) + part.merged_first;
  g.d_gamma = gradient(unit.merge_gamma) + part.merged_first;
  const bool dead = graph_.specs[static_cast<size_t>(unit.merge_beta)].dead;
  g.d_beta = dead ? nullptr : gradient(unit.merge_beta) + part.merged_first;
  return g;
}

dipengine_norm_cuda_gradient CudaPlan::fold_at(int64_t numbers, int64_t channels, double count) const {
  const auto number = [&](int which) { return blocks() + numbers_at_ + numbers + which * channels; };
  dipengine_norm_cuda_gradient g{};
  g.struct_size = sizeof(g);
  g.fits = p_.slots;
  g.active = fits_.learns;
  g.numbers_fit_stride = g.parameters_fit_stride = stride_;
  g.channels = channels;
  g.count = count;
  g.eps = kNormEpsilon;
  g.mean = number(kMean);
  g.variance = number(kVariance);
  g.sum = number(kSum);
  g.product = number(kProduct);
  g.a = coefficient(numbers, kA, channels);
  g.b = coefficient(numbers, kB, channels);
  g.c = coefficient(numbers, kC, channels);
  return g;
}

dipengine_norm_cuda_params CudaPlan::norm_params(const dipengine_conv_cuda_source* source, const uint8_t* active) const {
  dipengine_norm_cuda_params n{};
  n.struct_size = sizeof(n);
  n.source_size = sizeof(*source);
  n.fits = p_.slots;
  n.active = active;
  n.numbers_fit_stride = n.parameters_fit_stride = stride_;
  n.source = source;
  n.dtype = p_.dtype;
  return n;
}

// Each part of a concatenation on its own branch, in a place of its own.
dipengine_status CudaPlan::size_parts(int step, const Unit& unit) {
  size_t bytes = 0;
  int64_t most = 0;
  for (const Part& part : unit.parts) {
    const dipengine_conv_cuda_source s = source({part.node, part.upsample, -1, 0, false}, false);
    const dipengine_norm_cuda_params n = norm_params(&s, nullptr);
    size_t own = 0;
    int64_t count = 0;
    DIPENGINE_TRY(dipengine_norm_cuda_workspace(&n, &own));
    DIPENGINE_TRY(dipengine_norm_cuda_tickets(&n, &count));
    bytes += Arena::aligned(own);
    most = std::max(most, count);
  }
  need(step, bytes);
  take_tickets(step, most);
  return DIPENGINE_OK;
}

dipengine_status CudaPlan::place_part(int step, const Part& part, size_t* used, dipengine_norm_cuda_params* n) const {
  const Branch branch = is_skip(part) ? kSkips : kMain;
  size_t own = 0;
  DIPENGINE_TRY(dipengine_norm_cuda_workspace(n, &own));
  n->stream = streams_[branch];
  n->workspace = static_cast<char*>(workspace(step)) + *used;
  n->workspace_bytes = workspace_bytes(step) - *used;
  n->tickets = tickets(step, branch);
  *used += Arena::aligned(own);
  return DIPENGINE_OK;
}

// The statistics of a concatenation's parts, each at its own resolution, and their share of its norm.
dipengine_status CudaPlan::merge(int step, bool sizing) {
  const Unit& unit = graph_.units[static_cast<size_t>(graph_.steps[static_cast<size_t>(step)].unit)];
  if (sizing) return size_parts(step, unit);
  size_t used = 0;
  for (const Part& part : unit.parts) {
    dipengine_conv_cuda_source s = source(part, false);
    s.outer = {nullptr, nullptr};
    dipengine_norm_cuda_params n = norm_params(&s, fits_.active);
    DIPENGINE_TRY(place_part(step, part, &used, &n));
    n.mean = part_number(part, kMean);
    n.variance = part_number(part, kVariance);
    n.gamma = parameter(unit.merge_gamma) + part.merged_first;
    n.beta = parameter(unit.merge_beta) + part.merged_first;
    n.eps = kNormEpsilon;
    n.scale = part_number(part, kScale);
    n.shift = part_number(part, kShift);
    DIPENGINE_TRY(dipengine_norm_cuda_statistics(&n));
  }
  return unit.operand < 0 ? DIPENGINE_OK : form_input(unit, unit.operand, fits_.active);
}

// Through the norm of a concatenation: from the gradient behind it, which each part's buffer holds, to the part's own.
dipengine_status CudaPlan::merge_backward(int step, bool sizing) {
  const Unit& unit = graph_.units[static_cast<size_t>(graph_.steps[static_cast<size_t>(step)].unit)];
  if (sizing) return size_parts(step, unit);
  size_t used = 0;
  for (const Part& part : unit.parts) {
    const Node& node = graph_.nodes[static_cast<size_t>(part.node)];
    dipengine_conv_cuda_source s = source({part.node, part.upsample, -1, 0, false}, true);
    const dipengine_norm_cuda_gradient fold = fold_of(node);
    s.fold = &fold;
    dipengine_norm_cuda_params n = norm_params(&s, fits_.learns);
    DIPENGINE_TRY(place_part(step, part, &used, &n));
    n.g = s.d_x;
    n.g_fit_stride = s.d_x_fit_stride;
    n.a = coefficient(part.numbers, kA, node.channels);
    n.b = coefficient(part.numbers, kB, node.channels);
    n.c = coefficient(part.numbers, kC, node.channels);
    DIPENGINE_TRY(dipengine_norm_cuda_backward(&n));
  }
  return DIPENGINE_OK;
}

}  // namespace dipengine
