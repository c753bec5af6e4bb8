// restore: a deep image prior in a program without Python. PPM or PGM in, the same out; see README.md.
//
// What a host needs of <dipengine/dipengine.hpp>: dipengine::Fit, its params, start, run, deliver. Images are float32 in [0, 1].
#include <dipengine/dipengine.hpp>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "pnm.h"

namespace {

constexpr int kUnusable = 2, kInterrupted = 130;

const char* const kUsage =
    "restore denoise IN OUT, or restore inpaint IN OUT --mask MASK, where IN, OUT and MASK are binary PPM or PGM files\n"
    "  --mask FILE        PGM of the image's size: white = known, black = missing\n"
    "  --sigma S          standard deviation of the noise, in units of the file's samples (unknown)\n"
    "  --iterations N     length of the fit at most (1800 to denoise, 6000 to inpaint)\n"
    "  --stop auto|fixed  by itself (default), or after all iterations\n"
    "  --seed S           the same seed gives the same pixels (0)\n"
    "  --threads N        of the CPU (all); they do not change a pixel\n"
    "  --device D         cpu (default), or cuda: the first GPU, where the library has kernels for it\n"
    "  --precision P      fp32 or bf16 (bf16 where the CPU multiplies it, and on a GPU)\n"
    "  --levels N, --channels N   of the generator (5, 128)\n";

struct Options {
  std::string verb, input, output, mask;
  uint64_t iterations = 0, seed = 0, threads = 0, levels = 0, channels = 0;  // 0: as the recipe or the machine says
  double sigma = 0;
  std::string stop = "auto", precision, device = "cpu";
};

// ---- the command line -----------------------------------------------------------------------------------------------

uint64_t whole_number(const std::string& name, const std::string& text, uint64_t least) {
  char* end = nullptr;
  errno = 0;
  const unsigned long long value = std::strtoull(text.c_str(), &end, 10);
  if (text.empty() || text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || value < least) {
    throw Failure(name + " is '" + text + "'; give a whole number of at least " + std::to_string(least) + ".");
  }
  return value;
}

double positive_number(const std::string& name, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || *end != '\0' || !(value > 0) || !std::isfinite(value)) {
    throw Failure(name + " is '" + text + "'; give a number above 0.");
  }
  return value;
}

std::string one_of(const std::string& name, const std::string& text, const std::string& first, const std::string& second) {
  if (text != first && text != second) throw Failure(name + " is '" + text + "'; it takes " + first + " or " + second + ".");
  return text;
}

Options options_of(int argc, char** argv) {
  Options o;
  std::string* const places[] = {&o.verb, &o.input, &o.output};
  size_t placed = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.rfind("--", 0) != 0) {
      if (placed == 3) throw Failure("'" + word + "' is one word too many; restore --help shows what there is.");
      *places[placed++] = word;
      continue;
    }
    const std::string value = i + 1 < argc ? argv[++i] : "";
    if (value.empty()) throw Failure(word + " needs a value behind it; restore --help shows what there is.");
    if (word == "--mask") o.mask = value;
    else if (word == "--sigma") o.sigma = positive_number(word, value);
    else if (word == "--iterations") o.iterations = whole_number(word, value, 1);
    else if (word == "--seed") o.seed = whole_number(word, value, 0);
    else if (word == "--threads") o.threads = whole_number(word, value, 1);
    else if (word == "--levels") o.levels = whole_number(word, value, 1);
    else if (word == "--channels") o.channels = whole_number(word, value, 1);
    else if (word == "--stop") o.stop = one_of(word, value, "auto", "fixed");
    else if (word == "--device") o.device = one_of(word, value, "cpu", "cuda");
    else if (word == "--precision") o.precision = one_of(word, value, "fp32", "bf16");
    else throw Failure("There is no option " + word + "; restore --help shows what there is.");
  }
  if (placed < 3) throw Failure("A verb, an input and an output are needed; restore --help shows what there is.");
  one_of("The verb", o.verb, "denoise", "inpaint");
  if (o.mask.empty() != (o.verb == "denoise")) {
    throw Failure("To inpaint takes --mask, and nothing else does; it is white where pixels are known.");
  }
  if (o.sigma > 0 && o.verb != "denoise") throw Failure("--sigma is for denoise; leave it out.");
  return o;
}

bool same_file(const std::string& a, const std::string& b) {
  struct stat x, y;
  return stat(a.c_str(), &x) == 0 && stat(b.c_str(), &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

// ---- images and what a fit sees of them -----------------------------------------------------------------------------

std::vector<float> unit(const Pnm& image) {
  std::vector<float> values;
  for (uint16_t sample : image.samples) values.push_back(static_cast<float>(sample / static_cast<double>(image.maximum)));
  return values;
}

// 1 where the mask is at least half white, else 0.
std::vector<float> known_pixels(const std::string& path, const Pnm& image) {
  const Pnm mask = read_pnm(path);
  if (mask.channels != 1) throw Failure(path + " is in colour; give a mask as PGM.");
  if (mask.width != image.width || mask.height != image.height) {
    throw Failure(path + " is not of the image's size; give a mask that is.");
  }
  std::vector<float> known;
  for (uint16_t sample : mask.samples) known.push_back(2 * int64_t{sample} >= mask.maximum ? 1.0f : 0.0f);
  if (std::count(known.begin(), known.end(), 1.0f) == 0) {
    throw Failure(path + " leaves no pixel known; white marks the known ones.");
  }
  return known;
}

// The fit's image in the input's own values, rounded to the nearest; known pixels as they came.
Pnm in_values(const Pnm& input, const std::vector<float>& restored, const std::vector<float>& known) {
  Pnm output = input;
  for (size_t i = 0; i < restored.size(); ++i) {
    if (!known.empty() && known[i / static_cast<size_t>(input.channels)] == 1.0f) continue;
    const double value = std::nearbyint(static_cast<double>(restored[i]) * static_cast<double>(input.maximum));
    output.samples[i] = static_cast<uint16_t>(std::clamp(value, 0.0, static_cast<double>(input.maximum)));
  }
  return output;
}

// ---- the fit --------------------------------------------------------------------------------------------------------

dipengine::Pool pool_of(const Options& o) {
  const uint64_t threads = o.threads > 0 ? o.threads : std::clamp(std::thread::hardware_concurrency(), 1u, 1024u);
  return dipengine::Pool(static_cast<int32_t>(std::min<uint64_t>(threads, INT32_MAX)));
}

dipengine_fit_params params_of(const Options& o, const Pnm& image, dipengine_pool* pool) {
  dipengine_fit_params p = dipengine::Fit::default_params();  // the paper's denoising network with nearest upsampling, stopped by itself
  p.pool = pool;
  if (o.device == "cuda") {
    p.device = DIPENGINE_DEVICE_CUDA;
    p.dtype = DIPENGINE_BFLOAT16;
  }
  p.height = image.height;
  p.width = image.width;
  p.generator.output_channels = static_cast<int32_t>(image.channels);
  if (o.sigma > 0) {
    p.sigma = o.sigma / image.maximum;
    if (p.sigma >= 37.5 / 255) p.perturbation = 1.0 / 20;  // half-way between the noises that the paper perturbs by 1/30 and 1/20
  }
  if (o.verb == "inpaint") {
    p.perturbation = 0.03;
    p.iterations = 6000;
    p.hold_out = 0.1;  // shown to the fit at its end
  }
  if (o.iterations > 0) p.iterations = static_cast<int64_t>(std::min<uint64_t>(o.iterations, INT64_MAX));
  if (o.stop == "fixed") p.stop = DIPENGINE_STOP_FIXED;
  if (!o.precision.empty()) p.dtype = o.precision == "bf16" ? DIPENGINE_BFLOAT16 : DIPENGINE_FLOAT32;
  if (o.levels > 0) p.generator.levels = static_cast<int32_t>(std::min<uint64_t>(o.levels, INT32_MAX));
  for (int i = 0; o.channels > 0 && i < DIPENGINE_MAX_LEVELS; ++i) {
    p.generator.channels_down[i] = p.generator.channels_up[i] = static_cast<int32_t>(std::min<uint64_t>(o.channels, INT32_MAX));
  }
  return p;
}

volatile std::sig_atomic_t interrupted = 0;

int poll(void*) { return interrupted; }

// Some five times a second on a terminal, else every tenth of the way.
struct Progress {
  using Clock = std::chrono::steady_clock;
  const char* verb;
  int64_t ceiling;
  const bool terminal = isatty(STDERR_FILENO) != 0;
  Clock::time_point shown = Clock::now();

  static int report(void* user, const dipengine_fit_progress* now) {
    auto& self = *static_cast<Progress*>(user);
    const int64_t tenth = std::max<int64_t>(1, self.ceiling / 10);
    const bool due = self.terminal ? Clock::now() - self.shown > std::chrono::milliseconds(200) : now->iteration % tenth == 0;
    if (!due) return 0;
    self.shown = Clock::now();
    std::fprintf(stderr, "%s%s: iteration %lld of at most %lld, loss %.5f%s", self.terminal ? "\r" : "", self.verb,
                 static_cast<long long>(now->iteration), static_cast<long long>(self.ceiling), now->loss,
                 self.terminal ? " " : "\n");
    return 0;
  }
};

// The restored image, float32 [height, width, channels]; empty where Ctrl-C came before there was any.
std::vector<float> restored(const Options& o, const Pnm& image, const std::vector<float>& known) {
  const dipengine::Pool pool = pool_of(o);
  const dipengine_fit_params params = params_of(o, image, pool.get());
  dipengine::Fit fit(params);
  fit.start(o.seed, unit(image).data(), known.empty() ? nullptr : known.data());
  std::fprintf(stderr, "%s: %lld x %lld pixels, %s, %d threads, %s, %.0f MiB\n", o.verb.c_str(), static_cast<long long>(image.width),
               static_cast<long long>(image.height), o.device.c_str(), pool.size(),
               params.dtype == DIPENGINE_BFLOAT16 ? "bf16" : "fp32",
               static_cast<double>(fit.arena_bytes()) / 0x1p20);
  Progress progress{o.verb.c_str(), params.iterations};
  dipengine_fit_run_params run = dipengine::Fit::run_params(params.iterations);
  run.report = Progress::report;
  run.poll = poll;
  run.user = &progress;
  fit.run(run);

  const dipengine_fit_progress end = fit.progress();
  if (end.state == DIPENGINE_FIT_FAILED) throw Failure("The fit diverges and going back did not help; try --precision fp32.");
  if (end.iteration == 0) return {};
  std::vector<float> output = fit.deliver();
  std::fprintf(stderr, "%s%s: %lld iterations, image of iteration %lld\n", progress.terminal ? "\n" : "", o.verb.c_str(),
               static_cast<long long>(end.iteration), static_cast<long long>(end.delivered_iteration));
  return output;
}

int run(const Options& o) {
  if (same_file(o.input, o.output) || (!o.mask.empty() && same_file(o.mask, o.output))) {
    throw Failure(o.output + " is an input, too; give the output a name of its own.");
  }
  const Pnm image = read_pnm(o.input);
  const std::vector<float> known = o.mask.empty() ? std::vector<float>() : known_pixels(o.mask, image);
  check_writable(o.output);
  struct sigaction action = {};
  action.sa_handler = [](int) { interrupted = 1; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);  // a second Ctrl-C ends the program at once
  sigaction(SIGINT, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);  // who reads the progress may leave

  const std::vector<float> pixels = restored(o, image, known);
  if (pixels.empty()) {
    std::fprintf(stderr, "Interrupted before the first iteration was done; nothing was written.\n");
    return kInterrupted;
  }
  write_pnm(o.output, in_values(image, pixels, known));
  return interrupted ? kInterrupted : 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 2 && std::string(argv[1]) == "--help") {
    std::fputs(kUsage, stdout);
    return 0;
  }
  try {
    return run(options_of(argc, argv));
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "The image needs more memory than there is; use a smaller one.\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
  }
  return kUnusable;
}
