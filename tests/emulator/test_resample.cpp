// Downsampling and its transpose on the emulated device against the CPU's op: the same bits.
#include "guarded.h"
#include "ops/resample/resample_cuda.h"
#include "scenarios.h"

using namespace dipengine;
using emulator::Array;

namespace {

struct Case {
  int64_t fits, height, width, channels, factor, before, taps, gap;  // gap: unused elements behind each pixel
};

bool resample_case(const Case& c) {
  const int64_t pixel = c.channels + c.gap, out_height = (c.height + c.factor - 1) / c.factor,
                out_width = (c.width + c.factor - 1) / c.factor;
  const int64_t large = c.height * c.width * pixel + 3, small = out_height * out_width * pixel + 5;
  check::Numbers numbers(static_cast<uint64_t>(large + c.taps));
  std::vector<float> taps = numbers.vector<float>(c.taps), image = numbers.vector<float>(large * c.fits),
                     d_out = numbers.vector<float>(small * c.fits);
  const std::vector<double> exact_taps(taps.begin(), taps.end());
  const std::vector<uint8_t> active = {1, 0, 1};
  const float untouched = float_from_bits(0xffffffffu);
  std::vector<float> expected(static_cast<size_t>(small * c.fits), untouched),
      expected_d(static_cast<size_t>(large * c.fits), untouched);
  const auto pixels = [&](float* data, int64_t width) { return dipengine_pixels{data, width * pixel, pixel}; };
  for (int64_t fit = 0; fit < c.fits; ++fit) {
    if (active[static_cast<size_t>(fit)] == 0) continue;
    dipengine_downsample_params p{};
    p.struct_size = sizeof(p);
    p.height = c.height;
    p.width = c.width;
    p.channels = c.channels;
    p.factor = c.factor;
    p.before = c.before;
    p.taps_count = c.taps;
    p.taps = exact_taps.data();
    p.dtype = DIPENGINE_FLOAT32;
    p.image = pixels(image.data() + fit * large, c.width);
    p.out = pixels(expected.data() + fit * small, out_width);
    p.d_out = pixels(d_out.data() + fit * small, out_width);
    p.d_image = pixels(expected_d.data() + fit * large, c.width);
    dipengine_downsample_workspace(&p, &p.workspace_bytes);
    check::Guarded<char> workspace(static_cast<int64_t>(p.workspace_bytes));
    p.workspace = workspace.data();
    if (dipengine_downsample(&p) != DIPENGINE_OK || dipengine_downsample_backward(&p) != DIPENGINE_OK) {
      return emulator::wrong("the CPU's downsample: %s", dipengine_last_error());
    }
  }

  Array<float> device_taps(taps), device_image(image), device_d_out(d_out), out(small * c.fits), d_image(large * c.fits);
  Array<uint8_t> device_active(active);
  dipengine_downsample_cuda_params p{};
  p.struct_size = sizeof(p);
  p.fits = c.fits;
  p.active = device_active.data();
  p.height = c.height;
  p.width = c.width;
  p.channels = c.channels;
  p.factor = c.factor;
  p.before = c.before;
  p.taps_count = c.taps;
  p.taps = device_taps.data();
  p.image = pixels(device_image.data(), c.width);
  p.out = pixels(out.data(), out_width);
  p.d_out = pixels(device_d_out.data(), out_width);
  p.d_image = pixels(d_image.data(), c.width);
  p.image_fit_stride = p.d_image_fit_stride = large;
  p.out_fit_stride = p.d_out_fit_stride = small;
  if (dipengine_downsample_cuda_workspace(&p, &p.workspace_bytes) != DIPENGINE_OK) {
    return emulator::wrong("%s", dipengine_last_error());
  }
  Array<float> workspace(static_cast<int64_t>(p.workspace_bytes / sizeof(float)));
  p.workspace = workspace.data();
  if (dipengine_downsample_cuda(&p) != DIPENGINE_OK || dipengine_downsample_cuda_backward(&p) != DIPENGINE_OK) {
    return emulator::wrong("%s", dipengine_last_error());
  }
  return emulator::same_bits("out", out.copy(), expected) && emulator::same_bits("d_image", d_image.copy(), expected_d) &&
         ((out.intact() && d_image.intact() && workspace.intact()) || emulator::wrong("written outside"));
}

}  // namespace

SCENARIO(downsample_of_small_images) {
  return resample_case({1, 1, 1, 1, 1, 0, 1, 0}) && resample_case({1, 1, 1, 3, 4, 6, 16, 0}) &&
         resample_case({1, 1, 5, 2, 8, 20, 49, 1}) && resample_case({1, 9, 7, 3, 3, -1, 2, 0}) &&
         resample_case({1, 3, 4, 1, 2, 9, 4, 0});
}
SCENARIO(downsample_of_long_rows) { return resample_case({1, 3, 301, 3, 2, 3, 9, 2}); }
SCENARIO(downsample_of_three_fits) {
  return resample_case({3, 13, 22, 3, 4, 6, 16, 0}) && resample_case({3, 6, 9, 4, 2, 4, 9, 3});
}
