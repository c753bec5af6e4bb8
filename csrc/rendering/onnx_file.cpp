#include "rendering/onnx_file.h"

#include <algorithm>
#include <stdexcept>

namespace dipengine {
namespace {

constexpr size_t kMostNames = 16, kMostText = 1 << 20, kMostDims = 8;
constexpr size_t kMostNodes = 4096, kMostTensors = 4 * kMostNodes;  // no generator of any number of levels has as many

struct Bytes {
  const uint8_t *at, *end;
  std::string text() const {
    if (static_cast<size_t>(end - at) > kMostText) throw std::invalid_argument("a text of it is longer than any generator's");
    return std::string(reinterpret_cast<const char*>(at), static_cast<size_t>(end - at));
  }
};

// The fields of one message, in their order.
class Fields {
 public:
  explicit Fields(Bytes bytes) : left_(bytes) {}

  bool next() {
    if (left_.at == left_.end) return false;
    const uint64_t key = varint();
    if (key > UINT32_MAX) damaged();  // some readers drop the upper bits, and would see another field than this one does
    number = key >> 3;
    wire_ = key & 7;
    switch (wire_) {
      case 0: value_ = varint(); break;
      case 1: skip(8); break;
      case 2: counted(); break;
      case 5: skip(4); break;
      default: damaged();
    }
    if (number == 0) damaged();
    return true;
  }

  // The field's content as a message or text, or as a number; another wire type is damage.
  Bytes content() const {
    if (wire_ != 2) damaged();
    return bytes_;
  }
  int64_t whole() const {
    if (wire_ != 0) damaged();
    return static_cast<int64_t>(value_);
  }
  // A repeated number: one, or several packed.
  void append_to(std::vector<int64_t>& values) const {
    if (wire_ == 0) {
      values.push_back(static_cast<int64_t>(value_));
    } else {
      Fields packed(content());
      while (packed.left_.at != packed.left_.end && values.size() <= kMostDims) values.push_back(static_cast<int64_t>(packed.varint()));
    }
    if (values.size() > kMostDims) throw std::invalid_argument("a list of numbers in it is longer than any generator's");
  }

  uint64_t number = 0;

 private:
  [[noreturn]] static void damaged() { throw std::invalid_argument("it is cut off or damaged"); }
  uint64_t varint() {
    uint64_t result = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      if (left_.at == left_.end) damaged();
      const uint8_t byte = *left_.at++;
      result |= shift < 64 ? static_cast<uint64_t>(byte & 127) << shift : 0;
      if (byte < 128) return result;
    }
    damaged();
  }
  void skip(uint64_t count) {
    if (count > static_cast<uint64_t>(left_.end - left_.at)) damaged();
    left_.at += count;
  }
  void counted() {
    const uint64_t count = varint();
    bytes_.at = left_.at;
    skip(count);
    bytes_.end = left_.at;
  }

  Bytes left_;
  Bytes bytes_{nullptr, nullptr};
  uint64_t wire_ = 0, value_ = 0;
};

const char* const kOperators[] = {
    "Add", "AveragePool", "Cast", "Concat", "Conv", "DepthToSpace", "DequantizeLinear", "Gather", "LeakyRelu", "Mul", "Pad",
    "QuantizeLinear", "Resize", "Sigmoid", "Slice", "SpaceToDepth",
};

// For what a file holds by the hundreds: where it holds many more, keeping them would cost many times its size.
template <typename Item>
void keep(std::vector<Item>& items, Item item, size_t most) {
  if (items.size() == most) throw std::invalid_argument("it has more parts than any generator");
  items.push_back(std::move(item));
}

// TensorProto: 1 dims, 2 data_type, 4 to 7, 10 and 11 values by type, 8 name, 9 raw_data, 13 external_data, 14 data_location (0:
// here).
OnnxTensor tensor(Bytes bytes) {
  OnnxTensor found;
  for (Fields f(bytes); f.next();) {
    if (f.number == 1) f.append_to(found.dims);
    if (f.number == 2) found.type = f.whole();
    if ((f.number >= 4 && f.number <= 7) || f.number == 10 || f.number == 11) found.typed = true;
    if (f.number == 8) found.name = f.content().text();
    if (f.number == 9) {
      found.raw = f.content().at;
      found.raw_bytes = static_cast<size_t>(f.content().end - f.content().at);
    }
    if (f.number == 13 || (f.number == 14 && f.whole() != 0)) found.external = true;
  }
  return found;
}

// AttributeProto: 1 name, 2 f, 3 i, 4 s, 8 ints, 13 doc_string, 20 type. In all others, which no operator of a generator has,
// tensors and graphs could hide.
OnnxAttribute attribute(Bytes bytes, OnnxFile& file) {
  OnnxAttribute found;
  for (Fields f(bytes); f.next();) {
    switch (f.number) {
      case 1: found.name = f.content().text(); break;
      case 3: found.whole = f.whole(); break;
      case 8: f.append_to(found.wholes); break;
      case 20: found.type = f.whole(); break;
      case 2: case 4: case 13: break;
      default: file.hides = true;
    }
  }
  return found;
}

// NodeProto: 1 input, 2 output, 4 op_type, 5 attribute, 7 domain.
OnnxNode node(Bytes bytes, OnnxFile& file) {
  OnnxNode found;
  for (Fields f(bytes); f.next();) {
    if (f.number == 1) keep(found.inputs, f.content().text(), kMostNames);
    if (f.number == 2) keep(found.outputs, f.content().text(), kMostNames);
    if (f.number == 4) found.kind = f.content().text();
    if (f.number == 5) keep(found.attributes, attribute(f.content(), file), kMostNames);
    if (f.number == 7) found.domain = f.content().text();
  }
  const bool known = std::find(std::begin(kOperators), std::end(kOperators), found.kind) != std::end(kOperators);
  if ((!known || (!found.domain.empty() && found.domain != "ai.onnx")) && file.foreign.empty()) {
    file.foreign = found.kind.empty() ? "a nameless operator" : found.kind.substr(0, 40);
  }
  return found;
}

// ValueInfoProto: 1 name.
std::string name_of(Bytes bytes) {
  std::string name;
  for (Fields f(bytes); f.next();) {
    if (f.number == 1) name = f.content().text();
  }
  return name;
}

// GraphProto: 1 node, 5 initializer, 11 input, 12 output, 15 sparse_initializer.
void graph(Bytes bytes, OnnxFile& file) {
  for (Fields f(bytes); f.next();) {
    if (f.number == 1) keep(file.nodes, node(f.content(), file), kMostNodes);
    if (f.number == 5) {
      OnnxTensor found = tensor(f.content());
      file.external = file.external || found.external;
      const bool is_z = found.name == "z";
      if (!is_z) file.weights += found.elements();
      keep(is_z ? file.z : file.tensors, std::move(found), kMostTensors);
    }
    if (f.number == 11 && file.inputs.size() < kMostNames) file.inputs.push_back(name_of(f.content()));
    if (f.number == 12 && file.outputs.size() < kMostNames) file.outputs.push_back(name_of(f.content()));
    if (f.number == 15) file.hides = true;
  }
}

// OperatorSetIdProto: 1 domain, 2 version.
void opset(Bytes bytes, OnnxFile& file) {
  std::string domain;
  int64_t version = 0;
  for (Fields f(bytes); f.next();) {
    if (f.number == 1) domain = f.content().text();
    if (f.number == 2) version = f.whole();
  }
  if (domain.empty() || domain == "ai.onnx") keep(file.opsets, version, kMostNames);
}

}  // namespace

double OnnxTensor::elements() const {
  double count = 1;
  for (int64_t length : dims) {
    if (length < 0) throw std::invalid_argument("a tensor of it has a negative side");
    count *= static_cast<double>(length);
  }
  return count;
}

// ModelProto: 7 graph, 8 opset_import, 14 metadata_props (1 key, 2 value), 20 training_info, 25 functions. What is given twice is
// merged, as protobuf does.
OnnxFile read_onnx(const void* data, size_t bytes, const std::string& key) {
  const auto* start = static_cast<const uint8_t*>(data);
  OnnxFile file;
  for (Fields f({start, start + bytes}); f.next();) {
    if (f.number == 7) graph(f.content(), file);
    if (f.number == 8) opset(f.content(), file);
    if (f.number == 20) file.hides = true;
    if (f.number == 25) file.functions = true;
    if (f.number != 14) continue;
    std::string name, value;
    for (Fields entry(f.content()); entry.next();) {
      if (entry.number == 1) name = entry.content().text();
      if (entry.number == 2) value = entry.content().text();
    }
    if (name != key) continue;
    file.metadata = value;
    file.has_metadata = true;
  }
  return file;
}

}  // namespace dipengine
