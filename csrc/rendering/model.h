// A generator's ONNX file, checked: what it says of itself (engine/dipengine/export/onnx_format.py), its z, and whether it can be
// run safely here.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "rendering/hourglass.h"
#include "rendering/value_map.h"

namespace dipengine {

struct OnnxFile;
class Json;

struct GeneratorModel {
  enum class Code { stored, noise, meshgrid };

  std::string name;       // for messages
  std::string metadata;   // its JSON
  std::string task, precision, dtype;
  int64_t height, width;  // of the image
  int64_t channels;
  int64_t canvas_height, canvas_width, top, left;  // of z; of the image on it
  Hourglass hourglass;
  ValueMap values;
  double psnr;            // dB, infinite where both are equal
  Code code;
  uint64_t seed;
  std::vector<uint8_t> z;  // stored, [depth, H, W]
  int64_t z_type;          // TensorProto.DataType, and bytes of an element
  size_t z_bytes;

  int64_t depth() const { return hourglass.generator.input_depth; }
  // z[:, rows, columns] as the graph takes it, [depth, rows, columns]; half-open spans.
  std::vector<uint8_t> z_window(Span rows, Span columns) const;
};

// The file's bytes. Throws Unusable for a file that is missing, no file, or larger than a protobuf can be.
std::vector<uint8_t> read_model_file(const std::string& path);

// Throws Unusable for whatever `dipengine export` did not write: foreign, truncated, with weights outside the file, or larger than
// this machine's memory.
GeneratorModel read_model(const std::string& name, const void* data, size_t bytes);

// What a runtime holds at once to paint height x width pixels of a canvas, bytes.
double painting_bytes(const Hourglass& hourglass, int64_t height, int64_t width);

// Throws Unusable where this machine, or this process's control group, has less memory than `needed` bytes.
void check_memory(const std::string& what, double needed, const std::string& remedy);

}  // namespace dipengine
