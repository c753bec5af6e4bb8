// render: a finished generator painted in a program without Python. ONNX in, PPM or PGM out; see README.md.
//
// What a host needs of <dipengine/dipengine.hpp>: dipengine::Renderer, its info, its pixels.
#include <dipengine/dipengine.hpp>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "pnm.h"

namespace {

constexpr int kUnusable = 2;

const char* const kUsage =
    "render GENERATOR.onnx OUT --runtime LIBRARY, where `dipengine export` wrote the first and OUT is a PPM or PGM file\n"
    "  --runtime FILE       whole path of ONNX Runtime's library, libonnxruntime.so.1*\n"
    "  --provider P         auto (default), cpu, cuda or tensorrt\n"
    "  --strict yes|no      fail where the provider cannot run, instead of painting on another (no)\n"
    "  --threads N          of the CPU (all)\n"
    "  --region X,Y,W,H     of the image, pixels (all of it)\n";

struct Options {
  std::string input, output, runtime, provider = "auto";
  bool strict = false;
  int32_t threads = 0;
  dipengine::Region region;
};

dipengine::Region region_of(const std::string& text) {
  long long n[4];
  char rest = 0;
  if (std::sscanf(text.c_str(), "%lld,%lld,%lld,%lld%c", &n[0], &n[1], &n[2], &n[3], &rest) != 4 || n[2] < 1 || n[3] < 1) {
    throw Failure("--region is '" + text + "'; give x,y,width,height in pixels.");
  }
  return {n[0], n[1], n[2], n[3]};
}

int32_t threads_of(const std::string& text) {
  char* end = nullptr;
  errno = 0;
  const long value = std::strtol(text.c_str(), &end, 10);
  if (*end != '\0' || errno != 0 || value < 1 || value > 1024) throw Failure("--threads is '" + text + "'; give 1 to 1024.");
  return static_cast<int32_t>(value);
}

Options options_of(int argc, char** argv) {
  Options o;
  std::string* const places[] = {&o.input, &o.output};
  size_t placed = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.rfind("--", 0) != 0) {
      if (placed == 2) throw Failure("'" + word + "' is one word too many; render --help shows what there is.");
      *places[placed++] = word;
      continue;
    }
    const std::string value = i + 1 < argc ? argv[++i] : "";
    if (value.empty()) throw Failure(word + " needs a value behind it; render --help shows what there is.");
    if (word == "--runtime") o.runtime = value;
    else if (word == "--provider") o.provider = value;
    else if (word == "--strict" && (value == "yes" || value == "no")) o.strict = value == "yes";
    else if (word == "--threads") o.threads = threads_of(value);
    else if (word == "--region") o.region = region_of(value);
    else throw Failure("There is no option " + word + " " + value + "; render --help shows what there is.");
  }
  if (placed < 2 || o.runtime.empty()) throw Failure("An input, an output and --runtime are needed; render --help shows what there is.");
  return o;
}

dipengine::Renderer renderer_of(const Options& o) {
  auto params = dipengine::Renderer::default_params();
  params.path = o.input.c_str();
  params.runtime = o.runtime.c_str();
  params.provider = o.provider.c_str();
  params.strict = o.strict ? 1 : 0;
  params.threads = o.threads;
  return dipengine::Renderer(params);
}

// Bytes and 16-bit integers as they are; another type, or a curve without its inverse, as the place between 0 and 1 in 16 bits.
Pnm painted(const dipengine::Renderer& renderer, const dipengine_renderer_info& about, const dipengine::Region& region) {
  Pnm image;
  image.width = region.width > 0 ? region.width : about.width;
  image.height = region.height > 0 ? region.height : about.height;
  image.channels = about.channels;
  const bool in_data_units = about.curve != DIPENGINE_CURVE_UNKNOWN;
  image.maximum = in_data_units && about.dtype == DIPENGINE_UINT8 ? 255 : 65535;
  if (in_data_units && (about.dtype == DIPENGINE_UINT8 || about.dtype == DIPENGINE_UINT16)) {
    image.samples = renderer.image<uint16_t>(region);
    for (uint16_t& sample : image.samples) sample = std::min(sample, static_cast<uint16_t>(image.maximum));
    return image;
  }
  for (float unit : renderer.units(region)) image.samples.push_back(static_cast<uint16_t>(std::lrint(double{unit} * 65535)));
  return image;
}

void run(const Options& o) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const dipengine::Renderer renderer = renderer_of(o);
  const dipengine_renderer_info about = renderer.info();
  if (about.channels != 1 && about.channels != 3) throw Failure(o.input + " paints neither a grey nor a colour image.");
  check_writable(o.output);
  const Pnm image = painted(renderer, about, o.region);
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
  write_pnm(o.output, image);
  if (*about.notice != '\0') std::fprintf(stderr, "%s\n", about.notice);
  std::fprintf(stderr, "%s: %lld x %lld pixels on %s (ONNX Runtime %s), %.3f s\n", about.task, static_cast<long long>(image.width),
               static_cast<long long>(image.height), about.provider, about.runtime_version, seconds);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::string(argv[1]) == "--help") {
    std::fputs(kUsage, stdout);
    return 0;
  }
  try {
    run(options_of(argc, argv));
    return 0;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "The image needs more memory than there is; paint a region of it.\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return kUnusable;
}
