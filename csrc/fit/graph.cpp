#include "fit/graph.h"

#include <algorithm>

#include "ops/conv/conv_cuda.h"

namespace dipengine {

int64_t most_stored_pixels = int64_t{512} * 512;
int64_t least_formed_pixels = int64_t{256} * 256;
int64_t least_joint_pixels = int64_t{256} * 256;

namespace {

class Builder {
 public:
  Builder(const dipengine_fit_params& params, int64_t copies, bool recomputes)
      : p_(params), g_(params.generator), recomputes_(recomputes) {
    graph_.arena = Arena(copies);
    graph_.specs = parameter_specs(g_);
    graph_.height = canvas_side(g_, p_.height);
    graph_.width = canvas_side(g_, p_.width);
    element_ = p_.dtype == DIPENGINE_BFLOAT16 ? 2 : 4;
  }

  Graph build() {
    const int z = node("z", graph_.height, graph_.width, g_.input_depth, 1, false);
    step(StepKind::perturb, -1, "perturb", {graph_.nodes[0].raw});
    const int top = level(0, z);
    Unit head{"head", -1, parameter("head.conv.weight"), parameter("head.conv.bias"), 1, 1, 0, false, {plain(top)}};
    graph_.units.push_back(head);
    if (recomputes_ && (large() || joint()) && g_.one_by_one_up && g_.output_channels <= DIPENGINE_CONV_CUDA_HEAD &&
        g_.channels_up[0] <= DIPENGINE_CONV_CUDA_OVER_RAW) {
      form_gradient(top);
    }
    const size_t outputs = static_cast<size_t>(graph_.height * graph_.width * g_.output_channels) * sizeof(float);
    graph_.logits = graph_.arena.add(outputs);
    graph_.d_logits = graph_.arena.add(outputs);
    const int last = static_cast<int>(graph_.units.size()) - 1;
    forward(last);
    data();
    backward(last);
    level_backward(0);
    step(StepKind::adam, -1, "adam", {});
    inspection();
    return std::move(graph_);
  }

 private:
  bool large() const { return graph_.height * graph_.width > most_stored_pixels; }

  // Whether one launch has both gradients of the outermost 1x1 unit.
  bool joint() const {
    return p_.dtype == DIPENGINE_BFLOAT16 && g_.channels_up[0] % 8 == 0 && graph_.height * graph_.width >= least_joint_pixels;
  }

  int parameter(const std::string& name) const {
    const auto at = std::find_if(graph_.specs.begin(), graph_.specs.end(), [&](const ParameterSpec& s) { return s.name == name; });
    return static_cast<int>(at - graph_.specs.begin());
  }

  int64_t take_numbers(int64_t channels) {
    graph_.most_channels = std::max(graph_.most_channels, channels);
    const int64_t first = graph_.numbers;
    graph_.numbers += 6 * channels;
    return first;
  }

  int node(const std::string& name, int64_t height, int64_t width, int64_t channels, double slope, bool normed) {
    const size_t bytes = static_cast<size_t>(height * width * channels) * element_;
    Node n{name, height, width, channels, slope, -1, -1, graph_.arena.add(bytes), -1, -1, take_numbers(channels)};
    n.raw_again = normed || !recomputes_ ? n.raw : graph_.arena.add(bytes);
    if (normed) {
      n.gamma = parameter(name + ".norm.gamma");
      n.beta = parameter(name + ".norm.beta");
      n.gradient = graph_.arena.add(bytes);
    }
    graph_.nodes.push_back(n);
    arrived_.push_back(false);
    return static_cast<int>(graph_.nodes.size()) - 1;
  }

  // Of the outermost 1x1 unit, whose source has as many channels.
  void form_gradient(int top) {
    graph_.forms = unit_named("level0.point");
    Node& behind = graph_.nodes[static_cast<size_t>(top)];
    behind.gradient = -1;
    if (!large()) return;
    graph_.over_raw = true;
    graph_.nodes[static_cast<size_t>(graph_.units[static_cast<size_t>(graph_.forms)].parts[0].node)].gradient = behind.raw;
  }

  static Part plain(int node) { return {node, DIPENGINE_UPSAMPLE_NONE, -1, 0, false}; }

  void step(StepKind kind, int unit, const std::string& name, const std::vector<int>& buffers) {
    const int index = static_cast<int>(graph_.steps.size());
    graph_.steps.push_back({kind, unit, name});
    for (int buffer : buffers) {
      if (buffer >= 0) graph_.arena.use(buffer, index);
    }
  }

  void forward(int index) {
    Unit& unit = graph_.units[static_cast<size_t>(index)];
    std::vector<int> buffers{unit.node < 0 ? graph_.logits : graph_.nodes[static_cast<size_t>(unit.node)].raw};
    for (const Part& part : unit.parts) buffers.push_back(graph_.nodes[static_cast<size_t>(part.node)].raw);
    if (unit.mean) {
      const ParameterSpec& weight = graph_.specs[static_cast<size_t>(unit.weight)];
      const size_t bytes = static_cast<size_t>(weight.out * weight.in * unit.stored_kernel() * unit.stored_kernel()) * sizeof(float);
      unit.wide_weight = graph_.arena.add(bytes);
      unit.wide_gradient = graph_.arena.add(bytes);
      buffers.push_back(unit.wide_weight);
    }
    step(StepKind::forward, index, unit.name + " forward", buffers);
  }

  int unit(const std::string& name, int64_t height, int64_t width, int64_t channels, const std::vector<Part>& parts,
           int64_t kernel, int64_t stride = 1) {
    const bool mean = stride == 2 && g_.downsample == DIPENGINE_DOWNSAMPLE_AVERAGE;
    const int out = node(name, height, width, channels, g_.negative_slope, true);
    graph_.units.push_back({name, out, parameter(name + ".conv.weight"), -1, kernel, stride, kernel / 2, mean, parts});
    forward(static_cast<int>(graph_.units.size()) - 1);
    return out;
  }

  int level(int i, int enter) {
    const std::string name = "level" + std::to_string(i);
    const int64_t height = graph_.height >> i, width = graph_.width >> i;
    const int64_t down = g_.channels_down[i];
    const int skip = g_.channels_skip[i] > 0 ? unit(name + ".skip", height, width, g_.channels_skip[i], {plain(enter)}, 1) : -1;
    if (skip >= 0) graph_.nodes[static_cast<size_t>(skip)].skip = true;
    int deep = unit(name + ".down1", height / 2, width / 2, down, {plain(enter)}, g_.kernel_down[i], 2);
    deep = unit(name + ".down2", height / 2, width / 2, down, {plain(deep)}, g_.kernel_down[i]);
    if (i + 1 < g_.levels) deep = level(i + 1, deep);

    std::vector<Part> parts;
    std::vector<int> raws;
    for (int member : {skip, deep}) {
      if (member < 0) continue;
      const int64_t channels = graph_.nodes[static_cast<size_t>(member)].channels;
      const int64_t first = parts.empty() ? 0 : graph_.nodes[static_cast<size_t>(skip)].channels;
      parts.push_back({member, member == deep ? g_.upsample[i] : DIPENGINE_UPSAMPLE_NONE, first, take_numbers(channels), false});
      raws.push_back(graph_.nodes[static_cast<size_t>(member)].raw);
    }
    const int operand = forms_operands(i, deep, height * width) ? graph_.arena.add(graph_.arena.stride(raws.back())) : -1;
    raws.push_back(operand);
    // The step's unit is the one that comes next.
    step(StepKind::merge, static_cast<int>(graph_.units.size()), name + ".merge forward", raws);
    const int out = unit(name + ".up", height, width, g_.channels_up[i], parts, 3);
    Unit& up = graph_.units.back();
    up.operand = up.operand_again = operand;
    if (operand >= 0) {
      graph_.arena.use(operand, static_cast<int>(graph_.steps.size()) - 1);
      const int raw = graph_.nodes[static_cast<size_t>(out)].raw;
      if (large() && graph_.arena.stride(raw) >= graph_.arena.stride(operand)) up.operand_again = raw;
    }
    graph_.units.back().merge_gamma = parameter(name + ".merge.norm.gamma");
    graph_.units.back().merge_beta = parameter(name + ".merge.norm.beta");
    return g_.one_by_one_up ? unit(name + ".point", height, width, g_.channels_up[i], {plain(out)}, 1) : out;
  }

  // Of level i's "up" unit, whose upsampled part is node `deep`. Sixteen bytes at a time.
  bool forms_operands(int i, int deep, int64_t pixels) const {
    const auto whole = [](int64_t channels) { return channels % 8 == 0 && channels <= 1024; };
    return recomputes_ && p_.dtype == DIPENGINE_BFLOAT16 && g_.upsample[i] == DIPENGINE_UPSAMPLE_NEAREST &&
           pixels >= least_formed_pixels && whole(graph_.nodes[static_cast<size_t>(deep)].channels) && whole(g_.channels_up[i]);
  }

  void data() {
    const size_t channels = static_cast<size_t>(g_.output_channels) * sizeof(float);
    const size_t painted = static_cast<size_t>(p_.height * p_.width) * channels;
    const bool identity = p_.operator_kind == DIPENGINE_OPERATOR_IDENTITY;
    graph_.painted = static_cast<int>(graph_.steps.size());
    if (identity && p_.data_term == DIPENGINE_DATA_SQUARED) {
      step(StepKind::loss, -1, "loss", {graph_.logits, graph_.d_logits});
      graph_.judged = static_cast<int>(graph_.steps.size());
      return;
    }
    graph_.image = graph_.arena.add(painted);
    graph_.d_image = graph_.arena.add(painted);
    step(StepKind::image, -1, "image", {graph_.logits, graph_.image});
    if (!identity) {
      const size_t measured = static_cast<size_t>(p_.data_height * p_.data_width) * channels;
      graph_.measured = graph_.arena.add(measured);
      graph_.d_measured = graph_.arena.add(measured);
      graph_.inspected = graph_.arena.add(measured);
      step(StepKind::measure, -1, "operator forward", {graph_.image, graph_.measured});
      step(StepKind::data_term, -1, "loss", {graph_.image, graph_.measured, graph_.d_measured});
      graph_.judged = static_cast<int>(graph_.steps.size());
      step(StepKind::measure_backward, -1, "operator backward", {graph_.image, graph_.d_measured, graph_.d_image});
    } else {
      step(StepKind::data_term, -1, "loss", {graph_.image, graph_.d_image});
      graph_.judged = static_cast<int>(graph_.steps.size());
    }
    step(StepKind::image_backward, -1, "image backward", {graph_.image, graph_.d_image, graph_.d_logits});
  }

  void inspection() { step(StepKind::inspect, -1, "inspect", {graph_.inspected}); }

  int unit_named(const std::string& name) const {
    const auto at = std::find_if(graph_.units.begin(), graph_.units.end(), [&](const Unit& u) { return u.name == name; });
    return at == graph_.units.end() ? -1 : static_cast<int>(at - graph_.units.begin());
  }

  void backward(int index) {
    Unit& unit = graph_.units[static_cast<size_t>(index)];
    std::vector<int> buffers{unit.wide_weight, unit.wide_gradient, unit.operand_again};
    if (unit.node < 0 || index == graph_.forms) buffers.push_back(graph_.d_logits);
    if (unit.node >= 0) {
      const Node& out = graph_.nodes[static_cast<size_t>(unit.node)];
      buffers.insert(buffers.end(), {out.raw, out.gradient});
    }
    for (Part& part : unit.parts) {
      const Node& from = graph_.nodes[static_cast<size_t>(part.node)];
      buffers.insert(buffers.end(), {from.raw_again, from.gradient});
      if (part.merged_first >= 0) continue;
      part.accumulate = arrived_[static_cast<size_t>(part.node)];
      arrived_[static_cast<size_t>(part.node)] = true;
    }
    step(StepKind::backward, index, unit.name + " backward", buffers);
    if (unit.merge_gamma < 0) return;
    buffers.clear();
    for (const Part& part : unit.parts) {
      const Node& from = graph_.nodes[static_cast<size_t>(part.node)];
      buffers.insert(buffers.end(), {from.raw, from.gradient});
      arrived_[static_cast<size_t>(part.node)] = true;
    }
    step(StepKind::merge_backward, index, unit.name.substr(0, unit.name.find('.')) + ".merge backward", buffers);
  }

  void level_backward(int i) {
    const std::string name = "level" + std::to_string(i);
    if (g_.one_by_one_up) backward(unit_named(name + ".point"));
    backward(unit_named(name + ".up"));
    if (i + 1 < g_.levels) level_backward(i + 1);
    backward(unit_named(name + ".down2"));
    if (i == 0 && recomputes_) step(StepKind::perturb, -1, "perturb again", {graph_.nodes[0].raw_again});
    if (g_.channels_skip[i] > 0) backward(unit_named(name + ".skip"));
    backward(unit_named(name + ".down1"));
  }

  const dipengine_fit_params& p_;
  const dipengine_generator& g_;
  Graph graph_;
  std::vector<bool> arrived_;  // by node: a share of its gradient is there
  bool recomputes_;
  size_t element_;
};

}  // namespace

void Graph::pack(const std::vector<size_t>& workspaces, bool branched) {
  for (size_t i = 0; i < steps.size(); ++i) {
    if (workspaces[i] == 0) continue;
    steps[i].workspace = arena.add_once(workspaces[i]);
    arena.use(steps[i].workspace, static_cast<int>(i));
    if (!branched) continue;
    const bool before = static_cast<int>(i) < judged;
    arena.use(steps[i].workspace, before ? 0 : judged);
    arena.use(steps[i].workspace, before ? judged : static_cast<int>(steps.size()));
  }
  arena.pack();
}

Graph make_graph(const dipengine_fit_params& params, int64_t copies, bool recomputes) {
  return Builder(params, copies, recomputes).build();
}

}  // namespace dipengine
