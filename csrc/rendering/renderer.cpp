#include "rendering/renderer.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <thread>

#include "platform/pixels.h"
#include "rendering/unusable.h"

namespace dipengine {
namespace {

struct Provider {
  const char *name, *full;
};
constexpr Provider kProviders[] = {
    {"tensorrt", "TensorrtExecutionProvider"}, {"cuda", "CUDAExecutionProvider"}, {"cpu", "CPUExecutionProvider"}};  // each backs those before

size_t place_of(const std::string& name) {
  for (size_t i = 0; i < 3; ++i) {
    if (name == kProviders[i].name) return i;
  }
  throw Unusable("There is no provider '" + name.substr(0, 40) + "'; choose auto, cpu, cuda or tensorrt.");
}

std::vector<std::string> providers_there() {
  std::vector<std::string> names;
  for (const std::string& full : Ort::GetAvailableProviders()) {
    const auto* known = std::find_if(std::begin(kProviders), std::end(kProviders), [&](const Provider& p) { return full == p.full; });
    names.push_back(known == std::end(kProviders) ? full : known->name);
  }
  return names;
}

std::string wanted_provider(const char* asked) {
  const std::vector<std::string> there = providers_there();
  const auto has = [&](const std::string& name) { return std::find(there.begin(), there.end(), name) != there.end(); };
  const std::string name = asked == nullptr ? "auto" : asked;
  if (name == "auto") return has("cuda") ? "cuda" : "cpu";
  place_of(name);
  if (has(name)) return name;
  std::string list;
  for (const std::string& one : there) list += (list.empty() ? "" : ", ") + one;
  throw Unusable(DIPENGINE_UNSUPPORTED, "This ONNX Runtime has no provider " + name + " (it has: " + list +
                                            "); take a build that has it, or the provider cpu.");
}

// The generic options of a provider, by name; which there are, the runtime's documentation says.
template <typename Options>
struct ProviderOptions {
  using Update = OrtStatusPtr(ORT_API_CALL*)(Options*, const char* const*, const char* const*, size_t);
  ProviderOptions(OrtStatusPtr(ORT_API_CALL* create)(Options**), void(ORT_API_CALL* the_release)(Options*)) : release(the_release) {
    Ort::ThrowOnError(create(&options));
  }
  ~ProviderOptions() { release(options); }
  ProviderOptions(const ProviderOptions&) = delete;
  void update(Update change, const dipengine_renderer_params& params) {
    const auto count = static_cast<size_t>(params.options_count);
    if (count > 0) Ort::ThrowOnError(change(options, params.option_names, params.option_values, count));
  }
  void set(Update change, const char* name, const char* value) { Ort::ThrowOnError(change(options, &name, &value, 1)); }
  void (ORT_API_CALL* release)(Options*);
  Options* options = nullptr;
};

// Options that the caller gave are those of the provider that it asked for.
void append(Ort::SessionOptions& session, const std::string& provider, const dipengine_renderer_params* params) {
  const OrtApi& api = Ort::GetApi();
  if (provider == "tensorrt") {
    ProviderOptions<OrtTensorRTProviderOptionsV2> made(api.CreateTensorRTProviderOptions, api.ReleaseTensorRTProviderOptions);
    if (params != nullptr) made.update(api.UpdateTensorRTProviderOptions, *params);
    session.AppendExecutionProvider_TensorRT_V2(*made.options);
  } else if (provider == "cuda") {
    ProviderOptions<OrtCUDAProviderOptionsV2> made(api.CreateCUDAProviderOptions, api.ReleaseCUDAProviderOptions);
    made.set(api.UpdateCUDAProviderOptions, "use_tf32", "0");  // a float32 file is painted in float32, as by Python
    if (params != nullptr) made.update(api.UpdateCUDAProviderOptions, *params);
    session.AppendExecutionProvider_CUDA_V2(*made.options);
  }
}

int cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

// The runtime's own words, without the places in its source that lead to them and without its final stop.
std::string short_words(const std::string& text) {
  std::string line = text.substr(0, text.find('\n'));
  const size_t code = line.find("[ONNXRuntimeError]"), end = line.rfind(" : ");
  if (code != std::string::npos && end != std::string::npos && end > code) line = line.substr(end + 3);
  line = line.substr(0, 200);
  while (!line.empty() && (line.back() == '.' || line.back() == ' ')) line.pop_back();
  return line;
}

// ---- value maps -----------------------------------------------------------------------------------------------------

// As engine/dipengine/images/values.py has it: integers rounded half to even and kept within their type.
template <typename Sample>
Sample in_data_units(float unit, const ValueMap& values) {
  const double value = values.data(unit);
  if constexpr (std::is_integral_v<Sample>) {
    const double most = static_cast<double>(std::numeric_limits<Sample>::max());
    return std::isnan(value) ? Sample{0} : static_cast<Sample>(std::min(std::max(std::nearbyint(value), 0.0), most));
  } else {
    return static_cast<Sample>(value);
  }
}

// From [channels, height, width] into the caller's pixels.
template <typename Sample>
void deliver(const float* planes, int64_t channels, int64_t height, int64_t width, const dipengine_pixels& to, const ValueMap& values,
             bool units) {
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      Sample* pixel = static_cast<Sample*>(to.data) + y * to.row_stride + x * to.pixel_stride;
      for (int64_t c = 0; c < channels; ++c) {
        const float unit = planes[(c * height + y) * width + x];
        pixel[c] = units ? static_cast<Sample>(unit) : in_data_units<Sample>(unit, values);
      }
    }
  }
}

}  // namespace

// ---- the session ----------------------------------------------------------------------------------------------------

OnnxRenderer::OnnxRenderer(const dipengine_renderer_params& params) : runtime_(nullptr) {
  std::vector<uint8_t> file;
  const void* data = params.model;
  size_t bytes = params.model_bytes;
  if (params.path != nullptr) {
    file = read_model_file(params.path);
    data = file.data();
    bytes = file.size();
  }
  model_ = read_model(params.path == nullptr ? "The model" : params.path, data, bytes);
  runtime_ = &Runtime::open(params.runtime);
  start(params, data, bytes);
}

// On the provider asked for, or else on the next that backs it.
void OnnxRenderer::start(const dipengine_renderer_params& params, const void* data, size_t bytes) {
  const std::string wanted = wanted_provider(params.provider);
  std::string why;
  for (size_t i = place_of(wanted); i < 3; ++i) {
    provider_ = kProviders[i].name;
    try {
      session_ = session_on(provider_, params, data, bytes);
    } catch (const Ort::Exception& error) {
      const std::string words = short_words(error.what());
      if (provider_ == "cpu") throw Unusable(model_.name + " cannot be run by ONNX Runtime (" + words + ").");
      if (params.strict != 0) throw Unusable(DIPENGINE_UNSUPPORTED, "ONNX Runtime could not use " + provider_ + " (" + words + ").");
      if (why.empty()) why = words;
      continue;
    }
    if (provider_ != wanted) notice_ = "ONNX Runtime could not use " + wanted + " and paints on " + provider_ + " (" + why + ").";
    return;
  }
}

std::unique_ptr<Ort::Session> OnnxRenderer::session_on(const std::string& provider, const dipengine_renderer_params& params,
                                                       const void* data, size_t bytes) const {
  Ort::SessionOptions options;
  options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);  // its warnings speak of z and crop, which are inputs on purpose
  options.SetIntraOpNumThreads(params.threads > 0 ? params.threads : cores());
  const std::string asked = params.provider == nullptr ? "auto" : params.provider;
  append(options, provider, asked == provider ? &params : nullptr);
  if (provider == "tensorrt") append(options, "cuda", nullptr);  // for what TensorRT leaves
  // From the bytes that were checked: a file could have changed since. (Weights elsewhere were refused: even of a model in memory the
  // runtime reads such, from the working directory.)
  return std::make_unique<Ort::Session>(runtime_->env(), data, bytes, options);
}

// ---- painting -------------------------------------------------------------------------------------------------------

Ort::Value OnnxRenderer::network(int64_t x, int64_t y, int64_t width, int64_t height, bool whole) {
  const GeneratorModel& m = model_;
  const int64_t top = y + m.top, left = x + m.left;
  const Span rows = whole ? Span{0, m.canvas_height} : window(m.hourglass, {top, top + height - 1}, m.canvas_height);
  const Span columns = whole ? Span{0, m.canvas_width} : window(m.hourglass, {left, left + width - 1}, m.canvas_width);
  const int64_t high = rows.last - rows.first, wide = columns.last - columns.first;
  check_memory("To paint " + std::to_string(width) + "x" + std::to_string(height) + " pixels at once needs",
               painting_bytes(m.hourglass, high, wide), "paint a smaller region");
  std::vector<uint8_t> z = m.z_window(rows, columns);
  int64_t crop[4] = {top - rows.first, left - columns.first, top - rows.first + height, left - columns.first + width};
  const int64_t z_shape[4] = {1, m.depth(), high, wide}, crop_shape[1] = {4};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeDefault);
  const Ort::Value inputs[2] = {
      Ort::Value::CreateTensor(memory, z.data(), z.size(), z_shape, 4, static_cast<ONNXTensorElementDataType>(m.z_type)),
      Ort::Value::CreateTensor(memory, crop, sizeof(crop), crop_shape, 1, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64)};
  const char *names[2] = {"z", "crop"}, *output = "image";
  return std::move(session_->Run(Ort::RunOptions{nullptr}, names, inputs, 2, &output, 1).front());
}

void OnnxRenderer::paint(const dipengine_paint_params& p) {
  const GeneratorModel& m = model_;
  const bool whole = p.width == 0 && p.height == 0 && p.x == 0 && p.y == 0;
  const int64_t width = whole ? m.width : p.width, height = whole ? m.height : p.height;
  if (p.x < 0 || p.y < 0 || width < 1 || height < 1 || p.x > m.width - width || p.y > m.height - height) {
    throw Unusable("The region " + std::to_string(p.x) + "," + std::to_string(p.y) + "," + std::to_string(p.width) + "," +
                   std::to_string(p.height) + " does not lie within the image of " + std::to_string(m.width) + "x" +
                   std::to_string(m.height) + " pixels.");
  }
  if (check_pixels(p.pixels, width, m.channels, "dipengine_renderer_paint", "pixels") != DIPENGINE_OK) {
    throw Unusable(dipengine_last_error());
  }
  const bool units = p.units == DIPENGINE_UNITS_UNIT;
  if (!units && m.values.curve == DIPENGINE_CURVE_UNKNOWN) {
    throw Unusable(DIPENGINE_UNSUPPORTED, m.name + " was fitted through a curve and lacks its inverse, which Python alone computes; "
                                                   "export it again, or paint units.");
  }
  Ort::Value image{nullptr};
  try {
    image = network(p.x, p.y, width, height, whole);
  } catch (const Ort::Exception& error) {
    throw Unusable(m.name + " cannot be painted by ONNX Runtime (" + short_words(error.what()) + ").");
  }
  const auto info = image.GetTensorTypeAndShapeInfo();
  if (info.GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT || info.GetShape() != std::vector<int64_t>{1, m.channels, height, width}) {
    throw Unusable(m.name + " is damaged as a generator (its image has another shape); export it again.");
  }
  const float* planes = image.GetTensorData<float>();
  switch (p.dtype) {
    case DIPENGINE_FLOAT32: return deliver<float>(planes, m.channels, height, width, p.pixels, m.values, units);
    case DIPENGINE_FLOAT64: return deliver<double>(planes, m.channels, height, width, p.pixels, m.values, units);
    case DIPENGINE_UINT8: return deliver<uint8_t>(planes, m.channels, height, width, p.pixels, m.values, false);
    default: return deliver<uint16_t>(planes, m.channels, height, width, p.pixels, m.values, false);
  }
}

}  // namespace dipengine
