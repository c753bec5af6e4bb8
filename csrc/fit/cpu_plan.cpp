#include "fit/cpu_plan.h"

#include <algorithm>
#include <cmath>

#include "ops/adam/adam.h"
#include "ops/masked_mse/masked_mse.h"
#include "ops/norm/norm.h"
#include "ops/philox/philox.h"
#include "platform/error.h"

namespace dipengine {
namespace {

constexpr uint32_t kCodeStream = 0, kPerturbationStream = 1;
enum Number { kMean, kVariance, kScale, kShift, kSum, kProduct };
enum Spare { kGamma, kBeta, kA, kB, kC, kDGamma, kDBeta, kSpares };

// What buffers seem to lie at while they are sized; never followed.
char* const kNowhere = reinterpret_cast<char*>(uintptr_t{1} << 20);

}  // namespace

CpuPlan::CpuPlan(const dipengine_fit_params& params, Graph& graph, const SlotLayout& layout)
    : p_(params),
      graph_(graph),
      layout_(layout),
      channels_(params.generator.output_channels),
      needed_(graph.steps.size(), 0),
      base_(kNowhere) {}

dipengine_status CpuPlan::size() {
  int64_t largest = layout_.trainable();
  for (const ParameterSpec& spec : graph_.specs) largest = std::max(largest, spec.size());
  gradients_ = graph_.arena.add_permanent(static_cast<size_t>(largest) * sizeof(float));
  numbers_ = graph_.arena.add_permanent(static_cast<size_t>(graph_.numbers) * sizeof(double));
  spare_ = graph_.arena.add_permanent(static_cast<size_t>(kSpares * graph_.most_channels) * sizeof(double));
  const int steps = static_cast<int>(graph_.steps.size());
  for (int step = 0; step < steps; ++step) DIPENGINE_TRY(each_op(step, nullptr, true));
  graph_.pack(needed_);
  return DIPENGINE_OK;
}

void CpuPlan::bind(void* arena) { base_ = static_cast<char*>(arena); }

dipengine_status CpuPlan::run(int step, const Slot& slot) { return each_op(step, &slot, false); }

dipengine_status CpuPlan::each_op(int step, const Slot* slot, bool sizing) {
  switch (graph_.steps[static_cast<size_t>(step)].kind) {
    case StepKind::perturb: return sizing ? DIPENGINE_OK : perturb(*slot, p_.perturbation);
    case StepKind::merge: return merge(step, slot, sizing);
    case StepKind::forward: return conv(step, slot, false, sizing);
    case StepKind::loss: return output(step, slot, sizing, true);
    case StepKind::image: return output(step, slot, sizing, false);
    case StepKind::measure:
      if (sizing) return size_operator(step);
      return measure(step, slot->state().extent, at<float>(graph_.image), at<float>(graph_.measured));
    case StepKind::data_term: return sizing ? size_data_term(step) : data_term(step, *slot);
    case StepKind::measure_backward: return sizing ? size_operator(step) : measure_backward(step, slot->state().extent);
    case StepKind::image_backward: return sizing ? DIPENGINE_OK : image_backward(slot->state().extent);
    case StepKind::backward: return conv(step, slot, true, sizing);
    case StepKind::merge_backward: return merge_backward(step, slot, sizing);
    case StepKind::adam: return sizing ? DIPENGINE_OK : adam(*slot);
    case StepKind::inspect:
      if (!sizing) return DIPENGINE_OK;  // see discrepancy()
      if (graph_.inspected >= 0) DIPENGINE_TRY(size_operator(step));
      return size_data_term(step);
  }
  return DIPENGINE_OK;
}

// ---- buffers and numbers --------------------------------------------------------------------------------------------

double* CpuPlan::part_number(const Part& part, int which) const {
  return numbers(part.numbers) + which * graph_.nodes[static_cast<size_t>(part.node)].channels;
}

void* CpuPlan::workspace(int step) const {
  const int buffer = graph_.steps[static_cast<size_t>(step)].workspace;
  return buffer < 0 ? nullptr : at<void>(buffer);
}

size_t CpuPlan::workspace_bytes(int step) const {
  const int buffer = graph_.steps[static_cast<size_t>(step)].workspace;
  return buffer < 0 ? 0 : graph_.arena.size(buffer);
}

void CpuPlan::need(int step, size_t bytes) {
  size_t& needed = needed_[static_cast<size_t>(step)];
  needed = std::max(needed, bytes);
}

dipengine_pixels CpuPlan::pixels(const Node& node, int buffer) const {
  return {at<void>(buffer), node.width * node.channels, node.channels};
}

const double* CpuPlan::widened(const Slot& slot, int parameter, int64_t first, int64_t count, int spare_row) const {
  const float* from = slot.parameter(parameter) + first;
  std::copy_n(from, count, spare(spare_row));
  return spare(spare_row);
}

void CpuPlan::store_gradient(int parameter, int64_t first, int64_t count, const double* values) const {
  if (graph_.specs[static_cast<size_t>(parameter)].dead) return;
  float* to = gradients() + layout_.parameter_offset(parameter) + first;
  for (int64_t c = 0; c < count; ++c) to[c] = static_cast<float>(values[c]);
}

// ---- the generator --------------------------------------------------------------------------------------------------

dipengine_conv_source CpuPlan::source(const Part& part, bool backward) const {
  const Node& node = graph_.nodes[static_cast<size_t>(part.node)];
  dipengine_conv_source s{};
  s.height = node.height;
  s.width = node.width;
  s.channels = node.channels;
  s.upsample = part.upsample;
  s.slope = node.slope;
  s.x = pixels(node, node.raw);
  if (node.gamma >= 0) s.inner = {node_number(node, kScale), node_number(node, kShift)};
  const bool merged = part.merged_first >= 0;
  if (merged) s.outer = {part_number(part, kScale), part_number(part, kShift)};
  if (!backward || node.gradient < 0) return s;
  s.accumulate = part.accumulate;
  s.d_x = pixels(node, node.gradient);
  s.centre = merged ? nullptr : node_number(node, kMean);
  s.sum = merged ? part_number(part, kSum) : node_number(node, kSum);
  s.product = merged ? part_number(part, kProduct) : node_number(node, kProduct);
  return s;
}

// A stride-1 convolution and the 2x2 mean behind it as one of stride 2.
void CpuPlan::widen_weight(const Unit& unit, const float* weight) const {
  const ParameterSpec& spec = graph_.specs[static_cast<size_t>(unit.weight)];
  const int64_t k = unit.kernel, pairs = spec.in * spec.out;
  float* wide = at<float>(unit.wide_weight);
  std::fill_n(wide, (k + 1) * (k + 1) * pairs, 0.0f);
  for (const auto& [top, left] : {std::pair{0, 0}, {0, 1}, {1, 0}, {1, 1}}) {
    for (int64_t t = 0; t < k * k; ++t) {
      float* to = wide + ((t / k + top) * (k + 1) + t % k + left) * pairs;
      for (int64_t i = 0; i < pairs; ++i) to[i] += weight[t * pairs + i] / 4;
    }
  }
}

void CpuPlan::narrow_gradient(const Unit& unit, float* d_weight) const {
  const ParameterSpec& spec = graph_.specs[static_cast<size_t>(unit.weight)];
  const int64_t k = unit.kernel, pairs = spec.in * spec.out;
  const float* wide = at<float>(unit.wide_gradient);
  for (int64_t t = 0; t < k * k; ++t) {
    const float* corner = wide + (t / k * (k + 1) + t % k) * pairs;
    for (int64_t i = 0; i < pairs; ++i) {
      d_weight[t * pairs + i] = (corner[i] + corner[pairs + i] + corner[(k + 1) * pairs + i] + corner[(k + 2) * pairs + i]) / 4;
    }
  }
}

dipengine_status CpuPlan::conv(int step, const Slot* slot, bool backward, bool sizing) {
  const Unit& unit = graph_.units[static_cast<size_t>(graph_.steps[static_cast<size_t>(step)].unit)];
  const bool head = unit.node < 0;
  const Node* out = head ? nullptr : &graph_.nodes[static_cast<size_t>(unit.node)];
  dipengine_conv_source sources[DIPENGINE_CONV_MAX_SOURCES];
  for (size_t i = 0; i < unit.parts.size(); ++i) sources[i] = source(unit.parts[i], backward);

  dipengine_conv_params c{};
  c.struct_size = sizeof(c);
  c.source_size = sizeof(sources[0]);
  c.pool = p_.pool;
  c.workspace = workspace(step);
  c.workspace_bytes = workspace_bytes(step);
  c.sources = sources;
  c.sources_count = static_cast<int32_t>(unit.parts.size());
  c.dtype = p_.dtype;
  c.raw_dtype = c.gradient_dtype = head ? static_cast<int32_t>(DIPENGINE_FLOAT32) : p_.dtype;
  c.kernel = static_cast<int32_t>(unit.stored_kernel());
  c.stride = static_cast<int32_t>(unit.stride);
  c.pad = static_cast<int32_t>(unit.pad);
  c.padding = p_.generator.padding;
  c.height = head ? graph_.height : out->height;
  c.width = head ? graph_.width : out->width;
  c.channels = head ? channels_ : out->channels;
  const float* weight = sizing ? at<float>(gradients_) : slot->parameter(unit.weight);
  if (unit.mean) {
    if (!sizing && !backward) widen_weight(unit, weight);
    weight = at<float>(unit.wide_weight);
  }
  c.weight = weight;
  const dipengine_pixels logits{at<void>(graph_.logits), graph_.width * channels_, channels_};
  c.raw = head ? logits : pixels(*out, out->raw);

  if (!backward) {
    if (head) {
      c.bias = sizing ? at<float>(gradients_) : slot->parameter(unit.bias);
    } else {
      c.mean = node_number(*out, kMean);
      c.variance = node_number(*out, kVariance);
    }
    if (sizing) {
      size_t bytes = 0;
      DIPENGINE_TRY(dipengine_conv_forward_workspace(&c, &bytes));
      need(step, bytes);
      return DIPENGINE_OK;
    }
    DIPENGINE_TRY(dipengine_conv_forward(&c));
    if (!head) {
      dipengine_norm_fold(out->channels, c.mean, c.variance, widened(*slot, out->gamma, 0, out->channels, kGamma),
                          widened(*slot, out->beta, 0, out->channels, kBeta), kNormEpsilon, node_number(*out, kScale),
                          node_number(*out, kShift));
    }
    return DIPENGINE_OK;
  }

  float* d_weight = gradients() + (sizing ? 0 : layout_.parameter_offset(unit.weight));
  c.d_weight = unit.mean ? at<float>(unit.wide_gradient) : d_weight;
  if (head) {
    c.gradient = {at<void>(graph_.d_logits), graph_.width * channels_, channels_};
    c.d_bias = gradients() + (sizing ? 0 : layout_.parameter_offset(unit.bias));
  } else {
    c.gradient = pixels(*out, out->gradient);
    c.gradient_scale = spare(kA);
    c.raw_scale = spare(kB);
    c.gradient_shift = spare(kC);
  }
  if (sizing) {
    size_t bytes = 0;
    DIPENGINE_TRY(dipengine_conv_backward_workspace(&c, &bytes));
    need(step, bytes);
    return DIPENGINE_OK;
  }
  if (!head) {
    const dipengine_norm_gradient fold{sizeof(fold), out->channels, static_cast<double>(out->height * out->width),
                                       node_number(*out, kMean), node_number(*out, kVariance),
                                       widened(*slot, out->gamma, 0, out->channels, kGamma), kNormEpsilon,
                                       node_number(*out, kSum), node_number(*out, kProduct), 1, spare(kA), spare(kB), spare(kC),
                                       spare(kDGamma), spare(kDBeta)};
    DIPENGINE_TRY(dipengine_norm_fold_gradient(&fold));
    store_gradient(out->gamma, 0, out->channels, spare(kDGamma));
    store_gradient(out->beta, 0, out->channels, spare(kDBeta));
  }
  DIPENGINE_TRY(dipengine_conv_backward(&c));
  if (unit.mean) narrow_gradient(unit, d_weight);
  return DIPENGINE_OK;
}

// The statistics of a concatenation's parts, each at its own resolution, and their share of its norm.
dipengine_status CpuPlan::merge(int step, const Slot* slot, bool sizing) {
  const Unit& unit = graph_.units[static_cast<size_t>(graph_.steps[static_cast<size_t>(step)].unit)];
  for (const Part& part : unit.parts) {
    dipengine_conv_source s = source(part, false);
    s.outer = {nullptr, nullptr};
    dipengine_norm_params n{};
    n.struct_size = sizeof(n);
    n.source_size = sizeof(s);
    n.pool = p_.pool;
    n.workspace = workspace(step);
    n.workspace_bytes = workspace_bytes(step);
    n.source = &s;
    n.dtype = p_.dtype;
    n.mean = part_number(part, kMean);
    n.variance = part_number(part, kVariance);
    if (sizing) {
      size_t bytes = 0;
      DIPENGINE_TRY(dipengine_norm_workspace(&n, &bytes));
      need(step, bytes);
      continue;
    }
    DIPENGINE_TRY(dipengine_norm_statistics(&n));
    dipengine_norm_fold(s.channels, n.mean, n.variance, widened(*slot, unit.merge_gamma, part.merged_first, s.channels, kGamma),
                        widened(*slot, unit.merge_beta, part.merged_first, s.channels, kBeta), kNormEpsilon,
                        part_number(part, kScale), part_number(part, kShift));
  }
  return DIPENGINE_OK;
}

// Through the norm of a concatenation: from the gradient behind it, which each part's buffer holds, to the part's own.
dipengine_status CpuPlan::merge_backward(int step, const Slot* slot, bool sizing) {
  const Unit& unit = graph_.units[static_cast<size_t>(graph_.steps[static_cast<size_t>(step)].unit)];
  const Node& out = graph_.nodes[static_cast<size_t>(unit.node)];
  for (const Part& part : unit.parts) {
    const Node& node = graph_.nodes[static_cast<size_t>(part.node)];
    if (!sizing) {
      const dipengine_norm_gradient fold{sizeof(fold), node.channels, static_cast<double>(out.height * out.width),
                                         part_number(part, kMean), part_number(part, kVariance),
                                         widened(*slot, unit.merge_gamma, part.merged_first, node.channels, kGamma), kNormEpsilon,
                                         part_number(part, kSum), part_number(part, kProduct), 0, spare(kA), spare(kB), spare(kC),
                                         spare(kDGamma), spare(kDBeta)};
      DIPENGINE_TRY(dipengine_norm_fold_gradient(&fold));
      store_gradient(unit.merge_gamma, part.merged_first, node.channels, spare(kDGamma));
      store_gradient(unit.merge_beta, part.merged_first, node.channels, spare(kDBeta));
    }
    dipengine_conv_source s = source({part.node, part.upsample, -1, 0, false}, true);
    dipengine_norm_params n{};
    n.struct_size = sizeof(n);
    n.source_size = sizeof(s);
    n.pool = p_.pool;
    n.workspace = workspace(step);
    n.workspace_bytes = workspace_bytes(step);
    n.source = &s;
    n.dtype = p_.dtype;
    n.g = s.d_x;
    n.a = spare(kA);
    n.b = spare(kB);
    n.c = spare(kC);
    if (sizing) {
      size_t bytes = 0;
      DIPENGINE_TRY(dipengine_norm_workspace(&n, &bytes));
      need(step, bytes);
      continue;
    }
    DIPENGINE_TRY(dipengine_norm_backward(&n));
  }
  return DIPENGINE_OK;
}

dipengine_status CpuPlan::perturb(const Slot& slot, double std) {
  const SlotState& state = slot.state();
  const uint32_t step = static_cast<uint32_t>(state.iteration);
  dipengine_perturb_params z{};
  z.struct_size = sizeof(z);
  z.pool = p_.pool;
  z.fits = 1;
  z.count = graph_.height * graph_.width * p_.generator.input_depth;
  z.seeds = &state.seed;
  z.steps = &step;
  z.stream = kPerturbationStream;
  z.std = static_cast<float>(std);
  if (p_.code == DIPENGINE_CODE_NOISE) {
    z.z_dtype = DIPENGINE_UINT8;
    z.z_scale = static_cast<float>(p_.code_scale / 255);
    z.code_seeds = &state.code_seed;
    z.code_stream = kCodeStream;
  } else {
    z.z_dtype = DIPENGINE_FLOAT32;
    z.z = slot.array(SlotArrays::code);
  }
  z.out_dtype = p_.dtype;
  z.out = at<void>(graph_.nodes[0].raw);
  return dipengine_perturb(&z);
}

dipengine_status CpuPlan::adam(const Slot& slot) {
  SlotState& state = slot.state();
  const dipengine_adam_segment segment{slot.array(SlotArrays::parameters), gradients(), slot.array(SlotArrays::m),
                                       slot.array(SlotArrays::v), nullptr, layout_.trainable(), 0};
  dipengine_adam_params a{};
  a.struct_size = sizeof(a);
  a.segment_size = sizeof(segment);
  a.pool = p_.pool;
  a.dtype = a.grad_dtype = DIPENGINE_FLOAT32;
  a.fits = a.segments_count = 1;
  a.segments = &segment;
  a.steps = &state.step;
  a.learning_rate = &state.learning_rate;
  a.beta1 = 0.9;
  a.beta2 = 0.999;
  a.eps = 1e-8;
  return dipengine_adam(&a);
}

// ---- the output and the data ----------------------------------------------------------------------------------------

static dipengine_image rows_of(const void* data, int64_t row_stride) {
  return {const_cast<void*>(data), 0, 0, row_stride};
}

// Of d_logits, what lies outside the image: the loss does not see it.
void CpuPlan::clear_margin(const Extent& extent) const {
  float* d = at<float>(graph_.d_logits);
  const int64_t row = graph_.width * channels_, seen = extent.width * channels_;
  for (int64_t y = 0; y < extent.height && seen < row; ++y) std::fill(d + y * row + seen, d + (y + 1) * row, 0.0f);
  std::fill(d + extent.height * row, d + graph_.height * row, 0.0f);
}

// x = sigmoid(logits) over the image: average, statistic, and either x itself or at once the squared error's gradient.
dipengine_status CpuPlan::output(int step, const Slot* slot, bool sizing, bool with_loss) {
  const Extent& extent = sizing ? layout_.largest() : slot->state().extent;
  const int64_t row = extent.width * channels_, canvas_row = graph_.width * channels_;
  dipengine_masked_mse_params m{};
  m.struct_size = sizeof(m);
  m.pool = p_.pool;
  m.workspace = workspace(step);
  m.workspace_bytes = workspace_bytes(step);
  m.fits = m.outer = 1;
  m.rows = extent.height;
  m.inner = row;
  m.dtype = DIPENGINE_FLOAT32;
  m.activation = DIPENGINE_ACTIVATION_SIGMOID;
  m.mask_repeat = 1;
  if (sizing) {
    size_t bytes = 0;
    DIPENGINE_TRY(dipengine_masked_mse_workspace(&m, &bytes));
    need(step, bytes);
    return DIPENGINE_OK;
  }
  SlotState& state = slot->state();
  OutputCounts& outputs = state.outputs;
  m.raw = rows_of(at<void>(graph_.logits), canvas_row);
  const double normaliser = static_cast<double>(row * extent.height);
  if (with_loss) {
    m.target = rows_of(slot->array(SlotArrays::target), row);
    if (state.has_mask) {
      m.mask = rows_of(slot->array(SlotArrays::mask), extent.width);
      m.mask_repeat = channels_;
    }
    m.d_raw = rows_of(at<void>(graph_.d_logits), canvas_row);
    m.normaliser = &normaliser;
    m.loss = &loss_;
    clear_margin(extent);
  } else {
    m.out = rows_of(at<void>(graph_.image), row);
  }
  m.average = rows_of(slot->array(SlotArrays::average), row);
  m.es_mean = rows_of(slot->array(SlotArrays::es_mean), row);
  m.grad_scale = 1;
  const double frames = static_cast<double>(outputs.frames);
  m.average_decay = p_.average_warm_up ? std::min(p_.average_decay, (frames + 1) / (frames + 10)) : p_.average_decay;
  m.es_alpha = p_.es_alpha;
  const uint8_t first = outputs.frames == 0;
  m.first_frame = &first;
  m.d2 = &d2_;
  DIPENGINE_TRY(dipengine_masked_mse(&m));
  if (outputs.frames > 0) outputs.es_variance = (1 - p_.es_alpha) * (outputs.es_variance + p_.es_alpha * d2_);
  ++outputs.frames;
  return DIPENGINE_OK;
}

dipengine_status CpuPlan::forward(const Slot& slot, int* step) {
  DIPENGINE_TRY(perturb(slot, 0));
  const auto within = [&](int i) {
    const StepKind kind = graph_.steps[static_cast<size_t>(i)].kind;
    return kind == StepKind::forward || kind == StepKind::merge;
  };
  for (*step = 1; within(*step); ++*step) DIPENGINE_TRY(run(*step, slot));
  return DIPENGINE_OK;
}

dipengine_status CpuPlan::statistics(const Slot& slot, float* flat) {
  int step;
  DIPENGINE_TRY(forward(slot, &step));
  std::vector<float*> places;
  for (const ParameterSpec& spec : graph_.specs) {
    places.push_back(flat);
    flat = std::fill_n(flat, spec.size(), 0.0f);
  }
  const auto put = [&](int parameter, int64_t first, int64_t count, const double* values) {
    for (int64_t c = 0; c < count; ++c) places[static_cast<size_t>(parameter)][first + c] = static_cast<float>(values[c]);
  };
  for (const Node& node : graph_.nodes) {
    if (node.gamma < 0) continue;
    put(node.gamma, 0, node.channels, node_number(node, kMean));
    put(node.beta, 0, node.channels, node_number(node, kVariance));
  }
  for (const Unit& unit : graph_.units) {
    for (const Part& part : unit.parts) {
      if (part.merged_first < 0) continue;
      const int64_t channels = graph_.nodes[static_cast<size_t>(part.node)].channels;
      put(unit.merge_gamma, part.merged_first, channels, part_number(part, kMean));
      put(unit.merge_beta, part.merged_first, channels, part_number(part, kVariance));
    }
  }
  return DIPENGINE_OK;
}

}  // namespace dipengine
