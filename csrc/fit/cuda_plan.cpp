#include "fit/cuda_plan.h"

#include <algorithm>

#include "ops/adam/adam_cuda.h"
#include "ops/philox/philox_cuda.h"
#include "platform/error.h"

namespace dipengine {
namespace {

constexpr uint32_t kCodeStream = 0, kPerturbationStream = 1;
enum Number { kMean, kVariance, kScale, kShift, kSum, kProduct };
enum Spare { kA, kB, kC, kSpares };

// What buffers seem to lie at while they are sized; never followed.
char* const kNowhere = reinterpret_cast<char*>(uintptr_t{1} << 20);

int64_t padded(int64_t floats) { return (floats + 15) / 16 * 16; }

size_t aligned(size_t bytes) { return (bytes + Arena::kAlign - 1) / Arena::kAlign * Arena::kAlign; }

}  // namespace

CudaPlan::CudaPlan(const dipengine_fit_params& params, Graph& graph, const SlotLayout& layout, const LoopRules& rules)
    : p_(params),
      graph_(graph),
      layout_(layout),
      rules_(rules),
      places_(layout.places(layout.largest())),
      channels_(params.generator.output_channels),
      element_(params.dtype == DIPENGINE_BFLOAT16 ? 2 : 4),
      needed_(graph.steps.size(), 0),
      base_(kNowhere) {}

dipengine_status CudaPlan::size() {
  gradients_ = static_cast<int64_t>(layout_.bytes() / sizeof(float));
  numbers_at_ = gradients_ + padded(layout_.trainable());
  spare_ = numbers_at_ + padded(graph_.numbers);
  stride_ = spare_ + padded(kSpares * graph_.most_channels);
  block_buffer_ = graph_.arena.add_permanent(static_cast<size_t>(stride_) * sizeof(float));
  fits_buffer_ = graph_.arena.add_once(fit_numbers_bytes(p_.slots));
  const int steps = static_cast<int>(graph_.steps.size());
  operator_buffer_ = graph_.arena.add_once(static_cast<size_t>(operator_weights()) * sizeof(float));
  for (int buffer : {fits_buffer_, operator_buffer_}) {
    graph_.arena.use(buffer, 0);
    graph_.arena.use(buffer, steps);
  }
  fits_ = fit_numbers_at(at<void>(fits_buffer_), p_.slots);
  for (int step = 0; step < steps; ++step) DIPENGINE_TRY(each(step, true));
  graph_.pack(needed_);
  return DIPENGINE_OK;
}

dipengine_status CudaPlan::bind(void* arena, void* stream) {
  base_ = static_cast<char*>(arena);
  stream_ = stream;
  fits_ = fit_numbers_at(at<void>(fits_buffer_), p_.slots);
  return upload_constants();
}

dipengine_status CudaPlan::launch(int step) {
  const int last = static_cast<int>(graph_.steps.size()) - 1;  // the inspection
  if (step == 0) DIPENGINE_TRY(launch_begin(turn(), stream_));
  if (step == graph_.judged) {
    const int64_t trainable = layout_.trainable(), image = places_.sizes[SlotArrays::average];
    DIPENGINE_TRY(launch_judge(turn(), stream_));
    DIPENGINE_TRY(copies({{array_at(SlotArrays::parameters), array_at(SlotArrays::snapshot_parameters), trainable},
                          {array_at(SlotArrays::m), array_at(SlotArrays::snapshot_m), trainable},
                          {array_at(SlotArrays::v), array_at(SlotArrays::snapshot_v), trainable},
                          {array_at(SlotArrays::average), array_at(SlotArrays::snapshot_average), image},
                          {array_at(SlotArrays::es_mean), array_at(SlotArrays::snapshot_es_mean), image}}));
  }
  DIPENGINE_TRY(each(step, false));
  if (step != last) return DIPENGINE_OK;
  DIPENGINE_TRY(launch_end(turn(), stream_));
  if (p_.stop != DIPENGINE_STOP_AUTO) return DIPENGINE_OK;
  return copies({{array_at(SlotArrays::parameters), array_at(SlotArrays::best_parameters), layout_.trainable()},
                 {array_at(SlotArrays::average), array_at(SlotArrays::best_average), places_.sizes[SlotArrays::average]}});
}

dipengine_status CudaPlan::each(int step, bool sizing) {
  switch (graph_.steps[static_cast<size_t>(step)].kind) {
    case StepKind::perturb: {
      // Cheaper to draw again than to keep: behind the loss it is those of fits that learn.
      const Node& z = graph_.nodes[0];
      return sizing ? DIPENGINE_OK
                    : perturb(p_.perturbation, step == 0 ? z.raw : z.raw_again, step == 0 ? fits_.active : fits_.learns);
    }
    case StepKind::merge: return merge(step, sizing);
    case StepKind::forward: return forward(step, sizing);
    case StepKind::loss: return output(step, sizing, true);
    case StepKind::image: return output(step, sizing, false);
    case StepKind::measure: return measure(step, sizing, fits_.active, at<float>(graph_.image), image_stride(), graph_.measured);
    case StepKind::data_term: return data_term(step, sizing);
    case StepKind::measure_backward: return measure_backward(step, sizing);
    case StepKind::image_backward: return sizing ? DIPENGINE_OK : image_backward();
    case StepKind::backward: return backward(step, sizing);
    case StepKind::merge_backward: return merge_backward(step, sizing);
    case StepKind::adam: return sizing ? DIPENGINE_OK : adam();
    case StepKind::inspect: return residual(step, sizing);
  }
  return DIPENGINE_OK;
}

// ---- buffers and numbers --------------------------------------------------------------------------------------------

float* CudaPlan::part_number(const Part& part, int which) const {
  return blocks() + numbers_at_ + part.numbers + which * graph_.nodes[static_cast<size_t>(part.node)].channels;
}

dipengine_pixels CudaPlan::pixels(const Node& node, int buffer) const {
  return {at<void>(buffer), node.width * node.channels, node.channels};
}

void* CudaPlan::workspace(int step, size_t skip) const {
  const int buffer = graph_.steps[static_cast<size_t>(step)].workspace;
  return buffer < 0 ? nullptr : at<char>(buffer) + skip;
}

size_t CudaPlan::workspace_bytes(int step, size_t skip) const {
  const int buffer = graph_.steps[static_cast<size_t>(step)].workspace;
  return buffer < 0 ? 0 : graph_.arena.size(buffer) - skip;
}

void CudaPlan::need(int step, size_t bytes) {
  size_t& needed = needed_[static_cast<size_t>(step)];
  needed = std::max(needed, bytes);
}

// ---- the generator --------------------------------------------------------------------------------------------------

dipengine_conv_cuda_source CudaPlan::source(const Part& part, bool backward) const {
  const Node& node = graph_.nodes[static_cast<size_t>(part.node)];
  dipengine_conv_cuda_source s{};
  s.height = static_cast<int32_t>(node.height);
  s.width = static_cast<int32_t>(node.width);
  s.channels = static_cast<int32_t>(node.channels);
  s.upsample = part.upsample;
  s.slope = static_cast<float>(node.slope);
  const int raw = backward ? node.raw_again : node.raw;
  s.x = pixels(node, raw);
  s.x_fit_stride = stride_of(raw);
  if (node.gamma >= 0) s.inner = {node_number(node, kScale), node_number(node, kShift)};
  const bool merged = part.merged_first >= 0;
  if (merged) s.outer = {part_number(part, kScale), part_number(part, kShift)};
  if (!backward || node.gamma < 0) return s;
  if (node.gradient >= 0) {  // else its sums alone
    s.accumulate = part.accumulate;
    s.d_x = pixels(node, node.gradient);
    s.d_x_fit_stride = stride_of(node.gradient);
  }
  s.centre = merged ? nullptr : node_number(node, kMean);
  s.sum = merged ? part_number(part, kSum) : node_number(node, kSum);
  s.product = merged ? part_number(part, kProduct) : node_number(node, kProduct);
  return s;
}

// All of a unit's convolution but its packed weights and workspace.
dipengine_conv_cuda_params CudaPlan::conv_params(const Unit& unit, const dipengine_conv_cuda_source* sources, bool backward) const {
  const bool head = unit.node < 0;
  const Node* out = head ? nullptr : &graph_.nodes[static_cast<size_t>(unit.node)];
  dipengine_conv_cuda_params c{};
  c.struct_size = sizeof(c);
  c.source_size = sizeof(*sources);
  c.stream = stream_;
  c.fits = p_.slots;
  c.active = backward ? fits_.learns : fits_.active;
  c.numbers_fit_stride = c.parameters_fit_stride = stride_;
  c.sources = sources;
  c.sources_count = static_cast<int32_t>(unit.parts.size());
  c.dtype = p_.dtype;
  c.raw_dtype = c.gradient_dtype = head ? static_cast<int32_t>(DIPENGINE_FLOAT32) : p_.dtype;
  c.kernel = static_cast<int32_t>(unit.stored_kernel());
  c.stride = static_cast<int32_t>(unit.stride);
  c.pad = static_cast<int32_t>(unit.pad);
  c.padding = p_.generator.padding;
  c.height = static_cast<int32_t>(head ? graph_.height : out->height);
  c.width = static_cast<int32_t>(head ? graph_.width : out->width);
  c.channels = static_cast<int32_t>(head ? channels_ : out->channels);
  c.weight = parameter(unit.weight);
  if (head) {
    c.raw = {at<void>(graph_.logits), graph_.width * channels_, channels_};
    c.raw_fit_stride = float_stride(graph_.logits);
    if (!backward) {
      c.bias = parameter(unit.bias);
      return c;
    }
    c.gradient = {at<void>(graph_.d_logits), graph_.width * channels_, channels_};
    c.gradient_fit_stride = float_stride(graph_.d_logits);
    c.d_weight = gradient(unit.weight);
    c.d_bias = gradient(unit.bias);
    return c;
  }
  c.raw = pixels(*out, out->raw);
  c.raw_fit_stride = stride_of(out->raw);
  if (!backward) {
    c.mean = node_number(*out, kMean);
    c.variance = node_number(*out, kVariance);
    c.gamma = parameter(out->gamma);
    c.beta = parameter(out->beta);
    c.eps = kNormEpsilon;
    c.scale = node_number(*out, kScale);
    c.shift = node_number(*out, kShift);
    return c;
  }
  c.gradient_scale = spare(kA);
  c.raw_scale = spare(kB);
  c.gradient_shift = spare(kC);
  c.d_weight = gradient(unit.weight);
  if (out->gradient >= 0) {
    c.gradient = pixels(*out, out->gradient);
    c.gradient_fit_stride = stride_of(out->gradient);
    return c;
  }
  c.gradient = {at<void>(graph_.d_logits), graph_.width * channels_, channels_};
  c.gradient_fit_stride = float_stride(graph_.d_logits);
  c.gradient_dtype = DIPENGINE_FLOAT32;
  c.head = {parameter(graph_.units.back().weight), static_cast<int32_t>(channels_), static_cast<float>(out->slope),
            {node_number(*out, kScale), node_number(*out, kShift)}};
  return c;
}

dipengine_status CudaPlan::forward(int step, bool sizing) {
  const Unit& unit = graph_.units[static_cast<size_t>(graph_.steps[static_cast<size_t>(step)].unit)];
  dipengine_conv_cuda_source sources[DIPENGINE_CONV_MAX_SOURCES];
  for (size_t i = 0; i < unit.parts.size(); ++i) sources[i] = source(unit.parts[i], false);
  dipengine_conv_cuda_params c = conv_params(unit, sources, false);
  size_t moments = 0;
  DIPENGINE_TRY(dipengine_conv_cuda_packed_bytes(&c, &c.packed_bytes));
  DIPENGINE_TRY(dipengine_conv_cuda_workspace(&c, &moments));
  const size_t skip = aligned(c.packed_bytes);
  if (sizing) {
    need(step, skip + moments);
    return DIPENGINE_OK;
  }
  c.packed = workspace(step);
  c.workspace = workspace(step, skip);
  c.workspace_bytes = workspace_bytes(step, skip);
  dipengine_conv_cuda_params weights = c;
  if (unit.mean) {
    const dipengine_conv_mean_cuda_params wider = mean_params(unit, unit.wide_weight, parameter(unit.weight), fits_.active);
    DIPENGINE_TRY(dipengine_conv_mean_cuda_widen(&wider));
    weights.weight = wider.wide;
    weights.parameters_fit_stride = wider.wide_fit_stride;
  }
  DIPENGINE_TRY(dipengine_conv_cuda_pack(&weights));
  return dipengine_conv_cuda_forward(&c);
}

// The kernel that has the mean behind it in it, and its gradient.
dipengine_conv_mean_cuda_params CudaPlan::mean_params(const Unit& unit, int wide, float* narrow, const uint8_t* active) const {
  const ParameterSpec& spec = graph_.specs[static_cast<size_t>(unit.weight)];
  return {sizeof(dipengine_conv_mean_cuda_params), stream_, p_.slots, active, unit.kernel, spec.in * spec.out, narrow,
          at<float>(wide), stride_, float_stride(wide)};
}

// From sums behind a norm to A, B and C of the gradient in front of it.
dipengine_norm_cuda_gradient CudaPlan::fold_params(const Node& node, double count) const {
  dipengine_norm_cuda_gradient g{};
  g.struct_size = sizeof(g);
  g.stream = stream_;
  g.fits = p_.slots;
  g.active = fits_.learns;
  g.numbers_fit_stride = g.parameters_fit_stride = stride_;
  g.channels = node.channels;
  g.count = count;
  g.eps = kNormEpsilon;
  g.a = spare(kA);
  g.b = spare(kB);
  g.c = spare(kC);
  return g;
}

dipengine_status CudaPlan::backward(int step, bool sizing) {
  const Unit& unit = graph_.units[static_cast<size_t>(graph_.steps[static_cast<size_t>(step)].unit)];
  dipengine_conv_cuda_source sources[DIPENGINE_CONV_MAX_SOURCES];
  for (size_t i = 0; i < unit.parts.size(); ++i) sources[i] = source(unit.parts[i], true);
  dipengine_conv_cuda_params c = conv_params(unit, sources, true);
  sources[0].over_raw = c.head.weight != nullptr;
  size_t sums = 0, products = 0;
  DIPENGINE_TRY(dipengine_conv_cuda_weight_gradient_workspace(&c, &products));
  DIPENGINE_TRY(dipengine_conv_cuda_data_gradient_sizes(&c, &c.packed_bytes, &sums));
  const size_t skip = aligned(c.packed_bytes);
  if (sizing) {  // one after the other: in one place
    need(step, std::max(products, skip + sums));
    return DIPENGINE_OK;
  }
  if (unit.node >= 0) {
    const Node& out = graph_.nodes[static_cast<size_t>(unit.node)];
    dipengine_norm_cuda_gradient fold = fold_params(out, static_cast<double>(out.height * out.width));
    fold.mean = node_number(out, kMean);
    fold.variance = node_number(out, kVariance);
    fold.gamma = parameter(out.gamma);
    fold.sum = node_number(out, kSum);
    fold.product = node_number(out, kProduct);
    fold.centred = 1;
    fold.d_gamma = gradient(out.gamma);
    fold.d_beta = gradient(out.beta);
    DIPENGINE_TRY(dipengine_norm_cuda_fold_gradient(&fold));
  }
  if (unit.mean) {
    c.weight = at<float>(unit.wide_weight);
    c.d_weight = at<float>(unit.wide_gradient);
    c.parameters_fit_stride = float_stride(unit.wide_weight);
  }
  c.workspace = workspace(step);
  c.workspace_bytes = workspace_bytes(step);
  DIPENGINE_TRY(dipengine_conv_cuda_weight_gradient(&c));
  if (unit.mean) {
    const dipengine_conv_mean_cuda_params narrower = mean_params(unit, unit.wide_gradient, gradient(unit.weight), fits_.learns);
    DIPENGINE_TRY(dipengine_conv_mean_cuda_narrow(&narrower));
  }
  if (c.packed_bytes == 0) return DIPENGINE_OK;  // z alone is read, which has no gradient
  c.packed = workspace(step);
  c.workspace = workspace(step, skip);
  c.workspace_bytes = workspace_bytes(step, skip);
  return dipengine_conv_cuda_data_gradient(&c);
}

dipengine_norm_cuda_params CudaPlan::norm_params(int step, const dipengine_conv_cuda_source* source, const uint8_t* active) const {
  dipengine_norm_cuda_params n{};
  n.struct_size = sizeof(n);
  n.source_size = sizeof(*source);
  n.stream = stream_;
  n.workspace = workspace(step);
  n.workspace_bytes = workspace_bytes(step);
  n.fits = p_.slots;
  n.active = active;
  n.numbers_fit_stride = n.parameters_fit_stride = stride_;
  n.source = source;
  n.dtype = p_.dtype;
  return n;
}

// The statistics of a concatenation's parts, each at its own resolution, and their share of its norm.
dipengine_status CudaPlan::merge(int step, bool sizing) {
  const Unit& unit = graph_.units[static_cast<size_t>(graph_.steps[static_cast<size_t>(step)].unit)];
  for (const Part& part : unit.parts) {
    dipengine_conv_cuda_source s = source(part, false);
    s.outer = {nullptr, nullptr};
    dipengine_norm_cuda_params n = norm_params(step, &s, fits_.active);
    if (sizing) {
      size_t bytes = 0;
      DIPENGINE_TRY(dipengine_norm_cuda_workspace(&n, &bytes));
      need(step, bytes);
      continue;
    }
    n.mean = part_number(part, kMean);
    n.variance = part_number(part, kVariance);
    n.gamma = parameter(unit.merge_gamma) + part.merged_first;
    n.beta = parameter(unit.merge_beta) + part.merged_first;
    n.eps = kNormEpsilon;
    n.scale = part_number(part, kScale);
    n.shift = part_number(part, kShift);
    DIPENGINE_TRY(dipengine_norm_cuda_statistics(&n));
  }
  return DIPENGINE_OK;
}

// Through the norm of a concatenation: from the gradient behind it, which each part's buffer holds, to the part's own.
dipengine_status CudaPlan::merge_backward(int step, bool sizing) {
  const Unit& unit = graph_.units[static_cast<size_t>(graph_.steps[static_cast<size_t>(step)].unit)];
  const Node& out = graph_.nodes[static_cast<size_t>(unit.node)];
  for (const Part& part : unit.parts) {
    const Node& node = graph_.nodes[static_cast<size_t>(part.node)];
    const dipengine_conv_cuda_source s = source({part.node, part.upsample, -1, 0, false}, true);
    dipengine_norm_cuda_params n = norm_params(step, &s, fits_.learns);
    if (sizing) {
      size_t bytes = 0;
      DIPENGINE_TRY(dipengine_norm_cuda_workspace(&n, &bytes));
      need(step, bytes);
      continue;
    }
    dipengine_norm_cuda_gradient fold = fold_params(node, static_cast<double>(out.height * out.width));
    fold.mean = part_number(part, kMean);
    fold.variance = part_number(part, kVariance);
    fold.gamma = parameter(unit.merge_gamma) + part.merged_first;
    fold.sum = part_number(part, kSum);
    fold.product = part_number(part, kProduct);
    fold.d_gamma = gradient(unit.merge_gamma) + part.merged_first;
    const bool dead = graph_.specs[static_cast<size_t>(unit.merge_beta)].dead;
    fold.d_beta = dead ? nullptr : gradient(unit.merge_beta) + part.merged_first;
    DIPENGINE_TRY(dipengine_norm_cuda_fold_gradient(&fold));
    n.g = s.d_x;
    n.g_fit_stride = s.d_x_fit_stride;
    n.a = spare(kA);
    n.b = spare(kB);
    n.c = spare(kC);
    DIPENGINE_TRY(dipengine_norm_cuda_backward(&n));
  }
  return DIPENGINE_OK;
}

dipengine_status CudaPlan::perturb(double std, int to, const uint8_t* active) {
  dipengine_perturb_cuda_params z{};
  z.struct_size = sizeof(z);
  z.stream = stream_;
  z.fits = p_.slots;
  z.count = graph_.height * graph_.width * p_.generator.input_depth;
  z.seeds = fits_.seeds;
  z.steps = fits_.iterations;
  z.active = active;
  z.noise_stream = kPerturbationStream;
  z.std = static_cast<float>(std);
  if (p_.code == DIPENGINE_CODE_NOISE) {
    z.z_dtype = DIPENGINE_UINT8;
    z.z_scale = static_cast<float>(p_.code_scale / 255);
    z.code_seeds = fits_.code_seeds;
    z.code_stream = kCodeStream;
  } else {
    z.z_dtype = DIPENGINE_FLOAT32;
    z.z = array(SlotArrays::code);
    z.z_fit_stride = stride_;
  }
  z.out_dtype = p_.dtype;
  z.out = at<void>(to);
  z.out_fit_stride = stride_of(to);
  return dipengine_perturb_cuda(&z);
}

dipengine_status CudaPlan::adam() {
  const dipengine_adam_segment segment{array(SlotArrays::parameters), blocks() + gradients_, array(SlotArrays::m),
                                       array(SlotArrays::v), nullptr, layout_.trainable(), stride_};
  dipengine_adam_cuda_params a{};
  a.struct_size = sizeof(a);
  a.segment_size = sizeof(segment);
  a.stream = stream_;
  a.grad_dtype = DIPENGINE_FLOAT32;
  a.fits = p_.slots;
  a.segments_count = 1;
  a.segments = &segment;
  a.steps = fits_.updates;
  a.learning_rate = fits_.learning_rate;
  a.active = fits_.learns;
  a.beta1 = 0.9;
  a.beta2 = 0.999;
  a.eps = 1e-8;
  return dipengine_adam_cuda(&a);
}

dipengine_status CudaPlan::launch_forward() {
  DIPENGINE_TRY(perturb(0, graph_.nodes[0].raw, fits_.active));
  const auto within = [&](int i) {
    const StepKind kind = graph_.steps[static_cast<size_t>(i)].kind;
    return kind == StepKind::forward || kind == StepKind::merge;
  };
  for (int step = 1; within(step); ++step) DIPENGINE_TRY(each(step, false));
  return DIPENGINE_OK;
}

dipengine_status CudaPlan::copies(std::initializer_list<ArrayPair> pairs) const {
  CopyLaunch l{};
  for (const ArrayPair& pair : pairs) l.pairs[l.pairs_count++] = pair;
  l.blocks = blocks();
  l.fit_stride = stride_;
  l.copies = fits_.copies;
  return launch_copies(l, p_.slots, stream_);
}

}  // namespace dipengine
