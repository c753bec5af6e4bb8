// The sigmoid's gradient on the emulated device against the CPU's op: the same bits.
#include "ops/activation/activation_cuda.h"
#include "scenarios.h"

using namespace dipengine;
using emulator::Array;

namespace {

bool sigmoid_case(int64_t fits, int64_t height, int64_t width, int64_t channels, const std::vector<int64_t>& sizes) {
  const int64_t pixel = channels + 1, row = width * pixel + 3, fit = height * row + 5;
  check::Numbers numbers(static_cast<uint64_t>(height * width));
  std::vector<float> x = numbers.vector<float>(fits * fit), d_x = numbers.vector<float>(fits * fit),
                     expected = numbers.vector<float>(fits * fit);
  Array<float> device_x(x), device_d(d_x), out(expected);
  const std::vector<uint8_t> active = {1, 0, 1};
  Array<uint8_t> device_active(active);
  Array<int64_t> device_sizes(sizes);
  const auto pixels = [&](float* data) { return dipengine_pixels{data, row, pixel}; };
  const dipengine_sigmoid_backward_cuda_params p{sizeof(p), nullptr, fits, device_active.data(), height, width, channels,
                                                 sizes.empty() ? nullptr : device_sizes.data(), pixels(device_x.data()),
                                                 pixels(device_d.data()), pixels(out.data()), fit, fit, fit};
  if (dipengine_sigmoid_backward_cuda(&p) != DIPENGINE_OK) return emulator::wrong("%s", dipengine_last_error());
  for (int64_t f = 0; f < fits; ++f) {
    if (active[static_cast<size_t>(f)] == 0) continue;
    const size_t k = static_cast<size_t>(2 * f);
    const dipengine_sigmoid_backward_params q{sizeof(q),
                                              nullptr,
                                              sizes.empty() ? height : sizes[k],
                                              sizes.empty() ? width : sizes[k + 1] / channels,
                                              channels,
                                              DIPENGINE_FLOAT32,
                                              pixels(x.data() + f * fit),
                                              pixels(d_x.data() + f * fit),
                                              pixels(expected.data() + f * fit)};
    if (dipengine_sigmoid_backward(&q) != DIPENGINE_OK) return emulator::wrong("the CPU's op: %s", dipengine_last_error());
  }
  return emulator::same_bits("d_raw", out.copy(), expected) && (out.intact() || emulator::wrong("written outside"));
}

}  // namespace

SCENARIO(sigmoid_backward) {
  return sigmoid_case(1, 66000, 1, 1, {}) && sigmoid_case(1, 1, 1, 1, {}) && sigmoid_case(3, 5, 90, 3, {}) && sigmoid_case(3, 5, 90, 3, {4, 270, 1, 3, 2, 15});
}
