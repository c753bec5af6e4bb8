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
  double elements() const;
};

struct OnnxFile {
  std::string metadata;           // of the key asked for
  bool has_metadata = false;
  std::vector<std::string> inputs, outputs;
  bool external = false;          // some weight lies outside the file
  bool functions = false;
  std::string foreign;            // first operator that no generator has; empty where there is none
  double weights = 0;             // elements of all initializers but z
  std::vector<OnnxTensor> z;      // initializers of that name
};

// Throws std::invalid_argument for bytes that are no whole protobuf message of this kind.
OnnxFile read_onnx(const void* data, size_t bytes, const std::string& key);

}  // namespace dipengine
