// The sensor's data term on the emulated device against the CPU's op: gradients bit by bit, sums to float64's rounding; each
// fit of three as alone.
#include "guarded.h"
#include "ops/deviance/deviance_cuda.h"
#include "scenarios.h"

using namespace dipengine;
using emulator::Array;

namespace {

constexpr double kFloor = 0.1, kGradScale = 3;

struct Case {
  int64_t height, width, channels, gap;  // gap: unused elements behind each pixel
  bool mask, gradient, discrepancy;
  int64_t pixel() const { return channels + gap; }
};

struct Fit {
  std::vector<float> image, target, mask;
  double scale, shift, read_variance, normaliser;
};

struct Results {
  std::vector<float> d_image;  // of all fits
  std::vector<double> loss, discrepancy;
};

bool on_device(const Case& c, const std::vector<Fit>& fits, const std::vector<uint8_t>& active, Results& results) {
  std::vector<float> image, target, mask;
  std::vector<double> scale, shift, read_variance, normaliser;
  for (const Fit& fit : fits) {
    image.insert(image.end(), fit.image.begin(), fit.image.end());
    target.insert(target.end(), fit.target.begin(), fit.target.end());
    mask.insert(mask.end(), fit.mask.begin(), fit.mask.end());
    scale.push_back(fit.scale);
    shift.push_back(fit.shift);
    read_variance.push_back(fit.read_variance);
    normaliser.push_back(fit.normaliser);
  }
  const int64_t count = static_cast<int64_t>(fits.size()), all = static_cast<int64_t>(image.size());
  Array<float> device_image(image), device_target(target), device_mask(mask), d_image(all);
  Array<double> device_scale(scale), device_shift(shift), device_variance(read_variance), device_normaliser(normaliser),
      loss(count), discrepancy(count);
  Array<uint8_t> device_active(active);
  dipengine_deviance_cuda_params p{};
  p.struct_size = sizeof(p);
  p.fits = count;
  p.active = device_active.data();
  p.height = c.height;
  p.width = c.width;
  p.channels = c.channels;
  p.image = {device_image.data(), c.width * c.pixel(), c.pixel()};
  p.target = {device_target.data(), c.width * c.pixel(), c.pixel()};
  if (c.mask) p.mask = {device_mask.data(), c.width, 1};
  if (c.gradient) p.d_image = {d_image.data(), c.width * c.pixel(), c.pixel()};
  p.image_fit_stride = p.target_fit_stride = p.d_image_fit_stride = all / count;
  p.mask_fit_stride = c.height * c.width;
  p.scale = device_scale.data();
  p.shift = device_shift.data();
  p.read_variance = device_variance.data();
  p.normaliser = device_normaliser.data();
  p.floor = kFloor;
  p.grad_scale = kGradScale;
  p.loss = loss.data();
  if (c.discrepancy) p.discrepancy = discrepancy.data();
  if (dipengine_deviance_cuda_workspace(&p, &p.workspace_bytes) != DIPENGINE_OK) {
    return emulator::wrong("%s", dipengine_last_error());
  }
  Array<double> workspace(static_cast<int64_t>(p.workspace_bytes / sizeof(double)));
  p.workspace = workspace.data();
  if (dipengine_deviance_cuda(&p) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  results = {d_image.copy(), loss.copy(), discrepancy.copy()};
  return (d_image.intact() && workspace.intact() && loss.intact() && discrepancy.intact()) || emulator::wrong("written outside");
}

bool close(const char* what, double got, double expected) {
  if (std::fabs(got - expected) <= 1e-13 * std::fabs(expected)) return true;
  return emulator::wrong("%s is %.17g where %.17g is expected", what, got, expected);
}

// Fit `f` of `results` against the CPU's op.
bool right(const Case& c, Fit fit, const Results& results, size_t f) {
  std::vector<float> d_image(fit.image.size(), float_from_bits(0xffffffffu));
  double loss = 0, discrepancy = 0;
  dipengine_deviance_params p{};
  p.struct_size = sizeof(p);
  p.height = c.height;
  p.width = c.width;
  p.channels = c.channels;
  p.dtype = DIPENGINE_FLOAT32;
  p.image = {fit.image.data(), c.width * c.pixel(), c.pixel()};
  p.target = {fit.target.data(), c.width * c.pixel(), c.pixel()};
  if (c.mask) p.mask = {fit.mask.data(), c.width, 1};
  if (c.gradient) p.d_image = {d_image.data(), c.width * c.pixel(), c.pixel()};
  p.scale = fit.scale;
  p.shift = fit.shift;
  p.read_variance = fit.read_variance;
  p.floor = kFloor;
  p.normaliser = fit.normaliser;
  p.grad_scale = kGradScale;
  p.loss = &loss;
  p.discrepancy = &discrepancy;
  dipengine_deviance_workspace(&p, &p.workspace_bytes);
  check::Guarded<char> workspace(static_cast<int64_t>(p.workspace_bytes));
  p.workspace = workspace.data();
  if (dipengine_deviance(&p) != DIPENGINE_OK) return emulator::wrong("the CPU's deviance: %s", dipengine_last_error());
  const auto begin = results.d_image.begin() + static_cast<int64_t>(f * d_image.size());
  return close("loss", results.loss[f], loss) && (!c.discrepancy || close("discrepancy", results.discrepancy[f], discrepancy)) &&
         emulator::same_bits("d_image", std::vector<float>(begin, begin + static_cast<int64_t>(d_image.size())), d_image);
}

bool deviance_case(const Case& c, size_t count) {
  check::Numbers numbers(static_cast<uint64_t>(c.height * c.width + c.gap));
  const int64_t elements = c.height * c.width * c.pixel();
  std::vector<Fit> fits;
  for (size_t f = 0; f < count; ++f) {
    Fit fit{numbers.vector<float>(elements, 0.5), numbers.vector<float>(elements, 0.5), numbers.vector<float>(c.height * c.width),
            40.0 + 700.0 * static_cast<double>(f), -4, f == 0 ? 2.25 : 0.0, 7.5 + static_cast<double>(f)};
    for (auto* values : {&fit.image, &fit.target}) for (float& x : *values) x += 0.5f;
    for (float& m : fit.mask) m = m > -0.4f ? 1.0f : 0.0f;
    fit.mask[0] = 1;
    fits.push_back(fit);
  }
  const std::vector<uint8_t> active = {1, 0, 1};
  Results together;
  if (!on_device(c, fits, active, together)) return false;
  for (size_t f = 0; f < count; ++f) {
    const bool written = together.loss[f] == together.loss[f];
    if (written != (active[f] != 0)) return emulator::wrong("a fit at rest is written, or one that is not is left out");
    if (!written) continue;
    Results alone;
    if (!right(c, fits[f], together, f) || !on_device(c, {fits[f]}, {1}, alone)) return false;
    if (std::memcmp(&alone.loss[0], &together.loss[f], sizeof(double)) != 0 ||
        std::memcmp(&alone.discrepancy[0], &together.discrepancy[f], sizeof(double)) != 0) {
      return emulator::wrong("a fit alone has other bits than among others");
    }
  }
  return true;
}

}  // namespace

SCENARIO(deviance_of_small_images) {
  return deviance_case({1, 1, 1, 0, false, true, true}, 1) && deviance_case({7, 11, 3, 1, true, true, true}, 1) &&
         deviance_case({5, 6, 2, 0, true, false, false}, 1);
}
SCENARIO(deviance_of_long_rows) { return deviance_case({3, 1400, 3, 0, false, true, true}, 1); }
SCENARIO(deviance_of_three_fits) { return deviance_case({40, 50, 3, 0, true, true, true}, 3); }
