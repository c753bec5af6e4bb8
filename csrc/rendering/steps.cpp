#include "rendering/steps.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "rendering/model.h"
#include "rendering/onnx_file.h"

namespace dipengine {
namespace {

constexpr int64_t kOpset = 17, kInt64 = 7, kFloat = 1, kFloat16 = 10;  // TensorProto.DataType
constexpr int64_t kMostLength = int64_t{1} << 40;
enum AttributeType : int64_t { kNumber = 1, kWhole = 2, kText = 3, kWholes = 7 };  // AttributeProto.AttributeType

using Shape = std::vector<double>;  // in which no product of lengths overflows

// What the exporter writes. Another type than the operator's own is refused: runtimes would take the default instead.
const struct {
  const char *kind, *name;
  AttributeType type;
} kAttributes[] = {
    {"AveragePool", "kernel_shape", kWholes}, {"AveragePool", "strides", kWholes}, {"Cast", "to", kWhole},
    {"Concat", "axis", kWhole},
    {"Conv", "group", kWhole}, {"Conv", "kernel_shape", kWholes}, {"Conv", "pads", kWholes}, {"Conv", "strides", kWholes},
    {"DepthToSpace", "blocksize", kWhole}, {"DepthToSpace", "mode", kText}, {"DequantizeLinear", "axis", kWhole},
    {"LeakyRelu", "alpha", kNumber}, {"Pad", "mode", kText}, {"QuantizeLinear", "axis", kWhole},
    {"Resize", "coordinate_transformation_mode", kText}, {"Resize", "mode", kText}, {"Resize", "nearest_mode", kText},
    {"SpaceToDepth", "blocksize", kWhole},
};

// Names come from the file: for messages of one line they are cut, and so is what does not print.
std::string printed(std::string name) {
  name = name.substr(0, 60);
  std::replace_if(name.begin(), name.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return name;
}

std::string label(const OnnxNode& node) { return printed(node.outputs.empty() ? node.kind : node.outputs[0]); }

[[noreturn]] void untold(const OnnxNode& node) {
  throw std::invalid_argument("the shape of its " + label(node) + " cannot be told");
}

void check_attributes(const OnnxNode& node) {
  std::set<std::string> seen;
  for (const OnnxAttribute& a : node.attributes) {
    const bool known = std::any_of(std::begin(kAttributes), std::end(kAttributes),
                                   [&](const auto& k) { return node.kind == k.kind && a.name == k.name && a.type == k.type; });
    if (!known || !seen.insert(a.name).second) {
      throw std::invalid_argument("its " + label(node) + " has a setting that no " + node.kind + " of a generator has");
    }
  }
}

// `count` whole numbers, `least` at least; where the node says none, `otherwise`.
Shape list(const OnnxNode& node, const char* name, size_t count, int64_t least, double otherwise) {
  for (const OnnxAttribute& a : node.attributes) {
    if (a.name != name) continue;
    if (a.wholes.size() != count) untold(node);
    Shape values;
    for (int64_t value : a.wholes) {
      if (value < least || value > kMostLength) untold(node);
      values.push_back(static_cast<double>(value));
    }
    return values;
  }
  return Shape(count, otherwise);
}

int64_t whole(const OnnxNode& node, const char* name) {  // -1 where the node says none
  for (const OnnxAttribute& a : node.attributes) {
    if (a.name == name) return a.whole;
  }
  return -1;
}

// Shapes from z [1, depth, H, W] of the whole canvas on. All are exact, so that what is subtracted, as kernels are, is no more
// than the runtime subtracts. Where sides should be equal and are not, the runtime itself refuses.
class Walk {
 public:
  Walk(const OnnxFile& file, const GeneratorModel& m) {
    put("z", {1, static_cast<double>(m.depth()), static_cast<double>(m.canvas_height), static_cast<double>(m.canvas_width)});
    put("crop", {4});
    for (const OnnxTensor& tensor : file.tensors) {
      if (tensor.name == "crop") continue;  // the input's default
      Shape shape;
      for (int64_t length : tensor.dims) shape.push_back(static_cast<double>(length));
      put(tensor.name, std::move(shape));
      constants_[tensor.name] = &tensor;
    }
  }

  void step(const OnnxNode& node, double most) {
    check_attributes(node);
    if (node.outputs.size() != 1 || node.outputs[0].empty()) untold(node);
    if (node.kind == "Slice" && constants_.count(node.inputs.size() > 1 ? node.inputs[1] : "") == 0) {
      // The window: no larger than the canvas, and how large is not known here, so that nothing but its floats' type may follow.
      check(node, shape(node, 0), most);
      if (node.inputs.size() != 4) untold(node);
      windows_.insert(node.outputs[0]);
      return;
    }
    if (node.kind == "Cast" && node.inputs.size() == 1 && windows_.count(node.inputs[0]) > 0) return;
    Shape made = result(node);
    check(node, made, most);
    put(node.outputs[0], std::move(made));
  }

 private:
  void put(const std::string& name, Shape shape) {
    if (name.empty()) throw std::invalid_argument("a tensor of it has no name");
    if (shapes_.count(name) > 0) throw std::invalid_argument("it has " + printed(name) + " twice");
    shapes_[name] = std::move(shape);
  }

  const Shape& shape(const OnnxNode& node, size_t input) const {
    const auto found = input < node.inputs.size() ? shapes_.find(node.inputs[input]) : shapes_.end();
    if (found == shapes_.end()) untold(node);
    return found->second;
  }
  const Shape& planes(const OnnxNode& node, size_t input) const {
    const Shape& found = shape(node, input);
    if (found.size() != 4) untold(node);
    return found;
  }

  const OnnxTensor& constant(const OnnxNode& node, size_t input, int64_t type, size_t element, size_t count) const {
    const auto found = input < node.inputs.size() ? constants_.find(node.inputs[input]) : constants_.end();
    if (found == constants_.end()) untold(node);
    const OnnxTensor& tensor = *found->second;
    if (tensor.type != type || tensor.typed || tensor.dims != std::vector<int64_t>{static_cast<int64_t>(count)} ||
        tensor.raw_bytes != element * count) {
      untold(node);
    }
    return tensor;
  }
  std::vector<int64_t> whole_numbers(const OnnxNode& node, size_t input, size_t count) const {
    std::vector<int64_t> values(count);
    std::memcpy(values.data(), constant(node, input, kInt64, 8, count).raw, 8 * count);
    return values;
  }

  static void check(const OnnxNode& node, const Shape& shape, double most) {
    double elements = 1;
    std::string lengths;
    for (double length : shape) {
      if (!(length >= 1)) untold(node);
      elements *= length;
      char text[400];
      std::snprintf(text, sizeof(text), "%s%.0f", lengths.empty() ? "" : "x", length);
      lengths += text;
    }
    if (elements > most) throw std::invalid_argument("its " + label(node) + " is " + lengths + ", more than its network has");
  }

  Shape result(const OnnxNode& node) const {
    const std::string& kind = node.kind;
    if (kind == "Conv") return convolved(node);
    if (kind == "AveragePool") return averaged(node);
    if (kind == "Add" || kind == "Mul") return combined(node);
    if (kind == "Concat") return joined(node);
    if (kind == "Pad") return padded(node);
    if (kind == "Resize") return resized(node);
    if (kind == "Slice") return cut(node);
    if (kind == "DepthToSpace" || kind == "SpaceToDepth") return rearranged(node);
    if (kind == "Gather") {
      if (node.inputs.size() != 2 || shape(node, 0).size() != 1) untold(node);
      return shape(node, 1);
    }
    // To floats alone, so that no image becomes a number of pixels.
    if (kind == "Cast" && whole(node, "to") != kFloat && whole(node, "to") != kFloat16) untold(node);
    return shape(node, 0);  // values alone change
  }

  Shape convolved(const OnnxNode& node) const {
    const Shape &x = planes(node, 0), &weight = planes(node, 1);
    const Shape pads = list(node, "pads", 4, 0, 0), strides = list(node, "strides", 2, 1, 1);
    Shape y = {x[0], weight[0], 0, 0};
    for (size_t i = 0; i < 2; ++i) y[2 + i] = std::floor((x[2 + i] + pads[i] + pads[2 + i] - weight[2 + i]) / strides[i]) + 1;
    return y;
  }

  Shape averaged(const OnnxNode& node) const {
    const Shape& x = planes(node, 0);
    const Shape two = {2, 2};
    if (list(node, "kernel_shape", 2, 1, 1) != two || list(node, "strides", 2, 1, 1) != two) untold(node);
    return {x[0], x[1], std::floor(x[2] / 2), std::floor(x[3] / 2)};
  }

  Shape combined(const OnnxNode& node) const {
    const Shape &a = shape(node, 0), &b = shape(node, 1);
    Shape y = a.size() < b.size() ? b : a;
    const Shape& other = a.size() < b.size() ? a : b;
    for (size_t i = 0; i < other.size(); ++i) {
      double& length = y[y.size() - 1 - i];
      length = std::max(length, other[other.size() - 1 - i]);
    }
    return y;
  }

  Shape joined(const OnnxNode& node) const {
    if (whole(node, "axis") != 1) untold(node);
    Shape y = planes(node, 0);
    for (size_t k = 1; k < node.inputs.size(); ++k) {
      const Shape& x = planes(node, k);
      for (size_t i = 0; i < 4; ++i) y[i] = i == 1 ? y[i] + x[i] : std::max(y[i], x[i]);
    }
    return y;
  }

  Shape padded(const OnnxNode& node) const {
    Shape y = planes(node, 0);
    const std::vector<int64_t> pads = whole_numbers(node, 1, 8);
    for (size_t i = 0; i < 8; ++i) {
      if (pads[i] < 0 || pads[i] > kMostLength) untold(node);
      y[i % 4] += static_cast<double>(pads[i]);
    }
    return y;
  }

  Shape resized(const OnnxNode& node) const {
    const Shape& x = planes(node, 0);
    float scales[4];
    const float twice[4] = {1, 1, 2, 2};
    std::memcpy(scales, constant(node, 2, kFloat, 4, 4).raw, sizeof(scales));
    if (node.inputs.size() != 3 || !node.inputs[1].empty() || !std::equal(scales, scales + 4, twice)) untold(node);
    return {x[0], x[1], 2 * x[2], 2 * x[3]};
  }

  // From the first on to some before the last, of rows and columns.
  Shape cut(const OnnxNode& node) const {
    Shape y = planes(node, 0);
    const std::vector<int64_t> starts = whole_numbers(node, 1, 2), ends = whole_numbers(node, 2, 2);
    if (node.inputs.size() != 4 || whole_numbers(node, 3, 2) != std::vector<int64_t>{2, 3}) untold(node);
    for (size_t i = 0; i < 2; ++i) {
      if (starts[i] < 0 || ends[i] >= 0 || starts[i] > kMostLength || ends[i] < -kMostLength) untold(node);
      y[2 + i] -= static_cast<double>(starts[i] - ends[i]);
    }
    return y;
  }

  Shape rearranged(const OnnxNode& node) const {
    const Shape& x = planes(node, 0);
    if (whole(node, "blocksize") != 2) untold(node);
    if (node.kind == "DepthToSpace") return {x[0], std::ceil(x[1] / 4), 2 * x[2], 2 * x[3]};
    return {x[0], 4 * x[1], std::ceil(x[2] / 2), std::ceil(x[3] / 2)};
  }

  std::map<std::string, Shape> shapes_;
  std::map<std::string, const OnnxTensor*> constants_;
  std::set<std::string> windows_;
};

}  // namespace

void check_steps(const OnnxFile& file, const GeneratorModel& model) {
  const dipengine_generator& g = model.hourglass.generator;
  if (file.opsets.empty() || file.opsets != std::vector<int64_t>(file.opsets.size(), kOpset)) {
    throw std::invalid_argument("its operators are of another version than " + std::to_string(kOpset));
  }
  if (file.nodes.size() > 80 * static_cast<size_t>(g.levels) + 40) {
    throw std::invalid_argument("its steps are more than its network has");
  }
  int32_t widest = std::max(g.input_depth, g.output_channels);
  for (int i = 0; i < g.levels; ++i) widest = std::max({widest, g.channels_up[i], g.channels_down[i], g.channels_skip[i]});
  const double most = 2.0 * widest * static_cast<double>(model.canvas_height + 32) * static_cast<double>(model.canvas_width + 32);
  Walk walk(file, model);
  for (const OnnxNode& node : file.nodes) walk.step(node, most);
}

}  // namespace dipengine
