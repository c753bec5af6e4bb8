// Blur and its transpose on the emulated device against the defining sums in float64; each fit of three as alone.
#include "guarded.h"
#include "ops/blur/blur_cuda.h"
#include "scenarios.h"

using namespace dipengine;
using emulator::Array;

namespace {

struct Case {
  int64_t height, width, channels, kernel_height, kernel_width, gap;  // gap: unused elements behind each pixel
  int64_t tall() const { return height + kernel_height - 1; }
  int64_t wide() const { return width + kernel_width - 1; }
  int64_t pixel() const { return channels + gap; }
};

struct Fits {
  std::vector<std::vector<float>> kernel, image, d_out;  // of each fit
};

struct Results {
  std::vector<float> out, d_image;  // of all fits
};

// Runs fits [first, first + count); those whose flag is 0 stay all NaN.
bool on_device(const Case& c, const Fits& fits, size_t first, size_t count, const std::vector<uint8_t>& active, Results& results) {
  std::vector<float> kernel, image, d_out;
  for (size_t f = first; f < first + count; ++f) {
    kernel.insert(kernel.end(), fits.kernel[f].begin(), fits.kernel[f].end());
    image.insert(image.end(), fits.image[f].begin(), fits.image[f].end());
    d_out.insert(d_out.end(), fits.d_out[f].begin(), fits.d_out[f].end());
  }
  const int64_t large = static_cast<int64_t>(fits.image[0].size()), small = static_cast<int64_t>(fits.d_out[0].size());
  Array<float> device_kernel(kernel), device_image(image), device_d_out(d_out), out(static_cast<int64_t>(d_out.size())),
      d_image(static_cast<int64_t>(image.size()));
  Array<uint8_t> device_active(active);
  dipengine_blur_cuda_params p{};
  p.struct_size = sizeof(p);
  p.fits = static_cast<int64_t>(count);
  p.active = device_active.data();
  p.height = c.height;
  p.width = c.width;
  p.channels = c.channels;
  p.kernel_height = c.kernel_height;
  p.kernel_width = c.kernel_width;
  p.kernel = device_kernel.data();
  p.kernel_fit_stride = c.kernel_height * c.kernel_width;
  p.image = {device_image.data(), c.wide() * c.pixel(), c.pixel()};
  p.out = {out.data(), c.width * c.pixel(), c.pixel()};
  p.d_out = {device_d_out.data(), c.width * c.pixel(), c.pixel()};
  p.d_image = {d_image.data(), c.wide() * c.pixel(), c.pixel()};
  p.image_fit_stride = p.d_image_fit_stride = large;
  p.out_fit_stride = p.d_out_fit_stride = small;
  if (dipengine_blur_cuda(&p) != DIPENGINE_OK || dipengine_blur_cuda_backward(&p) != DIPENGINE_OK) {
    return emulator::wrong("%s", dipengine_last_error());
  }
  results = {out.copy(), d_image.copy()};
  return (out.intact() && d_image.intact()) || emulator::wrong("written outside");
}

bool near(const char* what, float got, const check::Sum& expected) {
  if (check::near(static_cast<double>(got), expected, 2e-7)) return true;
  return emulator::wrong("%s is %.9g where %.9g is expected", what, static_cast<double>(got), expected.value);
}

bool right(const Case& c, const std::vector<float>& kernel, const std::vector<float>& image, const std::vector<float>& d_out,
           const float* out, const float* d_image) {
  const auto tap = [&](int64_t a, int64_t b) { return static_cast<double>(kernel[static_cast<size_t>(a * c.kernel_width + b)]); };
  const auto at = [&](int64_t y, int64_t x, int64_t width, int64_t channel) {
    return static_cast<size_t>((y * width + x) * c.pixel() + channel);
  };
  for (int64_t y = 0; y < c.tall(); ++y) {
    for (int64_t x = 0; x < c.wide(); ++x) {
      for (int64_t channel = 0; channel < c.pixel(); ++channel) {
        const bool framed = y < c.height && x < c.width;
        if (channel >= c.channels) {
          if (!std::isnan(d_image[at(y, x, c.wide(), channel)])) return emulator::wrong("a gap is written");
          continue;
        }
        check::Sum forward, backward;
        for (int64_t a = 0; a < c.kernel_height; ++a) {
          for (int64_t b = 0; b < c.kernel_width; ++b) {
            if (framed) {
              const size_t from = at(y + c.kernel_height - 1 - a, x + c.kernel_width - 1 - b, c.wide(), channel);
              forward.add(tap(a, b) * static_cast<double>(image[from]));
            }
            const int64_t i = y - (c.kernel_height - 1) + a, j = x - (c.kernel_width - 1) + b;
            if (i >= 0 && i < c.height && j >= 0 && j < c.width) {
              backward.add(tap(a, b) * static_cast<double>(d_out[at(i, j, c.width, channel)]));
            }
          }
        }
        if (framed && !near("out", out[at(y, x, c.width, channel)], forward)) return false;
        if (!near("d_image", d_image[at(y, x, c.wide(), channel)], backward)) return false;
      }
    }
  }
  return true;
}

bool blur_case(const Case& c, size_t count) {
  check::Numbers numbers(static_cast<uint64_t>(c.height * 100 + c.kernel_width));
  Fits fits;
  for (size_t f = 0; f < count; ++f) {
    fits.kernel.push_back(numbers.vector<float>(c.kernel_height * c.kernel_width));
    fits.image.push_back(numbers.vector<float>(c.tall() * c.wide() * c.pixel()));
    fits.d_out.push_back(numbers.vector<float>(c.height * c.width * c.pixel()));
  }
  const std::vector<uint8_t> active = {1, 0, 1};
  Results together;
  if (!on_device(c, fits, 0, count, active, together)) return false;
  for (size_t f = 0; f < count; ++f) {
    const auto own = [&](const std::vector<float>& all) {
      const int64_t each = static_cast<int64_t>(all.size() / count), begin = static_cast<int64_t>(f) * each;
      return std::vector<float>(all.begin() + begin, all.begin() + begin + each);
    };
    const std::vector<float> out = own(together.out), d_image = own(together.d_image);
    Results alone;
    if (!on_device(c, fits, f, 1, {active[f]}, alone)) return false;
    if (!emulator::same_bits("out", out, alone.out) || !emulator::same_bits("d_image", d_image, alone.d_image)) return false;
    if (active[f] == 0) {
      for (float value : out) {
        if (!std::isnan(value)) return emulator::wrong("a fit at rest is written");
      }
      continue;
    }
    if (!right(c, fits.kernel[f], fits.image[f], fits.d_out[f], out.data(), d_image.data())) return false;
  }
  return true;
}

}  // namespace

SCENARIO(blur_of_small_images) {
  return blur_case({1, 1, 1, 1, 1, 0}, 1) && blur_case({1, 1, 3, 9, 4, 0}, 1) && blur_case({3, 5, 2, 2, 2, 1}, 1);
}
SCENARIO(blur_by_kernels_of_several_patches) {
  return blur_case({4, 9, 3, 17, 3, 0}, 1) && blur_case({3, 4, 30, 2, 9, 0}, 1) && blur_case({2, 3, 110, 1, 3, 0}, 1);
}
SCENARIO(blur_of_several_tiles) { return blur_case({35, 23, 3, 5, 7, 2}, 1); }
SCENARIO(blur_of_three_fits) { return blur_case({9, 11, 3, 5, 3, 0}, 3); }
