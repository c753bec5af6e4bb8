#include "fit/cuda_plan.h"

#include <algorithm>

#include "ops/adam/adam_cuda.h"
#include "ops/philox/philox_cuda.h"
#include "platform/cuda/device.h"
#include "platform/error.h"

namespace dipengine {
namespace {

constexpr uint32_t kCodeStream = 0, kPerturbationStream = 1;

// What buffers seem to lie at while they are sized; never followed.
char* const kNowhere = reinterpret_cast<char*>(uintptr_t{1} << 20);

int64_t padded(int64_t floats) { return (floats + 15) / 16 * 16; }

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
  coefficients_ = numbers_at_ + padded(graph_.numbers);
  stride_ = coefficients_ + padded(graph_.numbers / 2);  // three where a node or part has six numbers
  block_buffer_ = graph_.arena.add_permanent(static_cast<size_t>(stride_) * sizeof(float));
  fits_buffer_ = graph_.arena.add_once(fit_numbers_bytes(p_.slots));
  const int steps = static_cast<int>(graph_.steps.size());
  branches_ = has_branches();
  last_share_.assign(graph_.nodes.size(), nullptr);
  for (const Step& s : graph_.steps) {
    if (s.kind != StepKind::backward) continue;
    for (const Part& part : graph_.units[static_cast<size_t>(s.unit)].parts) last_share_[static_cast<size_t>(part.node)] = &part;
  }
  DIPENGINE_TRY(size_weights());
  operator_buffer_ = graph_.arena.add_once(static_cast<size_t>(operator_weights()) * sizeof(float));
  first_ticket_.assign(graph_.steps.size(), {0, 0});
  fits_ = fit_numbers_at(at<void>(fits_buffer_), p_.slots);
  for (int step = 0; step < steps; ++step) DIPENGINE_TRY(each(step, true));
  tickets_buffer_ = graph_.arena.add_once(static_cast<size_t>(tickets_count_) * sizeof(uint32_t));
  for (int buffer : {fits_buffer_, operator_buffer_, packing_[0].table_buffer, packing_[1].table_buffer, tickets_buffer_}) {
    live(buffer, 0, steps);
  }
  if (branches_) live_on_branches();
  graph_.pack(needed_, branches_);
  return DIPENGINE_OK;
}

dipengine_status CudaPlan::bind(void* arena, void* stream) {
  base_ = static_cast<char*>(arena);
  stay_on(stream);
  fits_ = fit_numbers_at(at<void>(fits_buffer_), p_.slots);
  DIPENGINE_TRY(upload_jobs());
  const std::vector<uint32_t> none(static_cast<size_t>(tickets_count_), 0);
  DIPENGINE_TRY(cuda::upload(at<void>(tickets_buffer_), none.data(), none.size() * sizeof(none[0]), stream_));
  return upload_constants();
}

dipengine_status CudaPlan::launch(int step) {
  const int last = static_cast<int>(graph_.steps.size()) - 1;  // the inspection
  if (step == 0) {
    DIPENGINE_TRY(launch_begin(turn(), stream_));
    // Every branch, for those without work are waited for, too, and a stream outside of what is recorded cannot be.
    for (Branch branch : {kSkips, kWeights, kOtherWeights}) DIPENGINE_TRY(put_behind(branch, kMain));
    DIPENGINE_TRY(pack(false));
    DIPENGINE_TRY(each(step, false));
    DIPENGINE_TRY(put_behind(kMain, kWeights));
    return pack(true);
  }
  if (step == graph_.judged) {
    const int64_t trainable = layout_.trainable(), image = places_.sizes[SlotArrays::average];
    DIPENGINE_TRY(launch_judge(turn(), stream_));
    // Where weights are packed, and what lies around the image is cleared, for what now begins.
    for (Branch branch : {kWeights, kSkips}) DIPENGINE_TRY(put_behind(kMain, branch));
    on_weights_ = {0, 0};
    // Nothing waits for copies but the update, as fits that go back to a snapshot learn nothing now.
    DIPENGINE_TRY(put_behind(kSkips, kMain));
    DIPENGINE_TRY(copies(streams_[kSkips], {{array_at(SlotArrays::parameters), array_at(SlotArrays::snapshot_parameters), trainable},
                          {array_at(SlotArrays::m), array_at(SlotArrays::snapshot_m), trainable},
                          {array_at(SlotArrays::v), array_at(SlotArrays::snapshot_v), trainable},
                          {array_at(SlotArrays::average), array_at(SlotArrays::snapshot_average), image},
                          {array_at(SlotArrays::es_mean), array_at(SlotArrays::snapshot_es_mean), image}}));
    if (branches_ && graph_.nodes[0].raw_again != graph_.nodes[0].raw) DIPENGINE_TRY(perturb(p_.perturbation, true, fits_.learns));
  }
  if (graph_.steps[static_cast<size_t>(step)].kind == StepKind::adam) {
    for (Branch branch : {kSkips, kWeights, kOtherWeights}) DIPENGINE_TRY(put_behind(kMain, branch));
  }
  DIPENGINE_TRY(each(step, false));
  if (step != last) return DIPENGINE_OK;
  DIPENGINE_TRY(launch_end(turn(), stream_));
  if (p_.stop != DIPENGINE_STOP_AUTO) return DIPENGINE_OK;
  return copies(stream_, {{array_at(SlotArrays::parameters), array_at(SlotArrays::best_parameters), layout_.trainable()},
                 {array_at(SlotArrays::average), array_at(SlotArrays::best_average), places_.sizes[SlotArrays::average]}},
                rules_.holds_out != 0);
}

dipengine_status CudaPlan::each(int step, bool sizing) {
  switch (graph_.steps[static_cast<size_t>(step)].kind) {
    case StepKind::perturb: {
      // Cheaper to draw again than to keep: behind the loss it is those of fits that learn. Gradients of weights alone read it.
      const bool done = sizing || (branches_ && step > 0);  // behind the loss
      return done ? DIPENGINE_OK
                  : perturb(p_.perturbation, step > 0, step > 0 ? fits_.learns : fits_.active);
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

dipengine_pixels CudaPlan::pixels(const Node& node, int buffer) const {
  return {at<void>(buffer), node.width * node.channels, node.channels};
}

void* CudaPlan::workspace(int step) const {
  const int buffer = graph_.steps[static_cast<size_t>(step)].workspace;
  return buffer < 0 ? nullptr : at<void>(buffer);
}

size_t CudaPlan::workspace_bytes(int step) const {
  const int buffer = graph_.steps[static_cast<size_t>(step)].workspace;
  return buffer < 0 ? 0 : graph_.arena.size(buffer);
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
  c.gradient_scale = coefficient(out->numbers, kA, out->channels);
  c.raw_scale = coefficient(out->numbers, kB, out->channels);
  c.gradient_shift = coefficient(out->numbers, kC, out->channels);
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

void CudaPlan::begin_conv(const Unit& unit, bool backward, Conv* conv) const {
  for (size_t i = 0; i < unit.parts.size(); ++i) {
    const Part& part = unit.parts[i];
    const Node& node = graph_.nodes[static_cast<size_t>(part.node)];
    conv->sources[i] = source(part, backward);
    if (!backward || node.gamma < 0) continue;
    const bool merged = part.merged_first >= 0;
    if (!merged && last_share_[static_cast<size_t>(part.node)] != &part) continue;
    conv->folds[i] = merged ? fold_of(unit, part) : fold_of(node);
    conv->sources[i].fold = &conv->folds[i];
  }
  dipengine_conv_cuda_params& c = conv->params;
  c = conv_params(unit, conv->sources, backward);
  conv->sources[0].over_raw = c.head.weight != nullptr && graph_.over_raw;
  if (unit.mean) {
    c.weight = at<float>(unit.wide_weight);
    c.parameters_fit_stride = float_stride(unit.wide_weight);
  }
  const int packed = packing_[backward ? 1 : 0].buffers[static_cast<size_t>(&unit - graph_.units.data())];
  c.packed = packed < 0 ? nullptr : at<void>(packed);
  c.packed_bytes = packed < 0 ? 0 : graph_.arena.size(packed);
}

dipengine_status CudaPlan::form_input(const Unit& unit, int operand, const uint8_t* active) const {
  Conv conv;
  begin_conv(unit, false, &conv);
  conv.params.active = active;
  for (size_t i = 0; i < unit.parts.size(); ++i) {
    if (unit.parts[i].upsample == DIPENGINE_UPSAMPLE_NONE) continue;
    const Node& node = graph_.nodes[static_cast<size_t>(unit.parts[i].node)];
    return dipengine_conv_cuda_input_operand(&conv.params, static_cast<int32_t>(i), pixels(node, operand), stride_of(operand));
  }
  return DIPENGINE_OK;
}

void CudaPlan::take_formed_input(const Unit& unit, int operand, dipengine_conv_cuda_source* sources) const {
  for (size_t i = 0; i < unit.parts.size() && operand >= 0; ++i) {
    if (unit.parts[i].upsample == DIPENGINE_UPSAMPLE_NONE) continue;
    dipengine_conv_cuda_source& s = sources[i];
    s.x.data = at<void>(operand);
    s.x_fit_stride = stride_of(operand);
    s.inner = s.outer = {nullptr, nullptr};
    s.slope = 1;
  }
}

// In its place.
dipengine_status CudaPlan::form_gradient(const Unit& unit, dipengine_conv_cuda_params* c) const {
  if (unit.operand < 0) return DIPENGINE_OK;
  DIPENGINE_TRY(dipengine_conv_cuda_gradient_operand(c, c->gradient, c->gradient_fit_stride));
  c->gradient_scale = c->raw_scale = c->gradient_shift = nullptr;
  return DIPENGINE_OK;
}

dipengine_status CudaPlan::forward(int step, bool sizing) {
  const Unit& unit = graph_.units[static_cast<size_t>(graph_.steps[static_cast<size_t>(step)].unit)];
  Conv conv;
  begin_conv(unit, false, &conv);
  dipengine_conv_cuda_params& c = conv.params;
  if (sizing) {
    size_t moments = 0;
    DIPENGINE_TRY(dipengine_conv_cuda_workspace(&c, &moments));
    need(step, moments);
    int64_t count = 0;
    DIPENGINE_TRY(dipengine_conv_cuda_tickets(&c, &count));
    take_tickets(step, count);
    return DIPENGINE_OK;
  }
  const Branch branch = home_of(unit);
  if (branch == kSkips) DIPENGINE_TRY(put_behind(kSkips, kMain));
  for (const Part& part : unit.parts) {
    if (part.merged_first >= 0 && is_skip(part)) DIPENGINE_TRY(put_behind(kMain, kSkips));
  }
  take_formed_input(unit, unit.operand, conv.sources);
  c.stream = streams_[branch];
  c.tickets = tickets(step, branch);
  c.parameters_fit_stride = stride_;  // of bias, gamma and beta
  c.workspace = workspace(step);
  c.workspace_bytes = workspace_bytes(step);
  return dipengine_conv_cuda_forward(&c);
}

// The kernel that has the mean behind it in it, and its gradient.
dipengine_conv_mean_cuda_params CudaPlan::mean_params(const Unit& unit, int wide, float* narrow, const uint8_t* active) const {
  const ParameterSpec& spec = graph_.specs[static_cast<size_t>(unit.weight)];
  return {sizeof(dipengine_conv_mean_cuda_params), stream_, p_.slots, active, unit.kernel, spec.in * spec.out, narrow,
          at<float>(wide), stride_, float_stride(wide)};
}

dipengine_status CudaPlan::backward(int step, bool sizing) {
  const Unit& unit = graph_.units[static_cast<size_t>(graph_.steps[static_cast<size_t>(step)].unit)];
  Conv conv;
  begin_conv(unit, true, &conv);
  dipengine_conv_cuda_params& c = conv.params;
  size_t joint = 0;
  DIPENGINE_TRY(size_joint(unit, c, &joint));
  if (sizing && joint > 0) {
    need(step, joint);
    int64_t count = 0;
    DIPENGINE_TRY(dipengine_conv_cuda_tickets(&c, &count));
    take_tickets(step, count);
    return DIPENGINE_OK;
  }
  if (sizing) {
    size_t sums = 0, products = 0, packed = 0;
    DIPENGINE_TRY(dipengine_conv_cuda_weight_gradient_workspace(&c, &products));
    DIPENGINE_TRY(dipengine_conv_cuda_data_gradient_sizes(&c, &packed, &sums));
    sums = unit.parts.size() * Arena::aligned(sums);
    need(step, branches_ ? sums : std::max(products, sums));  // one after the other, in one place
    most_products_ = std::max(most_products_, products);
    int64_t count = 0;
    DIPENGINE_TRY(dipengine_conv_cuda_tickets(&c, &count));
    take_tickets(step, count);
    return DIPENGINE_OK;
  }
  if (joint > 0) return joint_gradients(step, c);
  DIPENGINE_TRY(form_gradient(unit, &c));
  if (unit.operand_again != unit.operand) DIPENGINE_TRY(form_input(unit, unit.operand_again, fits_.learns));
  DIPENGINE_TRY(weight_gradient(step, unit, c));
  return data_gradient(step, unit, conv);
}

dipengine_status CudaPlan::size_joint(const Unit& unit, const dipengine_conv_cuda_params& c, size_t* bytes) const {
  *bytes = 0;
  return &unit - graph_.units.data() == graph_.forms ? dipengine_conv_cuda_joint_gradients_workspace(&c, bytes) : DIPENGINE_OK;
}

// The sum of the weights' parts is Adam's alone to wait for.
dipengine_status CudaPlan::joint_gradients(int step, dipengine_conv_cuda_params c) {
  c.workspace = workspace(step);
  c.workspace_bytes = workspace_bytes(step);
  c.tickets = tickets(step, kMain);
  DIPENGINE_TRY(dipengine_conv_cuda_joint_gradients(&c));
  DIPENGINE_TRY(put_behind(kWeights, kMain));
  ++on_weights_[0];
  c.stream = streams_[kWeights];
  return dipengine_conv_cuda_joint_weight_sum(&c);
}

// Nothing waits for it but Adam.
dipengine_status CudaPlan::weight_gradient(int step, const Unit& unit, dipengine_conv_cuda_params c) {
  // Two branches of them, so that they are not the longest way, each with its own place to work in.
  const Branch branch = on_weights_[0] <= on_weights_[1] ? kWeights : kOtherWeights;
  on_weights_[branch - kWeights] += static_cast<int>(unit.parts.size());
  for (Branch before : {kMain, kSkips}) DIPENGINE_TRY(put_behind(branch, before));
  dipengine_conv_cuda_source sources[DIPENGINE_CONV_MAX_SOURCES];
  std::copy_n(c.sources, unit.parts.size(), sources);
  take_formed_input(unit, unit.operand_again, sources);
  c.sources = sources;
  c.stream = streams_[branch];
  if (unit.mean) c.d_weight = at<float>(unit.wide_gradient);
  const int buffer = branches_ ? weights_buffers_[branch - kWeights] : graph_.steps[static_cast<size_t>(step)].workspace;
  c.workspace = at<void>(buffer);
  c.workspace_bytes = graph_.arena.size(buffer);
  c.tickets = tickets(step, branch);
  DIPENGINE_TRY(dipengine_conv_cuda_weight_gradient(&c));
  if (!unit.mean) return DIPENGINE_OK;
  dipengine_conv_mean_cuda_params narrower = mean_params(unit, unit.wide_gradient, gradient(unit.weight), fits_.learns);
  narrower.stream = c.stream;
  return dipengine_conv_mean_cuda_narrow(&narrower);
}

// A skip's share of a concatenation's gradient goes its own way, until what both come from wants the sum of its shares.
dipengine_status CudaPlan::data_gradient(int step, const Unit& unit, Conv& conv) {
  dipengine_conv_cuda_params& c = conv.params;
  size_t packed = 0, sums = 0;
  for (size_t i = 0; i < unit.parts.size(); ++i) {
    const Part& part = unit.parts[i];
    if (graph_.nodes[static_cast<size_t>(part.node)].gamma < 0) continue;
    const Branch branch = part.merged_first >= 0 && is_skip(part) ? kSkips : home_of(unit);
    if (branch == kSkips) DIPENGINE_TRY(put_behind(kSkips, home_of(unit)));
    if (part.accumulate) DIPENGINE_TRY(put_behind(kMain, kSkips));
    dipengine_conv_cuda_params one = c;
    one.stream = streams_[branch];
    one.packed = static_cast<char*>(c.packed) + packed;
    one.packed_bytes = c.packed_bytes - packed;
    one.workspace = static_cast<char*>(workspace(step)) + sums;
    one.workspace_bytes = workspace_bytes(step) - sums;
    one.tickets = tickets(step, branch);
    dipengine_conv_cuda_source sources[DIPENGINE_CONV_MAX_SOURCES];
    std::copy_n(conv.sources, unit.parts.size(), sources);
    for (size_t other = 0; other < unit.parts.size(); ++other) {
      if (other == i) continue;
      sources[other].d_x.data = nullptr;
      sources[other].sum = sources[other].product = nullptr;
      sources[other].accumulate = 0;
    }
    one.sources = sources;
    DIPENGINE_TRY(dipengine_conv_cuda_data_gradient(&one));
    size_t own_packed = 0, own_sums = 0;
    DIPENGINE_TRY(dipengine_conv_cuda_data_gradient_sizes(&one, &own_packed, &own_sums));
    packed += own_packed;
    sums += Arena::aligned(own_sums);
  }
  return DIPENGINE_OK;
}

dipengine_status CudaPlan::perturb(double std, bool again, const uint8_t* active) {
  const int to = again ? graph_.nodes[0].raw_again : graph_.nodes[0].raw;
  dipengine_perturb_cuda_params z{};
  z.struct_size = sizeof(z);
  z.stream = again ? streams_[kSkips] : stream_;
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
  DIPENGINE_TRY(pack(false));
  DIPENGINE_TRY(perturb(0, false, fits_.active));
  const auto within = [&](int i) {
    const StepKind kind = graph_.steps[static_cast<size_t>(i)].kind;
    return kind == StepKind::forward || kind == StepKind::merge;
  };
  for (int step = 1; within(step); ++step) DIPENGINE_TRY(each(step, false));
  return DIPENGINE_OK;
}

dipengine_status CudaPlan::copies(void* stream, std::initializer_list<ArrayPair> pairs, bool shows) const {
  CopyLaunch l{};
  for (const ArrayPair& pair : pairs) l.pairs[l.pairs_count++] = pair;
  l.blocks = blocks();
  l.fit_stride = stride_;
  l.copies = fits_.copies;
  if (shows) {
    l.shown = {array_at(SlotArrays::mask), array_at(SlotArrays::held), places_.sizes[SlotArrays::held]};
    l.shows = fits_.shows;
  }
  return launch_copies(l, p_.slots, stream);
}

}  // namespace dipengine
