#include "rendering/model.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "fit/architecture.h"
#include "ops/conv/conv.h"
#include "ops/philox/philox_math.h"
#include "platform/error.h"
#include "rendering/json.h"
#include "rendering/onnx_file.h"
#include "rendering/steps.h"
#include "rendering/unusable.h"

namespace dipengine {
namespace {

constexpr const char* kKey = "dipengine";
constexpr int64_t kFormat = 1, kMostBytes = int64_t{1} << 31, kMostSide = int64_t{1} << 40;
constexpr uint32_t kCodeStream = 0;
constexpr int64_t kFloat = 1, kUint8 = 2, kUint16 = 4;  // TensorProto.DataType

[[noreturn]] void damaged(const std::string& why) { throw std::invalid_argument(why); }

// ---- what the metadata says -----------------------------------------------------------------------------------------

int32_t one_of(const Json& value, const char* first, int32_t first_value, const char* second, int32_t second_value) {
  if (value.string() == first) return first_value;
  if (value.string() == second) return second_value;
  damaged("its generator has the setting " + value.string().substr(0, 40));
}

void whole_numbers(const Json& generator, const char* key, int32_t levels, int64_t least, int32_t* values) {
  const std::vector<Json>& items = generator.at(key).array();
  if (static_cast<int32_t>(items.size()) != levels) damaged(std::string("its ") + key + " has another number of levels");
  for (int32_t i = 0; i < levels; ++i) values[i] = static_cast<int32_t>(items[static_cast<size_t>(i)].whole(least, kMostChannels));
}

Hourglass hourglass_of(const Json& from) {
  if (from.at("kind").string() != "hourglass") damaged("its generator is no hourglass");
  static const char* const known[] = {"kind", "input_depth", "output_channels", "channels_down", "channels_up", "channels_skip",
      "kernel_down", "kernel_up", "upsample", "downsample", "one_by_one_up", "padding", "negative_slope"};
  for (const auto& member : from.members) {
    if (std::find(std::begin(known), std::end(known), member.first) == std::end(known)) {
      damaged("its generator has the unknown setting " + member.first.substr(0, 40));
    }
  }
  Hourglass h{};
  dipengine_generator& g = h.generator;
  const std::vector<Json>& modes = from.at("upsample").array();
  if (modes.empty() || modes.size() > DIPENGINE_MAX_LEVELS) damaged("its generator has too many levels, or none");
  g.levels = static_cast<int32_t>(modes.size());
  g.input_depth = static_cast<int32_t>(from.at("input_depth").whole(1, kMostChannels));
  g.output_channels = static_cast<int32_t>(from.at("output_channels").whole(1, kMostChannels));
  whole_numbers(from, "channels_down", g.levels, 1, g.channels_down);
  whole_numbers(from, "channels_up", g.levels, 1, g.channels_up);
  whole_numbers(from, "channels_skip", g.levels, 0, g.channels_skip);
  whole_numbers(from, "kernel_down", g.levels, 1, g.kernel_down);
  whole_numbers(from, "kernel_up", g.levels, 1, h.kernel_up);
  for (int32_t i = 0; i < g.levels; ++i) {
    g.upsample[i] = one_of(modes[static_cast<size_t>(i)], "nearest", DIPENGINE_UPSAMPLE_NEAREST, "bilinear", DIPENGINE_UPSAMPLE_BILINEAR);
    if (h.kernel_up[i] % 2 == 0 || h.kernel_up[i] > 7) damaged("its kernel_up is none of 1, 3, 5 and 7");
  }
  g.downsample = one_of(from.at("downsample"), "stride", DIPENGINE_DOWNSAMPLE_STRIDE, "average", DIPENGINE_DOWNSAMPLE_AVERAGE);
  g.padding = one_of(from.at("padding"), "reflection", DIPENGINE_PADDING_REFLECTION, "zero", DIPENGINE_PADDING_ZERO);
  g.one_by_one_up = from.at("one_by_one_up").boolean() ? 1 : 0;
  g.negative_slope = from.at("negative_slope").number();
  if (check_generator(g) != DIPENGINE_OK) damaged(dipengine_last_error());
  return h;
}

Span pair_of(const Json& value, int64_t least) {
  if (value.array().size() != 2) damaged("a pair of numbers is none");
  return {value.items[0].whole(least, kMostSide), value.items[1].whole(least, kMostSide)};
}

void read_geometry(const Json& about, GeneratorModel& m) {
  const Span canvas = pair_of(about.at("canvas"), 1), origin = pair_of(about.at("origin"), 0);
  m.canvas_height = canvas.first, m.canvas_width = canvas.last;
  m.top = origin.first, m.left = origin.last;
  m.height = about.at("height").whole(1, kMostSide);
  m.width = about.at("width").whole(1, kMostSide);
  m.channels = about.at("channels").whole(1, kMostChannels);
  const dipengine_generator& g = m.hourglass.generator;
  if (m.canvas_height != canvas_side(g, m.canvas_height) || m.canvas_width != canvas_side(g, m.canvas_width)) {
    damaged(std::to_string(m.canvas_height) + "x" + std::to_string(m.canvas_width) + " is no canvas");
  }
  if (m.height > m.canvas_height - m.top || m.width > m.canvas_width - m.left) damaged("the image does not lie on the canvas");
  if (m.channels != g.output_channels) damaged("its image has other channels than its network");
}

// ---- z --------------------------------------------------------------------------------------------------------------

size_t element_bytes(int64_t type) {
  switch (type) {
    case kFloat: return 4;
    case kUint8: return 1;
    case kUint16: return 2;
    default: damaged("its z is of another type than floats, bytes or 16-bit integers");
  }
}

void read_code(const Json& about, const OnnxFile& file, GeneratorModel& m) {
  if (file.z.size() > 1) damaged("it has z twice");
  if (file.z.empty()) {
    if (about.at("z").string() != "seed") damaged("it lacks its z");
    const Json& code = about.at("code");
    m.code = one_of(code.at("kind"), "noise", 0, "meshgrid", 1) == 0 ? GeneratorModel::Code::noise : GeneratorModel::Code::meshgrid;
    m.seed = code.at("seed").unsigned_whole();
    if (code.at("depth").whole(1, kMostChannels) != m.depth()) damaged("its z has another depth than its network");
    if (m.code == GeneratorModel::Code::meshgrid && m.depth() != 2) damaged("its meshgrid is not of depth 2");
    m.z_type = m.code == GeneratorModel::Code::noise ? kUint8 : kFloat;
    m.z_bytes = element_bytes(m.z_type);
    return;
  }
  const OnnxTensor& z = file.z[0];
  m.code = GeneratorModel::Code::stored;
  m.z_type = z.type;
  m.z_bytes = element_bytes(z.type);
  if (z.dims != std::vector<int64_t>{1, m.depth(), m.canvas_height, m.canvas_width}) damaged("its z has another shape");
  if (static_cast<double>(z.raw_bytes) != z.elements() * static_cast<double>(m.z_bytes)) damaged("its z is cut off");
  m.z.assign(z.raw, z.raw + z.raw_bytes);
}

std::array<uint32_t, 4> block_words(PhiloxSequence sequence, uint64_t block) {
  const PhiloxBlock words = philox_block(sequence, block);
  return {words.w0, words.w1, words.w2, words.w3};
}

// As engine/dipengine/generators/code.py has it: byte i % 16 of block i / 16 for element i = (y W + x) depth + c.
void noise_window(const GeneratorModel& m, Span rows, Span columns, uint8_t* z) {
  const int64_t depth = m.depth(), wide = columns.last - columns.first, plane = (rows.last - rows.first) * wide;
  const PhiloxSequence sequence{m.seed, kCodeStream, 0};
  for (int64_t y = rows.first; y < rows.last; ++y) {
    uint64_t at = static_cast<uint64_t>((y * m.canvas_width + columns.first) * depth), block = at / 16;
    std::array<uint32_t, 4> words = block_words(sequence, block);
    uint8_t* row = z + (y - rows.first) * wide;
    for (int64_t x = 0; x < wide; ++x) {
      for (int64_t c = 0; c < depth; ++c, ++at) {
        if (at / 16 != block) words = block_words(sequence, block = at / 16);
        row[c * plane + x] = static_cast<uint8_t>(words[at % 16 / 4] >> 8 * (at % 4));
      }
    }
  }
}

float ramp(int64_t index, int64_t length) {
  return static_cast<float>(static_cast<double>(index) / static_cast<double>(std::max<int64_t>(1, length - 1)));
}

void meshgrid_window(const GeneratorModel& m, Span rows, Span columns, uint8_t* z) {
  const int64_t wide = columns.last - columns.first, plane = (rows.last - rows.first) * wide;
  for (int64_t y = rows.first, i = 0; y < rows.last; ++y) {
    for (int64_t x = columns.first; x < columns.last; ++x, ++i) {
      const float along = ramp(x, m.canvas_width), down = ramp(y, m.canvas_height);
      std::memcpy(z + 4 * i, &along, 4);
      std::memcpy(z + 4 * (plane + i), &down, 4);
    }
  }
}

// ---- the file -------------------------------------------------------------------------------------------------------

void check_graph(const OnnxFile& file, GeneratorModel& m) {
  std::vector<std::string> inputs = file.inputs;
  std::sort(inputs.begin(), inputs.end());
  const std::string foreign = m.name + " is no generator of dipengine: ";
  if (inputs != std::vector<std::string>{"crop", "z"} || file.outputs != std::vector<std::string>{"image"}) {
    throw Unusable(foreign + "its inputs or outputs are others.");
  }
  if (!file.foreign.empty() || file.functions) {
    throw Unusable(foreign + "it holds " + (file.foreign.empty() ? "functions" : file.foreign) + ".");
  }
  if (file.hides) throw Unusable(foreign + "it keeps tensors in other places than its weights.");
  if (file.weights > 4 * parameter_count(m.hourglass) + 4096) damaged("its weights are more than its network has");
  check_steps(file, m);
}

GeneratorModel from_parts(const std::string& name, const OnnxFile& file, const Json& about) {
  GeneratorModel m{};
  m.name = name;
  m.metadata = file.metadata;
  m.task = about.at("task").string();
  m.precision = about.at("precision").string();
  m.dtype = about.at("dtype").string();
  const Json& psnr = about.at("psnr");
  m.psnr = psnr.kind == Json::Kind::null ? std::numeric_limits<double>::infinity() : psnr.number();
  m.hourglass = hourglass_of(about.at("generator"));
  read_geometry(about, m);
  const double elements = static_cast<double>(m.depth()) * static_cast<double>(m.canvas_height) * static_cast<double>(m.canvas_width);
  check_memory(name + " needs", elements, "render it on a larger machine");
  check_graph(file, m);
  m.values = ValueMap::from(about.at("values"));
  read_code(about, file, m);
  return m;
}

double memory() {
  double total = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGE_SIZE));
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    std::FILE* file = std::fopen(path, "r");
    if (file == nullptr) continue;
    unsigned long long limit = 0;
    if (std::fscanf(file, "%llu", &limit) == 1) total = std::min(total, static_cast<double>(limit));  // or "max"
    std::fclose(file);
  }
  return total;
}

std::string gibibytes(double bytes) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.1f", bytes / 0x1p30);
  return text;
}

}  // namespace

std::vector<uint8_t> GeneratorModel::z_window(Span rows, Span columns) const {
  const int64_t high = rows.last - rows.first, wide = columns.last - columns.first;
  std::vector<uint8_t> part(static_cast<size_t>(depth() * high * wide) * z_bytes);
  if (code == Code::noise) {
    noise_window(*this, rows, columns, part.data());
  } else if (code == Code::meshgrid) {
    meshgrid_window(*this, rows, columns, part.data());
  } else {
    const size_t row_bytes = static_cast<size_t>(wide) * z_bytes;
    uint8_t* out = part.data();
    for (int64_t c = 0; c < depth(); ++c) {
      for (int64_t y = rows.first; y < rows.last; ++y, out += row_bytes) {
        const int64_t from = (c * canvas_height + y) * canvas_width + columns.first;
        std::memcpy(out, z.data() + static_cast<size_t>(from) * z_bytes, row_bytes);
      }
    }
  }
  return part;
}

std::vector<uint8_t> read_model_file(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) throw Unusable(path + " does not exist; check the path.");
    throw Unusable(path + " cannot be read (" + std::strerror(errno) + ").");
  }
  if (!S_ISREG(status.st_mode)) throw Unusable(path + " is no file; give one that `dipengine export` wrote.");
  if (status.st_size >= kMostBytes) {
    throw Unusable(path + " has " + std::to_string(status.st_size) + " bytes; a generator's ONNX file has less than 2^31.");
  }
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) throw Unusable(path + " cannot be read (" + std::strerror(errno) + ").");
  std::vector<uint8_t> bytes(static_cast<size_t>(status.st_size));
  const size_t count = std::fread(bytes.data(), 1, bytes.size(), file);
  std::fclose(file);
  if (count != bytes.size()) throw Unusable(path + " cannot be read to its end; it may be truncated.");
  return bytes;
}

GeneratorModel read_model(const std::string& name, const void* data, size_t bytes) {
  OnnxFile file;
  try {
    file = read_onnx(data, bytes, kKey);
  } catch (const std::invalid_argument& why) {
    throw Unusable(name + " cannot be read as an ONNX model: " + why.what() + "; export it again.");
  }
  if (!file.has_metadata) throw Unusable(name + " is no generator of dipengine; give a file that `dipengine export` wrote.");
  if (file.external) {
    throw Unusable(name + " keeps weights in another file, which dipengine never writes; export the generator again.");
  }
  try {
    const Json about = Json::parse(file.metadata);
    const int64_t format = about.at("format").whole(0, INT64_MAX);
    if (format != kFormat) {
      throw Unusable(name + " has format " + std::to_string(format) + " and this version reads " + std::to_string(kFormat) +
                     "; use dipengine " + about.at("version").string().substr(0, 40) + ", which wrote it.");
    }
    return from_parts(name, file, about);
  } catch (const std::invalid_argument& why) {
    throw Unusable(name + " is damaged as a generator (" + why.what() + "); export it again.");
  }
}

double painting_bytes(const Hourglass& hourglass, int64_t height, int64_t width) {
  const dipengine_generator& g = hourglass.generator;
  int32_t widest = g.input_depth;
  for (int i = 0; i < g.levels; ++i) widest = std::max({widest, g.channels_up[i], g.channels_down[i]});
  return 4.0 * static_cast<double>(height) * static_cast<double>(width) * 2 * widest;
}

void check_memory(const std::string& what, double needed, const std::string& remedy) {
  const double there = memory();
  if (needed <= there) return;
  throw Unusable(DIPENGINE_OUT_OF_RESOURCES, what + " " + gibibytes(needed) + " GiB of memory and this machine has " +
                                                 gibibytes(there) + "; " + remedy + ".");
}

}  // namespace dipengine
