// What has to be known of an ONNX file before a runtime may load it, read from the protobuf itself: nothing is copied, followed or
// believed. Fields: onnx/onnx.proto (version 3); encoding: protobuf's wire format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace dipengine {

struct OnnxTensor {
  std::string name;
  std::vector<int64_t> dims;
  int64_t type = 0;               // TensorProto.DataType
  const uint8_t* raw = nullptr;   // within the file's bytes
  size_t raw_bytes = 0;
  bool external = false;
  bool typed = false;             // it has values outside raw, or claims to
  double elements() const;
};

struct OnnxAttribute {
  std::string name;
  int64_t type = 0;               // AttributeProto.AttributeType
  int64_t whole = 0;
  std::vector<int64_t> wholes;
};

struct OnnxNode {
  std::string kind, domain;
  std::vector<std::string> inputs, outputs;
  std::vector<OnnxAttribute> attributes;
};

struct OnnxFile {
  std::string metadata;           // of the key asked for
  bool has_metadata = false;
  std::vector<std::string> inputs, outputs;
  bool external = false;          // some weight lies outside the file
  bool functions = false;
  std::string foreign;            // first operator that no generator has; empty where there is none
  bool hides = false;             // tensors or graphs elsewhere than among the initializers
  std::vector<int64_t> opsets;    // versions of ONNX's own operators, as imported
  std::vector<OnnxNode> nodes;    // in their order
  double weights = 0;             // elements of all initializers but z
  std::vector<OnnxTensor> tensors;  // initializers but z
  std::vector<OnnxTensor> z;      // initializers of that name
};

// Throws std::invalid_argument for bytes that are no whole protobuf message of this kind.
OnnxFile read_onnx(const void* data, size_t bytes, const std::string& key);

}  // namespace dipengine
